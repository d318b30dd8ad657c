//! Trains the digits network on several ranks, measures steps, and computes what they would cost on many machines. See the README.

#[path = "../../common/digits.rs"]
mod digits;
#[path = "../../digits/gpu.rs"]
#[allow(dead_code, reason = "submissions are waited for by the distributed optimizer")]
mod gpu;
#[path = "../../common/minibatches.rs"]
mod minibatches;
#[path = "../../digits/network.rs"]
#[allow(dead_code, reason = "the backward pass is recorded layer by layer")]
mod network;
mod tool {
    pub mod measure;
    pub mod model;
    pub mod training;
}

use std::process::ExitCode;
use std::time::Duration;

use adamod::DType;
use adamod_mpi::Mode;
use clap::{Parser, Subcommand, ValueEnum};

/// adamod's optimizers on several ranks of MPI: mpirun -np 4 adamod-mpi train
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,

    /// Seconds that a rank waits for another one or for its device without any progress
    #[arg(long, global = true, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time_limit: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Trains the network of examples/digits on handwritten digits
    Train(tool::training::Arguments),
    /// Measures the bytes and the time of steps in every mode
    Measure(tool::measure::Arguments),
    /// Computes what bounds a step on up to 1,024 ranks, on paper
    Model(tool::model::Arguments),
}

/// What each rank holds
#[derive(Clone, Copy, ValueEnum)]
enum ModeName {
    /// Everything
    Replicated,
    /// The state of its shards: ZeRO-1
    ShardedState,
    /// The averaged gradients and the state of its shards: ZeRO-2
    ShardedGradients,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Replicated => Mode::Replicated,
            ModeName::ShardedState => Mode::ShardedState,
            ModeName::ShardedGradients => Mode::ShardedGradients,
        }
    }
}

/// Data type of f32 gradients on their way
#[derive(Clone, Copy, ValueEnum)]
enum Wire {
    F32,
    F16,
    Bf16,
}

impl From<Wire> for DType {
    fn from(wire: Wire) -> Self {
        match wire {
            Wire::F32 => DType::F32,
            Wire::F16 => DType::F16,
            Wire::Bf16 => DType::Bf16,
        }
    }
}

fn main() -> ExitCode {
    let Arguments { command, time_limit } = Arguments::parse();
    let limit = Duration::from_secs(time_limit);
    match command {
        Command::Train(arguments) => adamod_mpi::run(limit, |ranks| tool::training::train(ranks, &arguments)),
        Command::Measure(arguments) => {
            adamod_mpi::run(limit, |ranks| tool::measure::measure(ranks, &arguments))
        }
        Command::Model(arguments) => {
            print!("{}", tool::model::table(&arguments));
            ExitCode::SUCCESS
        }
    }
}
