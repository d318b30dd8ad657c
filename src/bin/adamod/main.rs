//! The tool `adamod`: lists what adapters can do, replays recorded gradients, and measures the step.

mod adapter;
mod bench;
mod failure;
mod info;
mod names;
mod replay;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fused steps of AdaMod, Adam, SGD and other optimizers on the GPU: information, checks, measurements.
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
    let result = match Cli::parse().command {
        Command::Info(arguments) => info::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
