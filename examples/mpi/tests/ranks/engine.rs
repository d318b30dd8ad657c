//! An engine without a network: tensors in pools, and gradients that depend on the step and the rank.

use std::fmt::Debug;
use std::process::ExitCode;
use std::time::Duration;

use adamod::{
    AdaMod, Control, DType, DeviceControl, Group, Hyperparameters, Kernels, LossScale, MasterWeights,
    Optimizer, Options, Parameter, Precision, Rule, Sgd, State, StateFormat, Step, View, Views, WeightDecay,
    wgpu,
};
use adamod_mpi::{Builder, Distributed, Error, Mode, Ranks, Settings};

/// How long ranks wait for each other. Eight of them compile their kernels on two cores.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Runs a scenario as a rank.
pub fn rank<E: std::fmt::Display>(limit: Duration, work: impl FnOnce(&Ranks) -> Result<(), E>) -> ExitCode {
    adamod_mpi::run(limit, |ranks| {
        work(ranks)?;
        println!("this rank is done");
        Ok::<_, E>(())
    })
}

#[derive(Clone)]
pub struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    kernels: Kernels,
}

impl Gpu {
    pub fn open() -> Self {
        Self::with_largest_buffer(wgpu::Limits::default().max_buffer_size)
    }

    pub fn with_largest_buffer(bytes: u64) -> Self {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
        let limits = wgpu::Limits { max_buffer_size: bytes, ..Default::default() };
        let described = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&described)).expect("a device");
        Self { device, queue, kernels: Kernels::new() }
    }

    pub fn buffer(&self, bytes: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes.max(4),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }
}

/// How tensors are stored.
#[derive(Clone, Debug)]
pub struct Setup {
    pub rule: Rule,
    pub dtype: DType,
    pub gradients: DType,
    pub precision: Precision,
    pub control: Control,
    pub wire: DType,
    pub lengths: Vec<usize>,
    pub bucket_bytes: u64,
    /// Gradients are multiples of a number, so that their sums are exact.
    pub exact: bool,
}

impl Setup {
    pub fn new(state: StateFormat, control: Control) -> Self {
        Self {
            rule: AdaMod::new().into(),
            dtype: DType::F32,
            gradients: DType::F32,
            precision: Precision::new(state).with_f32_state_below(0),
            control,
            wire: DType::F32,
            lengths: vec![3000, 5, 1025, 33, 1, 6000, 64, 2049],
            bucket_bytes: 16_000,
            exact: false,
        }
    }

    pub fn options(&self) -> Options {
        Options::new().with_seed(7).with_control(self.control)
    }

    fn groups(&self) -> [Group; 2] {
        let main = Hyperparameters::from(self.rule).with_weight_decay(WeightDecay::Decoupled(0.01));
        let other = Hyperparameters::from(Sgd::new()).with_learning_rate(0.05);
        [main.with_learning_rate(0.01), other].map(|of| Group::new(of).with_precision(self.precision))
    }

    pub fn skips(&self) -> bool {
        !matches!(self.control, Control::Host)
    }

    /// Every type of values and gradients, format of state, control and wire, though not every combination.
    pub fn all() -> Vec<Self> {
        let clip = DeviceControl::new().with_max_norm(0.5);
        let dynamic = clip.with_loss_scale(LossScale::Dynamic {
            initial: 4.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2,
        });
        let (clip, dynamic) = (Control::Device(clip), Control::Device(dynamic));
        let f32_state = Self::new(StateFormat::F32, dynamic);
        let q8 = Self::new(StateFormat::Q8, Control::Host);
        let split = |precision: Precision| precision.with_master_weights(MasterWeights::Split24);
        vec![
            // Every number of ranks runs the last three, which have every format of state.
            Self { wire: DType::Bf16, ..f32_state.clone() },
            Self {
                dtype: DType::F16,
                precision: q8.precision.with_master_weights(MasterWeights::F32),
                ..q8.clone()
            },
            Self { wire: DType::F16, lengths: vec![5], ..q8 },
            Self { dtype: DType::Bf16, gradients: DType::Bf16, ..Self::new(StateFormat::Bf16, clip) },
            Self {
                dtype: DType::Bf16,
                gradients: DType::Bf16,
                precision: split(Precision::new(StateFormat::Q8).with_f32_state_below(100)),
                ..Self::new(StateFormat::Q8, clip)
            },
            f32_state,
        ]
    }
}

/// A number from -1 to 1 that depends on everything that it is given.
fn random(of: [u64; 4]) -> f32 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for number in of {
        state = (state ^ number).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state ^= state >> 29;
    }
    ((state >> 40) as f32) / (1 << 23) as f32 - 1.0
}

