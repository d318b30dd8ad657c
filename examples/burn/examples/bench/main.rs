//! Times the step of Burn's Adam, of AdaMod in Burn's tensor operations, of the adapter and of the core alone on one device, in
//! turn, round after round. Measures wall time from the call to the end of the device's work, which includes the host's work.

mod contenders;

use std::any::TypeId;
use std::time::Instant;

use adamod_burn::Gpu;
use anyhow::ensure;
use burn::backend::wgpu::{CubeBackend, Wgpu};
use burn::tensor::DeviceKind;
use clap::Parser;
use serde::Serialize;

use contenders::{Case, Contender};

/// Time Burn's optimizers beside adamod's in Burn.
#[derive(Parser)]
struct Arguments {
    /// Timed rounds.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Rounds before the timed ones.
    #[arg(long, default_value_t = 5)]
    warmup: usize,
    /// Number of tensors and of elements in each, as in 200x256; may be repeated.
    #[arg(long = "case", default_values = ["200x256", "100x100000", "1x10000000"])]
    cases: Vec<Case>,
    /// Only contenders whose name contains this; may be repeated.
    #[arg(long = "only")]
    only: Vec<String>,
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
}

/// Step times of one contender in one case.
#[derive(Serialize)]
struct Row<'a> {
    adapter: &'a str,
    fusion: bool,
    tensors: usize,
    elements: usize,
    contender: &'a str,
    median_ms: f64,
    min_ms: f64,
    gigabytes_per_second: f64,
    burn_adam_to_it: Option<f64>,
}

fn main() -> anyhow::Result<()> {
    let Arguments { rounds, warmup, cases, only, json } = Arguments::parse();
    ensure!(rounds > 0, "--rounds is 0, expected at least 1");
    let gpu = Gpu::open(DeviceKind::DefaultDevice)?;
    let adapter = gpu.wgpu_device().adapter_info().name;
    let fusion = TypeId::of::<Wgpu>() != TypeId::of::<CubeBackend>();
    if !json {
        let with = if fusion { "with" } else { "without" };
        println!("adapter: {adapter}; Burn {with} fusion; {rounds} rounds after {warmup}");
        println!(
            "{:>16} {:>22} {:>10} {:>10} {:>9} {:>12}",
            "case", "optimizer", "ms", "min", "GB/s", "Burn to it"
        );
    }
    for case in cases {
        let mut contenders = contenders::all(&gpu, case, |name| {
            only.is_empty() || only.iter().any(|part| name.contains(part.as_str()))
        })?;
        ensure!(!contenders.is_empty(), "--only names no contender");
        let mut times = vec![Vec::with_capacity(rounds); contenders.len()];
        for round in 0..warmup + rounds {
            for (Contender { step, .. }, times) in contenders.iter_mut().zip(&mut times) {
                let start = Instant::now();
                step.run()?;
                if round >= warmup {
                    times.push(start.elapsed().as_secs_f64());
                }
            }
        }
        let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
        let of_burn = contenders.iter().position(|contender| contender.name == contenders::BURN_ADAM);
        for ((contender, times), seconds) in contenders.iter().zip(&times).zip(&medians) {
            let bytes = f64::from(contender.rule.bytes_per_parameter()) * case.elements_of_all() as f64;
            let row = Row {
                adapter: &adapter,
                fusion,
                tensors: case.tensors,
                elements: case.elements,
                contender: contender.name,
                median_ms: 1e3 * seconds,
                min_ms: 1e3 * times[0],
                gigabytes_per_second: 1e-9 * bytes / seconds,
                burn_adam_to_it: of_burn.map(|index| medians[index] / seconds),
            };
            print(&row, json)?;
        }
        contenders::check(&mut contenders)?;
    }
    Ok(())
}

fn print(row: &Row<'_>, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(row)?);
        return Ok(());
    }
    println!(
        "{:>16} {:>22} {:>10.3} {:>10.3} {:>9.2} {:>12}",
        format!("{} x {}", row.tensors, row.elements),
        row.contender,
        row.median_ms,
        row.min_ms,
        row.gigabytes_per_second,
        row.burn_adam_to_it.map_or(String::new(), |ratio| format!("{ratio:.2}x")),
    );
    Ok(())
}

/// The median. Sorts the times.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
