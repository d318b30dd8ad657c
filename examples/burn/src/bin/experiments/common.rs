//! What all experiments take and show.

use std::path::PathBuf;

use adamod_burn::Gpu;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::rates::distinct;
use crate::report::Report;

/// Arguments of every experiment.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Runs of each method, each from other weights and with other minibatches [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: Option<u64>,

    /// Folder for tables, pictures and losses; created if missing [default: target/experiments/ and its name]
    #[arg(long)]
    output: Option<PathBuf>,

    /// A few steps of one seed: to see soon that everything works
    #[arg(long)]
    pub quick: bool,
}

impl Common {
    pub fn seeds(&self) -> u64 {
        self.seeds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// Opens the output folder, and says what runs where.
    pub fn report(&self, gpu: &Gpu, experiment: &str) -> anyhow::Result<Report> {
        let default = || PathBuf::from("target/experiments").join(experiment);
        let mut report = Report::create(&self.output.clone().unwrap_or_else(default))?;
        let command: Vec<_> = std::env::args().skip(1).collect();
        let adapter = gpu.wgpu_device().adapter_info();
        report.say(format!(
            "`experiments {}` on {} ({}, {} {})",
            command.join(" "),
            adapter.name,
            adapter.backend,
            adapter.driver,
            adapter.driver_info
        ))?;
        Ok(report)
    }
}

/// A bar of all steps of all runs.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub fn new(steps: u64) -> Self {
        let template = "{wide_bar} {percent:>3} %  {eta:>4} left  {msg}";
        let style = ProgressStyle::with_template(template).expect("a template that is constant");
        Self { bar: ProgressBar::new(steps).with_style(style) }
    }

    /// Says what runs now.
    pub fn tell(&self, text: String) {
        self.bar.set_message(text);
    }

    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// Steps that a run will not take.
    pub fn skip(&self, steps: u64) {
        self.bar.inc(steps);
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The values, or the default if there are none, in ascending order, each once.
pub fn or_default(values: &[f64], default: &[f64]) -> Vec<f64> {
    distinct(if values.is_empty() { default } else { values })
}

/// The one device of all tests: Burn lets each be opened once.
#[cfg(test)]
pub fn test_gpu() -> &'static Gpu {
    static GPU: std::sync::OnceLock<Gpu> = std::sync::OnceLock::new();
    GPU.get_or_init(|| Gpu::open(burn::tensor::DeviceKind::DefaultDevice).expect("a wgpu adapter"))
}
