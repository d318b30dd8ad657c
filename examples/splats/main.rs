//! Fits a picture with 2D Gaussians that are dropped and split while the optimizer's state follows them on the GPU, and compares that with state
//! that is reset. See the README next to this file.

#[cfg(test)]
#[path = "../common/command_line.rs"]
mod command_line;
mod fit;
#[path = "../digits/gpu.rs"]
#[allow(dead_code, reason = "each example uses a part of it")]
mod gpu;
#[cfg(test)]
mod gradient_check;
mod image;
mod landscape;
#[path = "../common/picture.rs"]
mod picture;
mod plots;
#[path = "../common/rates.rs"]
#[allow(dead_code, reason = "each example uses a part of it")]
mod rates;
mod refine;
mod render;
mod report;
mod splat;
#[path = "../common/statistics.rs"]
mod statistics;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use fit::{Fitter, Refined, Rule, Run};
use gpu::Gpu;
use image::Image;
use rates::parse_rate;
use render::MOST_SPLATS;
use report::{Cell, Grid};

/// Width and height of the drawn picture.
const DRAWN_SIZE: [usize; 2] = [128, 96];
const QUICK_DRAWN_SIZE: [usize; 2] = [64, 48];

const DEFAULT_STEPS: u64 = 600;
const DEFAULT_GAUSSIANS: u64 = 1000;
const DEFAULT_SEEDS: u64 = 3;
const QUICK_STEPS: u64 = 300;
const QUICK_GAUSSIANS: u64 = 200;
const QUICK_SEEDS: u64 = 1;

/// Fits a picture with 2D Gaussians, with optimizer state that follows its rows and with state that is reset
#[derive(Parser)]
struct Arguments {
    /// The picture, a PNG [default: a drawn landscape]
    #[arg(long)]
    input: Option<PathBuf>,

    /// Folder for the pictures; created if missing
    #[arg(long, default_value = "target/splats")]
    output: PathBuf,

    /// Steps of a run [default: 600, with --quick 300]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    steps: Option<u64>,

    /// Gaussians at the end of a run, which starts with a quarter of them [default: 1000, with --quick 200]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MOST_SPLATS as u64))]
    gaussians: Option<u64>,

    /// Runs of each kind, each with its own initial Gaussians [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: Option<u64>,

    /// Update rules, comma-separated
    #[arg(long, value_enum, value_delimiter = ',', default_value = "adam,adamod")]
    rules: Vec<Rule>,

    /// Factor of all learning rates
    #[arg(long, default_value_t = 1.0, value_parser = parse_rate)]
    rate: f64,

    /// Decay rate of the second moment, in [0, 1)
    #[arg(long, default_value_t = 0.99, value_parser = parse_beta)]
    beta2: f64,

    /// What refinements do with the state, comma-separated; the strip is the first one's
    #[arg(long, value_enum, value_delimiter = ',', default_value = "fresh-halves,follows,reset")]
    states: Vec<Refined>,

    /// Fit a small picture in short runs, to check in seconds that everything works
    #[arg(long)]
    quick: bool,
}

impl Arguments {
    /// A number that was given, or the default.
    fn or_default(&self, given: Option<u64>, default: u64, quick: u64) -> u64 {
        given.unwrap_or(if self.quick { quick } else { default })
    }

    fn steps(&self) -> usize {
        self.or_default(self.steps, DEFAULT_STEPS, QUICK_STEPS) as usize
    }

    fn gaussians(&self) -> usize {
        self.or_default(self.gaussians, DEFAULT_GAUSSIANS, QUICK_GAUSSIANS) as usize
    }

    fn seeds(&self) -> u64 {
        self.or_default(self.seeds, DEFAULT_SEEDS, QUICK_SEEDS)
    }

    fn image(&self) -> Result<Image, Box<dyn Error>> {
        match &self.input {
            Some(path) => Image::read(path)
                .map_err(|error| format!("could not read {}: {error}", path.display()).into()),
            None => {
                Ok(Image::drawn(if self.quick { QUICK_DRAWN_SIZE } else { DRAWN_SIZE }, landscape::color))
            }
        }
    }

    /// The steps of the strip's pictures.
    fn frames(&self) -> [usize; 4] {
        [1, self.steps() / 30, self.steps() / 5, self.steps()].map(|step| step.max(1))
    }
}

fn parse_beta(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(beta) if (0.0..1.0).contains(&beta) => Ok(beta),
        _ => Err("expected a number in [0, 1)".into()),
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

/// Fits the picture in all ways, prints the table and draws the pictures.
async fn demonstrate(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let image = arguments.image()?;
    std::fs::create_dir_all(&arguments.output)
        .map_err(|error| format!("could not create {}: {error}", arguments.output.display()))?;
    let gpu = Gpu::open().await?;
    println!("Adapter: {} ({})", gpu.adapter.name, gpu.adapter.backend);
    let fitter = Fitter::new(&gpu, image.clone(), arguments.steps(), arguments.gaussians())?;
    let [width, height] = image.size;
    println!(
        "{width} x {height} pixels, {} Gaussians, {} steps a run",
        arguments.gaussians(),
        arguments.steps()
    );

    let grid = fit_all(&fitter, arguments).await?;
    println!("\n{grid}\n");
    let mut frames = grid.cells[0].outcomes[0].frames.clone();
    frames.push(image);
    let [strip, plot] = ["strip.png", "psnr.svg"].map(|name| arguments.output.join(name));
    Image::write_strip(&strip, &frames)?;
    std::fs::write(&plot, plots::psnr(&grid)?)?;
    println!("Wrote {} and {}", strip.display(), plot.display());
    println!("Took {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs every rule with every way to refine from every seed. Runs of one seed start with the same Gaussians.
async fn fit_all(fitter: &Fitter, arguments: &Arguments) -> Result<Grid, Box<dyn Error>> {
    let cells =
        arguments.rules.iter().flat_map(|&rule| arguments.states.iter().map(move |&state| (rule, state)));
    let cells: Vec<_> = cells.collect();
    let bar = ProgressBar::new(cells.len() as u64 * arguments.seeds() * arguments.steps() as u64)
        .with_style(ProgressStyle::with_template("{wide_bar} {percent:>3} %  {eta:>4} left  {msg}")?);
    let mut grid = Grid { cells: Vec::new(), refinements: fitter.refinements() };
    for (rule, refined) in cells {
        let mut outcomes = Vec::new();
        for seed in 0..arguments.seeds() {
            bar.set_message(format!("{}, {}, seed {seed}", rule.title(), refined.title()));
            let run = Run { rule, rate: arguments.rate, beta2: arguments.beta2, refined, seed };
            outcomes.push(fitter.run(&run, &arguments.frames(), |steps| bar.inc(steps)).await?);
        }
        grid.cells.push(Cell { rule, refined, outcomes });
    }
    bar.finish_and_clear();
    Ok(grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_arguments_are_refused() {
        command_line::assert_refused::<Arguments>(&[
            "--steps=0",
            "--gaussians=0",
            "--gaussians=65536",
            "--seeds=0",
            "--rules=sgd",
            "--rate=0",
            "--rate=nan",
            "--beta2=1",
            "--beta2=x",
            "--states=",
        ]);
    }

    #[test]
    fn a_missing_picture_is_named() {
        let arguments = Arguments::parse_from(["splats", "--input", "missing.png"]);
        assert!(arguments.image().unwrap_err().to_string().starts_with("could not read missing.png"));
    }
}
