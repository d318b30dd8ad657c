//! The experiments of the AdaMod paper, small enough for one machine: translation, image classification, language modelling.
//! docs/experiments.md says what came out.

mod classification;
mod common;
#[path = "../../../../digits/data.rs"]
mod digits;
mod language_model;
mod learner;
mod method;
mod numbers;
mod plots;
mod report;
mod statistics;
mod tokenizer;
mod translation;
mod weights;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The experiments of the AdaMod paper in small
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    experiment: Experiment,
}

#[derive(Subcommand)]
enum Experiment {
    Translation(translation::Arguments),
    Classification(classification::Arguments),
    LanguageModel(language_model::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().experiment {
        Experiment::Translation(arguments) => translation::run(&arguments),
        Experiment::Classification(arguments) => classification::run(&arguments),
        Experiment::LanguageModel(arguments) => language_model::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn bad_arguments_are_refused() {
        for bad in [
            "translation --source=x",
            "translation --target=x",
            "translation --learning-rates=0",
            "translation --learning-rates=0.1,nan",
            "translation --beta3=1",
            "translation --steps=0",
            "translation --seeds=0",
            "translation --batch=0",
            "",
        ] {
            let words = ["experiments"].into_iter().chain(bad.split_whitespace());
            assert!(Arguments::try_parse_from(words).is_err(), "{bad}");
        }
    }
}
