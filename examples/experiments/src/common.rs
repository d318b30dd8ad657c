//! What all experiments take and show.

use std::path::PathBuf;

use adamod_burn::Gpu;
use clap::Args;

use crate::rates::distinct;
use crate::report::{Report, Saved};

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

    /// Opens the output folder and reports the command and the adapter.
    pub fn report(&self, gpu: &Gpu, experiment: &str) -> anyhow::Result<Report> {
        if let Some(folder) = &self.redraw {
            return Ok(Report::pictures(folder));
        }
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

/// The values, or the default if there are none, in ascending order, each once.
pub fn or_default(values: &[f64], default: &[f64]) -> Vec<f64> {
    distinct(if values.is_empty() { default } else { values })
}

/// The device of all tests.
#[cfg(test)]
pub fn test_gpu() -> &'static Gpu {
    static GPU: std::sync::OnceLock<Gpu> = std::sync::OnceLock::new();
    GPU.get_or_init(|| Gpu::open(burn::tensor::DeviceKind::DefaultDevice).expect("a wgpu adapter"))
}