/// Numbers as they are stored, in whole words.
pub fn bytes_of(dtype: DType, numbers: &[f32]) -> Vec<u8> {
    let halves = |bits: fn(f32) -> u16| numbers.iter().flat_map(|&of| bits(of).to_le_bytes()).collect();
    let mut bytes: Vec<u8> = match dtype {
        DType::F16 => halves(|of| half::f16::from_f32(of).to_bits()),
        DType::Bf16 => halves(|of| half::bf16::from_f32(of).to_bits()),
        _ => numbers.iter().flat_map(|of| of.to_le_bytes()).collect(),
    };
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The pools of an engine: each tensor at a multiple of 4 bytes of two buffers.
pub struct Pools {
    pub setup: Setup,
    pub gpu: Gpu,
    values: wgpu::Buffer,
    gradients: wgpu::Buffer,
    /// Where each tensor's values and gradients start.
    places: Vec<(u64, u64)>,
}

impl Pools {
    pub fn new(gpu: &Gpu, setup: &Setup) -> Self {
        let (mut values, mut gradients) = (0, 0);
        let places = setup
            .lengths
            .iter()
            .map(|&len| {
                let place = (values, gradients);
                values += (len as u64 * setup.dtype.bytes()).next_multiple_of(4);
                gradients += (len as u64 * setup.gradients.bytes()).next_multiple_of(4);
                place
            })
            .collect();
        let this = Self {
            setup: setup.clone(),
            gpu: gpu.clone(),
            values: gpu.buffer(values),
            gradients: gpu.buffer(gradients),
            places,
        };
        for (tensor, &len) in setup.lengths.iter().enumerate() {
            let numbers: Vec<_> = (0..len).map(|i| random([1, 0, tensor as u64, i as u64])).collect();
            this.gpu.queue.write_buffer(
                &this.values,
                this.places[tensor].0,
                &bytes_of(setup.dtype, &numbers),
            );
        }
        this
    }

    /// The values of a tensor as they are stored, without master weights.
    pub fn stored_values(&self, tensor: usize) -> Vec<f32> {
        let (dtype, len) = (self.setup.dtype, self.setup.lengths[tensor]);
        let bytes = (len as u64 * dtype.bytes()).next_multiple_of(4);
        let staging = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&self.values, self.places[tensor].0, &staging, 0, bytes);
        self.gpu.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
        self.gpu.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let bytes = staging.get_mapped_range(..).unwrap();
        let halves = bytes.chunks_exact(2).map(|half| u16::from_le_bytes([half[0], half[1]])).take(len);
        match dtype {
            DType::F16 => halves.map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
            DType::Bf16 => halves.map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect(),
        }
    }

    /// Changes one value of a tensor.
    pub fn spoil(&self, tensor: usize) {
        self.gpu.queue.write_buffer(
            &self.values,
            self.places[tensor].0,
            &bytes_of(self.setup.dtype, &[3.0, 3.0]),
        );
    }

    pub fn parameter<'a>(&'a self, label: &'a str, tensor: usize) -> Parameter<'a> {
        let views = Views::new(
            View::new(&self.values, self.places[tensor].0),
            View::new(&self.gradients, self.places[tensor].1).with_dtype(self.setup.gradients),
        );
        Parameter::new(label, self.setup.lengths[tensor] as u64)
            .with_dtype(self.setup.dtype)
            .with_views(views)
    }

    pub fn write_gradients(&self, gradients: &[Vec<f32>]) {
        for (&(_, place), gradient) in self.places.iter().zip(gradients) {
            let bytes = bytes_of(self.setup.gradients, gradient);
            self.gpu.queue.write_buffer(&self.gradients, place, &bytes);
        }
    }

    pub fn builder(&self, ranks: &Ranks, mode: Mode) -> Builder {
        let settings =
            Settings::new(mode).with_wire(self.setup.wire).with_bucket_bytes(self.setup.bucket_bytes);
        self.builder_with(ranks, settings, self.setup.options(), self.setup.groups())
    }

    pub fn builder_with(
        &self,
        ranks: &Ranks,
        settings: Settings,
        options: Options,
        groups: [Group; 2],
    ) -> Builder {
        let mut builder = Builder::new(ranks, settings, options).with_kernels(&self.gpu.kernels);
        let groups = groups.map(|group| builder.add_group(group));
        for tensor in 0..self.setup.lengths.len() {
            builder.add_parameter(groups[group_of(tensor)], self.parameter(&label(tensor), tensor)).unwrap();
        }
        builder
    }

    pub fn groups(&self) -> [Group; 2] {
        self.setup.groups()
    }

    pub fn distributed(&self, ranks: &Ranks, mode: Mode) -> Result<Distributed, Error> {
        self.builder(ranks, mode).build(&self.gpu.device, &self.gpu.queue)
    }

    /// One optimizer with all tensors.
    pub fn single(&self) -> Optimizer {
        let Gpu { device, queue, kernels } = &self.gpu;
        let mut optimizer = Optimizer::with_kernels(device, queue, self.setup.options(), kernels).unwrap();
        let groups = self.setup.groups().map(|group| optimizer.add_group(group).unwrap());
        for tensor in 0..self.setup.lengths.len() {
            let label = label(tensor);
            optimizer.add_parameter(groups[group_of(tensor)], self.parameter(&label, tensor)).unwrap();
        }
        optimizer
    }
}

