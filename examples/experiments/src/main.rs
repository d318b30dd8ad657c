//! The experiments of the AdaMod paper, small enough for one machine: translation, image classification, language modelling.
//! docs/experiments.md has the results.

#[path = "../../common/axis_labels.rs"]
mod axis_labels;
mod classification;
#[cfg(test)]
#[path = "../../common/command_line.rs"]
mod command_line;
mod common;
mod data;
#[path = "../../common/digits.rs"]
mod digits;
#[path = "../../common/english_numbers.rs"]
mod english_numbers;
mod german_numbers;
mod language_model;
mod learner;
mod method;
#[path = "../../common/minibatches.rs"]
mod minibatches;
#[path = "../../common/picture.rs"]
mod picture;
mod plots;
#[path = "../../common/rates.rs"]
mod rates;
mod report;
#[path = "../../common/ridges.rs"]
mod ridges;
mod runs;
#[path = "../../common/statistics.rs"]
mod statistics;
mod summary;
mod tokenizer;
mod translation;
mod weights;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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

    #[test]
    fn bad_arguments_are_refused() {
        command_line::assert_refused::<Arguments>(&[
            "translation --source=x",
            "translation --target=x",
            "translation --learning-rates=0.1,nan",
            "translation --beta3=1",
            "translation --steps=0",
            "translation --seeds=0",
            "translation --batch=0",
            "",
        ]);
    }
}
