//! Pipelines and bind groups of all kernels.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::abi::{
    CHUNK_ELEMENTS, Chunk, Coefficients, GroupTableHead, HISTOGRAM_BYTES, Partial, Remap, Row, Segment,
    SegmentRows,
};
use super::bindings;
use super::variant::{
    Access, Buffers, GradientBinding, RowFeatures, Shadow, Variant, joint_source, norm_source_with,
    partials_source_with, prepare_source_with, reach_source, remap_source, schedule_source,
};
use crate::device::error_scope::DeviceError;
use crate::device::gpu::Gpu;
use crate::options::Diagnostics;
use crate::rules::RuleKind;
use crate::storage::block::StateAccess;
use crate::storage::state::StateTensor;

/// Elements of the binding arrays of [`Kernel::Reach`].
pub const REACH_ELEMENTS: NonZeroU32 = NonZeroU32::new(2).unwrap();

/// A kernel with all its variants and overrides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// The step.
    Update {
        /// Its variant.
        variant: Variant,
        /// The format of all tensors, if they have the same one.
        format: Option<u32>,
        /// No tensor ends within the quads of a lane.
        is_whole: bool,
        /// A group steps or decays cautiously.
        is_cautious: bool,
        /// The length of binding arrays, if each tensor has buffers of its own.
        array_len: Option<NonZeroU32>,
        /// Some rows rest.
        has_masks: bool,
    },
    /// The norm of the gradients of one launch.
    Norm {
        /// How gradients are read.
        access: Access,
        /// How they are bound.
        gradients: GradientBinding,
        /// The length of binding arrays, if each tensor has buffers of its own.
        array_len: Option<NonZeroU32>,
        /// The format of all tensors, if they have the same one.
        format: Option<u32>,
        /// What comes after it.
        end: NormEnd,
    },
    /// The norm from the partial sums of all launches, as a dispatch of its own.
    Partials {
        /// Whether the preparation of the step is left to the second half of it.
        norm_only: bool,
    },
    /// The preparation of a step by itself.
    Prepare,
    /// The preparation of an optimizer's part of a joint step.
    PrepareJoint,
    /// The norm of a step without gradients.
    NoNorm,
    /// The factor of the learning rates.
    Schedule,
    /// Adds the sum of squares of another optimizer to that of the first one of a joint step.
    Join,
    /// Gives the control of the first optimizer of a joint step to another one.
    Follow,
    /// Tries binding arrays.
    #[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "browsers have no binding arrays"))]
    Reach,
    /// Moves rows.
    Remap {
        /// What it does of that.
        part: RemapPart,
        /// The format of the parameter.
        format: u32,
        /// The states of its rule.
        states: &'static [StateTensor],
        /// How state is read and written: in words of 16 or 4 bytes.
        access: StateAccess,
        /// State buffers that are read besides the one that is written.
        old_buffers: u32,
        /// The buffer that holds all old blocks, one after the other, if one does: 0 is the one that is written.
        old_buffer: Option<u32>,
    },
}

/// The kernels of a remap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RemapPart {
    /// Sums over bands of old rows.
    Bands,
    /// The means from these sums.
    Means,
    /// The new blocks.
    Rows,
}

/// What comes after the norm of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormEnd {
    /// The norm of another launch, or [`Kernel::Partials`].
    Launch,
    /// The sum of all partial sums, and the preparation of the step.
    Prepare,
    /// The sum of all partial sums. The step is recorded in two halves.
    Norm,
}

/// The bind groups of a launch.
#[derive(Clone, Debug)]
pub struct BindGroups {
    own: wgpu::BindGroup,
    arrays: Option<wgpu::BindGroup>,
}

impl BindGroups {
    /// Sets them. The offsets are the dynamic ones of the first group.
    pub fn set(&self, pass: &mut wgpu::ComputePass<'_>, offsets: &[u32]) {
        pass.set_bind_group(0, &self.own, offsets);
        if let Some(arrays) = &self.arrays {
            pass.set_bind_group(1, arrays, &[]);
        }
    }
}

impl From<wgpu::BindGroup> for BindGroups {
    fn from(own: wgpu::BindGroup) -> Self {
        Self { own, arrays: None }
    }
}

