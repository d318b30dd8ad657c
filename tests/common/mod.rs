//! What the tests share: a device, an engine that lays tensors out in buffers, and a comparator.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod package;

use std::sync::OnceLock;

use adamod::reference::{Real, Reference, Storage, rounded};
use adamod::{
    DType, Error, Group, GroupId, Hyperparameters, Kernels, MasterWeights, Optimizer, Options, Parameter,
    ParameterId, Precision, Rule, RuleForm, Sign, State, StateFormat, Step, Update, View, Views,
};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, StudentT};

/// A device and its adapter.
pub struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// Those of all tests with this device.
    pub kernels: Kernels,
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
        let descriptor = wgpu::DeviceDescriptor {
            required_features: adapter.features() & Optimizer::BINDING_ARRAYS,
            required_limits: limits(adapter.limits()),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .expect("a device within the adapter's limits");
        Self { device, queue, kernels: Kernels::new(), adapter }
    }

    /// An optimizer that shares its compiled kernels with all others of this device: software adapters compile slowly.
    pub fn optimizer(&self, options: Options) -> Result<Optimizer, Error> {
        Optimizer::with_kernels(&self.device, &self.queue, options, &self.kernels)
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
    /// A buffer for every tensor's values, one for its gradients and one for its shadow copy.
    OwnBuffers,
    /// The same with tensors at multiples of 16 bytes.
    AlignedOwnBuffers,
    /// First tensor in one pool with its gradients, the others each in own buffers but for gradients in a third.
    Mixed,
}

/// Where a tensor lies: buffer and byte offset of its values, of its gradients and of its shadow copy.
#[derive(Clone, Copy, Debug)]
pub struct Location {
    pub values: (usize, u64),
    pub gradients: (usize, u64),
    pub shadow: Option<(usize, u64)>,
}

impl Location {
    /// Values and gradients at these places, without a shadow copy.
    pub fn new(values: (usize, u64), gradients: (usize, u64)) -> Self {
        Self { values, gradients, shadow: None }
    }

    /// The views of an f32 tensor at this location.
    pub fn views<'a>(&self, buffers: &'a [wgpu::Buffer]) -> Views<'a> {
        self.views_of(&Kind::f32(), buffers)
    }

    /// The views of a tensor of this kind at this location.
    pub fn views_of<'a>(&self, kind: &Kind, buffers: &'a [wgpu::Buffer]) -> Views<'a> {
        let view = |(buffer, offset): (usize, u64)| View::new(&buffers[buffer], offset);
        let gradients = view(self.gradients);
        let gradients = match kind.gradients == kind.values {
            true => gradients,
            false => gradients.with_dtype(kind.gradients),
        };
        let views = Views::new(view(self.values), gradients);
        match self.shadow.zip(kind.shadow) {
            Some((place, dtype)) => views.with_shadow(view(place).with_dtype(dtype)),
            None => views,
        }
    }
}

/// What fills buffers where no tensor lies: a signalling NaN, which arithmetic would change.
pub const SENTINEL: u32 = 0x7fa5_a5a5;

/// Bytes around tensors, at the least.
const GAP_BYTES: u64 = 8;

/// Lays f32 tensors out, and gives the size of each buffer.
pub fn lay_out(lengths: &[usize], layout: Layout) -> (Vec<Location>, Vec<u64>) {
    let tensors: Vec<_> = lengths.iter().map(|&len| (Kind::f32(), len)).collect();
    lay_out_kinds(&tensors, layout)
}

