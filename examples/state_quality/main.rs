//! Measures how good the low-bit formats of state are: each state against f64 over long streams of gradients, small networks trained with
//! each format, and the rejected formats. The library's CPU reference computes everything, with the same bits as the kernels. Results are
//! in `docs/state-quality.md`.

#[path = "../common/axis_labels.rs"]
mod axis_labels;
mod comparison;
#[path = "../common/digits.rs"]
mod digits;
#[path = "../common/english_numbers.rs"]
mod english_numbers;
mod family;
mod network;
mod optimizers;
#[path = "../common/picture.rs"]
mod picture;
mod plots;
mod report;
mod statistics;
mod streams;
mod text;
mod training;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use adamod::StateFormat;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use comparison::{Course, compare};
use optimizers::{Ablation, Name, Optimizer, Rejected, Settings, Twin};
use plots::Panel;
use report::{Table, percent, ratio};
use statistics::{deviation, mean};
use streams::{Kind, Scales, Stream};
use training::Outcome;

const BETAS3: [f64; 2] = [0.999, 0.9999];
const LEARNING_RATE: f64 = 1e-3;
const ELEMENTS: usize = 1024;
const SNAPSHOTS: u64 = 100;
/// Number of intervals of the changing stream in a run.
const INTERVALS: u64 = 20;
/// Steps after which errors are compared with the bars.
const BAR_STEPS: u64 = 2000;
const BAR_BETA3: f64 = 0.9999;
const THREADS: usize = 2;
/// Scale of the gradients under which scales in f16 underflow.
const SMALL: f64 = 1e-6;

/// Errors of the low-bit formats of state
#[derive(Parser)]
struct Arguments {
    /// 1,000 steps of each stream, two seeds and short training, to check that everything works
    #[arg(long)]
    quick: bool,

    /// Folder for tables and pictures; created if missing
    #[arg(long, default_value = "target/state_quality")]
    output: PathBuf,
}

impl Arguments {
    fn stream_steps(&self) -> u64 {
        if self.quick { 1000 } else { 20_000 }
    }

    fn training_steps(&self) -> usize {
        if self.quick { 200 } else { 3000 }
    }

    fn family(&self) -> family::Extent {
        if self.quick {
            family::Extent { stream_steps: 100, training_steps: 50, seeds: 2 }
        } else {
            family::Extent { stream_steps: 2000, training_steps: 1000, seeds: 5 }
        }
    }

    fn seeds(&self) -> u64 {
        if self.quick { 2 } else { 5 }
    }
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let output = &arguments.output;
    std::fs::create_dir_all(output)
        .map_err(|error| format!("could not create {}: {error}", output.display()))?;
    let mut tables = streams(arguments, output)?;
    tables.push(training(arguments, output)?);
    tables.push(ablations(arguments, output)?);
    let [digits, _] = training::tasks()?;
    tables.push(family::measure(&digits, &arguments.family(), output)?);
    let text = tables.iter().map(Table::markdown).collect::<Vec<_>>().join("\n");
    println!("{text}");
    std::fs::write(output.join("tables.md"), text)?;
    println!("{:.0} s; tables and pictures are in {}", start.elapsed().as_secs_f64(), output.display());
    Ok(())
}

