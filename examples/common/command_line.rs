//! A test of a command line.

use clap::Parser;
use clap::error::ErrorKind;

/// Fails if arguments contradict each other, or if one of the lines is accepted or has an unknown argument.
pub fn assert_refused<A: Parser>(lines: &[&str]) {
    A::command().debug_assert();
    for line in lines {
        let words = ["program"].into_iter().chain(line.split_whitespace());
        match A::try_parse_from(words) {
            Ok(_) => panic!("{line:?} is taken"),
            Err(error) => assert_ne!(error.kind(), ErrorKind::UnknownArgument, "{line:?}"),
        }
    }
}

#[derive(Parser)]
struct Sizes {
    #[arg(long)]
    size: u64,
}

#[test]
fn a_bad_value_is_refused() {
    assert_refused::<Sizes>(&["--size=0.5", "--size", ""]);
    assert_eq!(Sizes::parse_from(["program", "--size=1"]).size, 1);
}

#[test]
#[should_panic(expected = "is taken")]
fn a_good_value_is_no_bad_one() {
    assert_refused::<Sizes>(&["--size=1"]);
}

#[test]
#[should_panic(expected = "--sice=x")]
fn a_misspelt_argument_is_no_bad_value() {
    assert_refused::<Sizes>(&["--sice=x"]);
}
