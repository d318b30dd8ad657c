//! `adamod info`: adapters, the limits and features that matter to the library, and the modes that run.

use std::io::Write;

use adamod::{
    Control, DType, DeviceControl, Diagnostics, Group, MasterWeights, Optimizer, Options, Parameter,
    Precision, Rule, RuleKind, StateFormat, Step, View, Views, wgpu,
};
use clap::Args;
use serde::Serialize;

use crate::adapter::{AdapterChoice, NO_ADAPTER};
use crate::failure::Failure;

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
    /// Whether `replay` and `bench` use it.
    chosen: bool,
    limits: Vec<(&'static str, u64)>,
    features: Vec<(&'static str, bool)>,
    /// Each mode, with the reason if it does not run.
    modes: Vec<(String, Option<String>)>,
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
    Ok(out.flush()?)
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

/// A mode that is tried on a device.
struct Candidate {
    name: String,
    group: Group,
    dtype: DType,
    options: Options,
}

impl Candidate {
    /// A rule with all tensors in f32.
    fn new(name: impl Into<String>, rule: Rule) -> Self {
        let group = Group::from(rule).with_precision(precision(StateFormat::F32));
        Self { name: name.into(), group, dtype: DType::F32, options: Options::new() }
    }
}

/// The format also for small tensors.
fn precision(state: StateFormat) -> Precision {
    Precision::new(state).with_f32_state_below(0)
}

/// Every rule in every state format, every 16-bit data type with all master weights that fit it, and the options.
fn candidates() -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for kind in RuleKind::ALL {
        for state in StateFormat::ALL {
            let name = format!("{kind}-{}", state.name());
            let candidate = Candidate::new(name, kind.with_defaults());
            let group = candidate.group.with_precision(precision(state));
            candidates.push(Candidate { group, ..candidate });
        }
    }
    for master_weights in MasterWeights::ALL {
        for dtype in DType::ALL {
            if dtype == DType::F32 || !master_weights.fit(dtype) {
                continue;
            }
            let name = match master_weights {
                MasterWeights::None => format!("{dtype} parameters, rounded stochastically"),
                _ => format!("{dtype} parameters with master weights {}", master_weights.name()),
            };
            let precision = precision(StateFormat::F32).with_master_weights(master_weights);
            let candidate = Candidate::new(name, Rule::default());
            let group = candidate.group.with_precision(precision);
            candidates.push(Candidate { group, dtype, ..candidate });
        }
    }
    let control = Control::Device(DeviceControl::new());
    for (name, options) in [
        ("loss scale, clip and skipping on the device", Options::new().with_control(control)),
        ("learning rates counted", Options::new().with_diagnostics(Diagnostics::RateHistograms)),
    ] {
        candidates.push(Candidate { options, ..Candidate::new(name, Rule::default()) });
    }
    candidates
}

/// Takes a step in every mode on a device of the adapter.
fn modes(adapter: &wgpu::Adapter) -> Vec<(String, Option<String>)> {
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

/// Takes a step of a small tensor and reads its state.
fn step(device: &wgpu::Device, queue: &wgpu::Queue, candidate: &Candidate) -> anyhow::Result<()> {
    const ELEMENTS: u64 = 64;
    let &Candidate { group, dtype, ref options, .. } = candidate;
    let buffer = || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod.info"),
            size: ELEMENTS * dtype.bytes(),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let (values, gradients) = (buffer(), buffer());
    let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
    let mut optimizer = Optimizer::new(device, queue, options.clone())?;
    let group = optimizer.add_group(group)?;
    let parameter = Parameter::new("parameter", ELEMENTS).with_dtype(dtype).with_views(views);
    let parameter = optimizer.add_parameter(group, parameter)?;
    optimizer.submit(&Step::all())?;
    let steps = optimizer.read_state(parameter).wait()?.step;
    anyhow::ensure!(steps == 1, "the step count is {steps}, expected 1");
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
