//! The host's cost of recording a step, and the time of a step with submit and wait, beside a copy of as many bytes.

use std::collections::BTreeSet;
use std::hint::black_box;

use adamod::{
    Control, DeviceControl, Optimizer, Options, Parameter, Rule, RuleKind, Step, Update, View, Views,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[allow(dead_code, reason = "only `adamod bench` verifies what the kernels read")]
#[path = "../src/bin/adamod/bench/fill.rs"]
mod fill;
#[allow(dead_code, reason = "only `adamod bench` verifies what the kernels write")]
#[path = "../src/bin/adamod/bench/kernels.rs"]
mod kernels;
#[path = "../src/bin/adamod/bench/resources.rs"]
mod resources;

mod gpu;

use gpu::Gpu;

/// Elements of the steps that run.
const ELEMENTS: u64 = 1 << 20;
/// Elements per tensor of the steps that are only recorded.
const SMALL_ELEMENTS: u64 = 256;

impl Gpu {
    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    fn pool(&self, elements: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod.bench.pool"),
            size: 4 * elements,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    }

    fn optimizer(&self) -> Optimizer {
        Optimizer::new(&self.device, &self.queue, Options::new()).expect("a device with default limits")
    }

    /// An optimizer with tensors that lie one after the other in two pools.
    fn pooled(&self, rule: RuleKind, tensors: u64, elements: u64) -> Optimizer {
        let (values, gradients) = (self.pool(tensors * elements), self.pool(tensors * elements));
        let mut optimizer = self.optimizer();
        let group = optimizer.add_group(rule.with_defaults()).expect("default hyperparameters");
        for tensor in 0..tensors {
            let offset = 4 * tensor * elements;
            let views = Views::new(View::new(&values, offset), View::new(&gradients, offset));
            let label = format!("tensor.{tensor}");
            optimizer
                .add_parameter(group, Parameter::new(&label, elements).with_views(views))
                .expect("a parameter within its pool");
        }
        optimizer
    }
}

/// Records a steady step and drops it.
fn record(c: &mut Criterion) {
    let gpu = Gpu::new();
    let mut group = c.benchmark_group("record");
    for tensors in [1, 148, 10_000] {
        let mut optimizer = gpu.pooled(RuleKind::AdaMod, tensors, SMALL_ELEMENTS);
        optimizer.submit(&Step::all()).expect("the first step, which creates state and tables");
        gpu.wait();
        group.bench_with_input(BenchmarkId::from_parameter(tensors), &tensors, |b, _| {
            b.iter(|| {
                let mut encoder = gpu.encoder();
                optimizer.encode(&mut encoder, &Step::all()).expect("a step");
                black_box(encoder.finish())
            });
        });
    }
    group.finish();
}

/// Records a step that gets the views of its tensors, and drops it.
fn record_moving(c: &mut Criterion) {
    let gpu = Gpu::new();
    let mut group = c.benchmark_group("record_moving");
    for tensors in [1, 148, 10_000] {
        let elements = tensors * SMALL_ELEMENTS;
        let (values, gradients) = (gpu.pool(elements), gpu.pool(elements));
        let mut optimizer = gpu.optimizer();
        let parameters = optimizer.add_group(Rule::default()).expect("default hyperparameters");
        let updates: Vec<_> = (0..tensors)
            .map(|tensor| {
                let label = format!("tensor.{tensor}");
                let parameter = optimizer
                    .add_parameter(parameters, Parameter::new(&label, SMALL_ELEMENTS))
                    .expect("a parameter with a label of its own");
                let offset = 4 * tensor * SMALL_ELEMENTS;
                let views = Views::new(View::new(&values, offset), View::new(&gradients, offset));
                Update::new(parameter, views)
            })
            .collect();
        group.throughput(Throughput::Elements(tensors));
        group.bench_with_input(BenchmarkId::from_parameter(tensors), &tensors, |b, _| {
            b.iter(|| {
                let mut encoder = gpu.encoder();
                optimizer.encode(&mut encoder, &Step::at(&updates)).expect("a step");
                black_box(encoder.finish())
            });
        });
    }
    group.finish();
}

/// Records a step after every group, of one tensor each, got a new learning rate, and drops it.
fn record_groups(c: &mut Criterion) {
    let gpu = Gpu::new();
    let controls =
        [("host", Control::Host), ("device", Control::Device(DeviceControl::new().with_max_norm(1.0)))];
    let mut group = c.benchmark_group("record_groups");
    for count in [1, 465, 4000] {
        for (name, control) in controls {
            let options = Options::new().with_control(control);
            let mut optimizer =
                Optimizer::new(&gpu.device, &gpu.queue, options).expect("a device with default limits");
            let (values, gradients) = (gpu.pool(count * SMALL_ELEMENTS), gpu.pool(count * SMALL_ELEMENTS));
            let groups: Vec<_> = (0..count)
                .map(|index| {
                    let id = optimizer.add_group(Rule::default()).expect("default hyperparameters");
                    let offset = 4 * index * SMALL_ELEMENTS;
                    let views = Views::new(View::new(&values, offset), View::new(&gradients, offset));
                    let label = format!("tensor.{index}");
                    optimizer
                        .add_parameter(id, Parameter::new(&label, SMALL_ELEMENTS).with_views(views))
                        .expect("a parameter within its pool");
                    id
                })
                .collect();
            optimizer.submit(&Step::all()).expect("the first step, which creates state and tables");
            gpu.wait();
            let mut learning_rate = 1e-3;
            group.throughput(Throughput::Elements(count));
            group.bench_with_input(BenchmarkId::new(name, count), &count, |b, _| {
                b.iter(|| {
                    learning_rate *= 0.999_999;
                    for &id in &groups {
                        optimizer.set_learning_rate(id, learning_rate).expect("a rate");
                    }
                    let mut encoder = gpu.encoder();
                    optimizer.encode(&mut encoder, &Step::all()).expect("a step");
                    black_box(encoder.finish())
                });
            });
        }
    }
    group.finish();
}

/// Submits a step and waits for it, beside a copy of as many bytes.
fn step(c: &mut Criterion) {
    let gpu = Gpu::new();
    let mut group = c.benchmark_group("step");
    group.sample_size(10);
    let mut copied = BTreeSet::new();
    for &rule in RuleKind::ALL {
        let bytes = ELEMENTS * u64::from(rule.bytes_per_parameter());
        group.throughput(Throughput::Bytes(bytes));
        let mut optimizer = gpu.pooled(rule, 1, ELEMENTS);
        group.bench_function(BenchmarkId::new(rule.name(), ELEMENTS), |b| {
            b.iter(|| {
                optimizer.submit(&Step::all()).expect("a step");
                gpu.wait();
            });
        });
        // Rules that move as many bytes share one copy.
        if !copied.insert(bytes) {
            continue;
        }
        let filler = fill::Filler::new(&gpu.device, &gpu.queue);
        let copy = kernels::Copy::new(&gpu.device, &filler, bytes);
        group.bench_function(BenchmarkId::new("copy", format!("{bytes} bytes")), |b| {
            b.iter(|| {
                let mut encoder = gpu.encoder();
                copy.dispatch(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
                gpu.queue.submit([encoder.finish()]);
                gpu.wait();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, record, record_moving, record_groups, step);
criterion_main!(benches);
