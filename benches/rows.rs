//! Rows: a remap on the device beside the same through the host, and steps with rates by column and with resting rows beside plain ones.

use adamod::{AdaMod, Optimizer, Options, Parameter, ParameterId, Remap, RowMask, State, Step, View, Views};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

mod gpu;

use gpu::Gpu;

/// Splats of a scene, and the numbers of each with three orders of colour.
const ROWS: u64 = 159_000;
const ROW_LEN: u64 = 59;

impl Gpu {
    fn buffer(&self, words: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod.bench.rows"),
            size: 4 * words,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }
}

/// An optimizer with a parameter of rows that has stepped.
struct Splats {
    optimizer: Optimizer,
    id: ParameterId,
    values: wgpu::Buffer,
    gradients: wgpu::Buffer,
}

const LABEL: &str = "splats";

impl Splats {
    fn new(gpu: &Gpu) -> Self {
        let mut optimizer =
            Optimizer::new(&gpu.device, &gpu.queue, Options::new()).expect("a device with default limits");
        let group = optimizer.add_group(AdaMod::new()).expect("default hyperparameters");
        let (values, gradients) = (gpu.buffer(ROWS * ROW_LEN), gpu.buffer(ROWS * ROW_LEN));
        let numbers: Vec<f32> = (0..ROWS * ROW_LEN).map(|i| (i % 8191) as f32 - 4095.0).collect();
        gpu.queue.write_buffer(&gradients, 0, bytemuck::cast_slice(&numbers));
        let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
        let parameter = Parameter::new(LABEL, ROWS * ROW_LEN).with_views(views);
        let id = optimizer.add_parameter(group, parameter).expect("a parameter within its buffers");
        let mut splats = Self { optimizer, id, values, gradients };
        splats.step(gpu);
        splats
    }

    fn step(&mut self, gpu: &Gpu) {
        self.optimizer.submit(&Step::all()).expect("a step");
        gpu.wait();
    }
}

/// Every tenth row is dropped, and as many split in two.
fn sources() -> Vec<u32> {
    (0..ROWS as u32).map(|row| if row % 10 == 0 { (row + 1) % ROWS as u32 } else { row }).collect()
}

fn remap(c: &mut Criterion) {
    let gpu = Gpu::new();
    let mut group = c.benchmark_group("remap");
    group.sample_size(10);
    let sources = sources();
    let rows = gpu.buffer(ROWS);
    gpu.queue.write_buffer(&rows, 0, bytemuck::cast_slice(&sources));
    let mut splats = Splats::new(&gpu);
    group.bench_function(BenchmarkId::new("device", ROWS), |b| {
        b.iter(|| {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            let remap = Remap::new(ROW_LEN, ROWS, View::new(&rows, 0));
            splats.optimizer.remap(&mut encoder, splats.id, &remap).expect("a remap");
            gpu.queue.submit([encoder.finish()]);
            gpu.wait();
        });
    });
    group.bench_function(BenchmarkId::new("host", ROWS), |b| {
        b.iter(|| {
            let state = splats.optimizer.read_state(splats.id).wait().expect("the state");
            let gathered = |of: &[f32]| {
                let row = |&source: &u32| {
                    let start = source as usize * ROW_LEN as usize;
                    &of[start..start + ROW_LEN as usize]
                };
                sources.iter().flat_map(row).copied().collect::<Vec<_>>()
            };
            let tensors = state.tensors.iter().map(|(name, of)| (*name, gathered(of))).collect();
            let group = splats.optimizer.group_of(splats.id).expect("its group");
            splats.optimizer.remove_parameter(splats.id).expect("the parameter");
            let views = Views::new(View::new(&splats.values, 0), View::new(&splats.gradients, 0));
            let parameter = Parameter::new(LABEL, ROWS * ROW_LEN).with_views(views);
            splats.id = splats.optimizer.add_parameter(group, parameter).expect("a parameter");
            splats.optimizer.write_state(splats.id, &State::new(state.step, tensors)).expect("the state");
            gpu.wait();
        });
    });
    group.finish();
}

fn step(c: &mut Criterion) {
    let gpu = Gpu::new();
    let mut group = c.benchmark_group("step_of_rows");
    group.sample_size(10);
    let mut splats = Splats::new(&gpu);
    group.bench_function("plain", |b| b.iter(|| splats.step(&gpu)));
    let factors: Vec<f32> = (0..ROW_LEN).map(|column| 1.0 / (1.0 + column as f32)).collect();
    splats.optimizer.set_column_factors(splats.id, &factors).expect("factors");
    group.bench_function("factors", |b| b.iter(|| splats.step(&gpu)));
    splats.optimizer.set_column_factors(splats.id, &[]).expect("no factors");
    let mask = gpu.buffer(ROWS.div_ceil(32));
    let views = Views::new(View::new(&splats.values, 0), View::new(&splats.gradients, 0));
    let views = views.with_row_mask(RowMask::new(View::new(&mask, 0), ROW_LEN));
    splats.optimizer.set_views(splats.id, views).expect("a mask");
    for percent in [100, 50, 10, 1] {
        // Visible splats are scattered over the tensor.
        let steps = |row: u64| row.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & 0xff_ffff;
        let bit = |row: u64| u32::from(steps(row) * 100 < percent << 24) << (row % 32);
        let words: Vec<u32> =
            (0..ROWS.div_ceil(32)).map(|word| (32 * word..32 * word + 32).map(bit).sum()).collect();
        gpu.queue.write_buffer(&mask, 0, bytemuck::cast_slice(&words));
        group.bench_function(BenchmarkId::new("visible", format!("{percent}%")), |b| {
            b.iter(|| splats.step(&gpu));
        });
    }
    group.finish();
}

criterion_group!(benches, remap, step);
criterion_main!(benches);