/// How many words of an element a kernel can access.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// As many as the array has elements. wgpu 30 confuses the two lengths where it checks indices itself, as it does on drivers without
    /// `robustBufferAccess2`.
    ArrayLength,
    /// Every word.
    Whole,
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct Pipeline {
    layout: wgpu::BindGroupLayout,
    /// Of the binding arrays, if there are any.
    arrays: Option<wgpu::BindGroupLayout>,
    pipeline: wgpu::ComputePipeline,
}

/// Compiled kernels, for several optimizers on one device.
///
/// Optimizers with clones of one `Kernels` compile each kernel once, together:
/// [`Optimizer::with_kernels`](crate::Optimizer::with_kernels). A kernel takes from milliseconds to seconds to compile, so this is for
/// engines that create optimizers often, or many at once: a generator and a discriminator, or a search over hyperparameters.
///
/// The labels of shared pipelines begin with the label of the optimizer that compiled them first. Kernels, and the devices that they were
/// compiled for, are released with the last clone and the last of the optimizers.
///
/// ```
/// use adamod::{AdaMod, Kernels, Optimizer, Options, Sgd};
///
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// # let (device, queue) = doc::gpu();
/// let kernels = Kernels::new();
/// let generator = Optimizer::with_kernels(&device, &queue, Options::new().with_label("generator"), &kernels)?;
/// let critic = Optimizer::with_kernels(&device, &queue, Options::new().with_label("critic"), &kernels)?;
/// # Ok::<(), adamod::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Kernels(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    compiled: Mutex<HashMap<Compilation, Pipeline>>,
    /// How far kernels reach into binding arrays, for each device on which that is known.
    #[cfg(not(target_arch = "wasm32"))]
    reach: Mutex<HashMap<wgpu::Device, Option<Reach>>>,
}

/// All that the code of a pipeline depends on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Compilation {
    device: wgpu::Device,
    kernel: Kernel,
    /// Values of the overrides, as bits.
    constants: Vec<(&'static str, u64)>,
    /// Custom rules whose coefficients the kernel computes.
    custom: Vec<RuleKind>,
}

impl Kernels {
    /// None are compiled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of kernels that have been compiled.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none has been compiled.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Compilation, Pipeline>> {
        lock(&self.0.compiled)
    }
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    // A map is whole between two of its methods, whatever panicked.
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All pipelines of an optimizer. They are kept for its life, because some drivers leak dropped ones.
#[derive(Debug)]
pub struct Pipelines {
    gpu: Gpu,
    kernels: Kernels,
    lanes: u32,
    update_lanes: u32,
    rare_paths_apart: bool,
    zero_gradients: bool,
    control: Vec<(&'static str, f64)>,
    control_bytes: u64,
    cache: Option<wgpu::PipelineCache>,
    /// The sets of custom rules that kernels have been compiled with, and which of them the optimizer has now.
    custom: (Vec<Vec<RuleKind>>, usize),
    made: HashMap<(Kernel, usize), Pipeline>,
}

/// What all pipelines of an optimizer have in common.
pub struct PipelineSettings {
    /// Threads per workgroup.
    pub lanes: u32,
    /// Threads per workgroup of the step.
    pub update_lanes: u32,
    /// Whether what the step rarely needs is behind a branch.
    pub rare_paths_apart: bool,
    /// Whether the step zeroes gradients.
    pub zero_gradients: bool,
    /// Overrides of the kernels that prepare steps.
    pub control: Vec<(&'static str, f64)>,
    /// Size of the control buffer in bytes.
    pub control_bytes: u64,
    /// The caller's cache.
    pub cache: Option<wgpu::PipelineCache>,
}

impl Pipelines {
    /// No pipelines yet.
    pub fn new(gpu: &Gpu, kernels: &Kernels, settings: PipelineSettings) -> Self {
        let PipelineSettings {
            lanes,
            update_lanes,
            rare_paths_apart,
            zero_gradients,
            control,
            control_bytes,
            cache,
        } = settings;
        Self {
            gpu: gpu.clone(),
            kernels: kernels.clone(),
            lanes,
            update_lanes,
            rare_paths_apart,
            zero_gradients,
            control,
            control_bytes,
            cache,
            custom: (vec![Vec::new()], 0),
            made: HashMap::new(),
        }
    }