/// Applies a function to each job on a few threads. Returns the results in the order of the jobs.
fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((index, job)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(index).map(|job| (index, job))
                } {
                    let result = work(job);
                    results.lock().expect("no thread panics while it holds it").push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread panics while it holds it");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

fn progress_bar(name: &'static str, length: u64) -> Result<ProgressBar, Box<dyn Error>> {
    let style = ProgressStyle::with_template("{prefix} {bar:40} {percent}% {eta}")?;
    Ok(ProgressBar::new(length).with_style(style).with_prefix(name))
}

/// A comparison of optimizers on a stream.
struct Job {
    kind: Kind,
    scales: Scales,
    beta3: f64,
    factor: f64,
}

impl Job {
    fn run(
        &self,
        steps: u64,
        bar: &ProgressBar,
        optimizers: impl Fn(Settings) -> Vec<Box<dyn Optimizer>>,
    ) -> Vec<Course> {
        let settings = Settings::new(LEARNING_RATE, self.beta3);
        let stream = Stream::new(self.kind, self.scales, ELEMENTS, steps / INTERVALS, self.factor);
        compare(optimizers(settings), stream, settings, ELEMENTS, (steps, steps / SNAPSHOTS), |by| {
            bar.inc(by)
        })
    }
}

fn twin(format: StateFormat, settings: Settings) -> Box<dyn Optimizer> {
    Box::new(Twin::new(format, settings, ELEMENTS))
}

/// The formats on all streams: tables, the course of the states as CSV, pictures.
fn streams(arguments: &Arguments, output: &Path) -> Result<Vec<Table>, Box<dyn Error>> {
    let steps = arguments.stream_steps();
    let mut jobs = Vec::new();
    for beta3 in BETAS3 {
        for scales in Scales::ALL {
            jobs.extend(Kind::ALL.map(|kind| Job { kind, scales, beta3, factor: 1.0 }));
        }
    }
    let bar = progress_bar("streams ", steps * jobs.len() as u64)?;
    let results = in_parallel(&jobs, |job| {
        job.run(steps, &bar, |settings| StateFormat::ALL.map(|format| twin(format, settings)).into())
    });
    bar.finish_and_clear();

    for (jobs, results) in jobs.chunks(Kind::ALL.len()).zip(results.chunks(Kind::ALL.len())) {
        let (beta3, scales) = (jobs[0].beta3, jobs[0].scales);
        let panels = |titles: &[Job]| -> Vec<Panel<'_>> {
            let named = titles.iter().zip(results);
            named.map(|(job, courses)| Panel { title: job.kind.name().into(), courses }).collect()
        };
        let stem = |state: &str| format!("{state}-{}-{beta3}.svg", scales.name().replace(' ', "-"));
        let title =
            |state: &str| format!("{state} / f64, scales {}, beta3 {beta3}: median, 5 to 95%", scales.name());
        plots::bands(&output.join(stem("exp_avg_lr")), &title("exp_avg_lr"), &panels(jobs), |s| s.rates)?;
        if beta3 == BAR_BETA3 {
            // exp_avg_sq does not depend on beta3.
            plots::bands(&output.join(stem("exp_avg_sq")), &title("exp_avg_sq"), &panels(jobs), |s| {
                s.squares
            })?;
        }
    }
    let final_table = states_table(format!("States after {steps} steps"), &jobs, &results, steps);
    final_table.write_csv(&output.join("states.csv"))?;
    courses_table(&jobs, &results).write_csv(&output.join("courses.csv"))?;
    Ok(vec![final_table, bars_table(&jobs, &results, BAR_STEPS.min(steps))])
}

const STATES_HEADER: [&str; 12] = [
    "beta3",
    "scales",
    "stream",
    "format",
    "v 5%",
    "v median",
    "v 95%",
    "s 5%",
    "s median",
    "s 95%",
    "moved, error in %",
    "path, error in %",
];

fn states_table(title: String, jobs: &[Job], results: &[Vec<Course>], step: u64) -> Table {
    let mut table = Table::new(title, &STATES_HEADER);
    for (job, courses) in jobs.iter().zip(results) {
        for course in courses {
            let snapshot = course.at(step);
            let mut row = vec![
                job.beta3.to_string(),
                job.scales.name().into(),
                job.kind.name().into(),
                course.name.to_string(),
            ];
            for band in [snapshot.squares, snapshot.rates] {
                row.extend([band.low, band.median, band.high].map(ratio));
            }
            row.extend([snapshot.moved_error, snapshot.path_error].map(percent));
            table.row(row);
        }
    }
    table
}

