//! What the tests share: a device, an engine that lays tensors out in buffers, and a comparator.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::OnceLock;

use adamod::{
    Formula, Hyperparameters, Optimizer, Options, Parameter, ParameterId, Precision, Rule, State, View,
    Views, reference::Reference,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, StudentT};

/// A device and its adapter.
pub struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    adapter: wgpu::Adapter,
}

impl Gpu {
    /// A device with limits of the caller's. Without an adapter this panics: GPU tests never pass by not running.
    pub fn with_limits(limits: impl FnOnce(wgpu::Limits) -> wgpu::Limits) -> Self {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::from_env().unwrap_or(wgpu::Backends::PRIMARY);
        let instance = wgpu::Instance::new(descriptor);
        let adapter = pollster::block_on(instance.request_adapter(&Default::default()))
            .expect("a GPU adapter: on Debian or Ubuntu mesa-vulkan-drivers gives a software one");
        Self::of(adapter, limits)
    }

    /// Another device of the same adapter.
    pub fn sibling(&self) -> Self {
        Self::of(self.adapter.clone(), |limits| limits)
    }

    fn of(adapter: wgpu::Adapter, limits: impl FnOnce(wgpu::Limits) -> wgpu::Limits) -> Self {
        let descriptor =
            wgpu::DeviceDescriptor { required_limits: limits(adapter.limits()), ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .expect("a device within the adapter's limits");
        Self { device, queue, adapter }
    }

    /// Whether sums, products, quotients and roots are correctly rounded and nothing is contracted: on lavapipe they are.
    pub fn is_exact(&self) -> bool {
        self.adapter.get_info().name.contains("llvmpipe")
    }

    /// A storage buffer that can be copied both ways.
    pub fn buffer(&self, bytes: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("test"),
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Bytes of the buffers of that label, on devices whose driver leaves memory to wgpu; `None` elsewhere.
    pub fn allocated(&self, label: &str) -> Option<u64> {
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let report = self.device.generate_allocator_report()?;
        Some(report.allocations.iter().filter(|of| of.name == label).map(|of| of.size).sum())
    }

    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&Default::default())
    }

    pub fn submit(&self, encoder: wgpu::CommandEncoder) {
        self.queue.submit([encoder.finish()]);
    }

    /// Everything in a buffer.
    pub fn read(&self, buffer: &wgpu::Buffer) -> Vec<u32> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("test.read"),
            size: buffer.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
        self.submit(encoder);
        staging.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let view = staging.get_mapped_range(..).unwrap();
        bytemuck::pod_collect_to_vec(&view)
    }
}

/// The device that most tests of a binary share, with the adapter's limits.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| Gpu::with_limits(|limits| limits))
}

/// How tensors are laid out in buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All values in one buffer, all gradients in another; tensors start at multiples of this many bytes.
    TwoPools(u64),
    /// Values and gradients in turn in one buffer.
    OnePool(u64),
    /// A buffer for every tensor's values and one for its gradients.
    OwnBuffers,
    /// First tensor in one pool with its gradients, the others each in own buffers but for gradients in a third.
    Mixed,
}

/// Where a tensor lies: buffer and byte offset of values, then of gradients.
#[derive(Clone, Copy, Debug)]
pub struct Location {
    pub values: (usize, u64),
    pub gradients: (usize, u64),
}

impl Location {
    /// The two views at this location.
    pub fn views<'a>(&self, buffers: &'a [wgpu::Buffer]) -> Views<'a> {
        let view = |(buffer, offset): (usize, u64)| View::new(&buffers[buffer], offset);
        Views::new(view(self.values), view(self.gradients))
    }
}

/// What fills buffers where no tensor lies: a signalling NaN, which arithmetic would change.
pub const SENTINEL: u32 = 0x7fa5_a5a5;

/// Bytes around tensors, at the least.
const GAP_BYTES: u64 = 8;

/// Lays tensors out, and gives the size of each buffer.
pub fn lay_out(lengths: &[usize], layout: Layout) -> (Vec<Location>, Vec<u64>) {
    let mut sizes: Vec<u64> = Vec::new();
    let mut place = |buffer: usize, len: usize, alignment: u64| {
        if sizes.len() <= buffer {
            sizes.resize(buffer + 1, 0);
        }
        let offset = (sizes[buffer] + GAP_BYTES).next_multiple_of(alignment);
        sizes[buffer] = offset + 4 * len as u64;
        (buffer, offset)
    };
    let locations = lengths
        .iter()
        .enumerate()
        .map(|(index, &len)| {
            let (values, gradients, alignment) = match layout {
                Layout::TwoPools(alignment) => (0, 1, alignment),
                Layout::OnePool(alignment) => (0, 0, alignment),
                Layout::OwnBuffers => (2 * index, 2 * index + 1, 4),
                Layout::Mixed if index == 0 => (0, 0, 16),
                Layout::Mixed => (index + 1, 1, 4),
            };
            Location { values: place(values, len, alignment), gradients: place(gradients, len, alignment) }
        })
        .collect();
    for size in &mut sizes {
        *size += GAP_BYTES;
    }
    (locations, sizes)
}