    /// Sets the custom rules that the device can prepare steps of. Kernels that prepare steps have to be made anew after a change.
    pub fn set_custom_rules(&mut self, mut rules: Vec<RuleKind>) {
        rules.sort_unstable();
        rules.dedup();
        let (sets, current) = &mut self.custom;
        *current = sets.iter().position(|set| *set == rules).unwrap_or_else(|| {
            sets.push(rules);
            sets.len() - 1
        });
    }

    /// Changes with the custom rules.
    pub fn custom_rules(&self) -> usize {
        self.custom.1
    }

    fn key(&self, kernel: Kernel) -> (Kernel, usize) {
        (kernel, if kernel.has_coefficients_of_rules() { self.custom.1 } else { 0 })
    }

    /// Compiles a kernel, unless this optimizer or another one with the same [`Kernels`] has compiled it already.
    pub fn make(&mut self, kernel: Kernel) -> Result<(), DeviceError> {
        let key = self.key(kernel);
        if !self.made.contains_key(&key) {
            let compilation = self.compilation(kernel);
            let compiled = self.kernels.lock().get(&compilation).cloned();
            let pipeline = match compiled {
                Some(pipeline) => pipeline,
                // Others may look up kernels meanwhile. If two compile the same one, both have it, and the first one stays.
                None => {
                    let pipeline = self.gpu.catch(|| self.compile(kernel))?;
                    self.kernels.lock().entry(compilation).or_insert(pipeline).clone()
                }
            };
            self.made.insert(key, pipeline);
        }
        Ok(())
    }

    fn compilation(&self, kernel: Kernel) -> Compilation {
        let bits = |(name, value): (&'static str, f64)| (name, value.to_bits());
        Compilation {
            device: self.gpu.device.clone(),
            kernel,
            constants: self.constants(kernel).into_iter().map(bits).collect(),
            custom: self.custom.0[self.key(kernel).1].clone(),
        }
    }

    /// A kernel that [`Pipelines::make`] has compiled.
    pub fn get(&self, kernel: &Kernel) -> &wgpu::ComputePipeline {
        &self.made[&self.key(*kernel)].pipeline
    }

    /// A bind group for a kernel that [`Pipelines::make`] has compiled.
    pub fn bind_group<'a>(
        &self,
        kernel: &Kernel,
        entries: impl IntoIterator<Item = (u32, wgpu::BindingResource<'a>)>,
    ) -> Result<wgpu::BindGroup, DeviceError> {
        let entry = |(binding, resource)| wgpu::BindGroupEntry { binding, resource };
        let entries: Vec<_> = entries.into_iter().map(entry).collect();
        let label = self.gpu.name(kernel.name());
        self.gpu.catch(|| {
            self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&label),
                layout: &self.made[&self.key(*kernel)].layout,
                entries: &entries,
            })
        })
    }