/// Lays tensors out, and gives the size of each buffer. Shadow copies come last, in a pool of their own or in
/// a buffer each.
pub fn lay_out_kinds(tensors: &[(Kind, usize)], layout: Layout) -> (Vec<Location>, Vec<u64>) {
    let mut sizes: Vec<u64> = Vec::new();
    let mut place = |buffer: usize, dtype: DType, len: usize, alignment: u64| {
        if sizes.len() <= buffer {
            sizes.resize(buffer + 1, 0);
        }
        let offset = (sizes[buffer] + GAP_BYTES).next_multiple_of(alignment);
        sizes[buffer] = (offset + dtype.bytes() * len as u64).next_multiple_of(4);
        (buffer, offset)
    };
    let places: Vec<_> = tensors
        .iter()
        .enumerate()
        .map(|(index, &(kind, len))| {
            let (values, gradients, alignment) = match layout {
                Layout::TwoPools(alignment) => (0, 1, alignment),
                Layout::OnePool(alignment) => (0, 0, alignment),
                Layout::OwnBuffers => (2 * index, 2 * index + 1, 4),
                Layout::AlignedOwnBuffers => (2 * index, 2 * index + 1, 16),
                Layout::Mixed if index == 0 => (0, 0, 16),
                Layout::Mixed => (index + 1, 1, 4),
            };
            let values = place(values, kind.values, len, alignment);
            (values, place(gradients, kind.gradients, len, alignment), alignment)
        })
        .collect();
    let pool_of_shadows = places.iter().map(|(values, gradients, _)| values.0.max(gradients.0) + 1).max();
    let locations = places
        .into_iter()
        .zip(tensors)
        .enumerate()
        .map(|(index, ((values, gradients, alignment), &(kind, len)))| {
            let has_own = matches!(layout, Layout::OwnBuffers | Layout::AlignedOwnBuffers);
            let buffer = pool_of_shadows.unwrap_or(0) + if has_own { index } else { 0 };
            let shadow = kind.shadow.map(|dtype| place(buffer, dtype, len, alignment));
            Location { values, gradients, shadow }
        })
        .collect();
    for size in &mut sizes {
        *size += GAP_BYTES;
    }
    (locations, sizes)
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub values: DType,
    pub gradients: DType,
    pub shadow: Option<DType>,
    pub state: StateFormat,
    pub master_weights: MasterWeights,
}

impl Kind {
    /// Every kind without a shadow copy.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for values in DType::ALL {
            for gradients in DType::ALL {
                for master_weights in MasterWeights::ALL.into_iter().filter(|master| master.fit(values)) {
                    for state in StateFormat::ALL {
                        all.push(Self { values, gradients, shadow: None, state, master_weights });
                    }
                }
            }
        }
        all
    }

    /// f32 in everything.
    pub fn f32() -> Self {
        Self {
            values: DType::F32,
            gradients: DType::F32,
            shadow: None,
            state: StateFormat::F32,
            master_weights: MasterWeights::None,
        }
    }

    /// The precision of a group of such tensors, whatever their lengths.
    pub fn precision(&self) -> Precision {
        precision(self.state).with_master_weights(self.master_weights)
    }
}

/// The precision of a group whose tensors all have state of this format, whatever their lengths.
pub fn precision(state: StateFormat) -> Precision {
    Precision::new(state).with_f32_state_below(0)
}

/// The format of state that a tensor of this length has in a group of this precision.
fn state_of(precision: &Precision, len: usize) -> StateFormat {
    if (len as u64) < precision.f32_state_below { StateFormat::F32 } else { precision.state }
}

/// Bytes of numbers in a data type.
pub fn bytes_of(dtype: DType, numbers: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => bytemuck::cast_slice(numbers).to_vec(),
        DType::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        dtype => panic!("the tests do not know {dtype}"),
    }
}

/// The bits of each element of a tensor.
pub fn bits_of(dtype: DType, bytes: &[u8]) -> Vec<u32> {
    match dtype.bytes() {
        4 => bytemuck::pod_collect_to_vec(bytes),
        _ => bytes.chunks_exact(2).map(|half| u16::from_le_bytes([half[0], half[1]]).into()).collect(),
    }
}

/// The number whose bits in a data type these are.
pub fn number_of(dtype: DType, bits: u32) -> f32 {
    match dtype {
        DType::F32 => f32::from_bits(bits),
        DType::F16 => f16::from_bits(bits as u16).to_f32(),
        DType::Bf16 => bf16::from_bits(bits as u16).to_f32(),
        dtype => panic!("the tests do not know {dtype}"),
    }
}

/// A tensor of a model.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub label: String,
    /// Index of its group.
    pub group: usize,
    /// Initial values, which are numbers of its data type.
    pub values: Vec<f32>,
    pub kind: Kind,
}

impl Tensor {
    /// Its number of elements.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// What is to be registered.
    pub fn parameter(&self) -> Parameter<'_> {
        Parameter::new(&self.label, self.len() as u64).with_dtype(self.kind.values)
    }

    /// How the CPU twin stores it.
    pub fn storage(&self, seed: u64) -> Storage<'_> {
        Storage::new()
            .with_dtype(self.kind.values)
            .with_state(self.kind.state)
            .with_master_weights(self.kind.master_weights)
            .with_label(&self.label)
            .with_seed(seed)
    }
}

