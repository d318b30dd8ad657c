//! How a subcommand fails, and with which exit code.

use std::io::Write as _;
use std::process::ExitCode;

/// Why a subcommand did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// A check that the subcommand makes failed: exit code 1. The report has the details, or [`note`] has printed them.
    CheckFailed,
    /// The input or the command line is wrong, or a file that it names cannot be read or written: exit code 2.
    Input(anyhow::Error),
    /// The machine cannot do it, or the report cannot be printed: exit code 3.
    Machine(anyhow::Error),
}

impl Failure {
    /// Prints the error, if it was not printed yet, and returns the exit code.
    pub fn report(&self) -> ExitCode {
        let (error, code) = match self {
            Self::CheckFailed => return ExitCode::from(1),
            Self::Input(error) => (error, 2),
            Self::Machine(error) => (error, 3),
        };
        note(format_args!("error: {error:#}"));
        ExitCode::from(code)
    }
}

/// Prints a line to standard error. If that cannot be written, the exit code alone says how the tool ended.
pub fn note(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Standard output cannot be written.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Machine(anyhow::Error::new(error).context("the report cannot be printed"))
    }
}