    /// Bind groups for a kernel of a launch. `tensors` has the windows of the launch at each binding. Binding arrays that are longer are
    /// filled with the first window.
    pub fn bind_groups<'a>(
        &self,
        kernel: &Kernel,
        mut entries: Vec<(u32, wgpu::BindingResource<'a>)>,
        tensors: Vec<(u32, Vec<wgpu::BufferBinding<'a>>)>,
    ) -> Result<BindGroups, DeviceError> {
        let Some(len) = kernel.array_len() else {
            let first = |(binding, of): &(u32, Vec<wgpu::BufferBinding<'a>>)| {
                Some((*binding, wgpu::BindingResource::Buffer(of.first()?.clone())))
            };
            entries.extend(tensors.iter().filter_map(first));
            return Ok(BindGroups { own: self.bind_group(kernel, entries)?, arrays: None });
        };
        let own = self.bind_group(kernel, entries)?;
        let padded: Vec<_> = tensors
            .into_iter()
            .filter_map(|(binding, mut of)| {
                of.resize(len.get() as usize, of.first()?.clone());
                Some((binding, of))
            })
            .collect();
        let entries: Vec<_> = padded
            .iter()
            .map(|(binding, of)| wgpu::BindGroupEntry {
                binding: *binding,
                resource: wgpu::BindingResource::BufferArray(of),
            })
            .collect();
        let label = self.gpu.name(kernel.name());
        let arrays = self.gpu.catch(|| {
            let layout = self.made[&self.key(*kernel)].arrays.as_ref()?;
            Some(self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&label),
                layout,
                entries: &entries,
            }))
        })?;
        Ok(BindGroups { own, arrays })
    }

    fn compile(&self, kernel: Kernel) -> Pipeline {
        let device = &self.gpu.device;
        let label = match kernel {
            Kernel::Update { variant, .. } => self.gpu.name(&format!("update.{}", variant.name())),
            _ => self.gpu.name(kernel.name()),
        };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&label),
            entries: &kernel.layout_entries(self.control_bytes),
        });
        let array_entries = kernel.array_entries();
        let arrays = (!array_entries.is_empty()).then(|| {
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&label),
                entries: &array_entries,
            })
        });
        let layouts: Vec<_> = [Some(&layout)].into_iter().chain(arrays.iter().map(Some)).collect();
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &layouts,
            immediate_size: 0,
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(kernel.source(&self.custom.0[self.custom.1]).into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.entry_point()),
            // No kernel uses workgroup memory that it has not written. Where a driver cannot zero it, one lane does so, word by
            // word: half of the instructions of the kernel for 8-bit state.
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &self.constants(kernel),
                zero_initialize_workgroup_memory: false,
            },
            cache: self.cache.as_ref(),
        });
        Pipeline { layout, arrays, pipeline }
    }

    /// How far kernels reach into binding arrays: what was found on this device before, or else what `attempt` finds.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn reach_or<E>(
        &mut self,
        attempt: impl FnOnce(&mut Self) -> Result<Option<Reach>, E>,
    ) -> Result<Option<Reach>, E> {
        let device = self.gpu.device.clone();
        if let Some(known) = lock(&self.kernels.0.reach).get(&device) {
            return Ok(*known);
        }
        let found = attempt(self)?;
        lock(&self.kernels.0.reach).insert(device, found);
        Ok(found)
    }

    /// The device that they are for.
    #[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "browsers have no binding arrays"))]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Threads of the workgroups of kernels that have no chunks.
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Threads per workgroup: at most as many as a chunk has work for.
    fn lanes_of(&self, kernel: Kernel) -> u32 {
        match kernel {
            Kernel::Update { variant, .. } => {
                self.update_lanes.min(CHUNK_ELEMENTS / variant.quantized.lane_elements())
            }
            _ => self.lanes,
        }
    }

    fn constants(&self, kernel: Kernel) -> Vec<(&'static str, f64)> {
        let mut constants = match kernel {
            Kernel::Update { variant, is_whole, is_cautious, has_masks, .. } => {
                let mut constants = vec![
                    ("ZERO_GRADIENTS", self.zero_gradients.into()),
                    ("WHOLE", is_whole.into()),
                    ("CAUTION", is_cautious.into()),
                    ("RARE_PATHS_APART", self.rare_paths_apart.into()),
                ];
                if variant.rows == RowFeatures::On {
                    constants.push(("HAS_MASKS", has_masks.into()));
                }
                constants
            }
            Kernel::Remap { states, .. } => {
                let signs = ["SIGN_0", "SIGN_1", "SIGN_2"].into_iter().zip(states);
                let signs = signs.map(|(name, state)| (name, f64::from(state.sign as u32)));
                signs.chain([("STATES", states.len() as f64)]).collect()
            }
            Kernel::Reach => Vec::new(),
            _ => self.control.clone(),
        };
        constants.push(("LANES", self.lanes_of(kernel).into()));
        if let Kernel::Update { format, .. } | Kernel::Norm { format, .. } = kernel {
            constants.extend(format.map(|format| ("FORMAT", f64::from(format))));
        }
        if let Kernel::Remap { format, old_buffer, .. } = kernel {
            constants.push(("FORMAT", f64::from(format)));
            constants.extend(old_buffer.map(|buffer| ("OLD_BUFFER", f64::from(buffer))));
        }
        if let Kernel::Norm { end: NormEnd::Norm, .. } | Kernel::Partials { norm_only: true } = kernel {
            constants.push(("NORM_ONLY", 1.0));
        }
        constants
    }
}

