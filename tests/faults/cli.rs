//! Invalid command lines, and machines that cannot run the tool: exit code 2 or 3, a message that names the argument, no panic.

use std::process::{Command, Output};

use crate::errors::check_text;
use crate::injection::{Fault, in_child};

fn adamod(arguments: &[&str]) -> Output {
    Command::new(crate::common::package::tool()).args(arguments).output().unwrap()
}

#[test]
fn command_lines_that_cannot_be_are_refused_by_name() {
    let trace = "tests/traces/paper-coupled.safetensors";
    let long = "x".repeat(100_000);
    for (arguments, named) in [
        (vec![], "Usage"),
        (vec!["train"], "train"),
        (vec!["--frobnicate"], "--frobnicate"),
        (vec!["replay"], "<TRACE>"),
        (vec!["replay", trace, "more"], "more"),
        (vec!["replay", trace, "--backend"], "--backend"),
        (vec!["replay", trace, "--backend", ""], "--backend"),
        (vec!["replay", trace, "--state", "F32 "], "--state"),
        (vec!["replay", trace, "--state", "f32", "--state", "q8"], "--state"),
        (vec!["replay", trace, "--output"], "--output"),
        (vec!["replay", trace, "--json=yes"], "--json"),
        (vec!["replay", ""], "<TRACE>"),
        (vec!["replay", "."], "trace"),
        (vec!["replay", "\u{0}nul"], ""),
        (vec!["replay", &long], "trace"),
        (vec!["replay", "/dev/null"], "/dev/null"),
        (vec!["info", "--adapter", "no such adapter"], "no such adapter"),
        (vec!["bench", "--suite", "speed"], "speed"),
        (vec!["bench", "--max-elements", "0"], "--max-elements"),
        (vec!["bench", "--max-elements", "-1"], "-1"),
        (vec!["bench", "--max-elements", "18446744073709551616"], "--max-elements"),
        (vec!["bench", "--max-elements", "1e9"], "--max-elements"),
        (vec!["bench", "--rounds", "0"], "--rounds"),
        (vec!["bench", "--seconds", "nan"], "--seconds"),
        (vec!["bench", "--seconds", "inf"], "--seconds"),
        (vec!["bench", "--seconds", "-1"], "-1"),
        (vec!["bench", "--seconds", "0"], "--seconds"),
        (vec!["bench", "--timing", "sundial"], "--timing"),
    ] {
        if arguments.iter().any(|argument| argument.contains('\0')) {
            // An argument cannot contain a null character on any system.
            let spawned = Command::new(crate::common::package::tool()).args(&arguments).output();
            assert!(spawned.is_err());
            continue;
        }
        let output = adamod(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        let shown: Vec<_> = arguments.iter().map(|argument| &argument[..argument.len().min(40)]).collect();
        assert_eq!(output.status.code(), Some(2), "{shown:?}: {text}");
        assert!(text.contains(named), "{shown:?}: {text}");
        assert!(!text.contains("panicked"), "{shown:?}: {text}");
        // Hints and the usage may follow.
        check_text(text.lines().next().unwrap_or_default()).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn arguments_that_are_not_utf8_are_refused() {
    use std::os::unix::ffi::OsStrExt as _;
    let bad = std::ffi::OsStr::from_bytes(&[0x66, 0xff, 0xfe]);
    for before in [vec!["replay"], vec!["replay", "x", "--state"], vec!["bench", "--suite"], vec![]] {
        let output = Command::new(crate::common::package::tool()).args(before).arg(bad).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn output_that_cannot_be_written_fails_with_2_and_a_machine_without_adapters_with_3() {
    let trace = "tests/traces/paper-coupled.safetensors";
    let output = adamod(&["replay", trace, "--backend", "cpu", "--output", "/no/such/folder/out"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty() && text.contains("/no/such/folder/out"), "{text}");
    check_text(text.trim()).unwrap();
    // The files of these drivers do not exist.
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(crate::common::package::tool())
        .args(["replay", trace])
        .env("VK_DRIVER_FILES", folder.path().join("none.json"))
        .env("VK_ICD_FILENAMES", folder.path().join("none.json"))
        .env("WGPU_BACKEND", "vulkan")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("no GPU adapter"), "{text}");
    check_text(text.trim()).unwrap();
}

/// `adamod info | true`
#[cfg(unix)]
#[test]
fn a_reader_that_has_gone_is_an_error_and_not_a_panic() {
    let trace = "tests/traces/paper-coupled.safetensors";
    for arguments in [vec!["info"], vec!["info", "--json"], vec!["replay", trace, "--backend", "cpu"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(crate::common::package::tool())
            .args(&arguments)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

/// A disk that is full. Exit code 3 where the report cannot be printed, 2 where a file that the command line names cannot be written.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_of_the_report_or_of_the_file_and_not_a_panic() {
    let trace = "tests/traces/paper-coupled.safetensors";
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let bench = ["bench", "--suite", "host", "--rounds", "1", "--seconds", "0.01"];
    let with = |before: &[&'static str], more: &[&'static str]| [before, more].concat();
    for arguments in [
        vec!["info"],
        vec!["info", "--json"],
        vec!["replay", trace, "--backend", "cpu"],
        vec!["replay", trace, "--backend", "cpu", "--json"],
        with(&bench, &[]),
        with(&bench, &["--json"]),
        vec!["--help"],
        vec!["--version"],
        vec!["replay", "--help"],
    ] {
        let output = Command::new(crate::common::package::tool())
            .args(&arguments)
            .stdout(full())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {text}");
        assert!(text.contains("the report cannot be printed"), "{arguments:?}: {text}");
        // Drivers may say something, too.
        check_text(text.lines().next_back().unwrap_or_default()).unwrap();
    }
    for (arguments, option) in [
        (vec!["replay", trace, "--backend", "cpu", "--output", "/dev/full"], "--output"),
        (with(&bench, &["--json-file", "/dev/full"]), "--json-file"),
        (
            vec![
                "bench",
                "--suite",
                "roofline",
                "--max-elements",
                "1024",
                "--rounds",
                "1",
                "--plot",
                "/dev/full",
            ],
            "--plot",
        ),
    ] {
        let output = adamod(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(&format!("{option}: /dev/full cannot be written")), "{text}");
        // Drivers may say something, too.
        check_text(text.lines().next_back().unwrap_or_default()).unwrap();
    }
    // Errors that nobody can read: the exit code stays.
    for (arguments, code) in [(vec!["replay", "/no/such/trace"], 2), (vec!["--frobnicate"], 2)] {
        let output = Command::new(crate::common::package::tool())
            .args(&arguments)
            .stdout(std::process::Stdio::null())
            .stderr(full())
            .status()
            .unwrap();
        assert_eq!(output.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn outputs_that_are_one_file_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let (old, hard) = (path("old"), path("hard"));
    std::fs::write(&old, "old").unwrap();
    std::fs::hard_link(&old, &hard).unwrap();
    let mut pairs = vec![
        (path("new"), path("new")),
        (path("new"), path("sub/../new")),
        (path("new"), path("./new")),
        (old.clone(), hard),
        (old.clone(), old.clone()),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("old", path("link")).unwrap();
        std::os::unix::fs::symlink("new", path("to-new")).unwrap();
        std::os::unix::fs::symlink(folder.path(), path("sub/up")).unwrap();
        pairs.extend([
            (old.clone(), path("link")),
            (path("to-new"), path("new")),
            (path("new"), path("sub/up/to-new")),
        ]);
    }
    for (one, other) in pairs {
        let output = adamod(&["bench", "--plot", &one, "--json-file", &other]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{one} {other}: {text}");
        assert!(text.contains("--json-file") && text.contains("the same file as --plot"), "{text}");
        check_text(text.trim()).unwrap();
        assert_eq!(std::fs::read(&old).unwrap(), b"old");
        assert!(!folder.path().join("new").exists(), "{one} {other}");
    }
    // The second file cannot be opened, so the first one is not left behind.
    let output = adamod(&["bench", "--plot", &path("new"), "--json-file", "/no/such/folder/file"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!folder.path().join("new").exists());
}

/// Which call creates something of the second size depends on the driver, so several are tried. Where wgpu itself gives up, nothing is shown.
#[test]
fn a_full_device_ends_the_roofline_with_a_sentence() {
    in_child("cli::a_full_device_ends_the_roofline_with_a_sentence", |layer| {
        let ended = (0..12).find_map(|attempt| {
            layer.arm(Fault::OutOfMemory(200 + 20 * attempt));
            let output =
                adamod(&["bench", "--suite", "roofline", "--rounds", "1", "--seconds", "0.01", "--json"]);
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            let sentence = report["left_out"][0].as_str()?.to_owned();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            Some((output.status, report, sentence, text))
        });
        let (status, report, sentence, text) = ended.expect("a size does not fit");
        assert!(status.success() && text.contains(&sentence), "{text}");
        let parameters: Vec<_> = report["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|result| result["parameters"].as_u64().unwrap())
            .collect();
        // Powers of two, and then what fits below the first one that does not.
        let (last, powers) = parameters.split_last().unwrap();
        assert!(!powers.is_empty() && (10..).zip(powers).all(|(power, &size)| size == 1 << power), "{text}");
        assert_eq!(*last, (2 << (9 + powers.len())) / 8 * 7);
        let expected = format!("roofline: 2^{} does not fit on the device: ", 10 + powers.len());
        assert!(sentence.starts_with(&expected) && sentence.contains("Out of Memory"), "{sentence}");
    });
}
