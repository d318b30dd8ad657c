//! Runs a trace: on the GPU, or with the f64 reference.

use std::io::IsTerminal;

use adamod::reference::Reference;
use adamod::{
    DType, Group, MasterWeights, Optimizer, Options, Parameter, Precision, StateFormat, Step, View, Views,
    wgpu,
};
use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::comparison::Outcome;
use crate::trace::{Numbers, Trace, TraceParameter};

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

/// The bytes of elements in a buffer, in whole words.
fn bytes_of(dtype: DType, elements: &[f32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = match dtype {
        DType::F16 => elements.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::Bf16 => elements.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => bytemuck::pod_collect_to_vec(elements),
    };
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Runs a trace with the f64 reference.
pub fn on_cpu(trace: &Trace) -> Vec<Outcome> {
    let mut reference = Reference::<f64>::new();
    for &group in &trace.groups {
        reference.add_group(group);
    }
    for parameter in &trace.parameters {
        reference.add_parameter(parameter.group, wide(&parameter.values.elements));
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
            let values = reference.values(index).to_vec();
            [values].into_iter().chain(reference.state(index).iter().cloned()).collect()
        })
        .collect()
}

/// Gives each tensor a place in a pool of its kind, and the size of the pool.
fn places(trace: &Trace, dtype: impl Fn(&TraceParameter) -> DType) -> (Vec<u64>, u64) {
    let mut pool_bytes = 0;
    let place = |parameter: &TraceParameter| {
        let offset = pool_bytes;
        let bytes = dtype(parameter).bytes() * parameter.values.elements.len() as u64;
        pool_bytes = (offset + bytes).next_multiple_of(POOL_ALIGNMENT_BYTES);
        offset
    };
    let offsets = trace.parameters.iter().map(place).collect();
    (offsets, pool_bytes.max(POOL_ALIGNMENT_BYTES))
}

/// Runs a trace on the GPU. Parameters and gradients are pooled, with one buffer each; a step is one dispatch for each rule. 16-bit
/// parameters have f32 master weights, as other frameworks give them.
pub fn on_gpu(
    trace: &Trace,
    state: StateFormat,
    device: &wgpu::Device,
    queue: &wgpu::Queue,
) -> anyhow::Result<Vec<Outcome>> {
    let gradient_dtype = |parameter: &TraceParameter| parameter.gradients.unwrap_or_default();
    let (value_places, value_bytes) = places(trace, |parameter| parameter.values.dtype);
    let (gradient_places, gradient_bytes) = places(trace, gradient_dtype);
    let limit = device.limits().max_buffer_size;
    let pool = |label, what, bytes| {
        anyhow::ensure!(
            bytes <= limit,
            "the {what} take {bytes} bytes, expected at most {limit}, the largest buffer of the device"
        );
        Ok(device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        }))
    };
    let values = pool("adamod.replay.values", "parameters", value_bytes)?;
    let gradients = pool("adamod.replay.gradients", "gradients", gradient_bytes)?;
    let mut optimizer = Optimizer::new(device, queue, Options::new())?;
    // Small tensors have the format, too.
    let precision = Precision::new(state).with_f32_state_below(0).with_master_weights(MasterWeights::F32);
    let groups = trace
        .groups
        .iter()
        .map(|&group| optimizer.add_group(Group::new(group).with_precision(precision)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut ids = Vec::with_capacity(trace.parameters.len());
    for (index, parameter) in trace.parameters.iter().enumerate() {
        let TraceParameter { values: Numbers { dtype, elements }, .. } = parameter;
        queue.write_buffer(&values, value_places[index], &bytes_of(*dtype, elements));
        let gradient = View::new(&gradients, gradient_places[index]).with_dtype(gradient_dtype(parameter));
        let views = Views::new(View::new(&values, value_places[index]).with_dtype(*dtype), gradient);
        let registered = Parameter::new(&parameter.name, elements.len() as u64).with_dtype(*dtype);
        ids.push(optimizer.add_parameter(groups[parameter.group], registered.with_views(views))?);
    }
    let bar = progress(trace.steps);
    for step in 1..=trace.steps {
        for (index, &group) in groups.iter().enumerate() {
            optimizer.set_hyperparameters(group, trace.hyperparameters(index, step))?;
        }
        let mut present = Vec::with_capacity(ids.len());
        for (index, parameter) in trace.parameters.iter().enumerate() {
            if let Some(gradient) = trace.gradient(step, index) {
                let bytes = bytes_of(gradient_dtype(parameter), gradient);
                queue.write_buffer(&gradients, gradient_places[index], &bytes);
                present.push(ids[index]);
            }
        }
        optimizer.submit(&Step::of(&present))?;
        if step % STEPS_IN_FLIGHT == 0 {
            device.poll(wgpu::PollType::wait_indefinitely())?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let outcome = |id| -> anyhow::Result<Outcome> {
        let values = wide(&optimizer.read_parameter(id).wait()?);
        let state = optimizer.read_state(id).wait()?;
        let states = state.tensors.iter().map(|(_, elements)| wide(elements));
        Ok([values].into_iter().chain(states).collect())
    };
    ids.iter().map(|&id| outcome(id)).collect()
}
