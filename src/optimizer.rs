//! [`Optimizer`]: groups, parameters, and the recording of steps.

#[cfg(feature = "checkpoint")]
mod continuation;
mod removal;
mod transfer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::arena::Arena;
use crate::cohorts::Cohorts;
use crate::control::{Control, DeviceSteps, Part, Present};
use crate::diagnostics::Diagnostics;
use crate::error::{
    CreateError, EncodeError, HyperparameterError, RegisterError, Role, ViewError, WriteError,
};
use crate::format::{BlockLayout, DType, MasterWeights, Precision, StateFormat};
use crate::hyperparameters::{Formula, Hyperparameters, Rule};
use crate::layout::{self, GPU_LANES};
use crate::pipeline::Pipelines;
use crate::plan::{AfterUse, Allocator, Extent, Location, Plan, PlanLimits, Tensor, WORD_BYTES, state_words};
use crate::ring::{Lease, Ring};
use crate::rounding::key_of;
use crate::scope::{Refusal, catch, is_lost, submit};
use crate::shader::{Access, GradientBinding};
use crate::tables::{self, Device, Tables};
use crate::views::{Occupied, Overlap, OwnedViews, View, Views};

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
            Control::Device(settings) => {
                Some(DeviceSteps::new(device, settings, options.rule, options.formula)?)
            }
        };
        let allocator = Allocator::new(&plan_limits);
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            queue: queue.clone(),
            options,
            limits: plan_limits,
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
                device.adapter_info().device_type,
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

    /// Adds a group, PyTorch's `param_group`, with its state in f32 and no master weights.
    ///
    /// # Errors
    /// If a hyperparameter is refused, see [`Hyperparameters::validate`].
    pub fn add_group(&mut self, hyperparameters: Hyperparameters) -> Result<GroupId, HyperparameterError> {
        self.add_group_with(hyperparameters, Precision::default())
    }

    /// Adds a group that is stored in another way.
    ///
    /// # Errors
    /// As [`Optimizer::add_group`].
    pub fn add_group_with(
        &mut self,
        hyperparameters: Hyperparameters,
        precision: Precision,
    ) -> Result<GroupId, HyperparameterError> {
        hyperparameters.validate()?;
        let vacant = self.groups.iter().position(|group| !group.is_live);
        let index = vacant.unwrap_or(self.groups.len());
        let generation = vacant.map_or(0, |index| self.groups[index].generation);
        let group = Group { hyperparameters, precision, generation, is_live: true };
        match vacant {
            Some(index) => self.groups[index] = group,
            None => self.groups.push(group),
        }
        self.forget_groups();
        Ok(GroupId { optimizer: self.id, index: index as u32, generation })
    }

    /// Replaces a group's hyperparameters from the next recorded step on.
    ///
    /// # Errors
    /// If one is refused; the old ones stay.
    pub fn set_hyperparameters(
        &mut self,
        group: GroupId,
        hyperparameters: Hyperparameters,
    ) -> Result<(), HyperparameterError> {
        hyperparameters.validate()?;
        let index = self.group_index(group).ok_or(HyperparameterError::UnknownGroup)?;
        let kept = &mut self.groups[index].hyperparameters;
        if *kept != hyperparameters {
            *kept = hyperparameters;
            self.forget_groups();
        }
        Ok(())
    }

    /// Sets a group's learning rate from the next recorded step on: `optimizer.set_learning_rate(group, schedule(step))`.
    ///
    /// # Errors
    /// If it is refused; the old one stays.
    pub fn set_learning_rate(
        &mut self,
        group: GroupId,
        learning_rate: f64,
    ) -> Result<(), HyperparameterError> {
        let hyperparameters = *self.hyperparameters(group).ok_or(HyperparameterError::UnknownGroup)?;
        self.set_hyperparameters(group, Hyperparameters { learning_rate, ..hyperparameters })
    }

    /// A group's hyperparameters; `None` if it is of another optimizer or was removed.
    pub fn hyperparameters(&self, group: GroupId) -> Option<&Hyperparameters> {
        self.group_index(group).map(|index| &self.groups[index].hyperparameters)
    }

    fn group_index(&self, group: GroupId) -> Option<usize> {
        let of = self.groups.get(group.index as usize).filter(|_| group.optimizer == self.id)?;
        (of.is_live && of.generation == group.generation).then_some(group.index as usize)
    }

    /// Registers a parameter. Its state starts at zero; it is allocated when the next step is recorded.
    ///
    /// # Errors
    /// Everything that can be known to be wrong with it: group, label, length, and each view's usage, alignment, size, and
    /// overlap with any other.
    pub fn add_parameter(
        &mut self,
        group: GroupId,
        parameter: Parameter<'_>,
    ) -> Result<ParameterId, RegisterError> {
        let label = || parameter.label.to_owned();
        let group = self.group_index(group).ok_or_else(|| RegisterError::UnknownGroup { label: label() })?;
        if self.by_label.contains_key(parameter.label) {
            return Err(RegisterError::DuplicateLabel { label: label() });
        }
        if parameter.len == 0 {
            return Err(RegisterError::Empty { label: label() });
        }
        let most = DeviceSteps::MOST_PARAMETERS;
        if self.device_steps.is_some() && self.by_label.len() == most {
            return Err(RegisterError::TooMany { label: label(), most });
        }
        let precision = self.groups[group].precision;
        let layout = self.layout_of(&parameter, precision)?;
        let index = self.vacant.last().map_or(self.parameters.len(), |&index| index as usize);
        if let Some(views) = &parameter.views {
            self.occupy(index, parameter.label, parameter.len, parameter.dtype, views)?;
            self.fixed = None;
        }
        let generation = self.vacant.pop().map_or(0, |index| self.parameters[index as usize].generation);
        let record = Record {
            generation,
            is_live: true,
            label: label(),
            len: parameter.len,
            dtype: parameter.dtype,
            group: group as u32,
            layout,
            key: key_of(self.options.seed, parameter.label),
            views: parameter.views.as_ref().map(OwnedViews::new),
            extents: Vec::new(),
            pool: 0,
        };
        match self.parameters.get_mut(index) {
            Some(place) => *place = record,
            None => self.parameters.push(record),
        }
        self.without_views += usize::from(parameter.views.is_none());
        self.without_state += 1;
        self.by_label.insert(label(), index as u32);
        self.cohorts.add_parameter(index, group as u32);
        self.forget_rows();
        Ok(ParameterId { optimizer: self.id, index: index as u32, generation })
    }

    /// Moves a parameter to other views, or gives views to one that had none, from the next recorded step on.
    ///
    /// # Errors
    /// As [`Optimizer::add_parameter`]; the old views stay.
    pub fn set_views(&mut self, parameter: ParameterId, views: Views<'_>) -> Result<(), RegisterError> {
        let index = self.index_of(parameter).ok_or(RegisterError::UnknownParameter)?;
        let record = &self.parameters[index];
        let (label, len, dtype) = (record.label.clone(), record.len, record.dtype);
        let old = record.views.clone();
        if let Some(old) = &old {
            self.vacate(&old.borrow());
        }
        if let Err(error) = self.occupy(index, &label, len, dtype, &views) {
            if let Some(old) = &old {
                self.occupy(index, &label, len, dtype, &old.borrow())?;
            }
            return Err(error);
        }
        self.without_views -= usize::from(old.is_none());
        self.parameters[index].views = Some(OwnedViews::new(&views));
        self.fixed = None;
        Ok(())
    }

    /// The parameter of that label.
    pub fn parameter(&self, label: &str) -> Option<ParameterId> {
        let &index = self.by_label.get(label)?;
        let generation = self.parameters[index as usize].generation;
        Some(ParameterId { optimizer: self.id, index, generation })
    }

    /// Label of a parameter; `None` if it is of another optimizer or was removed.
    pub fn label(&self, parameter: ParameterId) -> Option<&str> {
        self.index_of(parameter).map(|index| self.parameters[index].label.as_str())
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

    /// Records a step of every parameter at its registered views.
    ///
    /// # Errors
    /// If a parameter has no views, or the device refuses a resource. Nothing was recorded then, and no step count advanced.
    pub fn encode(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), EncodeError> {
        self.encode_in_pass(&mut begin_pass(encoder))
    }

    /// Like [`Optimizer::encode`], within a compute pass of the caller's. Sets pipeline and bind group 0.
    ///
    /// # Errors
    /// As [`Optimizer::encode`].
    pub fn encode_in_pass(&mut self, pass: &mut wgpu::ComputePass<'_>) -> Result<(), EncodeError> {
        self.record_all(pass, Part::Whole)?;
        self.advance();
        Ok(())
    }

    /// Records a step of the parameters that have a gradient; the others are left alone, weight decay and step count included.
    ///
    /// # Errors
    /// As [`Optimizer::encode`]; and if a parameter is not of this optimizer or is named twice.
    pub fn encode_present(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        present: &[ParameterId],
    ) -> Result<(), EncodeError> {
        self.select(present.iter().copied())?;
        let mut selected = self.parameters.iter().zip(&self.scratch.present);
        if let Some((record, _)) = selected.find(|(record, present)| **present && record.views.is_none()) {
            return Err(EncodeError::NoViews { label: record.label.clone() });
        }
        self.split();
        self.record_fixed(&mut begin_pass(encoder), false, Part::Whole)?;
        self.advance();
        Ok(())
    }

    /// Records the first half of a step of every parameter: the norm of this device's gradients, for engines that train on
    /// several devices. It is then in [`Optimizer::control_buffer`] at [`Optimizer::NORM_OFFSET`], without the loss scale, and
    /// infinite if a gradient is not finite. The engine adds up the squares of all devices' norms, writes the root back, and
    /// records [`Optimizer::encode_after_norm`].
    ///
    /// # Errors
    /// As [`Optimizer::encode`], and if the optimizer's [`Control`] has no norm.
    pub fn encode_norm(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), EncodeError> {
        self.check_norm()?;
        self.record_all(&mut begin_pass(encoder), Part::Norm)
    }

    /// Records the second half of a step, which takes the norm from [`Optimizer::control_buffer`].
    ///
    /// # Errors
    /// As [`Optimizer::encode_norm`].
    pub fn encode_after_norm(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), EncodeError> {
        self.check_norm()?;
        self.record_all(&mut begin_pass(encoder), Part::AfterNorm)?;
        self.advance();
        Ok(())
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
        self.device_steps.as_ref().map(DeviceSteps::control)
    }

    fn check_norm(&self) -> Result<(), EncodeError> {
        let has_norm = self.device_steps.as_ref().is_some_and(DeviceSteps::uses_norm);
        if has_norm { Ok(()) } else { Err(EncodeError::NoNorm) }
    }

    fn forget_groups(&mut self) {
        if let Some(steps) = &mut self.device_steps {
            steps.forget_groups();
        }
    }

    /// Parameters came or went.
    fn forget_rows(&mut self) {
        self.changes += 1;
        if let Some(steps) = &mut self.device_steps {
            steps.forget_rows();
        }
    }

    /// Records a step of the parameters that have a gradient, at views of this step only: for engines with memory pools, whose
    /// tensors move. Registered views are not looked at. Nothing of the buffers is kept once this returns.
    ///
    /// # Errors
    /// As [`Optimizer::encode`]; and if a parameter is not of this optimizer or is named twice, or a view cannot be used or
    /// overlaps another one of this step. Gradients may share bytes with each other, unless they are to be zeroed.
    pub fn encode_views(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        updates: &[Update<'_>],
    ) -> Result<(), EncodeError> {
        self.select(updates.iter().map(|update| update.parameter))?;
        let mut buffers = Buffers::default();
        let places = self.locate(updates, &mut buffers)?;
        self.split();
        self.allocate()?;
        let tensors: Vec<_> = updates
            .iter()
            .zip(places)
            .map(|(update, places)| self.tensor(update.parameter.index as usize, places))
            .collect();
        let plan = Plan::new(&tensors, &buffers.sizes, self.options.gradients, &self.limits);
        let parameters = updates.iter().map(|update| update.parameter.index as usize).collect();
        let old = self.moving.take();
        let mut tables = Tables::new(&self.on_device(), plan, parameters, buffers.list, old)?;
        let recorded = self.record(&mut begin_pass(encoder), &mut tables, false, Part::Whole);
        tables.release();
        self.moving = Some(tables);
        recorded?;
        self.advance();
        Ok(())
    }

    /// Records a step of every parameter into an encoder of its own and submits it.
    ///
    /// # Errors
    /// As [`Optimizer::encode`], and if the submit fails; no step count has advanced then.
    pub fn step(&mut self) -> Result<wgpu::SubmissionIndex, EncodeError> {
        let device = self.device.clone();
        let commands = catch(&device, || {
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("adamod.step") });
            self.record_all(&mut begin_pass(&mut encoder), Part::Whole)?;
            Ok::<_, EncodeError>(encoder.finish())
        })??;
        let submission = submit(&self.device, &self.queue, commands)?;
        self.advance();
        Ok(submission)
    }

    /// The dispatches of a step of every parameter at its registered views.
    ///
    /// # Errors
    /// As [`Optimizer::encode`].
    pub fn launches(&mut self) -> Result<Vec<LaunchInfo>, EncodeError> {
        let tables = self.take_fixed()?;
        let launches = tables
            .plan()
            .launches
            .iter()
            .map(|launch| LaunchInfo {
                workgroups: launch.chunks,
                segments: launch.segments.len() as u32,
                access: launch.access,
                gradients: launch.binding,
            })
            .collect();
        self.fixed = Some(tables);
        Ok(launches)
    }

    /// How a parameter's state is laid out.
    fn layout_of(
        &self,
        parameter: &Parameter<'_>,
        precision: Precision,
    ) -> Result<BlockLayout, RegisterError> {
        let master_weights = match parameter.dtype {
            DType::F32 => MasterWeights::None,
            DType::F16 | DType::Bf16 => precision.master_weights,
        };
        if !master_weights.fit(parameter.dtype) {
            return Err(RegisterError::MasterWeights {
                label: parameter.label.to_owned(),
                dtype: parameter.dtype,
                found: precision.master_weights,
            });
        }
        let is_small = parameter.len < precision.f32_state_below;
        let state = parameter.state.unwrap_or(if is_small { StateFormat::F32 } else { precision.state });
        Ok(BlockLayout { states: self.options.rule.states(), state, master_weights })
    }

    fn index_of(&self, parameter: ParameterId) -> Option<usize> {
        let record = self.parameters.get(parameter.index as usize)?;
        let is_known = parameter.optimizer == self.id && parameter.generation == record.generation;
        (is_known && record.is_live).then_some(parameter.index as usize)
    }

    fn live(&self) -> impl Iterator<Item = (usize, &Record)> {
        self.parameters.iter().enumerate().filter(|(_, record)| record.is_live)
    }

    fn on_device(&self) -> Device<'_> {
        Device { device: &self.device, queue: &self.queue }
    }

    /// Checks a parameter's views and takes their bytes; takes none on an error.
    fn occupy(
        &mut self,
        index: usize,
        label: &str,
        len: u64,
        dtype: DType,
        views: &Views<'_>,
    ) -> Result<(), RegisterError> {
        let refused = |(role, source)| RegisterError::View { label: label.to_owned(), role, source };
        let ends = check_views(views, len, dtype).map_err(refused)?;
        for (taken, ((role, view), end)) in views.each().zip(ends).enumerate() {
            if let Err(overlap) = self.occupied.take(&view, end, index, role) {
                for (_, earlier) in views.each().take(taken) {
                    self.occupied.release(&earlier);
                }
                // A parameter can also overlap itself; it has no record yet.
                let other = self.parameters.get(overlap.parameter);
                let other_label = other.map_or(label, |record| &record.label).to_owned();
                return Err(refused((role, overlap_error(&overlap, other_label))));
            }
        }
        Ok(())
    }

    fn vacate(&mut self, views: &Views<'_>) {
        for (_, view) in views.each() {
            self.occupied.release(&view);
        }
    }

    /// Checks the views of a step that were not registered, and numbers their buffers.
    fn locate(&self, updates: &[Update<'_>], buffers: &mut Buffers) -> Result<Vec<Places>, EncodeError> {
        struct Range {
            buffer: u32,
            update: u32,
            role: Role,
            start: u64,
            end: u64,
        }
        let record_of = |update: u32| &self.parameters[updates[update as usize].parameter.index as usize];
        let mut places = Vec::with_capacity(updates.len());
        // Engines mostly name tensors in the order of their addresses: by role, ranges are runs that a merge sort finds sorted.
        let mut ranges = [const { Vec::new() }; Role::COUNT];
        for (index, update) in (0..).zip(updates) {
            let record = record_of(index);
            let ends = check_views(&update.views, record.len, record.dtype)
                .map_err(|(role, source)| EncodeError::View { label: record.label.clone(), role, source })?;
            let located = buffers.locate(&update.views);
            for ((role, location), end) in located.each().zip(ends) {
                let Location { buffer, offset: start, .. } = location;
                ranges[role as usize].push(Range { buffer, update: index, role, start, end });
            }
            places.push(located);
        }
        let mut ranges: Vec<Range> = ranges.into_iter().flatten().collect();
        ranges.sort_by_key(|range| (range.buffer, range.start));
        // Of the ranges so far, the one that ends last: of all, and of those that are written.
        let [mut last, mut last_written]: [Option<&Range>; 2] = [None; 2];
        for range in &ranges {
            let is_written = range.role != Role::Gradients || self.options.gradients == AfterUse::Zero;
            let earlier = if is_written { last } else { last_written };
            if let Some(other) = earlier.filter(|of| of.buffer == range.buffer && range.start < of.end) {
                return Err(EncodeError::View {
                    label: record_of(range.update).label.clone(),
                    role: range.role,
                    source: ViewError::Overlap {
                        other_role: other.role,
                        other_label: record_of(other.update).label.clone(),
                        byte: range.start,
                    },
                });
            }
            let ends_last =
                |of: Option<&Range>| of.is_none_or(|of| of.buffer != range.buffer || of.end < range.end);
            if ends_last(last) {
                last = Some(range);
            }
            if is_written && ends_last(last_written) {
                last_written = Some(range);
            }
        }
        Ok(places)
    }

    /// Notes which parameters have a gradient.
    fn select(&mut self, named: impl Iterator<Item = ParameterId>) -> Result<(), EncodeError> {
        let present = &mut self.scratch.present;
        present.clear();
        present.resize(self.parameters.len(), false);
        for parameter in named {
            let index = parameter.index as usize;
            let record = self.parameters.get(index).filter(|record| record.is_live);
            let is_known = record.is_some_and(|record| record.generation == parameter.generation);
            if parameter.optimizer != self.id || !is_known {
                return Err(EncodeError::UnknownParameter);
            }
            if std::mem::replace(&mut present[index], true) {
                return Err(EncodeError::Repeated { label: self.parameters[index].label.clone() });
            }
        }
        Ok(())
    }

    /// Regroups cohorts by the parameters selected, and notes which cohorts step.
    fn split(&mut self) {
        // With step counts on the device, coefficients go by parameter and never move.
        if self.cohorts.split(&self.scratch.present) && self.device_steps.is_none() {
            self.regroup();
        }
        let stepping = &mut self.scratch.stepping;
        stepping.clear();
        stepping.resize(self.cohorts.list().len(), false);
        for (index, &is_present) in self.scratch.present.iter().enumerate() {
            if is_present {
                stepping[self.cohorts.of(index) as usize] = true;
            }
        }
    }

    /// Gives state to the parameters registered since the last step.
    fn allocate(&mut self) -> Result<(), Refusal> {
        if self.without_state == 0 {
            return Ok(());
        }
        // A pool of state for each buffer of values; pool 0 for values that have no buffer of their own.
        #[expect(clippy::mutable_key_type, reason = "a buffer is hashed and compared by identity")]
        let mut pools: HashMap<wgpu::Buffer, u32> = HashMap::new();
        let placed = || self.live().filter(|(_, record)| !record.extents.is_empty());
        let mut count = placed().map(|(_, record)| record.pool).max().unwrap_or(0);
        for (_, record) in placed() {
            if let Some(views) = &record.views {
                pools.entry(views.borrow().values.buffer.clone()).or_insert(record.pool);
            }
        }
        let mut indices = Vec::with_capacity(self.without_state);
        let mut tensors = Vec::with_capacity(self.without_state);
        for (index, record) in self.live().filter(|(_, record)| record.extents.is_empty()) {
            let pool = record.views.as_ref().map_or(0, |views| {
                *pools.entry(views.borrow().values.buffer.clone()).or_insert_with(|| {
                    count += 1;
                    count
                })
            });
            indices.push(index);
            tensors.push((pool, record.layout, record.len));
        }
        let extents = self.arena.allocate(&self.device, &tensors)?;
        for ((index, extents), (pool, ..)) in indices.into_iter().zip(extents).zip(tensors) {
            self.parameters[index].extents = extents;
            self.parameters[index].pool = pool;
        }
        self.without_state = 0;
        Ok(())
    }

    fn tensor(&self, index: usize, places: Places) -> Tensor<'_> {
        let record = &self.parameters[index];
        let Places { values, gradients, copies } = places;
        Tensor { values, gradients, copies, extents: &record.extents, layout: record.layout, key: record.key }
    }

    /// Takes out the tables of the registered views; the caller puts them back.
    fn take_fixed(&mut self) -> Result<Tables, EncodeError> {
        if let Some(tables) = self.fixed.take() {
            return Ok(tables);
        }
        self.allocate()?;
        let mut buffers = Buffers::default();
        let mut parameters = Vec::new();
        let mut tensors = Vec::new();
        for (index, record) in self.parameters.iter().enumerate() {
            if let Some(views) = &record.views {
                parameters.push(index);
                tensors.push(self.tensor(index, buffers.locate(&views.borrow())));
            }
        }
        let plan = Plan::new(&tensors, &buffers.sizes, self.options.gradients, &self.limits);
        Ok(Tables::new(&self.on_device(), plan, parameters, buffers.list, None)?)
    }

    /// Records every parameter at its registered views, without counting the step.
    fn record_all(&mut self, pass: &mut wgpu::ComputePass<'_>, part: Part) -> Result<(), EncodeError> {
        if self.without_views > 0
            && let Some((_, record)) = self.live().find(|(_, record)| record.views.is_none())
        {
            return Err(EncodeError::NoViews { label: record.label.clone() });
        }
        self.scratch.stepping.clear();
        self.scratch.stepping.resize(self.cohorts.list().len(), true);
        let is_all = self.vacant.is_empty();
        if !is_all {
            let Self { scratch, parameters, .. } = self;
            scratch.present.clear();
            scratch.present.extend(parameters.iter().map(|record| record.is_live));
        }
        self.record_fixed(pass, is_all, part)
    }

    fn record_fixed(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        is_all: bool,
        part: Part,
    ) -> Result<(), EncodeError> {
        let mut tables = self.take_fixed()?;
        let recorded = self.record(pass, &mut tables, is_all, part);
        self.fixed = Some(tables);
        recorded
    }

    /// Uploads what has changed and records the dispatches, for all parameters or for those selected.
    fn record(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        tables: &mut Tables,
        is_all: bool,
        part: Part,
    ) -> Result<(), EncodeError> {
        if tables.plan().launches.is_empty() {
            return Ok(());
        }
        let at = Device { device: &self.device, queue: &self.queue };
        let (pipelines, arena) = (&mut self.pipelines, &self.arena);
        let Some(steps) = &mut self.device_steps else {
            let lease = self.upload_coefficients()?;
            let at = Device { device: &self.device, queue: &self.queue };
            let coefficients = tables::Coefficients {
                binding: self.coefficients.binding(),
                generation: self.coefficients.generation(),
            };
            let row_of = |parameter| self.cohorts.of(parameter);
            tables.upload(&at, &mut self.pipelines, &coefficients, &self.arena, row_of)?;
            tables.record(pass, &self.pipelines, Some(lease), self.workgroups_per_dimension);
            return Ok(());
        };
        if is_lost(&self.device) {
            return Err(EncodeError::Lost);
        }
        let present = match is_all {
            true => Present::All(self.parameters.len()),
            false => Present::Some(&self.scratch.present),
        };
        let group_of = |parameter: usize| self.parameters[parameter].group;
        let groups = self.groups.iter().map(|group| group.hyperparameters.group_row());
        steps.upload(at.device, at.queue, present, group_of, groups)?;
        steps.make_prepare(at.device, part)?;
        let (binding, generation) = steps.prepared();
        let coefficients = tables::Coefficients { binding, generation };
        tables.upload(&at, pipelines, &coefficients, arena, |parameter| parameter as u32)?;
        tables.upload_preparation(&at, steps)?;
        tables.record_preparation(pass, steps, part, self.workgroups_per_dimension);
        if part != Part::Norm {
            tables.record(pass, pipelines, None, self.workgroups_per_dimension);
        }
        Ok(())
    }

    /// One row a cohort, for its next step.
    fn upload_coefficients(&mut self) -> Result<Lease, EncodeError> {
        let Options { rule, formula, .. } = self.options;
        let Scratch { coefficients, stepping, .. } = &mut self.scratch;
        coefficients.clear();
        coefficients.extend(self.cohorts.list().iter().zip(stepping).map(|(cohort, steps)| {
            if *steps {
                let hyperparameters = &self.groups[cohort.group as usize].hyperparameters;
                let t = cohort.steps + 1;
                layout::Coefficients::active(hyperparameters.coefficients(formula, rule, t), t)
            } else {
                layout::Coefficients::inactive()
            }
        }));
        self.coefficients.write(&self.device, &self.queue, bytemuck::cast_slice(coefficients))
    }

    fn advance(&mut self) {
        let stepping = &self.scratch.stepping;
        self.cohorts.advance(|cohort| stepping[cohort]);
    }
}

