//! The experiments of the AdaMod paper, small enough for one machine: translation, image classification, language modelling.
//! docs/experiments.md has the results.

#[path = "../../common/axis_labels.rs"]
mod axis_labels;
mod backend;
mod classification;
#[cfg(test)]
#[path = "../../common/command_line.rs"]
mod command_line;
mod common;
mod cpu_optimizer;
mod data;
#[path = "../../common/digits.rs"]
mod digits;
#[path = "../../common/english_numbers.rs"]
mod english_numbers;
mod formats;
mod german_numbers;
mod language_model;
mod learner;
mod method;
#[path = "../../common/minibatches.rs"]
mod minibatches;
mod numbers;
mod packages;
#[path = "../../common/picture.rs"]
mod picture;
mod plots;
mod rate_counts;
#[path = "../../common/rates.rs"]
mod rates;
mod report;
#[path = "../../common/ridges.rs"]
mod ridges;
mod runs;
mod settings;
#[path = "../../common/statistics.rs"]
mod statistics;
mod store;
mod summary;
mod tensors;
mod tokenizer;
mod translation;
mod weights;

use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use settings::Settings;

/// Small versions of the experiments of the AdaMod paper
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

fn run() -> anyhow::Result<()> {
    let command = Arguments::command();
    let matches = command.clone().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let subcommand =
        matches.subcommand().and_then(|(name, matches)| Some((command.find_subcommand(name)?, matches)));
    let (subcommand, matches) = subcommand.context("a subcommand")?;
    let settings = Settings::new(subcommand, matches);
    match arguments.experiment {
        Experiment::Translation(arguments) => translation::run(&arguments, &settings),
        Experiment::Classification(arguments) => classification::run(&arguments, &settings),
        Experiment::LanguageModel(arguments) => language_model::run(&arguments, &settings),
    }
}

/// Burn's CPU backend allocates a tensor for each operation. Training takes three quarters of the time that it takes with the allocator of
/// glibc.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run() {
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

    #[test]
    fn bad_arguments_are_refused() {
        command_line::assert_refused::<Arguments>(&[
            "translation --source=x",
            "translation --target=x",
            "translation --catalogues=x --source=y --target=z",
            "translation --direction=en-de",
            "translation --catalogues=x --direction=fr-en",
            "classification --training-images=9",
            "classification --images=x --training-images=0",
            "classification --channels=1",
            "language-model --ptb=x --text=y",
            "language-model --ptb=x --merges=9",
            "language-model --text=x --words=2",
            "language-model --text=x --words=9 --merges=9",
            "translation --learning-rates=0.1,nan",
            "translation --beta3=1",
            "translation --steps=0",
            "translation --seeds=0",
            "translation --batch=0",
            "",
        ]);
    }
}