/// A model to train: options, groups, tensors.
#[derive(Clone, Debug)]
pub struct Model {
    pub options: Options,
    pub groups: Vec<Hyperparameters>,
    /// Of all groups; the twin's is f32.
    pub precision: Precision,
    /// Group and initial values of each tensor.
    pub tensors: Vec<(usize, Vec<f32>)>,
}

impl Model {
    /// One group, tensors of these lengths with normal-sized values.
    pub fn new(rule: Rule, hyperparameters: Hyperparameters, lengths: &[usize]) -> Self {
        let mut rng = StdRng::seed_from_u64(7);
        Self {
            options: Options { rule, ..Options::default() },
            groups: vec![hyperparameters],
            precision: Precision::default(),
            tensors: lengths
                .iter()
                .map(|&len| (0, (0..len).map(|_| rng.random_range(-2.0..2.0)).collect()))
                .collect(),
        }
    }

    pub fn lengths(&self) -> Vec<usize> {
        self.tensors.iter().map(|(_, values)| values.len()).collect()
    }

    /// Heavy-tailed gradients (Student's t, 2 degrees of freedom) of one step.
    pub fn gradients(&self, seed: u64) -> Vec<Vec<f32>> {
        let mut rng = StdRng::seed_from_u64(seed);
        let heavy_tailed = StudentT::new(2.0).unwrap();
        self.lengths().iter().map(|&len| (0..len).map(|_| heavy_tailed.sample(&mut rng)).collect()).collect()
    }

    /// The CPU twin.
    pub fn twin<T: adamod::reference::Real>(&self) -> Reference<T> {
        let mut reference = Reference::new(self.options.rule, self.options.formula);
        for &group in &self.groups {
            reference.add_group(group);
        }
        for (group, values) in &self.tensors {
            let values = values.iter().map(|&v| T::from_f64(v.into())).collect();
            reference.add_parameter(*group, values);
        }
        reference
    }
}

/// An engine with its buffers and an optimizer.
pub struct Engine<'g> {
    pub gpu: &'g Gpu,
    pub optimizer: Optimizer,
    pub ids: Vec<ParameterId>,
    pub groups: Vec<adamod::GroupId>,
    pub buffers: Vec<wgpu::Buffer>,
    pub locations: Vec<Location>,
    lengths: Vec<usize>,
}

impl<'g> Engine<'g> {
    pub fn new(gpu: &'g Gpu, model: &Model, layout: Layout) -> Self {
        let order: Vec<usize> = (0..model.tensors.len()).collect();
        let (locations, sizes) = lay_out(&model.lengths(), layout);
        Self::with_order(gpu, model, locations, &sizes, &order)
    }

