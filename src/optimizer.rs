//! [`Optimizer`]: groups, parameters, and the recording of steps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arena::{Arena, states_of_blocks};
use crate::cohorts::Cohorts;
use crate::diagnostics::{Diagnostics, LearningRates};
use crate::error::{
    CreateError, EncodeError, HyperparameterError, ReadError, RegisterError, Role, ViewError,
};
use crate::hyperparameters::{Formula, Hyperparameters, Rule};
use crate::layout::{self, GPU_LANES};
use crate::pipeline::Pipelines;
use crate::plan::{Allocator, ELEMENT_BYTES, Extent, Location, Plan, PlanLimits, Tensor};
use crate::readback::{Source, Wait, download};
use crate::ring::{Lease, Ring};
use crate::scope::catch;
use crate::shader::{Access, GradientBinding};
use crate::tables::{Device, Tables};
use crate::views::{Occupied, Overlap, OwnedViews, View, Views};

/// What holds for all groups of an optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The update rule.
    pub rule: Rule,
    /// The formula of AdaMod.
    pub formula: Formula,
    /// What a step counts besides its update.
    pub diagnostics: Diagnostics,
}

/// A group of one optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId {
    optimizer: u64,
    index: u32,
}

/// A parameter of one optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId {
    optimizer: u64,
    index: u32,
}

/// A parameter to be registered.
#[derive(Clone, Copy, Debug)]
pub struct Parameter<'a> {
    /// Its name, unique in the optimizer: `transformer.wte.weight`.
    pub label: &'a str,
    /// Its elements, f32. The shape does not matter to the step.
    pub len: u64,
    /// Where values and gradients lie at every step, or `None` if they are given at each step
    /// ([`Optimizer::encode_views`]).
    pub views: Option<Views<'a>>,
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
/// they are submitted in the order in which they were recorded.
#[derive(Debug)]
pub struct Optimizer {
    id: u64,
    device: wgpu::Device,
    queue: wgpu::Queue,
    options: Options,
    limits: PlanLimits,
    workgroups_per_dimension: u32,
    groups: Vec<Hyperparameters>,
    parameters: Vec<Record>,
    by_label: HashMap<String, u32>,
    /// How many parameters have no registered views.
    without_views: usize,
    occupied: Occupied,
    cohorts: Cohorts,
    arena: Arena,
    pipelines: Pipelines,
    coefficients: Ring,
    /// Tables of the parameters at their registered views; `None` when those have changed.
    fixed: Option<Tables>,
    /// Tables of the last step whose views were given, for what of them can be used again.
    moving: Option<Tables>,
    scratch: Scratch,
}

