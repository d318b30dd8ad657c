//! [`Optimizer`]: its options and handles, what it keeps, and its step counts.

#[cfg(feature = "checkpoint")]
mod continuation;
mod places;
mod recording;
mod registration;
mod removal;
mod transfer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::arena::Arena;
use crate::cohorts::Cohorts;
use crate::control::{Control, DeviceSteps};
use crate::diagnostics::Diagnostics;
use crate::error::{CreateError, WriteError};
use crate::format::{BlockLayout, DType, Precision, StateFormat};
use crate::hyperparameters::{Formula, Hyperparameters, Rule};
use crate::layout::{self, GPU_LANES, Workgroups};
use crate::pipeline::Pipelines;
use crate::plan::{AfterUse, Allocator, Extent, PlanLimits, WORD_BYTES, state_words};
use crate::ring::Ring;
use crate::scope::is_lost;
use crate::shader::{Access, GradientBinding};
use crate::tables::Tables;
use crate::views::{Occupied, OwnedViews, Views};

/// What holds for all groups of an optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The update rule.
    pub rule: Rule,
    /// The formula of AdaMod.
    pub formula: Formula,
    /// What a step counts besides its update.
    pub diagnostics: Diagnostics,
    /// What a step does with gradients once it has read them.
    pub gradients: AfterUse,
    /// Who keeps step counts, and whether gradients are looked at before a step.
    pub control: Control,
    /// Seed of stochastic rounding. The same seed, labels and gradients give the same bits, whatever the order of registration.
    pub seed: u64,
    /// How long methods that block wait for the device before they give up.
    pub device_timeout: Duration,
    /// How a step is divided among the device's threads.
    pub workgroups: Workgroups,
}

impl Default for Options {
    /// AdaMod as in the paper, everything else off, seed 0, one minute.
    fn default() -> Self {
        Self {
            rule: Rule::default(),
            formula: Formula::default(),
            diagnostics: Diagnostics::default(),
            gradients: AfterUse::default(),
            control: Control::default(),
            seed: 0,
            device_timeout: Duration::from_secs(60),
            workgroups: Workgroups::default(),
        }
    }
}

/// A group of one optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId {
    optimizer: u64,
    index: u32,
    /// Which of the groups that were there one after the other.
    generation: u32,
}

/// A parameter of one optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId {
    optimizer: u64,
    index: u32,
    /// Which of the parameters that were there one after the other.
    generation: u32,
}

/// A parameter to be registered.
#[derive(Clone, Copy, Debug)]
pub struct Parameter<'a> {
    /// Its name, unique in the optimizer: `transformer.wte.weight`.
    pub label: &'a str,
    /// Its elements. The shape does not matter to the step.
    pub len: u64,
    /// Their type.
    pub dtype: DType,
    /// Format of its state, where it is not to be the group's.
    pub state: Option<StateFormat>,
    /// Where values and gradients lie at every step, or `None` if they are given at each step
    /// ([`Optimizer::encode_views`]).
    pub views: Option<Views<'a>>,
}

impl<'a> Parameter<'a> {
    /// A parameter in f32, in its group's format of state, with views given at each step:
    /// `Parameter { views: Some(views), ..Parameter::new("wte", 1024) }`.
    pub fn new(label: &'a str, len: u64) -> Self {
        Self { label, len, dtype: DType::F32, state: None, views: None }
    }
}

/// A parameter with a gradient, and where the two lie in this step.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The parameter.
    pub parameter: ParameterId,
    /// Its views in this step. Nothing of them is kept.
    pub views: Views<'a>,
}

/// State of one parameter, read back.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Steps taken.
    pub step: u64,
    /// Name and elements of each state, in the order of [`Rule::state_names`].
    pub tensors: Vec<(&'static str, Vec<f32>)>,
}

impl State {
    /// The state of that name: `exp_avg`, `exp_avg_sq`, `exp_avg_lr` or `momentum_buffer`.
    pub fn tensor(&self, name: &str) -> Option<&[f32]> {
        self.tensors.iter().find(|(of, _)| *of == name).map(|(_, elements)| elements.as_slice())
    }
}

/// Step counts of all parameters at one moment: [`Optimizer::step_counts`].
#[derive(Clone, Debug)]
pub struct StepCounts {
    optimizer: u64,
    changes: u64,
    cohorts: Cohorts,
}

/// One dispatch of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchInfo {
    /// Workgroups with work: one a chunk of 1,024 elements.
    pub workgroups: u32,
    /// Tensors, or parts of tensors that were cut, that it updates.
    pub segments: u32,
    /// Whether its tensors lie so that they can be accessed in words.
    pub access: Access,
    /// How its gradients are bound.
    pub gradients: GradientBinding,
}