    /// An engine that registers its tensors in another order.
    pub fn with_order(
        gpu: &'g Gpu,
        model: &Model,
        locations: Vec<Location>,
        sizes: &[u64],
        order: &[usize],
    ) -> Self {
        let mut optimizer = Optimizer::new(&gpu.device, &gpu.queue, model.options).unwrap();
        let buffers: Vec<_> = sizes.iter().map(|&size| gpu.buffer(size)).collect();
        for buffer in &buffers {
            let words = vec![SENTINEL; buffer.size() as usize / 4];
            gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&words));
        }
        let groups: Vec<_> = model
            .groups
            .iter()
            .map(|&group| optimizer.add_group_with(group, model.precision).unwrap())
            .collect();
        let mut ids = vec![None; order.len()];
        for &index in order {
            let (group, values) = &model.tensors[index];
            let views = locations[index].views(&buffers);
            let View { buffer, offset, .. } = views.values;
            gpu.queue.write_buffer(buffer, offset, bytemuck::cast_slice(values));
            let id = optimizer
                .add_parameter(
                    groups[*group],
                    Parameter {
                        views: Some(views),
                        ..Parameter::new(&format!("tensor.{index}"), values.len() as u64)
                    },
                )
                .unwrap();
            ids[index] = Some(id);
        }
        Self {
            gpu,
            optimizer,
            ids: ids.into_iter().map(Option::unwrap).collect(),
            groups,
            buffers,
            locations,
            lengths: model.lengths(),
        }
    }

    pub fn write_gradients(&self, gradients: &[Option<&[f32]>]) {
        for (location, gradient) in self.locations.iter().zip(gradients) {
            if let Some(gradient) = gradient {
                let (buffer, offset) = location.gradients;
                self.gpu.queue.write_buffer(&self.buffers[buffer], offset, bytemuck::cast_slice(gradient));
            }
        }
    }

    /// Writes gradients, records a step of those that are there, and submits it.
    pub fn step(&mut self, gradients: &[Option<&[f32]>]) {
        self.write_gradients(gradients);
        let mut encoder = self.gpu.encoder();
        let present: Vec<_> =
            self.ids.iter().zip(gradients).filter_map(|(&id, gradient)| gradient.map(|_| id)).collect();
        if present.len() == self.ids.len() {
            self.optimizer.encode(&mut encoder).unwrap();
        } else {
            self.optimizer.encode_present(&mut encoder, &present).unwrap();
        }
        self.gpu.submit(encoder);
    }

    pub fn values(&self, index: usize) -> Vec<f32> {
        let (buffer, offset) = self.locations[index].values;
        let words = self.gpu.read(&self.buffers[buffer]);
        let start = offset as usize / 4;
        bytemuck::cast_slice(&words[start..start + self.lengths[index]]).to_vec()
    }

    pub fn state(&self, index: usize) -> State {
        self.optimizer.read_state_blocking(self.ids[index]).unwrap()
    }

    /// Values and states of all tensors, as bits: to be compared between engines.
    pub fn bits(&self) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
        let bits = |elements: &[f32]| elements.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        (0..self.ids.len())
            .map(|index| {
                let states = self.state(index).tensors;
                let states = states.iter().map(|(_, state)| bits(state)).collect();
                (bits(&self.values(index)), states)
            })
            .collect()
    }

    /// Everything outside of the tensors is as it was, and gradients are what was written.
    pub fn assert_neighbours_untouched(&self, gradients: &[Option<&[f32]>]) {
        for (number, buffer) in self.buffers.iter().enumerate() {
            let words = self.gpu.read(buffer);
            let mut is_tensor = vec![false; words.len()];
            for (index, location) in self.locations.iter().enumerate() {
                for (role, (of, offset)) in [("values", location.values), ("gradients", location.gradients)] {
                    if of != number {
                        continue;
                    }
                    let start = offset as usize / 4;
                    let range = start..start + self.lengths[index];
                    is_tensor[range.clone()].fill(true);
                    if let (Some(gradient), "gradients") = (gradients[index], role) {
                        let written: &[u32] = bytemuck::cast_slice(gradient);
                        assert_eq!(&words[range], written, "gradients of tensor {index}");
                    }
                }
            }
            for (word, (&bits, is_tensor)) in words.iter().zip(is_tensor).enumerate() {
                assert!(is_tensor || bits == SENTINEL, "word {word} of buffer {number} is {bits:08x}");
            }
        }
    }
}

/// Largest allowed difference: `absolute + relative * |expected|`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub absolute: f64,
    pub relative: f64,
}

impl Tolerance {
    /// The first element past the tolerance, if any. NaN is past every tolerance.
    pub fn check(&self, got: &[f32], expected: &[f64]) -> Result<(), String> {
        if got.len() != expected.len() {
            return Err(format!("{} elements, expected {}", got.len(), expected.len()));
        }
        for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            let difference = (f64::from(got) - expected).abs();
            let allowed = self.absolute + self.relative * expected.abs();
            let holds = difference <= allowed;
            if !holds {
                return Err(format!(
                    "element {index} is {got:e}, expected {expected:e}: differs by {difference:e}, allowed {allowed:e}"
                ));
            }
        }
        Ok(())
    }
}

/// Every combination of rule and formula.
pub fn rules() -> [(Rule, Formula); 4] {
    [
        (Rule::AdaMod, Formula::Paper),
        (Rule::AdaMod, Formula::AuthorsCode),
        (Rule::Adam, Formula::Paper),
        (Rule::Sgd, Formula::Paper),
    ]
}

/// Options with diagnostics off.
pub fn options(rule: Rule, formula: Formula) -> Options {
    Options { rule, formula, ..Options::default() }
}

/// Gradients as `step` takes them, all there.
pub fn all(gradients: &[Vec<f32>]) -> Vec<Option<&[f32]>> {
    gradients.iter().map(|g| Some(g.as_slice())).collect()
}

/// Gradients as the f64 twin takes them.
pub fn to_f64(gradients: &[Option<&[f32]>]) -> Vec<Option<Vec<f64>>> {
    gradients.iter().map(|gradient| gradient.map(|g| g.iter().map(|&x| f64::from(x)).collect())).collect()
}