/// A model to train: options, groups, tensors.
#[derive(Clone, Debug)]
pub struct Model {
    pub options: Options,
    pub groups: Vec<Group>,
    pub tensors: Vec<Tensor>,
}

impl Model {
    /// One group, f32 tensors of these lengths with values in [-2, 2). The format of their state is the group's.
    pub fn new(group: impl Into<Group>, lengths: &[usize]) -> Self {
        let mut model = Self { options: Options::new(), groups: Vec::new(), tensors: Vec::new() };
        model.add_group(group, lengths);
        model
    }

    /// Adds a group with f32 tensors of these lengths. The format of their state is the group's.
    pub fn add_group(&mut self, group: impl Into<Group>, lengths: &[usize]) {
        let group = group.into();
        self.groups.push(group);
        for &len in lengths {
            let state = state_of(&group.precision, len);
            self.add_tensor(self.groups.len() - 1, Kind { state, ..Kind::f32() }, len);
        }
    }

    /// Tensors of these kinds and lengths, with one group for each format of state and master weights.
    pub fn of_kinds(hyperparameters: impl Into<Hyperparameters>, tensors: &[(Kind, usize)]) -> Self {
        let hyperparameters = hyperparameters.into();
        let mut model = Self { options: Options::new(), groups: Vec::new(), tensors: Vec::new() };
        for &(kind, len) in tensors {
            let group = Group::new(hyperparameters).with_precision(kind.precision());
            let found = model.groups.iter().position(|of| of.precision == group.precision);
            let index = found.unwrap_or_else(|| {
                model.groups.push(group);
                model.groups.len() - 1
            });
            model.add_tensor(index, kind, len);
        }
        model
    }

    fn add_tensor(&mut self, group: usize, kind: Kind, len: usize) {
        let index = self.tensors.len();
        let mut rng = StdRng::seed_from_u64(7 + index as u64);
        let values: Vec<f32> = (0..len).map(|_| rng.random_range(-2.0..2.0)).collect();
        let values = rounded(kind.values, &values);
        self.tensors.push(Tensor { label: format!("tensor.{index}"), group, values, kind });
    }

    /// The same model with other options.
    pub fn with_options(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// The rule of the first group.
    pub fn rule(&self) -> Rule {
        self.groups[0].hyperparameters.rule
    }

    pub fn lengths(&self) -> Vec<usize> {
        self.tensors.iter().map(Tensor::len).collect()
    }

    /// Kind and length of each tensor.
    pub fn kinds(&self) -> Vec<(Kind, usize)> {
        self.tensors.iter().map(|tensor| (tensor.kind, tensor.len())).collect()
    }

    /// Heavy-tailed gradients (Student's t, 2 degrees of freedom) of one step, as numbers of each tensor's type.
    pub fn gradients(&self, seed: u64) -> Vec<Vec<f32>> {
        self.scaled_gradients(seed, 1.0)
    }

    /// The same gradients times a factor, before they are rounded.
    pub fn scaled_gradients(&self, seed: u64, scale: f32) -> Vec<Vec<f32>> {
        let mut rng = StdRng::seed_from_u64(seed);
        let heavy_tailed = StudentT::new(2.0).unwrap();
        self.tensors
            .iter()
            .map(|tensor| {
                let exact: Vec<f32> = (0..tensor.len())
                    .map(|_| {
                        let number: f32 = heavy_tailed.sample(&mut rng);
                        scale * number
                    })
                    .collect();
                rounded(tensor.kind.gradients, &exact)
            })
            .collect()
    }

    /// The CPU twin, which stores tensors as the optimizer does. In f64 it stores everything whole.
    pub fn twin<T: Real>(&self) -> Reference<T> {
        let mut reference = Reference::new();
        for group in &self.groups {
            reference.add_group(group.hyperparameters);
        }
        for tensor in &self.tensors {
            let values = tensor.values.iter().map(|&v| T::from_f64(v.into())).collect();
            reference.add_stored_parameter(tensor.group, values, tensor.storage(self.options.seed));
        }
        reference
    }
}

/// An engine with its buffers and an optimizer.
pub struct Engine<'g> {
    pub gpu: &'g Gpu,
    pub optimizer: Optimizer,
    pub groups: Vec<GroupId>,
    pub ids: Vec<ParameterId>,
    pub tensors: Vec<Tensor>,
    pub locations: Vec<Location>,
    pub buffers: Vec<wgpu::Buffer>,
}