/// Runs the optimizer step of a training engine on the GPU.
///
/// The engine owns device, queue, encoders and buffers. The optimizer owns the state and small tables; it records dispatches
/// into the engine's encoder, and submits only where a method says so.
///
/// A step that was recorded counts as taken. Several may be recorded before one submit, in one encoder or in many, as long as
/// they are submitted in the order in which they were recorded. Whoever drops an encoder instead, or whose submit fails, takes the
/// counts back with [`Optimizer::rewind`].
///
/// After any error the optimizer is as it was before the call. If the device is lost, make a new one, register the parameters with
/// a new optimizer and restore the last checkpoint.
#[derive(Debug)]
pub struct Optimizer {
    id: u64,
    device: wgpu::Device,
    queue: wgpu::Queue,
    options: Options,
    limits: PlanLimits,
    /// Bytes that a parameter may have.
    longest_bytes: u64,
    workgroups_per_dimension: u32,
    groups: Vec<Group>,
    parameters: Vec<Record>,
    /// Places of parameters that were removed.
    vacant: Vec<u32>,
    by_label: HashMap<String, u32>,
    /// How many parameters have no state yet.
    without_state: usize,
    /// How often parameters came or went, or step counts were set.
    changes: u64,
    /// How many parameters have no registered views.
    without_views: usize,
    occupied: Occupied,
    cohorts: Cohorts,
    arena: Arena,
    pipelines: Pipelines,
    coefficients: Ring,
    /// With [`Control::Device`].
    device_steps: Option<DeviceSteps>,
    /// Tables of the parameters at their registered views; `None` when those have changed.
    fixed: Option<Tables>,
    /// Tables of the last step whose views were given, for what of them can be used again.
    moving: Option<Tables>,
    scratch: Scratch,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    hyperparameters: Hyperparameters,
    precision: Precision,
    generation: u32,
    is_live: bool,
}

#[derive(Debug)]
struct Record {
    generation: u32,
    is_live: bool,
    label: String,
    len: u64,
    dtype: DType,
    group: u32,
    layout: BlockLayout,
    /// Key of its random numbers.
    key: [u32; 2],
    views: Option<OwnedViews>,
    /// Empty until the first step.
    extents: Vec<Extent>,
    /// The pool that they are of.
    pool: u32,
}