/// All snapshots, in full precision.
fn courses_table(jobs: &[Job], results: &[Vec<Course>]) -> Table {
    let mut header = STATES_HEADER.to_vec();
    header.insert(4, "step");
    let mut table = Table::new("Courses", &header);
    for (job, courses) in jobs.iter().zip(results) {
        for course in courses {
            for snapshot in &course.snapshots {
                let mut row = vec![
                    job.beta3.to_string(),
                    job.scales.name().into(),
                    job.kind.name().into(),
                    course.name.to_string(),
                    snapshot.step.to_string(),
                ];
                for band in [snapshot.squares, snapshot.rates] {
                    row.extend([band.low, band.median, band.high].map(|ratio| ratio.to_string()));
                }
                row.extend([snapshot.moved_error, snapshot.path_error].map(|x| (100.0 * x).to_string()));
                table.row(row);
            }
        }
    }
    table
}

/// The largest accepted median error of a format.
fn bar_of(optimizer: Name, scales: Scales) -> Option<f64> {
    match (optimizer, scales) {
        (Name::Format(StateFormat::Bf16), _) => Some(0.02),
        (Name::Format(StateFormat::Q8), Scales::Alike) => Some(0.04),
        (Name::Format(StateFormat::Q8), Scales::Mixed) => Some(0.08),
        _ => None,
    }
}

fn bars_table(jobs: &[Job], results: &[Vec<Course>], step: u64) -> Table {
    let header = [
        "scales",
        "stream",
        "format",
        "bar in %",
        "exp_avg_lr, error in %",
        "moved, error in %",
        "path, error in %",
        "within",
    ];
    let mut table = Table::new(format!("Bars: median errors after {step} steps, beta3 {BAR_BETA3}"), &header);
    for (job, courses) in jobs.iter().zip(results).filter(|(job, _)| job.beta3 == BAR_BETA3) {
        for course in courses {
            let Some(limit) = bar_of(course.name, job.scales) else { continue };
            let snapshot = course.at(step);
            let errors = [snapshot.rates_error, snapshot.moved_error, snapshot.path_error];
            // NaN is not within.
            let missed: Vec<&str> = (["exp_avg_lr", "moved", "path"].into_iter().zip(errors))
                .filter_map(|(name, error)| if error <= limit { None } else { Some(name) })
                .collect();
            let mut row = vec![job.scales.name().into(), job.kind.name().into(), course.name.to_string()];
            row.push(format!("{}", 100.0 * limit));
            row.extend(errors.map(percent));
            row.push(if missed.is_empty() { "yes".into() } else { format!("not {}", missed.join(", ")) });
            table.row(row);
        }
    }
    table
}