#[derive(Debug)]
struct Record {
    label: String,
    len: u64,
    views: Option<OwnedViews>,
    /// Empty until the first step.
    extents: Vec<Extent>,
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
    /// If the device's limits are below what the kernels need (WebGPU's defaults suffice), or the combination of options does not
    /// exist.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue, options: Options) -> Result<Self, CreateError> {
        if options.rule == Rule::Sgd && options.diagnostics == Diagnostics::LearningRates {
            return Err(CreateError::NoLearningRates);
        }
        let limits = device.limits();
        check_limits(&limits, options.diagnostics)?;
        let plan_limits = PlanLimits::new(&limits);
        let coefficients = Ring::new(
            device,
            "adamod.coefficients",
            Self::COEFFICIENT_SLOTS,
            size_of::<layout::Coefficients>() as u64,
        )?;
        let allocator = Allocator::new(options.rule.states(), &plan_limits);
        Ok(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            queue: queue.clone(),
            options,
            limits: plan_limits,
            workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            groups: Vec::new(),
            parameters: Vec::new(),
            by_label: HashMap::new(),
            without_views: 0,
            occupied: Occupied::default(),
            cohorts: Cohorts::default(),
            arena: Arena::new(device, allocator, options.diagnostics)?,
            pipelines: Pipelines::new(options.rule, options.diagnostics, device.adapter_info().device_type),
            coefficients,
            fixed: None,
            moving: None,
            scratch: Scratch::default(),
        })
    }

    /// The options it was made with.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Adds a group: PyTorch's `param_group`.
    ///
    /// # Errors
    /// If a hyperparameter is refused, see [`Hyperparameters::validate`].
    pub fn add_group(&mut self, hyperparameters: Hyperparameters) -> Result<GroupId, HyperparameterError> {
        hyperparameters.validate()?;
        self.groups.push(hyperparameters);
        Ok(GroupId { optimizer: self.id, index: self.groups.len() as u32 - 1 })
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
        if group.optimizer != self.id {
            return Err(HyperparameterError::UnknownGroup);
        }
        self.groups[group.index as usize] = hyperparameters;
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

    /// A group's hyperparameters; `None` if it is of another optimizer.
    pub fn hyperparameters(&self, group: GroupId) -> Option<&Hyperparameters> {
        (group.optimizer == self.id).then(|| &self.groups[group.index as usize])
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
        if group.optimizer != self.id {
            return Err(RegisterError::UnknownGroup { label: label() });
        }
        if self.by_label.contains_key(parameter.label) {
            return Err(RegisterError::DuplicateLabel { label: label() });
        }
        if parameter.len == 0 {
            return Err(RegisterError::Empty { label: label() });
        }
        let index = self.parameters.len();
        if let Some(views) = &parameter.views {
            self.occupy(index, parameter.label, parameter.len, views)?;
            self.fixed = None;
        }
        self.parameters.push(Record {
            label: label(),
            len: parameter.len,
            views: parameter.views.as_ref().map(OwnedViews::new),
            extents: Vec::new(),
        });
        self.without_views += usize::from(parameter.views.is_none());
        self.by_label.insert(label(), index as u32);
        self.cohorts.add_parameter(group.index);
        Ok(ParameterId { optimizer: self.id, index: index as u32 })
    }

    /// Moves a parameter to other views, or gives views to one that had none, from the next recorded step on.
    ///
    /// # Errors
    /// As [`Optimizer::add_parameter`]; the old views stay.
    pub fn set_views(&mut self, parameter: ParameterId, views: Views<'_>) -> Result<(), RegisterError> {
        let index = self.index_of(parameter).ok_or(RegisterError::UnknownParameter)?;
        let record = &self.parameters[index];
        let (label, len, old) = (record.label.clone(), record.len, record.views.clone());
        if let Some(old) = &old {
            self.vacate(&old.borrow());
        }
        if let Err(error) = self.occupy(index, &label, len, &views) {
            if let Some(old) = &old {
                self.occupy(index, &label, len, &old.borrow())?;
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
        self.by_label.get(label).map(|&index| ParameterId { optimizer: self.id, index })
    }

    /// Label of a parameter; `None` if it is of another optimizer.
    pub fn label(&self, parameter: ParameterId) -> Option<&str> {
        self.index_of(parameter).map(|index| self.parameters[index].label.as_str())
    }

    /// Steps recorded for a parameter: the paper's t. `None` if it is of another optimizer.
    pub fn step_count(&self, parameter: ParameterId) -> Option<u64> {
        self.index_of(parameter).map(|index| self.cohorts.steps(index))
    }

    /// Bytes of state on the device so far.
    pub fn state_bytes(&self) -> u64 {
        self.arena.bytes()
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
        self.record_all(pass)?;
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
        self.record_fixed(&mut begin_pass(encoder))?;
        self.advance();
        Ok(())
    }

    /// Records a step of the parameters that have a gradient, at views of this step only: for engines with memory pools, whose
    /// tensors move. Registered views are not looked at. Nothing of the buffers is kept once this returns.
    ///
    /// # Errors
    /// As [`Optimizer::encode`]; and if a parameter is not of this optimizer or is named twice, or a view cannot be used or
    /// overlaps another one of this step.
    pub fn encode_views(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        updates: &[Update<'_>],
    ) -> Result<(), EncodeError> {
        self.select(updates.iter().map(|update| update.parameter))?;
        self.check_overlaps(updates)?;
        self.split();
        self.allocate()?;
        let mut buffers = Buffers::default();
        let tensors: Vec<_> = updates
            .iter()
            .map(|update| {
                let index = update.parameter.index as usize;
                self.tensor(index, &update.views, &mut buffers)
            })
            .collect();
        let plan = Plan::new(&tensors, &buffers.sizes, self.options.rule.states(), &self.limits);
        let parameters = updates.iter().map(|update| update.parameter.index as usize).collect();
        let old = self.moving.take();
        let mut tables = Tables::new(&self.on_device(), plan, parameters, buffers.list, old)?;
        let recorded = self.record(&mut begin_pass(encoder), &mut tables);
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
        let mut encoder = self
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("adamod.step") });
        self.record_all(&mut begin_pass(&mut encoder))?;
        let submission = catch(&self.device, || self.queue.submit([encoder.finish()]))?;
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

    /// Reads the values of a parameter at its registered view. Submits a copy; resolves when the caller polls the device or
    /// submits again.
    ///
    /// # Errors
    /// If the parameter has no views, its buffer lacks COPY_SRC, or the device fails.
    pub async fn read_parameter(&self, parameter: ParameterId) -> Result<Vec<f32>, ReadError> {
        self.read_parameter_waiting(parameter, Wait::Caller).await
    }

    /// Reads the state of a parameter. Submits a copy; resolves when the caller polls the device or submits again.
    ///
    /// # Errors
    /// If the parameter is not of this optimizer, or the device fails.
    pub async fn read_state(&self, parameter: ParameterId) -> Result<State, ReadError> {
        self.read_state_waiting(parameter, Wait::Caller).await
    }

    /// Reads the histograms of learning rates since the last call, and sets them to zero. Submits a copy; resolves when the
    /// caller polls the device or submits again.
    ///
    /// # Errors
    /// If the optimizer was made without [`Diagnostics::LearningRates`], or the device fails.
    pub async fn read_learning_rates(&self) -> Result<LearningRates, ReadError> {
        self.read_learning_rates_waiting(Wait::Caller).await
    }

    /// Like [`Optimizer::read_parameter`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_parameter`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_parameter_blocking(&self, parameter: ParameterId) -> Result<Vec<f32>, ReadError> {
        pollster::block_on(self.read_parameter_waiting(parameter, Wait::Poll))
    }

    /// Like [`Optimizer::read_state`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_state`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_state_blocking(&self, parameter: ParameterId) -> Result<State, ReadError> {
        pollster::block_on(self.read_state_waiting(parameter, Wait::Poll))
    }

    /// Like [`Optimizer::read_learning_rates`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_learning_rates`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_learning_rates_blocking(&self) -> Result<LearningRates, ReadError> {
        pollster::block_on(self.read_learning_rates_waiting(Wait::Poll))
    }

    async fn read_parameter_waiting(
        &self,
        parameter: ParameterId,
        wait: Wait,
    ) -> Result<Vec<f32>, ReadError> {
        let index = self.index_of(parameter).ok_or(ReadError::UnknownParameter)?;
        let record = &self.parameters[index];
        let label = || record.label.clone();
        let views = record.views.as_ref().ok_or_else(|| ReadError::NoViews { label: label() })?;
        let values = views.borrow().values;
        if !values.buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            return Err(ReadError::Usage { label: label(), found: values.buffer.usage() });
        }
        let source = Source {
            buffer: values.buffer.clone(),
            offset: values.offset,
            bytes: record.len * ELEMENT_BYTES,
        };
        let bytes = download(&self.device, &self.queue, &[source], false, wait).await?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    async fn read_state_waiting(&self, parameter: ParameterId, wait: Wait) -> Result<State, ReadError> {
        let index = self.index_of(parameter).ok_or(ReadError::UnknownParameter)?;
        let record = &self.parameters[index];
        let rule = self.options.rule;
        let sources = self.arena.sources(&record.extents);
        let bytes = download(&self.device, &self.queue, &sources, false, wait).await?;
        let tensors = if record.extents.is_empty() {
            vec![vec![0.0; record.len as usize]; rule.states() as usize]
        } else {
            let blocks: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
            states_of_blocks(&blocks, record.len, rule.states())
        };
        Ok(State {
            step: self.cohorts.steps(index),
            tensors: rule.state_names().iter().copied().zip(tensors).collect(),
        })
    }

    async fn read_learning_rates_waiting(&self, wait: Wait) -> Result<LearningRates, ReadError> {
        let histogram = self.arena.histogram().ok_or(ReadError::NoDiagnostics)?;
        let source = Source { buffer: histogram.clone(), offset: 0, bytes: histogram.size() };
        let bytes = download(&self.device, &self.queue, &[source], true, wait).await?;
        Ok(LearningRates::from_counters(&bytes))
    }

    fn index_of(&self, parameter: ParameterId) -> Option<usize> {
        (parameter.optimizer == self.id).then_some(parameter.index as usize)
    }

    fn on_device(&self) -> Device<'_> {
        Device { device: &self.device, queue: &self.queue, states: self.options.rule.states() }
    }

    /// Checks a parameter's views and takes their bytes; takes none on an error.
    fn occupy(
        &mut self,
        index: usize,
        label: &str,
        len: u64,
        views: &Views<'_>,
    ) -> Result<(), RegisterError> {
        let refused = |role, source| RegisterError::View { label: label.to_owned(), role, source };
        let mut ends = [0; 2];
        for ((role, view), end) in views.each().into_iter().zip(&mut ends) {
            *end = view.end(len).map_err(|error| refused(role, error))?;
        }
        for ((role, view), end) in views.each().into_iter().zip(ends) {
            if let Err(overlap) = self.occupied.take(&view, end, index, role) {
                if role == Role::Gradients {
                    self.occupied.release(&views.values);
                }
                // A parameter can also overlap itself; it has no record yet.
                let other = self.parameters.get(overlap.parameter);
                let other_label = other.map_or(label, |record| &record.label).to_owned();
                return Err(refused(role, overlap_error(&overlap, other_label)));
            }
        }
        Ok(())
    }

    fn vacate(&mut self, views: &Views<'_>) {
        for (_, view) in views.each() {
            self.occupied.release(&view);
        }
    }

    /// Checks the views of a step that were not registered.
    fn check_overlaps(&self, updates: &[Update<'_>]) -> Result<(), EncodeError> {
        let record_of = |update: &Update<'_>| &self.parameters[update.parameter.index as usize];
        let mut ranges = Vec::with_capacity(2 * updates.len());
        for update in updates {
            let record = record_of(update);
            for (role, view) in update.views.each() {
                let end = view.end(record.len).map_err(|source| EncodeError::View {
                    label: record.label.clone(),
                    role,
                    source,
                })?;
                ranges.push((view.buffer, view.offset, end, record, role));
            }
        }
        // Views mostly come in the order of their addresses, which a merge sort finds sorted.
        ranges.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        for pair in ranges.windows(2) {
            let (first, second) = (&pair[0], &pair[1]);
            if first.0 == second.0 && second.1 < first.2 {
                return Err(EncodeError::View {
                    label: second.3.label.clone(),
                    role: second.4,
                    source: ViewError::Overlap {
                        other_role: first.4,
                        other_label: first.3.label.clone(),
                        byte: second.1,
                    },
                });
            }
        }
        Ok(())
    }

    /// Notes which parameters have a gradient.
    fn select(&mut self, named: impl Iterator<Item = ParameterId>) -> Result<(), EncodeError> {
        let present = &mut self.scratch.present;
        present.clear();
        present.resize(self.parameters.len(), false);
        for parameter in named {
            if parameter.optimizer != self.id {
                return Err(EncodeError::UnknownParameter);
            }
            let index = parameter.index as usize;
            if std::mem::replace(&mut present[index], true) {
                return Err(EncodeError::Repeated { label: self.parameters[index].label.clone() });
            }
        }
        Ok(())
    }

    /// Regroups cohorts by the parameters selected, and notes which cohorts step.
    fn split(&mut self) {
        if self.cohorts.split(&self.scratch.present)
            && let Some(tables) = &mut self.fixed
        {
            tables.regroup();
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
    fn allocate(&mut self) -> Result<(), wgpu::Error> {
        let first = self.parameters.partition_point(|record| !record.extents.is_empty());
        let lengths: Vec<u64> = self.parameters[first..].iter().map(|r| r.len).collect();
        if lengths.is_empty() {
            return Ok(());
        }
        let extents = self.arena.allocate(&self.device, &lengths)?;
        for (record, extents) in self.parameters[first..].iter_mut().zip(extents) {
            record.extents = extents;
        }
        Ok(())
    }

    fn tensor<'a>(&'a self, index: usize, views: &Views<'_>, buffers: &mut Buffers) -> Tensor<'a> {
        Tensor {
            values: buffers.location(&views.values),
            gradients: buffers.location(&views.gradients),
            extents: &self.parameters[index].extents,
        }
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
                tensors.push(self.tensor(index, &views.borrow(), &mut buffers));
            }
        }
        let plan = Plan::new(&tensors, &buffers.sizes, self.options.rule.states(), &self.limits);
        Ok(Tables::new(&self.on_device(), plan, parameters, buffers.list, None)?)
    }

    /// Records every parameter at its registered views, without counting the step.
    fn record_all(&mut self, pass: &mut wgpu::ComputePass<'_>) -> Result<(), EncodeError> {
        if self.without_views > 0
            && let Some(record) = self.parameters.iter().find(|record| record.views.is_none())
        {
            return Err(EncodeError::NoViews { label: record.label.clone() });
        }
        self.scratch.stepping.clear();
        self.scratch.stepping.resize(self.cohorts.list().len(), true);
        self.record_fixed(pass)
    }

    fn record_fixed(&mut self, pass: &mut wgpu::ComputePass<'_>) -> Result<(), EncodeError> {
        let mut tables = self.take_fixed()?;
        let recorded = self.record(pass, &mut tables);
        self.fixed = Some(tables);
        recorded
    }

    /// Uploads what has changed and records the dispatches.
    fn record(&mut self, pass: &mut wgpu::ComputePass<'_>, tables: &mut Tables) -> Result<(), EncodeError> {
        if tables.plan().launches.is_empty() {
            return Ok(());
        }
        let coefficients = self.upload_coefficients()?;
        let at = Device { device: &self.device, queue: &self.queue, states: self.options.rule.states() };
        tables.upload(&at, &mut self.pipelines, &self.coefficients, &self.arena, &self.cohorts)?;
        tables.record(pass, &self.pipelines, coefficients, self.workgroups_per_dimension);
        Ok(())
    }

    /// One row a cohort, for its next step.
    fn upload_coefficients(&mut self) -> Result<Lease, EncodeError> {
        let Options { rule, formula, .. } = self.options;
        let Scratch { coefficients, stepping, .. } = &mut self.scratch;
        coefficients.clear();
        coefficients.extend(self.cohorts.list().iter().zip(stepping).map(|(cohort, steps)| {
            if *steps {
                let hyperparameters = &self.groups[cohort.group as usize];
                hyperparameters.coefficients(formula, rule, cohort.steps + 1).into()
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
}

impl Buffers {
    fn location(&mut self, view: &View<'_>) -> Location {
        // Tensors of one pool come in a row: look at the last buffer first.
        let buffer = match self.list.last() {
            Some(last) if last == view.buffer => self.list.len() as u32 - 1,
            _ => *self.numbers.entry(view.buffer.clone()).or_insert_with(|| {
                self.list.push(view.buffer.clone());
                self.sizes.push(view.buffer.size());
                self.list.len() as u32 - 1
            }),
        };
        Location { buffer, offset: view.offset }
    }
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

fn check_limits(limits: &wgpu::Limits, diagnostics: Diagnostics) -> Result<(), CreateError> {
    let storage_buffers = match diagnostics {
        Diagnostics::Off => 6,
        Diagnostics::LearningRates => 7,
    };
    let needs = [
        (
            "max_storage_buffers_per_shader_stage",
            u64::from(limits.max_storage_buffers_per_shader_stage),
            storage_buffers,
        ),
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
