//! Runs a trace: on the GPU, or with the f64 reference.

use std::io::IsTerminal;

use adamod::reference::Reference;
use adamod::{Group, Optimizer, Options, Parameter, Precision, StateFormat, Step, View, Views, wgpu};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::comparison::Outcome;
use crate::trace::Trace;

/// Bytes at which a tensor of a pool starts: the alignment of engines with memory pools.
const POOL_ALIGNMENT_BYTES: u64 = 256;

/// Steps that may be on their way to the device.
const STEPS_IN_FLIGHT: u64 = 64;

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

fn wide(elements: &[f32]) -> Vec<f64> {
    elements.iter().map(|&x| f64::from(x)).collect()
}

/// Runs a trace with the f64 reference.
pub fn on_cpu(trace: &Trace) -> Vec<Outcome> {
    let mut reference = Reference::<f64>::new();
    for &group in &trace.groups {
        reference.add_group(group);
    }
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
        .map(|index| trace.by_kind(index, reference.values(index).to_vec(), reference.state(index).to_vec()))
        .collect()
}

/// Runs a trace on the GPU. Parameters and gradients are pooled, with one buffer each; a step is one dispatch.
pub fn on_gpu(
    trace: &Trace,
    state: StateFormat,
    device: &wgpu::Device,
    queue: &wgpu::Queue,
) -> anyhow::Result<Vec<Outcome>> {
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
    anyhow::ensure!(
        pool_bytes <= limit,
        "the parameters take {pool_bytes} bytes, expected at most {limit}, the largest buffer of the device"
    );
    let pool = |label| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: pool_bytes.max(POOL_ALIGNMENT_BYTES),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let (values, gradients) = (pool("adamod.replay.values"), pool("adamod.replay.gradients"));
    let mut optimizer = Optimizer::new(device, queue, Options::new())?;
    // Small tensors have the format, too.
    let precision = Precision::new(state).with_f32_state_below(0);
    let groups = trace
        .groups
        .iter()
        .map(|&group| optimizer.add_group(Group::new(group).with_precision(precision)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut ids = Vec::with_capacity(offsets.len());
    for (parameter, &offset) in trace.parameters.iter().zip(&offsets) {
        queue.write_buffer(&values, offset, bytemuck::cast_slice(&parameter.values));
        let views = Views::new(View::new(&values, offset), View::new(&gradients, offset));
        let len = parameter.values.len() as u64;
        let registered = Parameter::new(&parameter.name, len).with_views(views);
        ids.push(optimizer.add_parameter(groups[parameter.group], registered)?);
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
        optimizer.submit(&Step::of(&present))?;
        if step % STEPS_IN_FLIGHT == 0 {
            device.poll(wgpu::PollType::wait_indefinitely())?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let outcome = |(index, id)| -> anyhow::Result<Outcome> {
        let values = wide(&optimizer.read_parameter(id).wait()?);
        let state = optimizer.read_state(id).wait()?;
        let states = state.tensors.iter().map(|(_, elements)| wide(elements));
        Ok(trace.by_kind(index, values, states.collect()))
    };
    ids.into_iter().enumerate().map(outcome).collect()
}
