//! `adamod replay`: runs recorded gradients through the optimizer, and compares the results with those of another framework.

mod backends;
mod comparison;

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use adamod::{StateFormat, wgpu};
use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use safetensors::{Dtype, tensor::TensorView};
use serde::Serialize;

use crate::adapter::AdapterChoice;
use crate::failure::Failure;
use crate::names;
use crate::output::Output;
use crate::trace::{Trace, VALUES};
use comparison::{KindReport, Outcome, compare};

/// Arguments of `adamod replay`.
///
/// Exit codes: 0, everything is within its tolerance; 1, something is not; 2, the trace or the command line is wrong, or a file cannot
/// be read or written; 3, the machine cannot do it, or the report cannot be printed.
#[derive(Debug, Args)]
#[command(
    after_help = "Tolerances, absolute + relative * |expected|: param 1e-6 + 1e-5 |p| up to 100 steps, 1e-5 + 1e-4 |p| beyond; \
signed states 1e-5 of the element and of the largest one of its tensor, 1e-4 beyond; other states 1e-5 |x|, 1e-4 beyond. With \
--state bf16 (q8), in the same order: 5% (100%) of the largest movement in the tensor, 5% (60%), 15% (100%). Values that are \
expected in 16 bits may be off by half a unit in the last place besides, and values of lion with --state bf16 by 20%. docs/replay.md has the format of traces.\n\
Exit codes: 0 within tolerance; 1 not within tolerance; 2 malformed trace or command line, or a file that cannot be read or \
written; 3 no adapter, a failure of the device, or a report that cannot be printed."
)]
pub struct Arguments {
    /// The trace, a safetensors file.
    trace: PathBuf,
    /// Where to run: the GPU kernels, or the f64 reference on the CPU.
    #[arg(long, value_enum, default_value_t = Backend::Gpu)]
    backend: Backend,
    /// Format of the optimizer's state.
    #[arg(
        long,
        value_parser = names::parser(&StateFormat::ALL, StateFormat::name),
        default_value = StateFormat::F32.name(),
    )]
    state: StateFormat,
    /// Write parameters and states to this file, as safetensors in f32.
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

#[derive(Debug, Serialize)]
struct Report {
    trace: String,
    backend: Backend,
    state: &'static str,
    /// Name of the adapter, on the GPU.
    adapter: Option<String>,
    steps: u64,
    parameters: usize,
    kinds: Vec<KindReport>,
    passed: bool,
}

/// Runs a trace and compares.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let trace = Trace::read(&arguments.trace)
        .with_context(|| format!("trace {}", arguments.trace.display()))
        .map_err(Failure::Input)?;
    let state = arguments.state;
    for (index, group) in trace.groups.iter().enumerate() {
        let form = group.rule.form();
        if let Some(reason) = form.refusal(state) {
            let state = state.name();
            return Err(Failure::Input(anyhow!(
                "--state is {state}, expected one that {form} of group {index} has: {reason}"
            )));
        }
    }
    if arguments.backend == Backend::Cpu && state != StateFormat::F32 {
        return Err(Failure::Input(anyhow!(
            "--state is {}, expected f32 for the f64 reference, or --backend gpu",
            state.name()
        )));
    }
    let outputs: Vec<_> = arguments.output.iter().map(|path| ("--output", path.as_path())).collect();
    let mut outputs = Output::open_all(&[("the trace", &arguments.trace)], &outputs)?;
    let (outcomes, adapter) = match arguments.backend {
        Backend::Gpu => {
            let (adapter, device, queue) = arguments.choice.open(wgpu::Features::empty(), |limits| limits)?;
            let outcomes = backends::on_gpu(&trace, state, &device, &queue).map_err(Failure::Machine)?;
            (outcomes, Some(adapter.get_info().name))
        }
        Backend::Cpu => (backends::on_cpu(&trace), None),
    };
    if let Some(output) = outputs.pop() {
        output.write(&serialized(&trace, &outcomes).map_err(Failure::Machine)?)?;
    }
    let kinds: Vec<_> =
        trace.kinds().into_iter().filter_map(|kind| compare(&trace, state, &outcomes, kind)).collect();
    let report = Report {
        trace: arguments.trace.display().to_string(),
        backend: arguments.backend,
        state: state.name(),
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
    out.flush()?;
    if report.passed { Ok(()) } else { Err(Failure::CheckFailed) }
}

fn print(report: &Report, out: &mut impl Write) -> std::io::Result<()> {
    let on = report.adapter.as_deref().unwrap_or("f64 reference");
    writeln!(out, "{}: {} steps, {} parameters, on {on}", report.trace, report.steps, report.parameters)?;
    if report.kinds.is_empty() {
        writeln!(out, "the trace has no expected results, so nothing was compared")?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<15} {:>10} {:>12} {:>12} {:>13}  worst element",
        "kind", "compared", "max abs", "max rel", "of tolerance"
    )?;
    for kind in &report.kinds {
        let worst = &kind.worst;
        writeln!(
            out,
            "{:<15} {:>10} {:>12.3e} {:>12.3e} {:>13.3}  {}[{}]: got {:e}, expected {:e}{}",
            kind.kind,
            kind.compared,
            kind.largest_absolute,
            kind.largest_relative,
            worst.of_tolerance,
            worst.tensor,
            worst.index,
            worst.got,
            worst.expected,
            if kind.passed { "" } else { "  NOT WITHIN TOLERANCE" },
        )?;
    }
    Ok(())
}

/// All values and states as a safetensors file.
fn serialized(trace: &Trace, outcomes: &[Outcome]) -> anyhow::Result<Vec<u8>> {
    let mut bytes: Vec<(String, &[usize], Vec<u8>)> = Vec::new();
    for (parameter, outcome) in trace.parameters.iter().zip(outcomes) {
        let states = trace.states(parameter).iter().map(|state| state.name);
        for (kind, elements) in [VALUES].into_iter().chain(states).zip(outcome) {
            let narrow: Vec<f32> = elements.iter().map(|&x| x as f32).collect();
            let name = format!("{kind}.{}", parameter.name);
            bytes.push((name, &parameter.shape, bytemuck::pod_collect_to_vec(&narrow)));
        }
    }
    let mut views = HashMap::new();
    for (name, shape, data) in &bytes {
        views.insert(name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), data)?);
    }
    Ok(safetensors::serialize(views, None)?)
}