impl<'g> Engine<'g> {
    pub fn new(gpu: &'g Gpu, model: &Model, layout: Layout) -> Self {
        let order: Vec<usize> = (0..model.tensors.len()).collect();
        let (locations, sizes) = lay_out_kinds(&model.kinds(), layout);
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
        let mut engine = Self::empty(gpu, model.options.clone(), sizes);
        for &group in &model.groups {
            engine.add_group(group);
        }
        let mut ids = vec![None; order.len()];
        for &index in order {
            ids[index] = Some(engine.register(&model.tensors[index], &locations[index]));
        }
        engine.ids = ids.into_iter().map(Option::unwrap).collect();
        engine.tensors = model.tensors.clone();
        engine.locations = locations;
        engine
    }

    /// An engine with buffers of these sizes, without groups and tensors.
    pub fn empty(gpu: &'g Gpu, options: Options, sizes: &[u64]) -> Self {
        let optimizer = gpu.optimizer(options).unwrap();
        let buffers: Vec<_> = sizes.iter().map(|&size| gpu.buffer(size)).collect();
        for buffer in &buffers {
            let words = vec![SENTINEL; buffer.size() as usize / 4];
            gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&words));
        }
        let (groups, ids, tensors, locations) = Default::default();
        Self { gpu, optimizer, groups, ids, tensors, locations, buffers }
    }

    /// Adds a group and returns its index.
    pub fn add_group(&mut self, group: impl Into<Group>) -> usize {
        self.groups.push(self.optimizer.add_group(group).unwrap());
        self.groups.len() - 1
    }

    /// Adds a tensor at this location and returns its index.
    pub fn add_tensor(&mut self, tensor: Tensor, location: Location) -> usize {
        let id = self.register(&tensor, &location);
        self.ids.push(id);
        self.tensors.push(tensor);
        self.locations.push(location);
        self.ids.len() - 1
    }

    /// Removes a tensor from the optimizer. The last tensor has its index from then on.
    pub fn remove_tensor(&mut self, index: usize) {
        self.optimizer.remove_parameter(self.ids[index]).unwrap();
        self.ids.swap_remove(index);
        self.tensors.swap_remove(index);
        self.locations.swap_remove(index);
    }

    /// Writes a tensor's initial values to their place and registers it.
    fn register(&mut self, tensor: &Tensor, location: &Location) -> ParameterId {
        self.write(location.values, &bytes_of(tensor.kind.values, &tensor.values));
        let views = location.views_of(&tensor.kind, &self.buffers);
        let group = self.groups[tensor.group];
        let mut parameter = tensor.parameter().with_views(views);
        let state = tensor.kind.state;
        if state != state_of(&self.optimizer.group(group).unwrap().precision, tensor.len()) {
            parameter = parameter.with_state(state);
        }
        self.optimizer.add_parameter(group, parameter).unwrap()
    }

    /// Writes a tensor's bytes; the other half of its last word is left as it was at first.
    fn write(&self, (buffer, offset): (usize, u64), bytes: &[u8]) {
        let mut words = vec![SENTINEL; bytes.len().div_ceil(4)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        self.gpu.queue.write_buffer(&self.buffers[buffer], offset, bytemuck::cast_slice(&words));
    }

    /// Writes gradients, which are rounded to each tensor's type.
    pub fn write_gradients(&self, gradients: &[Option<&[f32]>]) {
        for (index, gradient) in gradients.iter().enumerate() {
            if let Some(gradient) = gradient {
                assert_eq!(gradient.len(), self.tensors[index].len(), "the gradient of tensor {index}");
                self.write_gradient_bytes(index, &bytes_of(self.tensors[index].kind.gradients, gradient));
            }
        }
    }

    /// Writes a gradient as the bytes that it has in its type.
    pub fn write_gradient_bytes(&self, index: usize, bytes: &[u8]) {
        self.write(self.locations[index].gradients, bytes);
    }

    /// Writes gradients, records a step of those that are there, and submits it.
    pub fn step(&mut self, gradients: &[Option<&[f32]>]) {
        self.write_gradients(gradients);
        let present: Vec<_> =
            self.ids.iter().zip(gradients).filter_map(|(&id, gradient)| gradient.map(|_| id)).collect();
        if present.len() == self.ids.len() {
            self.record(&Step::all());
        } else {
            self.record(&Step::of(&present));
        }
    }

    /// Records a step into an encoder and submits it.
    pub fn record(&mut self, step: &Step<'_>) {
        let mut encoder = self.gpu.encoder();
        self.optimizer.encode(&mut encoder, step).unwrap();
        self.gpu.submit(encoder);
    }

    /// The views of a tensor. Its buffers are the caller's clones of [`Engine::buffers`], so that the optimizer can be used meanwhile.
    pub fn views<'a>(&self, index: usize, buffers: &'a [wgpu::Buffer]) -> Views<'a> {
        self.locations[index].views_of(&self.tensors[index].kind, buffers)
    }

    /// All tensors at their places, for [`Step::at`].
    pub fn updates<'a>(&self, buffers: &'a [wgpu::Buffer]) -> Vec<Update<'a>> {
        (0..self.ids.len()).map(|index| Update::new(self.ids[index], self.views(index, buffers))).collect()
    }

    /// The bits of each value in its data type.
    pub fn value_bits(&self, index: usize) -> Vec<u32> {
        let (buffer, offset) = self.locations[index].values;
        self.bits_at(buffer, offset, self.tensors[index].kind.values, self.tensors[index].len())
    }

    /// The bits of each element of a tensor's shadow copy.
    pub fn shadow_bits(&self, index: usize) -> Option<Vec<u32>> {
        let (buffer, offset) = self.locations[index].shadow?;
        Some(self.bits_at(buffer, offset, self.tensors[index].kind.shadow?, self.tensors[index].len()))
    }

    fn bits_at(&self, buffer: usize, offset: u64, dtype: DType, len: usize) -> Vec<u32> {
        let words = self.gpu.read(&self.buffers[buffer]);
        let start = offset as usize;
        let end = start + len * dtype.bytes() as usize;
        bits_of(dtype, &bytemuck::cast_slice(&words)[start..end])
    }

    /// Values as they lie in their buffer, without master weights.
    pub fn values(&self, index: usize) -> Vec<f32> {
        let dtype = self.tensors[index].kind.values;
        self.value_bits(index).into_iter().map(|bits| number_of(dtype, bits)).collect()
    }

    /// Values as the optimizer reads them, with master weights.
    pub fn read_values(&self, index: usize) -> Vec<f32> {
        self.optimizer.read_parameter(self.ids[index]).wait().unwrap()
    }

    pub fn state(&self, index: usize) -> State {
        self.optimizer.read_state(self.ids[index]).wait().unwrap()
    }

    /// Values and states of all tensors, as bits: to be compared between engines. Master weights are the last state.
    pub fn bits(&self) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
        (0..self.ids.len())
            .map(|index| {
                let mut states: Vec<_> =
                    self.state(index).tensors.iter().map(|(_, state)| float_bits(state)).collect();
                if self.tensors[index].kind.master_weights != MasterWeights::None {
                    states.push(float_bits(&self.read_values(index)));
                }
                (self.value_bits(index), states)
            })
            .collect()
    }

    /// Everything outside of the tensors is as it was, and gradients are what was written, or zero after a step that zeroes them.
    pub fn assert_neighbours_untouched(&self, gradients: &[Option<&[f32]>]) {
        let is_zeroed = self.optimizer.options().zero_gradients;
        for (number, buffer) in self.buffers.iter().enumerate() {
            let words = self.gpu.read(buffer);
            let bytes: &[u8] = bytemuck::cast_slice(&words);
            let mut is_tensor = vec![false; bytes.len()];
            for (index, location) in self.locations.iter().enumerate() {
                let Tensor { kind, .. } = self.tensors[index];
                let roles = [
                    (Some(location.values), Some(kind.values)),
                    (Some(location.gradients), Some(kind.gradients)),
                    (location.shadow, kind.shadow),
                ];
                for (role, (place, dtype)) in roles.into_iter().enumerate() {
                    let Some(((of, offset), dtype)) = place.zip(dtype) else { continue };
                    if of != number {
                        continue;
                    }
                    let start = offset as usize;
                    let range = start..start + self.tensors[index].len() * dtype.bytes() as usize;
                    is_tensor[range.clone()].fill(true);
                    if let (Some(gradient), 1) = (gradients[index], role) {
                        let mut expected = bytes_of(dtype, gradient);
                        if is_zeroed {
                            expected.fill(0);
                        }
                        assert!(bytes[range] == expected, "gradients of tensor {index}");
                    }
                }
            }
            let sentinel = SENTINEL.to_le_bytes();
            for (at, (&byte, is_tensor)) in bytes.iter().zip(is_tensor).enumerate() {
                assert!(is_tensor || byte == sentinel[at % 4], "byte {at} of buffer {number} is {byte:02x}");
            }
        }
    }
}