pub fn label(tensor: usize) -> String {
    format!("tensor.{tensor}")
}

/// Every third tensor has another rule.
fn group_of(tensor: usize) -> usize {
    usize::from(tensor % 3 == 2)
}

/// A rank's gradients in a step, as its engine stores them.
pub fn gradients(setup: &Setup, step: u64, rank: usize) -> Vec<Vec<f32>> {
    let number = |tensor: usize, i: usize| {
        let rank = if setup.exact { 0 } else { rank as u64 + 1 };
        let number = random([2, 1000 * step + rank, tensor as u64, i as u64]);
        if setup.exact { (number * 32.0).round() / 1024.0 } else { 0.1 * number }
    };
    let of_tensor = |(tensor, &len): (usize, &usize)| {
        let numbers: Vec<_> = (0..len).map(|i| number(tensor, i)).collect();
        adamod::reference::rounded(setup.gradients, &numbers)
    };
    setup.lengths.iter().enumerate().map(of_tensor).collect()
}

/// The average of all ranks' gradients as the settings promise it, by code that shares nothing with the crate's.
pub fn average(setup: &Setup, all: &[Vec<Vec<f32>>]) -> Vec<Vec<f32>> {
    let wire = if setup.gradients == DType::F32 { setup.wire } else { setup.gradients };
    let sent: Vec<Vec<Vec<f32>>> = all
        .iter()
        .map(|of| of.iter().map(|tensor| adamod::reference::rounded(wire, tensor)).collect())
        .collect();
    (0..setup.lengths.len())
        .map(|tensor| {
            let mean = |i: usize| {
                let sum = sent[1..].iter().fold(sent[0][tensor][i], |sum, rank| sum + rank[tensor][i]);
                sum / sent.len() as f32
            };
            let means: Vec<_> = (0..setup.lengths[tensor]).map(mean).collect();
            adamod::reference::rounded(wire, &means)
        })
        .collect()
}

/// Takes a step of one optimizer.
pub fn step(pools: &Pools, optimizer: &mut Optimizer, gradients: &[Vec<f32>]) {
    pools.write_gradients(gradients);
    optimizer.submit(&Step::all()).unwrap();
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// Panics if a rank differs from one optimizer with all tensors: in values, in its part of the state, or in its counters.
pub fn check(distributed: &mut Distributed, pools: &Pools, expected: &Optimizer, what: &impl Debug) {
    let setup = format!("{what:?} on {} ranks", distributed.ranks().size());
    for (tensor, id) in expected.parameters().enumerate() {
        let name = expected.label(id).unwrap();
        let values = expected.read_parameter(id).wait().unwrap();
        let id = distributed.optimizer().parameter(name);
        // With master weights, a rank knows the values in full of its own shards only.
        let found = distributed.read_values(name).unwrap();
        let stored = pools.stored_values(tensor);
        assert_eq!(bits(&found), bits(&stored), "values of {name}: {setup}");
        if let Some(id) = id {
            let own = distributed.optimizer().read_parameter(id).wait().unwrap();
            let first = first_of(distributed.optimizer(), name);
            assert_eq!(bits(&own), bits(&values[first..first + own.len()]), "own values of {name}: {setup}");
            check_state(distributed.optimizer(), expected, name, first, &setup);
        }
    }
    if expected.control_buffer().is_some() {
        let of = |optimizer: &Optimizer| optimizer.read_progress().wait().unwrap();
        assert_eq!(of(distributed.optimizer()), of(expected), "{setup}");
    }
}

fn check_state(own: &Optimizer, expected: &Optimizer, name: &str, first: usize, setup: &str) {
    let state = |optimizer: &Optimizer| -> State {
        let id = optimizer.parameter(name).unwrap();
        optimizer.read_state(id).wait().unwrap()
    };
    let (own, expected) = (state(own), state(expected));
    assert_eq!(own.step, expected.step, "step of {name}: {setup}");
    for ((state, own), (_, expected)) in own.tensors.iter().zip(&expected.tensors) {
        assert_eq!(bits(own), bits(&expected[first..first + own.len()]), "{state} of {name}: {setup}");
    }
}

/// The first element of a rank's shard.
fn first_of(optimizer: &Optimizer, name: &str) -> usize {
    let checkpoint = optimizer.checkpoint().wait().unwrap();
    checkpoint.parameter(name).unwrap().first as usize
}
