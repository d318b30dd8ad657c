//! Trains a small network on handwritten digits, wholly on the GPU, with every rule at several learning rates: a small version of the
//! paper's Figure 6, and its Figures 1 and 3. See the README next to this file.

#[path = "../common/axis_labels.rs"]
mod axis_labels;
#[cfg(test)]
#[path = "../common/command_line.rs"]
mod command_line;
#[path = "../common/digits.rs"]
mod digits;
mod gpu;
#[cfg(test)]
mod gradient_check;
#[path = "../common/minibatches.rs"]
mod minibatches;
mod network;
#[path = "../common/picture.rs"]
mod picture;
mod plots;
#[path = "../common/rates.rs"]
mod rates;
mod report;
#[path = "../common/ridges.rs"]
mod ridges;
#[path = "../common/statistics.rs"]
mod statistics;
mod train;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use adamod::{OutOfRange, RuleKind};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use digits::{Digits, TRAINING_IMAGES};
use gpu::Gpu;
use rates::{distinct, parse_rate, rate_name};
use report::{Cell, Grid, Row, rule_name};
use train::{RULES, Run, Trainer};

/// The rate of Adam and AdaMod in the paper's experiments.
const HISTOGRAM_LEARNING_RATE: f64 = 1e-3;

const DEFAULT_EPOCHS: u64 = 60;
const DEFAULT_SEEDS: u64 = 3;
const QUICK_EPOCHS: u64 = 5;
const QUICK_SEEDS: u64 = 1;

/// AdaMod, Adam and SGD with momentum on handwritten digits, at several learning rates
#[derive(Parser)]
struct Arguments {
    /// Learning rates alpha, comma-separated; the defaults are the paper's
    #[arg(long, value_delimiter = ',', default_value = "0.001,0.01,0.1", value_parser = parse_rate)]
    learning_rates: Vec<f64>,

    /// Passes over the training set in a run [default: 60, with --quick 5]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    epochs: Option<u64>,

    /// Runs of each rule at each learning rate, each with its own initial weights and minibatches [default: 3, with
    /// --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: Option<u64>,

    /// Images in a minibatch
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=TRAINING_IMAGES as u64))]
    batch: u64,

    /// AdaMod's beta3, in [0, 1); 0 makes it Adam
    #[arg(long, default_value_t = 0.9999)]
    beta3: f64,

    /// Folder for the pictures; created if missing
    #[arg(long, default_value = "target/digits")]
    output: PathBuf,

    /// Run a few epochs of one seed, to check in seconds that everything works
    #[arg(long)]
    quick: bool,
}

impl Arguments {
    fn epochs(&self) -> u64 {
        let default = if self.quick { QUICK_EPOCHS } else { DEFAULT_EPOCHS };
        self.epochs.unwrap_or(default)
    }

    fn seeds(&self) -> u64 {
        let default = if self.quick { QUICK_SEEDS } else { DEFAULT_SEEDS };
        self.seeds.unwrap_or(default)
    }

    fn run(&self, rule: RuleKind, learning_rate: f64, seed: u64) -> Run {
        Run { rule, learning_rate, beta3: self.beta3, seed }
    }
}

fn main() -> ExitCode {
    match pollster::block_on(demonstrate(&Arguments::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Trains the grid, prints the tables and draws the pictures.
async fn demonstrate(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    validate(arguments)?;
    std::fs::create_dir_all(&arguments.output)
        .map_err(|error| format!("could not create {}: {error}", arguments.output.display()))?;
    let gpu = Gpu::open().await?;
    println!("Adapter: {} ({})", gpu.adapter.name, gpu.adapter.backend);

    let digits = Digits::load()?;
    let trainer = Trainer::new(&gpu, &digits, arguments.epochs() as usize, arguments.batch as usize);
    println!(
        "{} parameters, {} steps a run, minibatches of {}, beta3 {}",
        trainer.parameters(),
        trainer.steps(),
        arguments.batch,
        arguments.beta3
    );
    let grid = train_grid(&trainer, arguments).await?;
    println!("\n{grid}");
    for picture in draw(&trainer, &grid, arguments).await? {
        println!("Wrote {}", picture.display());
    }
    println!("Took {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Checks the hyperparameters of all runs before the first one.
fn validate(arguments: &Arguments) -> Result<(), OutOfRange> {
    let runs = RULES
        .iter()
        .flat_map(|&rule| arguments.learning_rates.iter().map(move |&rate| arguments.run(rule, rate, 0)));
    runs.map(|run| run.hyperparameters()).try_for_each(|hyperparameters| hyperparameters.validate())
}

/// Draws the grid and the learning rates of two more runs. Returns the files.
async fn draw(trainer: &Trainer, grid: &Grid, arguments: &Arguments) -> Result<[PathBuf; 3], Box<dyn Error>> {
    let run = |rule| arguments.run(rule, HISTOGRAM_LEARNING_RATE, 0);
    let adam = trainer.learning_rates(&run(RuleKind::Adam)).await?;
    let adamod = trainer.learning_rates(&run(RuleKind::AdaMod)).await?;
    let write = |name: &str, svg: String| -> Result<PathBuf, Box<dyn Error>> {
        let path = arguments.output.join(name);
        std::fs::write(&path, svg)?;
        Ok(path)
    };
    Ok([
        write("loss.svg", plots::loss(grid)?)?,
        write("accuracy.svg", plots::accuracy(grid)?)?,
        write("learning_rates.svg", plots::learning_rates(&adam, &adamod, HISTOGRAM_LEARNING_RATE)?)?,
    ])
}

/// Trains every rule at every learning rate from every seed. Runs of one seed have the same initial weights and minibatches.
async fn train_grid(trainer: &Trainer, arguments: &Arguments) -> Result<Grid, Box<dyn Error>> {
    let rates = distinct(&arguments.learning_rates);
    let runs = (RULES.len() * rates.len()) as u64 * arguments.seeds();
    let bar = ProgressBar::new(runs * arguments.epochs())
        .with_style(ProgressStyle::with_template("{wide_bar} {percent:>3} %  {eta:>4} left  {msg}")?);
    let mut rows = Vec::new();
    for rule in RULES {
        let mut cells = Vec::new();
        for &rate in &rates {
            let mut outcomes = Vec::new();
            for seed in 0..arguments.seeds() {
                bar.set_message(format!("{}, alpha {}, seed {seed}", rule_name(rule), rate_name(rate)));
                let run = arguments.run(rule, rate, seed);
                outcomes.push(trainer.train(&run, || bar.inc(1)).await?);
            }
            cells.push(Cell { outcomes });
        }
        rows.push(Row { rule, cells });
    }
    bar.finish_and_clear();
    Ok(Grid { learning_rates: rates, rows, steps_per_epoch: trainer.steps_per_epoch() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_arguments_are_refused() {
        command_line::assert_refused::<Arguments>(&[
            "--learning-rates=",
            "--learning-rates=0.1,nan",
            "--epochs=0",
            "--seeds=0",
            "--batch=0",
            "--batch=1438",
            "--beta3=x",
        ]);
    }
}
