//! The tool `adamod`: what adapters can do, replaying recorded gradients, and measuring the step.

mod adapter;
mod bench;
mod info;
mod replay;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fused AdaMod, Adam and SGD optimizer steps on the GPU: information, checks, measurements.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists adapters, their limits and features, and which modes run on them.
    Info(info::Arguments),
    /// Runs recorded gradients through the optimizer and compares with what is expected.
    Replay(replay::Arguments),
    /// Measures the step: GPU time beside a copy kernel of the same run, and host time apart.
    Bench(bench::Arguments),
}

/// What a subcommand ends with, besides success.
#[derive(Debug)]
enum Failure {
    /// A check that the subcommand makes did not hold: exit code 1.
    CheckFailed,
    /// The input or the command line is wrong: exit code 2.
    Input(anyhow::Error),
    /// The machine could not do it: exit code 3.
    Machine(anyhow::Error),
}

/// Standard output could not be written.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Machine(anyhow::Error::new(error).context("the report could not be printed"))
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Info(arguments) => info::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::CheckFailed) => ExitCode::from(1),
        Err(Failure::Input(error)) => report(&error, 2),
        Err(Failure::Machine(error)) => report(&error, 3),
    }
}

fn report(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}
