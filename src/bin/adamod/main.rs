//! The tool `adamod`: lists what adapters can do, replays recorded gradients, and measures the step.

mod adapter;
mod bench;
mod failure;
mod info;
mod names;
mod output;
mod replay;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use failure::Failure;

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
    /// Runs recorded gradients through the optimizer and compares the results with the expected ones.
    Replay(replay::Arguments),
    /// Measures the step: GPU time beside a copy kernel in the same run, and host time separately.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        // The help, the version, or what is wrong with the command line.
        Err(error) => {
            return match error.print() {
                Err(unprinted) if !error.use_stderr() => Failure::from(unprinted).report(),
                // Nothing can be said where standard error cannot be written.
                _ if error.use_stderr() => ExitCode::from(2),
                _ => ExitCode::SUCCESS,
            };
        }
    };
    let result = match command {
        Command::Info(arguments) => info::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
