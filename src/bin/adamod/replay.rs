//! `adamod replay`: recorded gradients through the optimizer, against what another framework made of them.
//!
//! # Tolerances
//! An element passes if `|got - expected| <= absolute + relative * |expected|`; NaN never passes.
//!
//! | kind | to 100 steps | beyond |
//! |---|---|---|
//! | `param` | 1e-6 + 1e-5 \|p\| | 1e-5 + 1e-4 \|p\| |
//! | `exp_avg` | 1e-5 (max + \|m\|) | 1e-4 (max + \|m\|) |
//! | `exp_avg_sq`, `exp_avg_lr` | 1e-5 \|x\| | 1e-4 \|x\| |
//!
//! `max` is the largest magnitude in the tensor: the first moment is a sum of terms that cancel, so its rounding errors go with
//! the terms. The others have terms of one sign. Measured against PyTorch's f32 over `tests/traces`: see the README there.
//!
//! State in fewer bits is rounded at random, so an element may be off by several roundings. What is allowed then:
//!
//! | kind | bf16 | q8 |
//! |---|---|---|
//! | `param` | 5% of the tensor's largest movement | 60% |
//! | `exp_avg` | 5% (max + \|m\|) | 60% |
//! | `exp_avg_sq` | 15% | 100% + 2^-30 max |
//! | `exp_avg_lr` | 15% | 100% |
//!
//! An `exp_avg_sq` in q8 that is more than 32 octaves below its neighbours' is held above that, so its rate is the smaller.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use adamod::reference::Reference;
use adamod::{Optimizer, Options, Parameter, Precision, View, Views, wgpu};
use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use safetensors::{Dtype, tensor::TensorView};
use serde::Serialize;

use crate::Failure;
use crate::adapter::AdapterChoice;
use crate::trace::{KINDS, Trace};

/// Arguments of `adamod replay`.
///
/// Exit codes: 0, everything is within its tolerance; 1, something is not; 2, the trace or the command line is wrong; 3, the
/// machine could not do it.
#[derive(Debug, Args)]
#[command(
    after_help = "Tolerances, absolute + relative * |expected|: param 1e-6 + 1e-5 |p| to 100 steps, 1e-5 + 1e-4 |p| beyond; \
exp_avg 1e-5 of itself and of the tensor's largest, 1e-4 beyond; exp_avg_sq and exp_avg_lr 1e-5 |x|, 1e-4 beyond. \
With --state bf16 (q8), in the same order: 5% (60%) of the tensor's largest movement, 5% (60%), 15% (100%).\n\
Exit codes: 0 within tolerance, 1 past it, 2 malformed trace or command line, 3 no adapter or a device's failure."
)]
pub struct Arguments {
    /// The trace, a safetensors file.
    trace: PathBuf,
    /// Where to run: the kernels, or the f64 reference.
    #[arg(long, value_enum, default_value_t = Backend::Gpu)]
    backend: Backend,
    /// Format of the optimizer's state.
    #[arg(long, value_enum, default_value_t = StateFormat::F32)]
    state: StateFormat,
    /// Where to write parameters and states, as safetensors.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    choice: AdapterChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Backend {
    Gpu,
    Cpu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum StateFormat {
    F32,
    Bf16,
    Q8,
}

impl From<StateFormat> for adamod::StateFormat {
    fn from(state: StateFormat) -> Self {
        match state {
            StateFormat::F32 => Self::F32,
            StateFormat::Bf16 => Self::Bf16,
            StateFormat::Q8 => Self::Q8,
        }
    }
}

/// Bytes at which a tensor of a pool starts: what engines with memory pools align to.
const POOL_ALIGNMENT_BYTES: u64 = 256;

/// Steps that may be on their way to the device.
const STEPS_IN_FLIGHT: u64 = 64;

/// Longest run for which the tighter tolerances hold.
const SHORT_STEPS: u64 = 100;

/// Values and states of one parameter, in the order of [`KINDS`].
type Outcome = [Vec<f64>; KINDS.len()];

#[derive(Debug, Serialize)]
struct Report {
    trace: String,
    backend: Backend,
    state: StateFormat,
    /// The adapter, on the GPU.
    adapter: Option<String>,
    steps: u64,
    parameters: usize,
    kinds: Vec<KindReport>,
    passed: bool,
}

/// The largest differences of a kind; `null` in JSON where one is not finite.
#[derive(Debug, Serialize)]
struct KindReport {
    kind: &'static str,
    compared: usize,
    largest_absolute: f64,
    largest_relative: f64,
    /// Element with the largest share of its tolerance.
    worst: Worst,
    passed: bool,
}

#[derive(Debug, Default, Serialize)]
struct Worst {
    tensor: String,
    index: usize,
    got: f64,
    expected: f64,
    /// Difference over what is allowed.
    of_tolerance: f64,
}

/// Runs a trace and compares.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let trace = Trace::read(&arguments.trace)
        .with_context(|| format!("trace {}", arguments.trace.display()))
        .map_err(Failure::Input)?;
    if let Some(path) = &arguments.output {
        // Before a long run is lost. What is there is left as it is until then.
        let opened = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path);
        opened
            .with_context(|| format!("--output: {} cannot be written", path.display()))
            .map_err(Failure::Input)?;
    }
    let (outcomes, adapter) = match arguments.backend {
        Backend::Gpu => {
            let opened = arguments.choice.open(wgpu::Features::empty())?;
            on_gpu(&trace, arguments.state, opened).map_err(Failure::Machine)?
        }
        Backend::Cpu if arguments.state != StateFormat::F32 => {
            return Err(Failure::Input(anyhow!(
                "--backend cpu is the f64 reference: it has no --state, needed is --backend gpu"
            )));
        }
        Backend::Cpu => (on_cpu(&trace), None),
    };
    if let Some(path) = &arguments.output {
        write(&trace, &outcomes, path).map_err(Failure::Machine)?;
    }
    let kinds: Vec<_> =
        (0..KINDS.len()).filter_map(|kind| compare(&trace, arguments.state, &outcomes, kind)).collect();
    let report = Report {
        trace: arguments.trace.display().to_string(),
        backend: arguments.backend,
        state: arguments.state,
        adapter,
        steps: trace.steps,
        parameters: trace.parameters.len(),
        passed: kinds.iter().all(|kind| kind.passed),
        kinds,
    };
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let text = serde_json::to_string(&report).map_err(|error| Failure::Machine(error.into()))?;
        writeln!(out, "{text}")?;
    } else {
        print(&report, &mut out)?;
    }
    if report.passed { Ok(()) } else { Err(Failure::CheckFailed) }
}