impl Kernel {
    const fn name(&self) -> &'static str {
        match self {
            Self::Update { .. } => "update",
            Self::Norm { .. } => "norm",
            Self::Partials { .. } => "norm_of_partials",
            Self::Prepare => "prepare",
            Self::PrepareJoint => "prepare_joint",
            Self::NoNorm => "no_norm",
            Self::Schedule => "schedule",
            Self::Join => "join",
            Self::Follow => "follow",
            Self::Reach => "reach",
            Self::Remap { part: RemapPart::Bands, .. } => "rates_of_bands",
            Self::Remap { part: RemapPart::Means, .. } => "mean_rates",
            Self::Remap { part: RemapPart::Rows, .. } => "remap",
        }
    }

    const fn entry_point(&self) -> &'static str {
        match self {
            Self::Norm { end: NormEnd::Launch, .. } => "norm_of_chunks",
            Self::Norm { .. } => "norm_and_prepare",
            _ => self.name(),
        }
    }

    /// Whether its text has the coefficients of all rules of the optimizer.
    const fn has_coefficients_of_rules(&self) -> bool {
        match self {
            Self::Norm { .. } | Self::Partials { .. } | Self::Prepare | Self::PrepareJoint | Self::NoNorm => {
                true
            }
            Self::Update { .. }
            | Self::Schedule
            | Self::Join
            | Self::Follow
            | Self::Reach
            | Self::Remap { .. } => false,
        }
    }

    /// The text, for an optimizer that has these rules besides those of the library.
    fn source(&self, custom: &[RuleKind]) -> String {
        match self {
            Self::Update { variant, .. } => variant.source(),
            Self::Norm { access, gradients, array_len, .. } => {
                let buffers = if array_len.is_some() { Buffers::Array } else { Buffers::One };
                norm_source_with(*access, *gradients, buffers, custom)
            }
            Self::Partials { .. } => partials_source_with(custom),
            Self::Prepare | Self::PrepareJoint | Self::NoNorm => prepare_source_with(custom),
            Self::Schedule => schedule_source(),
            Self::Join | Self::Follow => joint_source(),
            Self::Reach => reach_source(),
            Self::Remap { old_buffers, access, .. } => remap_source(*old_buffers, *access),
        }
    }

    /// The length of its binding arrays, if it has any.
    const fn array_len(&self) -> Option<NonZeroU32> {
        match self {
            Self::Update { array_len, .. } | Self::Norm { array_len, .. } => *array_len,
            Self::Reach => Some(REACH_ELEMENTS),
            _ => None,
        }
    }

    /// Parameters, gradients and shadow copies.
    fn tensor_entries(&self) -> Vec<wgpu::BindGroupLayoutEntry> {
        let gradients_of = |gradients: GradientBinding, access: Access| match gradients {
            GradientBinding::Read => Some(read(bindings::GRADIENTS, access.word_bytes())),
            GradientBinding::ReadWrite => Some(read_write(bindings::GRADIENTS, access.word_bytes())),
            GradientBinding::Shared => None,
        };
        match *self {
            Self::Update { variant, .. } => {
                let mut entries = vec![read_write(bindings::PARAMETERS, variant.access.word_bytes())];
                entries.extend(gradients_of(variant.gradients, variant.access));
                if variant.shadow == Shadow::On {
                    entries.push(read_write(bindings::SHADOW, 4));
                }
                entries
            }
            Self::Norm { access, gradients, .. } => {
                let shared = read_write(bindings::PARAMETERS, access.word_bytes());
                vec![gradients_of(gradients, access).unwrap_or(shared)]
            }
            Self::Reach => vec![read(bindings::GRADIENTS, 4), read_write(bindings::PARAMETERS, 4)],
            _ => Vec::new(),
        }
    }

    /// The entries of the bind group of binding arrays.
    fn array_entries(&self) -> Vec<wgpu::BindGroupLayoutEntry> {
        let Some(len) = self.array_len() else { return Vec::new() };
        self.tensor_entries()
            .into_iter()
            .map(|entry| wgpu::BindGroupLayoutEntry { count: Some(len), ..entry })
            .collect()
    }

    fn layout_entries(&self, control_bytes: u64) -> Vec<wgpu::BindGroupLayoutEntry> {
        let mut entries = self.table_entries(control_bytes);
        if self.array_len().is_none() {
            entries.extend(self.tensor_entries());
        }
        entries
    }

    /// Everything but the tensors.
    fn table_entries(&self, control_bytes: u64) -> Vec<wgpu::BindGroupLayoutEntry> {
        let segments = dynamic(bindings::SEGMENTS, size_of::<Segment>());
        let chunks = read(bindings::CHUNKS, size_of::<Chunk>() as u64);
        match self {
            Self::Update { variant, .. } => {
                let mut entries = vec![
                    dynamic(bindings::COEFFICIENTS, size_of::<Coefficients>()),
                    segments,
                    chunks,
                    read_write(bindings::STATE, variant.state.word_bytes()),
                ];
                if variant.diagnostics == Diagnostics::RateHistograms {
                    entries.push(read_write(bindings::HISTOGRAM, HISTOGRAM_BYTES));
                }
                if variant.rows == RowFeatures::On {
                    entries.push(dynamic(bindings::ROW_TABLE, size_of::<SegmentRows>()));
                    entries.push(read(bindings::ROW_MASKS, 4));
                }
                entries
            }
            Self::Norm { end, .. } => {
                let mut entries =
                    vec![segments, chunks, read_write(bindings::PARTIALS, size_of::<Partial>() as u64)];
                match end {
                    NormEnd::Launch => entries.push(dynamic(bindings::ROWS, size_of::<Row>())),
                    NormEnd::Prepare | NormEnd::Norm => entries.extend(prepare_entries(control_bytes)),
                }
                entries
            }
            Self::Partials { .. } => {
                let mut entries = vec![read_write(bindings::PARTIALS, size_of::<Partial>() as u64)];
                entries.extend(prepare_entries(control_bytes));
                entries
            }
            Self::Prepare | Self::PrepareJoint | Self::NoNorm => prepare_entries(control_bytes).to_vec(),
            Self::Schedule => vec![read_write(bindings::CONTROL, control_bytes), read(bindings::SCHEDULE, 4)],
            Self::Join | Self::Follow => vec![
                read_write(bindings::CONTROL, control_bytes),
                read_write(bindings::OTHER_CONTROL, control_bytes),
            ],
            Self::Reach => Vec::new(),
            Self::Remap { old_buffers, .. } => {
                let mut entries = vec![
                    read(bindings::REMAP, size_of::<Remap>() as u64 + 8),
                    read(bindings::SOURCES, 4),
                    read(bindings::STEPS, 4),
                    read_write(bindings::MEANS, 4),
                    read_write(bindings::STATE, 16),
                ];
                entries.extend((0..*old_buffers).map(|index| read(bindings::OLD_STATE + index, 16)));
                entries
            }
        }
    }
}