/// Trains networks with each format from several seeds.
fn training(arguments: &Arguments, output: &Path) -> Result<Table, Box<dyn Error>> {
    let tasks = training::tasks()?;
    let steps = arguments.training_steps();
    let mut jobs = Vec::new();
    for task in &tasks {
        for format in StateFormat::ALL {
            jobs.extend((0..arguments.seeds()).map(|seed| (task, format, seed)));
        }
    }
    let bar = progress_bar("training", jobs.len() as u64)?;
    let outcomes = in_parallel(&jobs, |(task, format, seed)| {
        let outcome = task.train(training::adamod(), *format, *seed, steps);
        bar.inc(1);
        outcome
    });
    bar.finish_and_clear();

    let mut runs =
        Table::new("Runs", &["task", "format", "seed", "loss", "held-out loss", "held-out accuracy"]);
    for ((task, format, seed), outcome) in jobs.iter().zip(&outcomes) {
        let mut row = vec![task.name.into(), Name::Format(*format).to_string(), seed.to_string()];
        row.extend([outcome.loss, outcome.held_out_loss, outcome.held_out_accuracy].map(|x| x.to_string()));
        runs.row(row);
    }
    runs.write_csv(&output.join("training.csv"))?;

    let header = [
        "task",
        "format",
        "final loss",
        "held-out loss",
        "held-out accuracy in %",
        "loss less F32's, same seed",
        "within F32's deviation",
    ];
    let title = format!("Training, {steps} steps, {} seeds: mean ± deviation", arguments.seeds());
    let mut table = Table::new(title, &header);
    let seeds = arguments.seeds() as usize;
    let runs_of_task = StateFormat::ALL.len() * seeds;
    for (jobs, outcomes) in jobs.chunks(runs_of_task).zip(outcomes.chunks(runs_of_task)) {
        let losses =
            |outcomes: &[Outcome], of: fn(&Outcome) -> f64| outcomes.iter().map(of).collect::<Vec<_>>();
        let exact = &outcomes[..seeds];
        for (jobs, outcomes) in jobs.chunks(seeds).zip(outcomes.chunks(seeds)) {
            let spread = |of: fn(&Outcome) -> f64| {
                let values = losses(outcomes, of);
                format!("{:.5} ± {:.5}", mean(&values), deviation(&values))
            };
            let (baseline, ours) = (losses(exact, |o| o.loss), losses(outcomes, |o| o.loss));
            let differences: Vec<f64> = ours.iter().zip(&baseline).map(|(a, b)| a - b).collect();
            // NaN fails.
            let within = |of: fn(&Outcome) -> f64| {
                let (baseline, ours) = (losses(exact, of), losses(outcomes, of));
                (mean(&ours) - mean(&baseline)).abs() <= deviation(&baseline)
            };
            let verdict = match (within(|o| o.loss), within(|o| o.held_out_loss)) {
                (true, true) => "yes",
                (true, false) => "final loss only",
                (false, true) => "held-out loss only",
                (false, false) => "no",
            };
            table.row(vec![
                jobs[0].0.name.into(),
                Name::Format(jobs[0].1).to_string(),
                spread(|o| o.loss),
                spread(|o| o.held_out_loss),
                {
                    let values = losses(outcomes, |o| 100.0 * o.held_out_accuracy);
                    format!("{:.2} ± {:.2}", mean(&values), deviation(&values))
                },
                format!("{:+.5} ± {:.5}", mean(&differences), deviation(&differences)),
                verdict.into(),
            ]);
        }
    }
    Ok(table)
}

/// Compares each rejected format with the library's, on the stream that shows why it was rejected.
fn ablations(arguments: &Arguments, output: &Path) -> Result<Table, Box<dyn Error>> {
    let steps = arguments.stream_steps();
    let job = |scales, factor| Job { kind: Kind::Drift, scales, beta3: BAR_BETA3, factor };
    let jobs = [
        (job(Scales::Alike, 1.0), Rejected::NearestBf16Rates, StateFormat::Bf16),
        (job(Scales::Mixed, 1.0), Rejected::LinearSquares, StateFormat::Q8),
        (job(Scales::Alike, SMALL), Rejected::HalfScales, StateFormat::Q8),
    ];
    let bar = progress_bar("ablation", steps * jobs.len() as u64)?;
    let results = in_parallel(&jobs, |(job, rejected, taken)| {
        job.run(steps, &bar, |settings| {
            vec![
                Box::new(Ablation::new(*rejected, settings, ELEMENTS)) as Box<dyn Optimizer>,
                twin(*taken, settings),
            ]
        })
    });
    bar.finish_and_clear();
    let title = format!("Rejected formats, each above the library's, after {steps} steps");
    let header = [
        "stream",
        "scales",
        "gradients times",
        "format",
        "v median",
        "s 5%",
        "s median",
        "s 95%",
        "moved, error in %",
        "path, error in %",
    ];
    let mut table = Table::new(title, &header);
    for ((job, ..), courses) in jobs.iter().zip(&results) {
        for course in courses {
            let snapshot = course.at(steps);
            let mut row = vec![
                job.kind.name().into(),
                job.scales.name().into(),
                format!("{}", job.factor),
                course.name.to_string(),
                ratio(snapshot.squares.median),
            ];
            row.extend([snapshot.rates.low, snapshot.rates.median, snapshot.rates.high].map(ratio));
            row.extend([snapshot.moved_error, snapshot.path_error].map(percent));
            table.row(row);
        }
    }
    table.write_csv(&output.join("ablations.csv"))?;
    Ok(table)
}
