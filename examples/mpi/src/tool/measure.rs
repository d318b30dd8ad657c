//! The bytes and the time of steps in every mode.

use std::error::Error;
use std::time::Instant;

use adamod::{AdaMod, Control, DType, DeviceControl, Optimizer, Options, Parameter, Step, View, Views, wgpu};
use adamod_mpi::{Builder, Mode, Ranks, Settings};

use crate::gpu::Gpu;

/// Tensors that the parameters are divided into.
const TENSORS: u64 = 16;
/// Steps before those that are measured.
const WARMUP_STEPS: u64 = 2;

#[derive(clap::Args)]
pub struct Arguments {
    /// Parameters in f32
    #[arg(long, default_value_t = 4 << 20, value_parser = clap::value_parser!(u64).range(16..=1 << 32))]
    parameters: u64,

    /// Steps that are measured
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    steps: u64,
}

/// Figures of a rank.
struct Figures {
    state_bytes: u64,
    gradient_bytes: u64,
    sent_bytes: u64,
    /// In seconds, of the fastest step.
    time: f64,
}

/// Measures as a rank. Rank 0 prints the largest figures of all ranks.
pub fn measure(ranks: &Ranks, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let gpu = pollster::block_on(Gpu::open())?;
    let len = arguments.parameters / TENSORS;
    let parameters = len * TENSORS;
    let pool = || gpu.buffer("measure", parameters as usize);
    let (values, gradients) = (pool(), pool());
    let numbers: Vec<f32> = (0..parameters).map(|i| (i as f32 * 0.37).sin() * 1e-2).collect();
    gpu.write(&gradients, &numbers);
    if ranks.rank() == 0 {
        println!("{} ({}), {parameters} parameters in f32, AdaMod", gpu.adapter.name, gpu.adapter.backend);
        println!(
            "ranks  mode              wire  state bytes  gradient bytes   bytes sent  lower bound   fastest ms"
        );
    }
    if ranks.size() == 1 {
        let time = time_of_one_device(&gpu, len, &values, &gradients, arguments.steps)?;
        println!(
            "{:>5}  {:<16}  {:<4}  {:>11}  {:>14}  {:>11}  {:>11}  {:>11.2}",
            "-",
            "one device",
            "-",
            12 * parameters,
            0,
            0,
            0,
            1e3 * time
        );
    }
    for (mode, wire) in [
        (Mode::Replicated, DType::F32),
        (Mode::ShardedState, DType::F32),
        (Mode::ShardedGradients, DType::F32),
        (Mode::ShardedGradients, DType::Bf16),
    ] {
        let own = figures(ranks, &gpu, len, (&values, &gradients), (mode, wire), arguments.steps)?;
        let Figures { state_bytes, gradient_bytes, sent_bytes, time } = own;
        let bytes = [state_bytes, gradient_bytes, sent_bytes, time.to_bits()].map(u64::to_le_bytes).concat();
        let all = ranks.gather(&bytes)?;
        // Positive numbers have the order of their bits.
        let largest = |index: usize| all.iter().map(|of| word(of, index)).max().unwrap_or(0);
        let n = ranks.size() as u64;
        // Gradients and values.
        let bound = (n - 1) * parameters * (wire.bytes() + 4) / n;
        if ranks.rank() == 0 {
            println!(
                "{n:>5}  {:<16}  {wire:<4}  {:>11}  {:>14}  {:>11}  {bound:>11}  {:>11.2}",
                format!("{mode:?}"),
                largest(0),
                largest(1),
                largest(2),
                1e3 * f64::from_bits(largest(3)),
            );
        }
    }
    Ok(())
}

fn word(bytes: &[u8], index: usize) -> u64 {
    bytemuck::pod_read_unaligned(&bytes[8 * index..8 * index + 8])
}

/// What other work on the machine adds to a step is not the step's.
fn fastest(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

fn options() -> Options {
    Options::new().with_control(Control::Device(DeviceControl::new().with_max_norm(1.0)))
}

fn figures(
    ranks: &Ranks,
    gpu: &Gpu,
    len: u64,
    (values, gradients): (&wgpu::Buffer, &wgpu::Buffer),
    (mode, wire): (Mode, DType),
    steps: u64,
) -> Result<Figures, Box<dyn Error>> {
    let zeros = vec![0.0_f32; (len * TENSORS) as usize];
    gpu.write(values, &zeros);
    let settings = Settings::new(mode).with_wire(wire).with_bucket_bytes(4 * len);
    let mut builder = Builder::new(ranks, settings, options());
    let group = builder.add_group(AdaMod::new());
    for tensor in 0..TENSORS {
        let view = |of| View::new(of, 4 * len * tensor);
        let label = format!("tensor.{tensor}");
        let parameter = Parameter::new(&label, len).with_views(Views::new(view(values), view(gradients)));
        builder.add_parameter(group, parameter)?;
    }
    let mut distributed = builder.build(&gpu.device, &gpu.queue)?;
    let mut times = Vec::new();
    let mut sent_bytes = 0;
    for step in 0..WARMUP_STEPS + steps {
        // All ranks start together.
        ranks.gather(&[0])?;
        let (start, before) = (Instant::now(), ranks.traffic());
        distributed.step()?;
        gpu.device.poll(wgpu::PollType::wait_indefinitely())?;
        sent_bytes = ranks.traffic().bytes - before.bytes;
        if step >= WARMUP_STEPS {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let optimizer = distributed.optimizer();
    Ok(Figures {
        state_bytes: optimizer.parameters().filter_map(|id| optimizer.state_bytes_of(id)).sum(),
        gradient_bytes: distributed.gradient_bytes(),
        sent_bytes,
        time: fastest(&times),
    })
}

/// The fastest step of a plain optimizer, in seconds.
fn time_of_one_device(
    gpu: &Gpu,
    len: u64,
    values: &wgpu::Buffer,
    gradients: &wgpu::Buffer,
    steps: u64,
) -> Result<f64, Box<dyn Error>> {
    let mut optimizer = Optimizer::new(&gpu.device, &gpu.queue, options())?;
    let group = optimizer.add_group(AdaMod::new())?;
    let views = Views::new(View::new(values, 0), View::new(gradients, 0));
    optimizer.add_parameter(group, Parameter::new("all", len * TENSORS).with_views(views))?;
    let mut times = Vec::new();
    for step in 0..WARMUP_STEPS + steps {
        let start = Instant::now();
        optimizer.submit(&Step::all())?;
        gpu.device.poll(wgpu::PollType::wait_indefinitely())?;
        if step >= WARMUP_STEPS {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(fastest(&times))
}