/// Bytes of a table of groups with one word.
pub const LEAST_GROUP_TABLE_BYTES: usize = size_of::<GroupTableHead>() + 4;

fn prepare_entries(control_bytes: u64) -> [wgpu::BindGroupLayoutEntry; 4] {
    [
        dynamic(bindings::ROWS, size_of::<Row>()),
        dynamic(bindings::GROUPS, LEAST_GROUP_TABLE_BYTES),
        read_write(bindings::CONTROL, control_bytes),
        read_write(bindings::PREPARED, size_of::<Coefficients>() as u64),
    ]
}

/// A read-only storage buffer with a dynamic offset.
fn dynamic(binding: u32, bytes: usize) -> wgpu::BindGroupLayoutEntry {
    storage_entry(binding, true, true, bytes as u64)
}

fn read(binding: u32, bytes: u64) -> wgpu::BindGroupLayoutEntry {
    storage_entry(binding, true, false, bytes)
}

fn read_write(binding: u32, bytes: u64) -> wgpu::BindGroupLayoutEntry {
    storage_entry(binding, false, false, bytes)
}

fn storage_entry(
    binding: u32,
    read_only: bool,
    has_dynamic_offset: bool,
    bytes: u64,
) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only },
            has_dynamic_offset,
            min_binding_size: NonZeroU64::new(bytes),
        },
        count: None,
    }
}
