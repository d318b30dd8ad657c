//! Times Burn's Adam and adamod's Adam and AdaMod on the same adapter, in turn, round after round. Wall time from the call to
//! the end of the device's work, so that what the host does counts too.

use std::time::Instant;

use adamod::{Hyperparameters, Optimizer, Options, Parameter, Rule, View, Views, wgpu};
use anyhow::Context as _;
use burn::module::{Module, Param};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use clap::Parser;

/// Time Burn's Adam beside adamod.
#[derive(Parser)]
struct Arguments {
    /// Rounds that are timed.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
}

/// Tensors and elements of each.
const CASES: [(usize, usize); 3] = [(200, 256), (100, 100_000), (1, 10_000_000)];
const WARMUP: usize = 5;
const LEARNING_RATE: f64 = 1e-3;

fn main() -> anyhow::Result<()> {
    let Arguments { rounds } = Arguments::parse();
    let ours = pollster::block_on(Ours::open())?;
    let burn = Device::wgpu(DeviceKind::default());
    println!(
        "adapter: {}; Burn {}",
        ours.adapter,
        if cfg!(feature = "fusion") { "with fusion" } else { "without fusion" }
    );
    println!(
        "{:>16} {:>14} {:>10} {:>10} {:>9} {:>12}",
        "case", "optimizer", "ms", "min", "GB/s", "Burn to it"
    );
    for (tensors, elements) in CASES {
        let mut contenders: Vec<(&str, f64, Box<dyn FnMut() -> anyhow::Result<()>>)> = vec![
            ("Burn Adam", 28.0, burn_adam(&burn, tensors, elements)?),
            ("adamod Adam", 28.0, ours.step(Rule::Adam, tensors, elements)?),
            ("adamod AdaMod", 36.0, ours.step(Rule::AdaMod, tensors, elements)?),
        ];
        let mut times = vec![Vec::with_capacity(rounds); contenders.len()];
        for round in 0..WARMUP + rounds {
            for ((_, _, step), times) in contenders.iter_mut().zip(&mut times) {
                let start = Instant::now();
                step()?;
                if round >= WARMUP {
                    times.push(start.elapsed().as_secs_f64());
                }
            }
        }
        let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
        for (index, (name, bytes, _)) in contenders.iter().enumerate() {
            let seconds = medians[index];
            println!(
                "{:>16} {name:>14} {:>10.3} {:>10.3} {:>9.2} {:>11.2}x",
                format!("{tensors} x {elements}"),
                1e3 * seconds,
                1e3 * times[index][0],
                bytes * (tensors * elements) as f64 / seconds * 1e-9,
                medians[0] / seconds,
            );
        }
    }
    Ok(())
}

/// Sorts, too.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[derive(Module, Debug)]
struct Weights {
    tensors: Vec<Param<Tensor<1>>>,
}

fn burn_adam(
    device: &Device,
    tensors: usize,
    elements: usize,
) -> anyhow::Result<Box<dyn FnMut() -> anyhow::Result<()>>> {
    let training = device.clone().autodiff();
    let random = |device: &Device| Tensor::<1>::random([elements], Distribution::Normal(0.0, 1.0), device);
    let module = Weights { tensors: (0..tensors).map(|_| Param::from_tensor(random(&training))).collect() };
    let gradients: Vec<_> = module.tensors.iter().map(|tensor| (tensor.id, random(device))).collect();
    let mut optimizer: ModuleOptimizer = AdamConfig::new().with_epsilon(1e-8).init();
    let mut module = Some(module);
    let device = device.clone();
    device.sync().map_err(|error| anyhow::anyhow!("{error:?}"))?;
    Ok(Box::new(move || {
        let mut given = GradientsParams::new();
        for (id, gradient) in &gradients {
            given.register(*id, gradient.clone());
        }
        let stepped = optimizer.step(LEARNING_RATE, module.take().context("a module")?, given);
        module = Some(stepped);
        device.sync().map_err(|error| anyhow::anyhow!("{error:?}"))
    }))
}

struct Ours {
    device: wgpu::Device,
    queue: wgpu::Queue,
    adapter: String,
}

impl Ours {
    async fn open() -> anyhow::Result<Self> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
        let descriptor = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
        let (device, queue) = adapter.request_device(&descriptor).await?;
        Ok(Self { device, queue, adapter: adapter.get_info().name })
    }

    /// A step over tensors in two pools.
    fn step(
        &self,
        rule: Rule,
        tensors: usize,
        elements: usize,
    ) -> anyhow::Result<Box<dyn FnMut() -> anyhow::Result<()>>> {
        let bytes = 4 * elements as u64;
        let pool = || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: bytes * tensors as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let (values, gradients) = (pool(), pool());
        let content: Vec<f32> = (0..elements * tensors).map(|i| (i as f32).sin()).collect();
        for buffer in [&values, &gradients] {
            let bytes: Vec<u8> = content.iter().flat_map(|x| x.to_le_bytes()).collect();
            self.queue.write_buffer(buffer, 0, &bytes);
        }
        let mut optimizer =
            Optimizer::new(&self.device, &self.queue, Options { rule, ..Options::default() })?;
        let group =
            optimizer.add_group(Hyperparameters { learning_rate: LEARNING_RATE, ..Default::default() })?;
        for tensor in 0..tensors {
            let offset = tensor as u64 * bytes;
            let views = Some(Views::new(View::new(&values, offset), View::new(&gradients, offset)));
            let label = format!("tensor.{tensor}");
            optimizer.add_parameter(group, Parameter { views, ..Parameter::new(&label, elements as u64) })?;
        }
        let device = self.device.clone();
        Ok(Box::new(move || {
            let submission = optimizer.step()?;
            device.poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout: None })?;
            Ok(())
        }))
    }
}
