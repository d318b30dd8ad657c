//! How a subcommand fails, and with which exit code.

use std::process::ExitCode;

/// Why a subcommand did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// A check that the subcommand makes failed: exit code 1. The subcommand has printed the details.
    CheckFailed,
    /// The input or the command line is wrong: exit code 2.
    Input(anyhow::Error),
    /// The machine cannot do it: exit code 3.
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
        eprintln!("error: {error:#}");
        ExitCode::from(code)
    }
}

/// Standard output cannot be written.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Machine(anyhow::Error::new(error).context("the report cannot be printed"))
    }
}