/// The bits of each number.
pub fn float_bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
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

/// Values of hyperparameters with which a rule computes something else.
const OTHER_FORMULAS: [(&str, f64); 6] = [
    ("formula", 1.0),
    ("nesterov", 1.0),
    ("dampening", 0.5),
    ("lr_decay", 0.125),
    // Of AdaBound and NosAdam.
    ("gamma", 0.25),
    // Low enough for AdaBound's upper bound to matter.
    ("final_lr", 0.0005),
];

/// Every rule in every form and every variant of its formula, with its default hyperparameters otherwise.
pub fn rules() -> Vec<Rule> {
    RuleForm::all()
        .flat_map(|form| {
            let default = form.with_defaults();
            let other = move |(name, value)| {
                let mut rule = default;
                let is_other = rule.set_hyperparameter(name, value) && rule != default && rule.form() == form;
                (is_other && Hyperparameters::from(rule).validate().is_ok()).then_some(rule)
            };
            [default].into_iter().chain(OTHER_FORMULAS.into_iter().filter_map(other))
        })
        .collect()
}

/// One rule for each number of states, and each sign of the first state: for what depends on how state is stored, and not on formulas.
pub fn rules_by_states() -> Vec<Rule> {
    let shape = |rule: &Rule| {
        let states = rule.form().states();
        (states.len(), states.first().is_some_and(|state| state.sign == Sign::Signed))
    };
    let mut seen = Vec::new();
    let is_new = |rule: &Rule| {
        let is_new = !seen.contains(&shape(rule));
        seen.push(shape(rule));
        is_new
    };
    // Rules that every format of state can store.
    let offers_all = |rule: &Rule| StateFormat::ALL.iter().all(|state| rule.form().refusal(*state).is_none());
    rules().into_iter().filter(offers_all).filter(is_new).collect()
}