/// Numbers the buffers of a plan.
#[derive(Default)]
struct Buffers {
    numbers: HashMap<wgpu::Buffer, u32>,
    list: Vec<wgpu::Buffer>,
    sizes: Vec<u64>,
    /// Where the last view of each role lay: tensors of one pool come in a row.
    recent: [u32; Role::COUNT],
}

/// Where a parameter's views lie.
#[derive(Clone, Copy)]
struct Places {
    values: Location,
    gradients: Location,
    copies: Option<Location>,
}

impl Places {
    fn each(&self) -> impl Iterator<Item = (Role, Location)> + use<> {
        let copies = self.copies.map(|copies| (Role::Copy, copies));
        [(Role::Values, self.values), (Role::Gradients, self.gradients)].into_iter().chain(copies)
    }
}

impl Buffers {
    fn locate(&mut self, views: &Views<'_>) -> Places {
        Places {
            values: self.location(Role::Values, &views.values),
            gradients: self.location(Role::Gradients, &views.gradients),
            copies: views.copy.as_ref().map(|copy| self.location(Role::Copy, copy)),
        }
    }

    fn location(&mut self, role: Role, view: &View<'_>) -> Location {
        let recent = self.recent[role as usize];
        let buffer = if self.list.get(recent as usize) == Some(view.buffer) {
            recent
        } else {
            *self.numbers.entry(view.buffer.clone()).or_insert_with(|| {
                self.list.push(view.buffer.clone());
                self.sizes.push(view.buffer.size());
                self.list.len() as u32 - 1
            })
        };
        self.recent[role as usize] = buffer;
        Location { buffer, offset: view.offset, dtype: view.dtype }
    }
}

