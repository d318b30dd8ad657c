//! `adamod info`: adapters, the limits and features that matter to the library, and which modes run.

use std::io::Write;

use adamod::{
    Control, DType, DeviceControl, Diagnostics, Hyperparameters, MasterWeights, Optimizer, Options,
    Parameter, Precision, Rule, StateFormat, View, Views, wgpu,
};
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
    let adapters = arguments.choice.sorted()?;
    if adapters.is_empty() {
        return Err(Failure::Machine(anyhow::anyhow!(NO_ADAPTER)));
    }
    let reports: Vec<_> =
        adapters.iter().enumerate().map(|(index, adapter)| report(adapter, index == 0)).collect();
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let text = serde_json::to_string_pretty(&reports).map_err(|error| Failure::Machine(error.into()))?;
        writeln!(out, "{text}")?;
    } else {
        reports.iter().try_for_each(|report| print(report, &mut out))?;
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

/// What is tried on a device.
struct Candidate {
    name: &'static str,
    rule: Rule,
    precision: Precision,
    values: DType,
    options: Options,
}

fn candidates() -> Vec<Candidate> {
    let f32 = |name, rule| Candidate {
        name,
        rule,
        precision: Precision { f32_state_below: 0, ..Precision::default() },
        values: DType::F32,
        options: Options::default(),
    };
    let state = |name, rule, state| {
        let candidate = f32(name, rule);
        Candidate { precision: Precision { state, ..candidate.precision }, ..candidate }
    };
    let values = |name, values, master_weights| {
        let candidate = f32(name, Rule::AdaMod);
        Candidate { values, precision: Precision { master_weights, ..candidate.precision }, ..candidate }
    };
    let options = |name, options| Candidate { options, ..f32(name, Rule::AdaMod) };
    vec![
        f32("adamod-f32", Rule::AdaMod),
        state("adamod-bf16", Rule::AdaMod, StateFormat::Bf16),
        state("adamod-q8", Rule::AdaMod, StateFormat::Q8),
        f32("adam-f32", Rule::Adam),
        state("adam-bf16", Rule::Adam, StateFormat::Bf16),
        state("adam-q8", Rule::Adam, StateFormat::Q8),
        f32("sgd-f32", Rule::Sgd),
        state("sgd-bf16", Rule::Sgd, StateFormat::Bf16),
        state("sgd-q8", Rule::Sgd, StateFormat::Q8),
        values("bf16 parameters, rounded stochastically", DType::Bf16, MasterWeights::None),
        values("bf16 parameters with master weights split24", DType::Bf16, MasterWeights::Split24),
        values("bf16 parameters with master weights split32", DType::Bf16, MasterWeights::Split32),
        values("f16 parameters with master weights f32", DType::F16, MasterWeights::F32),
        options(
            "loss scale, clip and skipping on the device",
            Options { control: Control::Device(DeviceControl::default()), ..Options::default() },
        ),
        options(
            "learning rates counted",
            Options { diagnostics: Diagnostics::LearningRates, ..Options::default() },
        ),
    ]
}

/// Takes a step in every mode on a device of the adapter.
fn modes(adapter: &wgpu::Adapter) -> Vec<(&'static str, Option<String>)> {
    let descriptor = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
    let device = pollster::block_on(adapter.request_device(&descriptor));
    candidates()
        .into_iter()
        .map(|candidate| {
            let reason = match &device {
                Ok((device, queue)) => {
                    step(device, queue, &candidate).err().map(|error| format!("{error:#}"))
                }
                Err(error) => Some(error.to_string()),
            };
            (candidate.name, reason)
        })
        .collect()
}

/// One step of a small tensor, up to reading its state back.
fn step(device: &wgpu::Device, queue: &wgpu::Queue, candidate: &Candidate) -> anyhow::Result<()> {
    const ELEMENTS: u64 = 64;
    let &Candidate { rule, precision, values, options, .. } = candidate;
    let buffer = || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod.info"),
            size: ELEMENTS * values.bytes(),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let (parameters, gradients) = (buffer(), buffer());
    let view = |buffer| View::new(buffer, 0).with_dtype(values);
    let views = Some(Views::new(view(&parameters), view(&gradients)));
    let mut optimizer = Optimizer::new(device, queue, Options { rule, ..options })?;
    let group = optimizer.add_group_with(Hyperparameters::default(), precision)?;
    let parameter = Parameter { dtype: values, views, ..Parameter::new("parameter", ELEMENTS) };
    let parameter = optimizer.add_parameter(group, parameter)?;
    optimizer.step()?;
    let steps = optimizer.read_state_blocking(parameter)?.step;
    anyhow::ensure!(steps == 1, "a step was taken, {steps} are counted");
    Ok(())
}

fn print(report: &AdapterReport, out: &mut impl Write) -> std::io::Result<()> {
    let AdapterReport { name, driver, backend, device_type, .. } = report;
    writeln!(out, "{name}{}", if report.chosen { "  (used by replay and bench)" } else { "" })?;
    writeln!(out, "  {backend}, {device_type}, driver {driver}")?;
    for (limit, value) in &report.limits {
        writeln!(out, "  {limit:<40} {value:>12}")?;
    }
    let features: Vec<_> =
        report.features.iter().filter(|(_, has)| *has).map(|(feature, _)| *feature).collect();
    writeln!(
        out,
        "  features: {}",
        if features.is_empty() { "none of interest".to_owned() } else { features.join(", ") }
    )?;
    for (mode, reason) in &report.modes {
        match reason {
            None => writeln!(out, "  runs   {mode}")?,
            Some(reason) => writeln!(out, "  lacks  {mode}: {reason}")?,
        }
    }
    writeln!(out)
}