/// Rules and kinds for tests that compile kernels of their own for each pair, of which there are too many. The first rule, AdaMod, meets
/// every kind. Every other one meets every format of state, and together they meet every kind.
pub fn rules_and_kinds() -> Vec<(Rule, Kind)> {
    // It has no factor in common with the number of formats, so a rule's kinds go through all of them.
    const STRIDE: usize = 10;
    let kinds = Kind::all();
    let mut pairs = Vec::new();
    for (index, rule) in rules().into_iter().enumerate() {
        let is_chosen = |number: usize| index == 0 || number % STRIDE == index % STRIDE;
        let chosen = kinds.iter().enumerate().filter(|(number, _)| is_chosen(*number));
        pairs.extend(chosen.map(|(_, &kind)| (rule, kind)).filter(|(rule, kind)| offers(rule, kind)));
    }
    pairs
}

/// The rules whose states can be stored in a format.
pub fn rules_in(state: StateFormat) -> Vec<Rule> {
    rules().into_iter().filter(|rule| rule.form().refusal(state).is_none()).collect()
}

/// Whether the rule offers the kind's format of state.
pub fn offers(rule: &Rule, kind: &Kind) -> bool {
    rule.form().refusal(kind.state).is_none()
}

/// Gradients as `step` takes them, all there.
pub fn all(gradients: &[Vec<f32>]) -> Vec<Option<&[f32]>> {
    gradients.iter().map(|g| Some(g.as_slice())).collect()
}

/// Gradients as the f64 twin takes them.
pub fn to_f64(gradients: &[Option<&[f32]>]) -> Vec<Option<Vec<f64>>> {
    gradients.iter().map(|gradient| gradient.map(|g| g.iter().map(|&x| f64::from(x)).collect())).collect()
}