/// The bytes at which a parameter's views end, or what is wrong with one of them.
fn check_views(views: &Views<'_>, len: u64, dtype: DType) -> Result<[u64; 3], (Role, ViewError)> {
    if views.values.dtype != dtype {
        return Err((Role::Values, ViewError::DType { found: views.values.dtype, needed: dtype }));
    }
    views.check_copy().map_err(|error| (Role::Copy, error))?;
    let mut ends = [0; 3];
    for ((role, view), end) in views.each().zip(&mut ends) {
        *end = view.end(len).map_err(|error| (role, error))?;
    }
    Ok(ends)
}

fn overlap_error(overlap: &Overlap, other_label: String) -> ViewError {
    ViewError::Overlap { other_role: overlap.role, other_label, byte: overlap.byte }
}

fn begin_pass(encoder: &mut wgpu::CommandEncoder) -> wgpu::ComputePass<'_> {
    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
        label: Some("adamod.update"),
        timestamp_writes: None,
    })
}

fn check_limits(limits: &wgpu::Limits) -> Result<(), CreateError> {
    let needs = [
        ("max_storage_buffers_per_shader_stage", u64::from(limits.max_storage_buffers_per_shader_stage), 8),
        (
            "max_dynamic_storage_buffers_per_pipeline_layout",
            u64::from(limits.max_dynamic_storage_buffers_per_pipeline_layout),
            2,
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
