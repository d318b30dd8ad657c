//! What all experiments take and show.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;

use crate::backend::{Backend, DeviceChoice};
use crate::rates::distinct;
use crate::report::{Report, Saved};
use crate::runs::Runs;
use crate::settings::Settings;
use crate::store;

/// Arguments of every experiment.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Runs of each method, each from other weights and with other minibatches [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: Option<u64>,

    /// Folder for tables, pictures and losses; created if missing [default: target/experiments/ and its name]
    #[arg(long)]
    output: Option<PathBuf>,

    /// Draw the pictures of an earlier run in this folder anew, from its .csv files; nothing is trained. Expects that run's other arguments
    #[arg(long, value_name = "FOLDER", conflicts_with = "output")]
    redraw: Option<PathBuf>,

    /// What to train on
    #[arg(long, value_enum, default_value_t)]
    device: DeviceChoice,

    /// Stop after this many hours, and save the runs that are not finished; a report of the others is written
    #[arg(long, value_parser = parse_hours, conflicts_with = "redraw")]
    hours: Option<f64>,

    /// Go on with the runs in the output folder, which were started with the same arguments
    #[arg(long, conflicts_with = "redraw")]
    resume: bool,

    /// Delete the runs in the output folder, and start anew
    #[arg(long, conflicts_with_all = ["redraw", "resume"])]
    restart: bool,

    /// Processes that train, each a run at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000), conflicts_with = "redraw")]
    jobs: u64,

    /// Trains for another process
    #[arg(long, hide = true)]
    worker: bool,

    /// Run a few steps of one seed, to check soon that everything works
    #[arg(long)]
    pub quick: bool,
}

impl Common {
    pub fn seeds(&self) -> u64 {
        self.seeds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// All series in these files of an earlier run, if its pictures are drawn anew.
    pub fn saved(&self, files: &[&str]) -> anyhow::Result<Option<Saved>> {
        let read = |folder: &PathBuf| Saved::read(files.iter().map(|file| folder.join(file)));
        self.redraw.as_ref().map(read).transpose()
    }

    /// Whether this process reports on runs: it neither trains for another one, nor draws old pictures anew.
    pub fn reports(&self) -> bool {
        self.redraw.is_none() && !self.worker
    }

    fn folder(&self, experiment: &str) -> PathBuf {
        self.output.clone().unwrap_or_else(|| PathBuf::from("target/experiments").join(experiment))
    }

    /// Opens the device.
    pub fn backend(&self) -> anyhow::Result<Backend> {
        Backend::open(if self.redraw.is_some() { DeviceChoice::Cpu } else { self.device })
    }

    /// Opens the output folder, and reports the command and the device. Deletes runs with `--restart`, and refuses those of other arguments:
    /// called once it is known that the arguments are valid. `data` describes what the arguments do not.
    pub fn report(
        &self,
        experiment: &str,
        settings: &Settings,
        backend: &Backend,
        data: &str,
    ) -> anyhow::Result<Report> {
        if let Some(folder) = &self.redraw {
            return Ok(Report::pictures(folder));
        }
        let folder = self.folder(experiment);
        let runs = folder.join("runs");
        if self.restart && !self.worker {
            store::delete(&runs)?;
        }
        ensure!(
            self.resume || self.worker || !runs.exists(),
            "{} has runs of an earlier call: --resume goes on with them, --restart deletes them, --output takes another folder",
            folder.display()
        );
        let settings = settings.clone().with("experiment", experiment).with("device", backend.name());
        settings.with("data", data).record(&runs)?;
        if self.worker {
            return Ok(Report::pictures(&folder));
        }
        let mut report = Report::create(&folder)?;
        let command: Vec<_> = std::env::args().skip(1).collect();
        report.say(format!("`experiments {}` on {}", command.join(" "), backend.description()))?;
        Ok(report)
    }

    /// All runs in the output folder. Trains in other processes if there are to be several.
    pub fn runs(
        &self,
        experiment: &str,
        backend: &Backend,
        methods: usize,
        steps: u64,
    ) -> anyhow::Result<Runs> {
        let folder = self.folder(experiment).join("runs");
        let compiles = matches!(backend, Backend::Gpu(_));
        let runs = Runs::new(folder, methods, self.seeds(), steps, compiles);
        if self.redraw.is_some() {
            return Ok(runs);
        }
        let end = self.hours.map(|hours| Instant::now() + Duration::from_secs_f64(3600.0 * hours));
        let runs = runs.until(move |_| end.is_some_and(|end| Instant::now() >= end));
        if self.worker {
            return Ok(runs.for_another_process());
        }
        if self.jobs > 1 {
            runs.delegate(self.jobs)?;
        }
        Ok(runs)
    }

    /// Reports what is missing. Returns whether there is anything to report on.
    pub fn close(&self, runs: &Runs, report: &mut Report) -> anyhow::Result<bool> {
        runs.finish();
        if runs.are_of_a_worker() {
            return Ok(false);
        }
        let (unfinished, count) = (runs.unfinished(), runs.count());
        if unfinished > 0 {
            report.say(format!(
                "**{unfinished} of {count} runs are not finished** and not in what follows; the same command with --resume goes on with them."
            ))?;
        }
        if self.redraw.is_none() {
            report
                .say(format!("Finished runs took {:.2} hours in all.", runs.time().as_secs_f64() / 3600.0))?;
        }
        Ok(unfinished < count)
    }
}

/// Number and checksum of all tokens, for the record of the runs.
pub fn fingerprint<'a>(texts: impl IntoIterator<Item = &'a Vec<u32>>) -> String {
    let (mut checksum, mut tokens) = (crc32fast::Hasher::new(), 0);
    for text in texts {
        text.iter().for_each(|token| checksum.update(&token.to_le_bytes()));
        tokens += text.len();
    }
    format!("{tokens} tokens, CRC32 {:08x}", checksum.finalize())
}

/// Parses a time, for the command line.
fn parse_hours(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(hours) if (0.0..=10_000.0).contains(&hours) => Ok(hours),
        _ => Err("expected a number of hours from 0 to 10,000".into()),
    }
}

/// The values, or the default if there are none, in ascending order, each once.
pub fn or_default(values: &[f64], default: &[f64]) -> Vec<f64> {
    distinct(if values.is_empty() { default } else { values })
}

/// The values, each once, in their order.
pub fn each_once<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// The devices of all tests.
#[cfg(test)]
pub fn test_backends() -> [Backend; 2] {
    [Backend::Cpu, Backend::open(DeviceChoice::Gpu).expect("a wgpu adapter")]
}