fn progress(steps: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(steps), target);
    match ProgressStyle::with_template("{bar:40} {pos}/{len} steps, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn on_cpu(trace: &Trace) -> Vec<Outcome> {
    let mut reference = Reference::<f64>::new(Options::default().rule, trace.formula);
    for &group in &trace.groups {
        reference.add_group(group);
    }
    let wide = |elements: &[f32]| elements.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    for parameter in &trace.parameters {
        reference.add_parameter(parameter.group, wide(&parameter.values));
    }
    let bar = progress(trace.steps);
    for step in 1..=trace.steps {
        for group in 0..trace.groups.len() {
            reference.set_hyperparameters(group, trace.hyperparameters(group, step));
        }
        let gradients: Vec<_> =
            (0..trace.parameters.len()).map(|index| trace.gradient(step, index).map(wide)).collect();
        let gradients: Vec<_> = gradients.iter().map(Option::as_deref).collect();
        reference.step(&gradients);
        bar.inc(1);
    }
    bar.finish_and_clear();
    (0..trace.parameters.len())
        .map(|index| {
            let mut states = reference.state(index).iter().cloned();
            let mut next = || states.next().unwrap_or_default();
            [reference.values(index).to_vec(), next(), next(), next()]
        })
        .collect()
}

/// Parameters and gradients pooled, one buffer each; a step is one dispatch.
fn on_gpu(
    trace: &Trace,
    state: StateFormat,
    (adapter, device, queue): (wgpu::Adapter, wgpu::Device, wgpu::Queue),
) -> anyhow::Result<(Vec<Outcome>, Option<String>)> {
    let mut pool_bytes = 0;
    let offsets: Vec<u64> = trace
        .parameters
        .iter()
        .map(|parameter| {
            let offset = pool_bytes;
            let bytes = size_of_val(parameter.values.as_slice()) as u64;
            pool_bytes = (offset + bytes).next_multiple_of(POOL_ALIGNMENT_BYTES);
            offset
        })
        .collect();
    let limit = device.limits().max_buffer_size;
    if pool_bytes > limit {
        return Err(anyhow!(
            "the trace's parameters take {pool_bytes} bytes, the device's buffers have {limit}"
        ));
    }
    let pool = |label| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: pool_bytes.max(POOL_ALIGNMENT_BYTES),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let (values, gradients) = (pool("adamod.replay.values"), pool("adamod.replay.gradients"));
    let options = Options { formula: trace.formula, ..Options::default() };
    // However small a tensor is.
    let precision = Precision { state: state.into(), f32_state_below: 0, ..Precision::default() };
    let mut optimizer = Optimizer::new(&device, &queue, options)?;
    let groups = trace
        .groups
        .iter()
        .map(|&group| optimizer.add_group_with(group, precision))
        .collect::<Result<Vec<_>, _>>()?;
    let mut ids = Vec::with_capacity(offsets.len());
    for (parameter, &offset) in trace.parameters.iter().zip(&offsets) {
        queue.write_buffer(&values, offset, bytemuck::cast_slice(&parameter.values));
        let views = Views::new(View::new(&values, offset), View::new(&gradients, offset));
        ids.push(optimizer.add_parameter(
            groups[parameter.group],
            Parameter {
                views: Some(views),
                ..Parameter::new(&parameter.name, parameter.values.len() as u64)
            },
        )?);
    }
    let bar = progress(trace.steps);
    for step in 1..=trace.steps {
        for (index, &group) in groups.iter().enumerate() {
            optimizer.set_hyperparameters(group, trace.hyperparameters(index, step))?;
        }
        let mut present = Vec::with_capacity(ids.len());
        for (index, (&id, &offset)) in ids.iter().zip(&offsets).enumerate() {
            if let Some(gradient) = trace.gradient(step, index) {
                queue.write_buffer(&gradients, offset, bytemuck::cast_slice(gradient));
                present.push(id);
            }
        }
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        optimizer.encode_present(&mut encoder, &present)?;
        queue.submit([encoder.finish()]);
        if step % STEPS_IN_FLIGHT == 0 {
            device.poll(wgpu::PollType::wait_indefinitely())?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let wide = |elements: &[f32]| elements.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let mut outcomes = Vec::with_capacity(ids.len());
    for &id in &ids {
        let state = optimizer.read_state_blocking(id)?;
        let of_kind = |kind| wide(state.tensor(kind).unwrap_or_default());
        let values = wide(&optimizer.read_parameter_blocking(id)?);
        outcomes.push([values, of_kind(KINDS[1]), of_kind(KINDS[2]), of_kind(KINDS[3])]);
    }
    Ok((outcomes, Some(adapter.get_info().name)))
}

/// Absolute and relative tolerance of a kind; `initial` are the tensor's values before the first step.
fn tolerance(kind: usize, state: StateFormat, steps: u64, expected: &[f32], initial: &[f32]) -> (f64, f64) {
    let largest = |elements: &mut dyn Iterator<Item = f64>| elements.fold(0.0, |a: f64, x| a.max(x.abs()));
    let shares = match state {
        StateFormat::F32 => None,
        StateFormat::Bf16 => Some((0.05, 0.05, 0.15, 0.0)),
        // Rounding is a matter of luck. Where the rates of 32 neighbours span 27 octaves (`paper-tiny-and-zero`), the element that moves
        // most goes 1.00 times as far as it should on average over 6,000 seeds, and 0.31 to 1.97 times in single ones.
        StateFormat::Q8 => Some((1.0, 0.6, 1.0, 2_f64.powi(-30))),
    };
    if let Some((of_movement, of_exp_avg, of_one_sign, of_largest)) = shares {
        let wide = expected.iter().map(|&x| f64::from(x));
        return match KINDS[kind] {
            "param" => {
                let moved = wide.zip(initial).map(|(x, &initial)| x - f64::from(initial));
                (1e-6 + of_movement * largest(&mut moved.into_iter()), 1e-5)
            }
            "exp_avg" => (of_exp_avg * largest(&mut wide.into_iter()), of_exp_avg),
            "exp_avg_sq" => {
                (f64::from(f32::MIN_POSITIVE) + of_largest * largest(&mut wide.into_iter()), of_one_sign)
            }
            _ => (f64::from(f32::MIN_POSITIVE), of_one_sign),
        };
    }
    let scale = if steps <= SHORT_STEPS { 1.0 } else { 10.0 };
    match KINDS[kind] {
        "param" => (1e-6 * scale, 1e-5 * scale),
        "exp_avg" => {
            let largest = expected.iter().fold(0.0_f64, |largest, &x| largest.max(f64::from(x).abs()));
            (1e-5 * scale * largest, 1e-5 * scale)
        }
        // Below the least normal number nothing is promised.
        _ => (f64::from(f32::MIN_POSITIVE), 1e-5 * scale),
    }
}

/// Compares a kind where something is expected of it.
fn compare(trace: &Trace, state: StateFormat, outcomes: &[Outcome], kind: usize) -> Option<KindReport> {
    let mut report = KindReport {
        kind: KINDS[kind],
        compared: 0,
        largest_absolute: 0.0,
        largest_relative: 0.0,
        worst: Worst::default(),
        passed: true,
    };
    for (index, (parameter, outcome)) in trace.parameters.iter().zip(outcomes).enumerate() {
        let Some(expected) = trace.expected(kind, index) else { continue };
        let (absolute, relative) = tolerance(kind, state, trace.steps, expected, &parameter.values);
        for (element, (&got, &expected)) in outcome[kind].iter().zip(expected).enumerate() {
            let expected = f64::from(expected);
            // Equal infinities do not differ; anything else that is not finite differs without bound.
            let difference = if got == expected { 0.0 } else { (got - expected).abs() };
            let difference = if difference.is_nan() { f64::INFINITY } else { difference };
            let allowed = absolute + relative * expected.abs();
            let of_tolerance = if difference == 0.0 { 0.0 } else { difference / allowed };
            let passes = difference <= allowed && expected.is_finite() || difference == 0.0;
            report.passed &= passes;
            report.compared += 1;
            report.largest_absolute = report.largest_absolute.max(difference);
            if difference > 0.0 {
                report.largest_relative = report.largest_relative.max(difference / expected.abs());
            }
            let of_tolerance = if of_tolerance.is_nan() { f64::INFINITY } else { of_tolerance };
            if report.worst.tensor.is_empty() || of_tolerance > report.worst.of_tolerance {
                report.worst = Worst {
                    tensor: format!("expected.{}.{}", KINDS[kind], parameter.name),
                    index: element,
                    got,
                    expected,
                    of_tolerance,
                };
            }
        }
    }
    (report.compared > 0).then_some(report)
}

fn print(report: &Report, out: &mut impl Write) -> std::io::Result<()> {
    let on = report.adapter.as_deref().unwrap_or("f64 reference");
    writeln!(out, "{}: {} steps, {} parameters, on {on}", report.trace, report.steps, report.parameters)?;
    if report.kinds.is_empty() {
        writeln!(out, "nothing was expected, nothing compared")?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<12} {:>10} {:>12} {:>12} {:>13}  worst element",
        "kind", "compared", "max abs", "max rel", "of tolerance"
    )?;
    for kind in &report.kinds {
        let worst = &kind.worst;
        writeln!(
            out,
            "{:<12} {:>10} {:>12.3e} {:>12.3e} {:>13.3}  {}[{}]: got {:e}, expected {:e}{}",
            kind.kind,
            kind.compared,
            kind.largest_absolute,
            kind.largest_relative,
            worst.of_tolerance,
            worst.tensor,
            worst.index,
            worst.got,
            worst.expected,
            if kind.passed { "" } else { "  PAST ITS TOLERANCE" },
        )?;
    }
    Ok(())
}

fn write(trace: &Trace, outcomes: &[Outcome], path: &PathBuf) -> anyhow::Result<()> {
    let mut bytes: Vec<(String, &[usize], Vec<u8>)> = Vec::new();
    for (parameter, outcome) in trace.parameters.iter().zip(outcomes) {
        for (kind, elements) in KINDS.iter().zip(outcome) {
            let narrow: Vec<f32> = elements.iter().map(|&x| x as f32).collect();
            let name = format!("{kind}.{}", parameter.name);
            bytes.push((name, &parameter.shape, bytemuck::pod_collect_to_vec(&narrow)));
        }
    }
    let mut views = HashMap::new();
    for (name, shape, data) in &bytes {
        views.insert(name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), data)?);
    }
    let file = safetensors::serialize(views, None)?;
    std::fs::write(path, file).with_context(|| format!("output {} cannot be written", path.display()))
}