/// Vectors that a step fills and the next one uses again.
#[derive(Debug, Default)]
struct Scratch {
    present: Vec<bool>,
    /// Which cohorts step.
    stepping: Vec<bool>,
    coefficients: Vec<layout::Coefficients>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Optimizer {
    /// Slots of coefficients at first: steps recorded or running at once before the ring grows.
    const COEFFICIENT_SLOTS: usize = 8;
    /// Far past any device's memory, and far from what overflows in counting words of state. A device may name no limit of its own.
    const LONGEST_BYTES: u64 = 1 << 40;

    /// An optimizer without groups or parameters. Clones the handles of device and queue.
    ///
    /// # Errors
    /// If the device's limits are below what the kernels need (WebGPU's defaults suffice), the combination of options does not
    /// exist, or the device is lost or out of memory.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue, options: Options) -> Result<Self, CreateError> {
        if options.rule == Rule::Sgd && options.diagnostics == Diagnostics::LearningRates {
            return Err(CreateError::NoLearningRates);
        }
        if is_lost(device) {
            return Err(CreateError::Lost);
        }
        let limits = device.limits();
        check_limits(&limits)?;
        let plan_limits = PlanLimits::new(&limits);
        let coefficients = Ring::new(
            device,
            "adamod.coefficients",
            Self::COEFFICIENT_SLOTS,
            size_of::<layout::Coefficients>() as u64,
        )?;
        let device_steps = match options.control {
            Control::Host => None,
            Control::Device(settings) => Some(DeviceSteps::new(device, settings, &options)?),
        };
        let allocator = Allocator::new(&plan_limits);
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            queue: queue.clone(),
            options,
            limits: plan_limits,
            longest_bytes: limits.max_buffer_size.min(Self::LONGEST_BYTES),
            workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            groups: Vec::new(),
            parameters: Vec::new(),
            vacant: Vec::new(),
            by_label: HashMap::new(),
            without_state: 0,
            changes: 0,
            without_views: 0,
            occupied: Occupied::default(),
            cohorts: Cohorts::default(),
            arena: Arena::new(device, allocator, options.diagnostics)?,
            pipelines: Pipelines::new(
                options.rule,
                options.diagnostics,
                options.gradients,
                options.workgroups.lanes(device),
            ),
            coefficients,
            device_steps,
            fixed: None,
            moving: None,
            scratch: Scratch::default(),
        })
    }

    /// The options it was made with.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Steps recorded for a parameter: the paper's t, unless the device called steps off ([`Optimizer::read_state`] tells). `None`
    /// if it is of another optimizer or was removed.
    pub fn step_count(&self, parameter: ParameterId) -> Option<u64> {
        self.index_of(parameter).map(|index| self.cohorts.steps(index))
    }

    /// All step counts as they are, for [`Optimizer::rewind`].
    pub fn step_counts(&self) -> StepCounts {
        StepCounts { optimizer: self.id, changes: self.changes, cohorts: self.cohorts.clone() }
    }

    /// Takes back the counts of all steps recorded since `counts` was taken, because they never run: their encoder was dropped, or
    /// its submit failed. With [`Control::Device`](crate::Control::Device) the device counts what runs, and this changes no more
    /// than what [`Optimizer::step_count`] says.
    ///
    /// # Errors
    /// If `counts` is of another optimizer, or parameters were added or removed or state was written since.
    pub fn rewind(&mut self, counts: &StepCounts) -> Result<(), WriteError> {
        if counts.optimizer != self.id || counts.changes != self.changes {
            return Err(WriteError::StaleCounts);
        }
        self.cohorts.clone_from(&counts.cohorts);
        self.regroup();
        Ok(())
    }

    /// Segments have to name each parameter's cohort anew.
    fn regroup(&mut self) {
        if let Some(tables) = &mut self.fixed {
            tables.regroup();
        }
    }

    /// Bytes of state on the device so far.
    pub fn state_bytes(&self) -> u64 {
        self.arena.bytes()
    }

    /// Bytes of state of one parameter, its master weights included. `None` if it is of another optimizer or was removed.
    pub fn state_bytes_of(&self, parameter: ParameterId) -> Option<u64> {
        let record = &self.parameters[self.index_of(parameter)?];
        Some(state_words(record.layout, record.len) * WORD_BYTES)
    }

    /// Byte offset of the loss scale in [`Optimizer::control_buffer`], an f32.
    pub const LOSS_SCALE_OFFSET: u64 = std::mem::offset_of!(layout::Control, loss_scale) as u64;
    /// Byte offset of the engine's own multiplier of gradients, an f32; 1 at first.
    pub const MULTIPLIER_OFFSET: u64 = std::mem::offset_of!(layout::Control, multiplier) as u64;
    /// Byte offset of the norm of the gradients, an f32.
    pub const NORM_OFFSET: u64 = std::mem::offset_of!(layout::Control, norm) as u64;

    /// What the device keeps between steps, with usages STORAGE, COPY_SRC and COPY_DST; `None` with [`Control::Host`].
    ///
    /// An engine reads the loss scale there, on the device, before it multiplies its loss. It may write the multiplier, by which
    /// gradients are multiplied besides what loss scale and clip make of them: 1 over the number of accumulated batches, or
    /// what it computed from a norm of its own.
    pub fn control_buffer(&self) -> Option<&wgpu::Buffer> {
        self.device_steps.as_ref().map(DeviceSteps::kept)
    }

    fn index_of(&self, parameter: ParameterId) -> Option<usize> {
        let record = self.parameters.get(parameter.index as usize)?;
        let is_known = parameter.optimizer == self.id && parameter.generation == record.generation;
        (is_known && record.is_live).then_some(parameter.index as usize)
    }

    fn live(&self) -> impl Iterator<Item = (usize, &Record)> {
        self.parameters.iter().enumerate().filter(|(_, record)| record.is_live)
    }
}

fn check_limits(limits: &wgpu::Limits) -> Result<(), CreateError> {
    let needs = [
        ("max_storage_buffers_per_shader_stage", u64::from(limits.max_storage_buffers_per_shader_stage), 8),
        (
            "max_dynamic_storage_buffers_per_pipeline_layout",
            u64::from(limits.max_dynamic_storage_buffers_per_pipeline_layout),
            3,
        ),
        (
            "max_compute_invocations_per_workgroup",
            u64::from(limits.max_compute_invocations_per_workgroup),
            u64::from(GPU_LANES),
        ),
        (
            "max_compute_workgroup_size_x",
            u64::from(limits.max_compute_workgroup_size_x),
            u64::from(GPU_LANES),
        ),
        ("max_compute_workgroups_per_dimension", u64::from(limits.max_compute_workgroups_per_dimension), 1),
        (
            "max_storage_buffer_binding_size",
            limits.max_storage_buffer_binding_size,
            PlanLimits::LEAST_BINDING_BYTES,
        ),
        ("max_buffer_size", limits.max_buffer_size, PlanLimits::LEAST_BINDING_BYTES),
    ];
    for (limit, found, needed) in needs {
        if found < needed {
            return Err(CreateError::Limit { limit, found, needed });
        }
    }
    Ok(())
}
