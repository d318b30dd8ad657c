//! Fits a picture with 2D Gaussians that are dropped and split while the optimizer's state follows them, wholly on the GPU, and compares that with
//! state that starts again. See the README next to this file.

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
mod refine;
mod render;
mod splat;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use fit::{Fitter, Refined, Rule, Run};
use gpu::Gpu;
use image::Image;
use render::MOST_SPLATS;

/// Width and height of the drawn picture.
const DRAWN_SIZE: [usize; 2] = [256, 192];
const QUICK_DRAWN_SIZE: [usize; 2] = [64, 48];

const DEFAULT_STEPS: u64 = 2000;
const DEFAULT_GAUSSIANS: u64 = 3000;
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

    /// Folder for the results; created if missing
    #[arg(long, default_value = "target/splats")]
    output: PathBuf,

    /// Steps of a run [default: 2000, with --quick 300]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    steps: Option<u64>,

    /// Gaussians at the end of a run, which starts with a quarter of them [default: 3000, with --quick 200]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MOST_SPLATS as u64))]
    gaussians: Option<u64>,

    /// Runs of each kind, each with its own initial Gaussians [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: Option<u64>,

    /// Update rules, comma-separated
    #[arg(long, value_enum, value_delimiter = ',', default_value = "adam")]
    rules: Vec<Rule>,

    /// What refinements do with the state, comma-separated
    #[arg(long, value_enum, value_delimiter = ',', default_value = "follows,fresh-halves,reset")]
    states: Vec<Refined>,

    /// Fit a small picture in a short run, to check in seconds that everything works
    #[arg(long)]
    quick: bool,
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

async fn demonstrate(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let start = std::time::Instant::now();
    std::fs::create_dir_all(&arguments.output)?;
    let image = Image::drawn(DRAWN_SIZE, landscape::color);
    let steps = arguments.steps.unwrap_or(DEFAULT_STEPS) as usize;
    let gpu = Gpu::open().await?;
    let fitter = Fitter::new(&gpu, image.clone(), steps, arguments.gaussians.unwrap_or(DEFAULT_GAUSSIANS) as usize)?;
    let _ = (ProgressBar::new(1), ProgressStyle::with_template("")?, QUICK_DRAWN_SIZE, QUICK_STEPS, QUICK_GAUSSIANS, QUICK_SEEDS);
    for &rule in &arguments.rules {
        for &refined in &arguments.states {
            for seed in 0..arguments.seeds.unwrap_or(DEFAULT_SEEDS) {
                let outcome = fitter.run(&Run { rule, refined, seed }, &[1, 50, steps / 4, steps], |_| ()).await?;
                let p = &outcome.psnr;
                let at: Vec<String> = (1..=10).map(|i| format!("{:.2}", p[steps * i / 10 - 1])).collect();
                println!("{rule:?} {refined:?} {seed} n={} {} t={:.0}", outcome.count, at.join(" "), start.elapsed().as_secs_f64());
                let r: Vec<String> = [498, 499, 500, 501, 502, 505, 510, 520, 540, 560, 580, 599].iter().filter(|i| **i < steps).map(|i| format!("{:.2}", p[*i])).collect();
                println!("     {}", r.join(" "));
                let mut frames = vec![image.clone()];
                frames.extend(outcome.frames);
                Image::write_strip(&arguments.output.join(format!("{rule:?}-{refined:?}.png")), &frames, 3)?;
            }
        }
    }
    Ok(())
}
