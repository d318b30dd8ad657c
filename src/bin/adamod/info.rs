//! `adamod info`: adapters, the limits and features that matter to the library, and which modes run.

use adamod::{Diagnostics, Optimizer, Options, Rule, wgpu};
use clap::Args;
use serde::Serialize;

use crate::Failure;
use crate::adapter::{AdapterChoice, NO_ADAPTER};

/// Arguments of `adamod info`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    choice: AdapterChoice,
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct AdapterReport {
    name: String,
    driver: String,
    backend: String,
    device_type: String,
    /// Whether `replay` and `bench` would use it.
    chosen: bool,
    limits: Vec<(&'static str, u64)>,
    features: Vec<(&'static str, bool)>,
    /// Mode, and why it does not run if it does not.
    modes: Vec<(&'static str, Option<String>)>,
}

/// Prints a report on every adapter.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let adapters = arguments.choice.sorted().map_err(Failure::Input)?;
    if adapters.is_empty() {
        return Err(Failure::Machine(anyhow::anyhow!(NO_ADAPTER)));
    }
    let reports: Vec<_> =
        adapters.iter().enumerate().map(|(index, adapter)| report(adapter, index == 0)).collect();
    if arguments.json {
        let text = serde_json::to_string_pretty(&reports).map_err(|error| Failure::Machine(error.into()))?;
        println!("{text}");
    } else {
        for report in &reports {
            print(report);
        }
    }
    Ok(())
}

fn report(adapter: &wgpu::Adapter, chosen: bool) -> AdapterReport {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let has = |feature| adapter.features().contains(feature);
    AdapterReport {
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        name: info.name,
        backend: info.backend.to_string(),
        device_type: format!("{:?}", info.device_type),
        chosen,
        limits: vec![
            ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size),
            ("max_buffer_size", limits.max_buffer_size),
            ("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage.into()),
            ("min_storage_buffer_offset_alignment", limits.min_storage_buffer_offset_alignment.into()),
            ("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension.into()),
            ("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup.into()),
        ],
        features: vec![
            ("TIMESTAMP_QUERY", has(wgpu::Features::TIMESTAMP_QUERY)),
            ("SHADER_F16", has(wgpu::Features::SHADER_F16)),
            ("SUBGROUP", has(wgpu::Features::SUBGROUP)),
            ("BUFFER_BINDING_ARRAY", has(wgpu::Features::BUFFER_BINDING_ARRAY)),
            ("PIPELINE_CACHE", has(wgpu::Features::PIPELINE_CACHE)),
        ],
        modes: modes(adapter),
    }
}

/// Asks the library itself, on a device of the adapter.
fn modes(adapter: &wgpu::Adapter) -> Vec<(&'static str, Option<String>)> {
    let candidates = [
        ("adamod-f32", Rule::AdaMod, Diagnostics::Off),
        ("adam-f32", Rule::Adam, Diagnostics::Off),
        ("sgd-f32", Rule::Sgd, Diagnostics::Off),
        ("adamod-f32 with learning rates counted", Rule::AdaMod, Diagnostics::LearningRates),
        ("adam-f32 with learning rates counted", Rule::Adam, Diagnostics::LearningRates),
    ];
    let descriptor = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
    let device = pollster::block_on(adapter.request_device(&descriptor));
    candidates
        .into_iter()
        .map(|(name, rule, diagnostics)| {
            let reason = match &device {
                Ok((device, queue)) => {
                    let options = Options { rule, diagnostics, ..Options::default() };
                    Optimizer::new(device, queue, options).err().map(|error| error.to_string())
                }
                Err(error) => Some(error.to_string()),
            };
            (name, reason)
        })
        .collect()
}

fn print(report: &AdapterReport) {
    let AdapterReport { name, driver, backend, device_type, .. } = report;
    println!("{name}{}", if report.chosen { "  (used by replay and bench)" } else { "" });
    println!("  {backend}, {device_type}, driver {driver}");
    for (limit, value) in &report.limits {
        println!("  {limit:<40} {value:>12}");
    }
    let features: Vec<_> =
        report.features.iter().filter(|(_, has)| *has).map(|(feature, _)| *feature).collect();
    println!(
        "  features: {}",
        if features.is_empty() { "none of interest".to_owned() } else { features.join(", ") }
    );
    for (mode, reason) in &report.modes {
        match reason {
            None => println!("  runs   {mode}"),
            Some(reason) => println!("  lacks  {mode}: {reason}"),
        }
    }
    println!();
}
