//! [`Optimizer`]: a thin face over three owners. The [registry](registry::Registry) knows what is registered, the
//! [memory](memory::Memory) where state lies, and the [recorder](recorder::Recorder) how a step is recorded.

#[cfg(feature = "checkpoint")]
mod checkpointing;
mod device_steps;
mod handles;
pub mod joint;
mod memory;
mod readback;
mod recorder;
mod registry;
mod remap;
mod remapping;
#[cfg(feature = "checkpoint")]
mod restore;
#[cfg(feature = "checkpoint")]
mod restoring;
mod slots;
mod source;
mod step;
mod tables;
mod transfer;

use crate::device::error_scope::DeviceError;
use crate::device::gpu::Gpu;
use crate::diagnostics::{Progress, RateHistograms};
use crate::error::{Error, ErrorKind};
use crate::hyperparameters::{Group, Hyperparameters};
use crate::kernels::abi::{self, GPU_LANES};
use crate::kernels::pipeline::{Kernels, PipelineSettings, Pipelines};
use crate::options::{Control, Diagnostics, Options};
use crate::plan::launches::Launch;
use crate::plan::limits::PlanLimits;
use crate::plan::views::{View, Views};
use crate::rules::range::in_range;
use crate::storage::block::{WORD_BYTES, state_words};
use device_steps::{DeviceSteps, control_constants};
pub use handles::{GroupId, LaunchInfo, Parameter, ParameterId, Shard, State, StepCounts};
use memory::Memory;
pub use readback::Readback;
use recorder::Recorder;
use registry::{Registry, Selection, Settings};
pub use remap::Remap;
#[cfg(feature = "checkpoint")]
pub use restore::{Mismatch, Restore, Restored};
use source::{CoefficientSource, HostSteps};
use step::Part;
pub use step::{Step, Update};

/// Runs the optimizer step of a training engine on the GPU.
///
/// The engine owns the device, the queue, the encoders and the buffers of values and gradients. The optimizer owns the state and small
/// tables. It records dispatches into the engine's encoder, and submits only where a method says so.
///
/// A recorded step counts as taken. Several steps may be recorded before one submit, in one encoder or in several, as long as they are
/// submitted in the order in which they were recorded. If an encoder is dropped, or its submit fails, [`Optimizer::rewind`] takes the
/// counts back.
///
/// After any error the optimizer is as it was before the call.
///
/// ```
/// use adamod::{AdaMod, Optimizer, Options, Parameter, Step, View, Views};
///
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// # let (device, queue) = doc::gpu();
/// # let (values, gradients) = (doc::buffer(&device, 4096), doc::buffer(&device, 4096));
/// let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
/// let group = optimizer.add_group(AdaMod::new())?;
/// let views = Views::new(View::new(&values, 0), View::new(&gradients, 0));
/// optimizer.add_parameter(group, Parameter::new("layer.weight", 1024).with_views(views))?;
///
/// let mut encoder = device.create_command_encoder(&Default::default());
/// // ... the engine records its backward pass ...
/// optimizer.encode(&mut encoder, &Step::all())?;
/// queue.submit([encoder.finish()]);
/// # Ok::<(), adamod::Error>(())
/// ```
#[derive(Debug)]
pub struct Optimizer {
    gpu: Gpu,
    options: Options,
    registry: Registry,
    memory: Memory,
    recorder: Recorder,
}

impl Optimizer {
    /// Byte offset of the loss scale in [`Optimizer::control_buffer`], an f32.
    pub const LOSS_SCALE_OFFSET: u64 = std::mem::offset_of!(abi::Control, loss_scale) as u64;
    /// Byte offset of the engine's own multiplier of gradients in [`Optimizer::control_buffer`], an f32; 1 at first.
    pub const MULTIPLIER_OFFSET: u64 = std::mem::offset_of!(abi::Control, multiplier) as u64;
    /// Byte offset of the norm of the gradients in [`Optimizer::control_buffer`], an f32.
    pub const NORM_OFFSET: u64 = std::mem::offset_of!(abi::Control, norm) as u64;

    /// Features of a device on which tensors that have buffers of their own share dispatches. Without them each has a dispatch, which costs
    /// the host time: an engine with a buffer for each tensor should ask for them where the adapter has them, as on Vulkan and Metal.
    ///
    /// The limit `max_binding_array_elements_per_shader_stage` is 0 by default and has to be raised, too. All tensors can share one dispatch
    /// if it is three times the number of tensors, rounded up to a power of two. Metal has at most 256 tensors in a dispatch. Tensors of more
    /// than 2^20 elements, those with factors of columns or masks of rows, and those with values and gradients in one buffer keep their own.
    ///
    /// On a device with these features [`Optimizer::new`] tries them with a small kernel, and waits for it for at most
    /// [`Options::device_timeout`]. Optimizers with the same [`Kernels`] try them once.
    ///
    /// ```
    /// # async fn of(adapter: &wgpu::Adapter) -> Result<(), wgpu::RequestDeviceError> {
    /// let (device, queue) = adapter
    ///     .request_device(&wgpu::DeviceDescriptor {
    ///         required_features: adapter.features() & adamod::Optimizer::BINDING_ARRAYS,
    ///         required_limits: adapter.limits(),
    ///         ..Default::default()
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub const BINDING_ARRAYS: wgpu::Features = PlanLimits::BINDING_ARRAYS;

    /// The most bytes of a parameter: larger than any device's memory, and far from overflow when words of state are counted. A device
    /// may have no limit of its own.
    const MOST_BYTES: u64 = 1 << 40;

    /// Creates an optimizer without groups and parameters. Clones the handles of device and queue.
    ///
    /// # Errors
    /// If the queue belongs to another device, a limit of the device is below what the kernels need (WebGPU's default limits suffice), a
    /// setting of [`DeviceControl`](crate::DeviceControl) is not in its range, or the device is lost or out of memory.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue, options: Options) -> Result<Self, Error> {
        Self::with_kernels(device, queue, options, &Kernels::new())
    }

    /// Like [`Optimizer::new`], for an optimizer that shares its compiled kernels with others.
    ///
    /// # Errors
    /// As [`Optimizer::new`].
    pub fn with_kernels(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        options: Options,
        kernels: &Kernels,
    ) -> Result<Self, Error> {
        let label = options.label.as_str().into();
        let gpu = Gpu { device: device.clone(), queue: queue.clone(), label };
        if gpu.is_lost() {
            return Err(ErrorKind::Lost.into());
        }
        // wgpu 30 crashes when a write goes to a buffer of another device.
        if !gpu.is_queue_of_device()? {
            return Err(ErrorKind::Queue.into());
        }
        let limits = device.limits();
        let plan_limits = PlanLimits::new(&limits, options.update_lanes(device), options.tuning);
        check_limits(&limits, &options)?;
        let (source, control, most_parameters, most_steps) = match &options.control {
            Control::Host => {
                (CoefficientSource::Host(HostSteps::new(&gpu)?), Vec::new(), usize::MAX, 1 << 53)
            }
            Control::Device(settings) => {
                settings.validate()?;
                let steps = DeviceSteps::new(&gpu, &options, *settings)?;
                // The next count has to fit into 32 bits.
                let most_steps = u64::from(u32::MAX) - 1;
                let source = CoefficientSource::Device(Box::new(steps));
                (source, control_constants(settings), DeviceSteps::MOST_PARAMETERS, most_steps)
            }
        };
        let pipelines = PipelineSettings {
            lanes: options.workgroups.lanes(device),
            update_lanes: options.update_lanes(device),
            rare_paths_apart: options.tuning.rare_paths_apart,
            zero_gradients: options.zero_gradients,
            control,
            control_bytes: DeviceSteps::CONTROL_BYTES,
            cache: options.pipeline_cache.clone(),
        };
        let mut pipelines = Pipelines::new(&gpu, kernels, pipelines);
        let plan_limits = with_arrays(plan_limits, &mut pipelines, &options);
        let settings = Settings {
            seed: options.seed,
            most_bytes: limits.max_buffer_size.min(Self::MOST_BYTES),
            most_parameters,
            most_steps,
            zero_gradients: options.zero_gradients,
            most_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            has_histograms: options.diagnostics == Diagnostics::RateHistograms,
        };
        let diagnostics = options.diagnostics;
        let memory = Memory::new(&gpu, &plan_limits, diagnostics == Diagnostics::RateHistograms)?;
        let dimension = limits.max_compute_workgroups_per_dimension;
        let recorder = Recorder::new(plan_limits, dimension, diagnostics, pipelines, source);
        Ok(Self { gpu, options, registry: Registry::new(settings), memory, recorder })
    }

    /// The options that it was created with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    // Groups.

    /// Adds a group: hyperparameters, a rule, or a [`Group`] with a precision.
    ///
    /// Groups of one optimizer may have different rules. Each rule is a dispatch of its own; step counts, norm, loss scale and the
    /// decision to skip a step are common to all of them.
    ///
    /// ```
    /// # use adamod::{AdaMod, Hyperparameters, Optimizer, Options, Sgd};
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// # let (device, queue) = doc::gpu();
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// let weights = optimizer.add_group(AdaMod::new())?;
    /// let scales = optimizer.add_group(Hyperparameters::from(Sgd::new()).with_learning_rate(0.1))?;
    /// # Ok::<(), adamod::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a hyperparameter is refused, see [`Hyperparameters::validate`].
    pub fn add_group(&mut self, group: impl Into<Group>) -> Result<GroupId, Error> {
        self.registry.add_group(group.into())
    }

    /// Removes a group without parameters. Its id is refused from then on.
    ///
    /// # Errors
    /// If the group belongs to another optimizer, was removed already, or has parameters.
    pub fn remove_group(&mut self, group: GroupId) -> Result<(), Error> {
        self.registry.remove_group(group)
    }

    /// A group's hyperparameters and precision; `None` if it belongs to another optimizer or was removed.
    pub fn group(&self, group: GroupId) -> Option<&Group> {
        self.registry.group(group).ok()
    }

    /// All groups, in the order in which they were added.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = (GroupId, &Group)> {
        self.registry.groups_in_order().into_iter()
    }

    /// Replaces a group's hyperparameters from the next recorded step on. The rule stays. Caution that comes or goes changes kernels, so the
    /// next step may compile.
    ///
    /// # Errors
    /// If a hyperparameter is refused or the rule is another one. The old hyperparameters stay.
    pub fn set_hyperparameters(
        &mut self,
        group: GroupId,
        hyperparameters: impl Into<Hyperparameters>,
    ) -> Result<(), Error> {
        self.registry.set_hyperparameters(group, hyperparameters.into())
    }

    /// Sets a group's learning rate from the next recorded step on: `optimizer.set_learning_rate(group, schedule(step))`.
    ///
    /// # Errors
    /// If it is refused. The old rate stays.
    pub fn set_learning_rate(&mut self, group: GroupId, learning_rate: f64) -> Result<(), Error> {
        let hyperparameters = self.registry.group(group)?.hyperparameters;
        self.registry.set_hyperparameters(group, hyperparameters.with_learning_rate(learning_rate))
    }

    // Parameters.

    /// Registers a parameter. Its state starts at zero, and is allocated when the next step is recorded.
    ///
    /// # Errors
    /// If its group, label, length, or the usage, alignment or size of a view is wrong, or if a view overlaps another one.
    pub fn add_parameter(&mut self, group: GroupId, parameter: Parameter<'_>) -> Result<ParameterId, Error> {
        self.registry.add_parameter(group, parameter)
    }

    /// Moves a parameter to other views, or registers the first views of one that had none, from the next recorded step on.
    ///
    /// # Errors
    /// As [`Optimizer::add_parameter`]. The old views stay.
    pub fn set_views(&mut self, parameter: ParameterId, views: Views<'_>) -> Result<(), Error> {
        self.registry.set_views(parameter, views)
    }

    /// Moves a parameter to another group of the same rule from the next recorded step on, with its state and step count: to unfreeze
    /// layers, or to give them other hyperparameters. It keeps its formats, whatever the precision of the new group.
    ///
    /// # Errors
    /// If the parameter or the group belongs to another optimizer or was removed, or the rules differ. The parameter stays where it is.
    pub fn set_group(&mut self, parameter: ParameterId, group: GroupId) -> Result<(), Error> {
        self.registry.set_group(parameter, group)
    }

    /// Sets factors of a parameter's learning rates by column, from the next recorded step on: the rate of element `i` is alpha times
    /// `factors[i % factors.len()]`. No factors at all remove them.
    ///
    /// A row of a splat with 3 numbers of position, 3 of scale and 4 of rotation has 10 factors. They multiply alpha before eta is averaged,
    /// as [`Optimizer::set_schedule`] does, and decoupled weight decay follows them; so does everything else that is proportional to the
    /// learning rate, as AdaBound's bounds are. They may change at every step, and a step that is recorded already keeps its own. A
    /// [`Shard`] counts elements from the start of its whole tensor. [`Optimizer::remap`] keeps them.
    ///
    /// Parameters with factors are launches of their own, which need two storage buffers more (`max_storage_buffers_per_shader_stage`): 8
    /// in all, and one more each for shadow copies and rate histograms, which WebGPU's default limit of 8 does not allow. Calls that would
    /// lead beyond the limit are refused: this one, those that register views, and steps at views of their own. Values and gradients in one
    /// buffer take one storage buffer less where one binding can hold both. Checkpoints do not hold factors, so an engine sets them again
    /// after [`Optimizer::restore`].
    ///
    /// ```
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// use adamod::{AdaMod, Optimizer, Options, Parameter};
    ///
    /// # let (device, queue) = doc::gpu();
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// // 100 rows of two positions and one weight, which moves slower.
    /// let splats = optimizer.add_parameter(group, Parameter::new("splats", 300))?;
    /// optimizer.set_column_factors(splats, &[1.0, 1.0, 0.05])?;
    /// # Ok::<(), adamod::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the parameter belongs to another optimizer or was removed, there are more than 65,536 factors, one is negative or not finite, the
    /// device cannot bind as many storage buffers, or the largest one leads out of a range that the learning rate has in
    /// [`Hyperparameters::validate`]. The old factors stay. Later calls that would lead out of that range with the factors are refused in
    /// the same way.
    pub fn set_column_factors(&mut self, parameter: ParameterId, factors: &[f32]) -> Result<(), Error> {
        self.registry.set_column_factors(parameter, factors)
    }

    /// Removes a parameter. Its id is refused from then on, its label and the bytes of its views are free, and its state is given back.
    /// Submits a clear of the state, so all recorded steps have to be submitted before.
    ///
    /// # Errors
    /// If the parameter belongs to another optimizer or was removed already, or the device fails. It is still registered then.
    pub fn remove_parameter(&mut self, parameter: ParameterId) -> Result<(), Error> {
        let record = self.registry.record(parameter)?;
        let (index, layout) = (parameter.key.index(), record.layout);
        let refused = |error: DeviceError| ErrorKind::from(error).of(&record.label);
        if !self.memory.extents(index).is_empty() {
            let commands = self.gpu.catch(|| {
                let mut encoder = self.gpu.encoder("remove");
                self.memory.clear(&mut encoder, index, layout);
                if let Some(steps) = self.recorder.source().device() {
                    encoder.clear_buffer(steps.control(), DeviceSteps::step_count_offset(index), Some(4));
                }
                encoder.finish()
            });
            self.gpu.submit(commands.map_err(refused)?).map_err(refused)?;
        }
        self.memory.release(index, layout);
        self.registry.remove_parameter(parameter)
    }

    /// The parameter with this label.
    pub fn parameter(&self, label: &str) -> Option<ParameterId> {
        self.registry.parameter(label)
    }

    /// All parameters.
    pub fn parameters(&self) -> impl Iterator<Item = ParameterId> {
        self.registry.parameters().map(|(id, _)| id)
    }

    /// Label of a parameter; `None` if it belongs to another optimizer or was removed.
    pub fn label(&self, parameter: ParameterId) -> Option<&str> {
        self.registry.record(parameter).ok().map(|record| record.label.as_str())
    }

    /// Group of a parameter; `None` if it belongs to another optimizer or was removed.
    pub fn group_of(&self, parameter: ParameterId) -> Option<GroupId> {
        self.registry.record(parameter).ok().map(|record| record.group)
    }

    // Steps.

    /// Records a step into an encoder, in a compute pass of its own.
    ///
    /// # Errors
    /// If a parameter belongs to another optimizer, stands twice in the step or has no views; if a view cannot be used or overlaps
    /// another view of the step; if half a step is asked of an optimizer without a norm; or if the device refuses a resource. Nothing was
    /// recorded then, and no step count has advanced.
    pub fn encode(&mut self, encoder: &mut wgpu::CommandEncoder, step: &Step<'_>) -> Result<(), Error> {
        let label = self.gpu.name("update");
        self.encode_in_pass(&mut begin_pass(encoder, &label), step)
    }

    /// Records a step into a compute pass of the caller's. Sets the pipeline and bind group 0.
    ///
    /// # Errors
    /// As [`Optimizer::encode`].
    pub fn encode_in_pass(&mut self, pass: &mut wgpu::ComputePass<'_>, step: &Step<'_>) -> Result<(), Error> {
        let selection = self.record(step, Some(pass))?;
        self.advance(step, &selection);
        Ok(())
    }

    /// Records a step into an encoder of its own and submits it.
    ///
    /// # Errors
    /// As [`Optimizer::encode`], and if the submit fails. No step count has advanced then.
    pub fn submit(&mut self, step: &Step<'_>) -> Result<wgpu::SubmissionIndex, Error> {
        let gpu = self.gpu.clone();
        let (commands, selection) = gpu.catch(|| {
            let mut encoder = gpu.encoder("step");
            let selection = self.record(step, Some(&mut begin_pass(&mut encoder, &gpu.name("update"))))?;
            Ok::<_, Error>((encoder.finish(), selection))
        })??;
        let submission = gpu.submit(commands)?;
        self.advance(step, &selection);
        Ok(submission)
    }

    /// Allocates the state of a step's parameters and compiles its pipelines, so that the first step does not wait for them. Records
    /// nothing. Compilation is synchronous, because wgpu has no asynchronous pipeline creation. [`Optimizer::remap`] compiles its own kernels
    /// when it is first called for a format.
    ///
    /// ```
    /// # use adamod::{AdaMod, Optimizer, Options, Parameter, Step, View, Views};
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// # let (device, queue) = doc::gpu();
    /// # let buffer = doc::buffer(&device, 8192);
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// # let views = Views::new(View::new(&buffer, 0), View::new(&buffer, 4096));
    /// # optimizer.add_parameter(group, Parameter::new("weight", 1024).with_views(views))?;
    /// optimizer.warm_up(&Step::all())?;
    /// assert_eq!(optimizer.launches().count(), 1);
    /// # Ok::<(), adamod::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Optimizer::encode`].
    pub fn warm_up(&mut self, step: &Step<'_>) -> Result<(), Error> {
        self.record(step, None).map(drop)
    }

    /// The dispatches of the last step that was recorded or warmed up. Steps with a norm have others before these.
    pub fn launches(&self) -> impl ExactSizeIterator<Item = LaunchInfo> {
        self.recorder.launches().iter().map(|launch: &Launch| LaunchInfo {
            form: launch.form,
            workgroups: launch.chunks,
            segments: launch.segments.len() as u32,
            access: launch.access,
            gradients: launch.binding,
        })
    }

    /// Records a step without counting it.
    fn record(
        &mut self,
        step: &Step<'_>,
        pass: Option<&mut wgpu::ComputePass<'_>>,
    ) -> Result<Selection, Error> {
        let selection = self.prepare(step, &[step.part])?;
        if let Some(pass) = pass {
            self.recorder.record(pass, step.part);
        }
        self.recorder.finish();
        Ok(selection)
    }

    /// Prepares parts of a step, so that recording them cannot fail.
    fn prepare(&mut self, step: &Step<'_>, parts: &[Part]) -> Result<Selection, Error> {
        let has_norm = self.recorder.source().device().is_some_and(DeviceSteps::uses_norm);
        if step.part != Part::Whole && !has_norm {
            return Err(ErrorKind::NoNorm.into());
        }
        let mut selection = self.registry.select(step)?;
        self.memory.update(&self.gpu, &self.registry)?;
        let Self { gpu, registry, memory, recorder, .. } = self;
        recorder.prepare(gpu, registry, memory, &mut selection, parts)?;
        Ok(selection)
    }

    fn advance(&mut self, step: &Step<'_>, selection: &Selection) {
        if step.part != Part::Norm {
            self.registry.advance(selection);
        }
    }

    /// Steps recorded for a parameter: the paper's t, unless the device skipped steps ([`Optimizer::read_state`] has the device's count).
    /// `None` if the parameter belongs to another optimizer or was removed.
    pub fn step_count(&self, parameter: ParameterId) -> Option<u64> {
        self.registry.record(parameter).ok().map(|_| self.registry.steps(parameter))
    }

    /// All step counts, for [`Optimizer::rewind`].
    pub fn step_counts(&self) -> StepCounts {
        self.registry.step_counts()
    }

    /// Takes back the counts of all steps recorded since `counts` was taken, because they never run: their encoder was dropped, or its
    /// submit failed. With [`Control::Device`] the device counts what runs, and this changes only what [`Optimizer::step_count`] returns.
    ///
    /// # Errors
    /// If `counts` belongs to another optimizer, or parameters were added or removed or state was written since.
    pub fn rewind(&mut self, counts: &StepCounts) -> Result<(), Error> {
        self.registry.rewind(counts)
    }

    // Memory and control.

    /// Bytes of state on the device.
    pub fn state_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Bytes of a parameter's state, including its master weights. `None` if the parameter belongs to another optimizer or was removed.
    pub fn state_bytes_of(&self, parameter: ParameterId) -> Option<u64> {
        let record = self.registry.record(parameter).ok()?;
        Some(state_words(record.layout, record.len) * WORD_BYTES)
    }

    /// What the device keeps between steps, with usages STORAGE, COPY_SRC and COPY_DST; `None` with [`Control::Host`].
    ///
    /// An engine reads the loss scale there, on the device, before it multiplies its loss. To scale gradients by a factor of its own (one
    /// over the number of ranks or of micro-batches), it writes the factor at [`Optimizer::MULTIPLIER_OFFSET`].
    pub fn control_buffer(&self) -> Option<&wgpu::Buffer> {
        self.recorder.source().device().map(DeviceSteps::control)
    }

    /// Sets or removes the largest norm ([`DeviceControl::max_norm`](crate::DeviceControl::max_norm)) from the next recorded step on.
    ///
    /// # Errors
    /// If the norm is not in its range, or the optimizer computes no norm: it was created with [`Control::Host`], or without a largest
    /// norm and without skipping. The old norm stays.
    pub fn set_max_norm(&mut self, max_norm: Option<f64>) -> Result<(), Error> {
        match self.recorder.pipelines_and_source().1.device_mut() {
            Some(steps) if steps.uses_norm() => Ok(steps.set_max_norm(max_norm)?),
            _ => Err(ErrorKind::NoNorm.into()),
        }
    }

    /// Multiplies the learning rates of all groups by a schedule that goes by steps **taken**, from the next recorded step on.
    ///
    /// With [`Control::Device`] the host does not know which steps the device skips, so a schedule that the host evaluates goes by steps
    /// recorded. Here the device looks up the factor itself: that of a step is `factors[n]`, where `n` is the number of steps taken before
    /// it ([`Progress::taken`]), and the last factor from there on. The factor multiplies alpha before eta is averaged, and decoupled
    /// weight decay follows it. `[1.0]` ends a schedule. Checkpoints hold the number of steps taken, but not the factors.
    ///
    /// ```
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// use adamod::{AdaMod, Control, DeviceControl, Optimizer, Options, schedule};
    ///
    /// # let (device, queue) = doc::gpu();
    /// let options = Options::new().with_control(Control::Device(DeviceControl::new()));
    /// let mut optimizer = Optimizer::new(&device, &queue, options)?;
    /// // Linear warmup over the first 4,000 steps taken, to the rates of the groups.
    /// let factors: Vec<f32> = (1..=4000).map(|t| schedule::linear_warmup(1.0, 0.0, 4000, t) as f32).collect();
    /// optimizer.set_schedule(&factors)?;
    /// # Ok::<(), adamod::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there is no factor, one is not in [0, 1], the factors do not fit into a storage buffer, the optimizer was created with
    /// [`Control::Host`], or the device fails. The old schedule stays.
    pub fn set_schedule(&mut self, factors: &[f32]) -> Result<(), Error> {
        let (pipelines, source) = self.recorder.pipelines_and_source();
        let steps = source.device_mut().ok_or(ErrorKind::NoControl)?;
        let most = self.gpu.device.limits().max_storage_buffer_binding_size / size_of::<f32>() as u64;
        let found = factors.len() as u64;
        if !(1..=most).contains(&found) {
            return Err(ErrorKind::Schedule { found, most }.into());
        }
        for &factor in factors {
            in_range("schedule", factor.into(), "factors in [0, 1]", (0.0..=1.0).contains(&factor))?;
        }
        Ok(steps.set_schedule(&self.gpu, pipelines, factors)?)
    }

    // Reads and writes.

    /// Reads the values of a parameter at its registered view. Submits a copy, so all recorded steps have to be submitted before.
    ///
    /// # Errors
    /// The read-back fails if the parameter has no registered views, its buffer lacks COPY_SRC, or the device fails.
    pub fn read_parameter(&self, parameter: ParameterId) -> Readback<Vec<f32>> {
        self.read_values(parameter, None)
    }

    /// Reads the values of a parameter that lie in `view` now. Master weights are taken into account. Submits a copy, so all recorded
    /// steps have to be submitted before.
    ///
    /// # Errors
    /// The read-back fails if the view cannot be used, its buffer lacks COPY_SRC, or the device fails.
    pub fn read_parameter_at(&self, parameter: ParameterId, view: &View<'_>) -> Readback<Vec<f32>> {
        self.read_values(parameter, Some(view))
    }

    /// Writes the values of a parameter at its registered view, and its master weights. Submits a copy, so all recorded steps have to be
    /// submitted before.
    ///
    /// Values of a 16-bit parameter are rounded as its master weights demand, or to the nearest without any. Whole words of 4 bytes are
    /// written: after an odd number of 16-bit elements the other half of the last word becomes zero. The shadow copy of an f32 parameter
    /// follows at the next step; before the first one the engine fills it.
    ///
    /// # Errors
    /// If the parameter has no registered views, its buffer lacks COPY_DST, the number of values is wrong, or the device fails.
    pub fn write_parameter(&mut self, parameter: ParameterId, values: &[f32]) -> Result<(), Error> {
        self.write_values(parameter, None, values)
    }

    /// Writes the values of a parameter that lie in `view` now: [`Optimizer::write_parameter`] for engines whose tensors move.
    ///
    /// # Errors
    /// If the view cannot be used, its buffer lacks COPY_DST, the number of values is wrong, or the device fails.
    pub fn write_parameter_at(
        &mut self,
        parameter: ParameterId,
        view: &View<'_>,
        values: &[f32],
    ) -> Result<(), Error> {
        self.write_values(parameter, Some(view), values)
    }

    /// Reads the state of a parameter as f32. Submits a copy, so all recorded steps have to be submitted before.
    ///
    /// # Errors
    /// The read-back fails if the parameter belongs to another optimizer, or the device fails.
    pub fn read_state(&self, parameter: ParameterId) -> Readback<State> {
        self.read_states(parameter)
    }

    /// Replaces the state of a parameter, including its step count. Formats below 32 bits round to the nearest. Submits a copy, so all
    /// recorded steps have to be submitted before.
    ///
    /// # Errors
    /// If the states are not exactly those of the parameter's rule, a length is not the parameter's, or the device fails.
    pub fn write_state(&mut self, parameter: ParameterId, state: &State) -> Result<(), Error> {
        self.write_states(parameter, state)
    }

    /// Reads the histograms of learning rates since the last call and resets them. Submits a copy.
    ///
    /// # Errors
    /// The read-back fails if the optimizer was created without [`Diagnostics::RateHistograms`], or the device fails.
    pub fn take_rate_histograms(&self) -> Readback<RateHistograms> {
        match self.memory.histogram() {
            Some(of) => self.read_start(of, of.size(), true, RateHistograms::from_counters),
            None => Readback::failed(ErrorKind::NoDiagnostics.into()),
        }
    }

    /// Reads what the device has counted up to the latest step that was submitted. Submits a copy; nothing stalls.
    ///
    /// # Errors
    /// The read-back fails with [`Control::Host`], or if the device fails.
    pub fn read_progress(&self) -> Readback<Progress> {
        match self.control_buffer() {
            Some(of) => self.read_start(of, Progress::BYTES, false, Progress::from_bytes),
            None => Readback::failed(ErrorKind::NoControl.into()),
        }
    }
}

fn begin_pass<'a>(encoder: &'a mut wgpu::CommandEncoder, label: &str) -> wgpu::ComputePass<'a> {
    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None })
}

/// Plans binding arrays, if the device has them and they work.
#[cfg(not(target_arch = "wasm32"))]
fn with_arrays(limits: PlanLimits, pipelines: &mut Pipelines, options: &Options) -> PlanLimits {
    let windows = PlanLimits::most_windows(&pipelines.gpu().device);
    if windows == 1 || !options.tuning.binding_arrays {
        return limits;
    }
    // A device that is busy or out of memory steps without arrays. A lost one has errors of its own.
    match pipelines.array_reach(options.device_timeout) {
        Ok(Some(reach)) => limits.with_arrays(windows, reach),
        Ok(None) | Err(_) => limits,
    }
}

/// Browsers have no binding arrays.
#[cfg(target_arch = "wasm32")]
fn with_arrays(limits: PlanLimits, _: &mut Pipelines, _: &Options) -> PlanLimits {
    limits
}

fn check_limits(limits: &wgpu::Limits, options: &Options) -> Result<(), Error> {
    let binding_bytes = match options.control {
        Control::Host => PlanLimits::LEAST_BINDING_BYTES,
        Control::Device(_) => PlanLimits::LEAST_BINDING_BYTES.max(DeviceSteps::CONTROL_BYTES),
    };
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
        ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size, binding_bytes),
        ("max_buffer_size", limits.max_buffer_size, PlanLimits::LEAST_BINDING_BYTES),
    ];
    for (limit, found, expected) in needs {
        if found < expected {
            return Err(ErrorKind::Limit { limit, found, expected }.into());
        }
    }
    Ok(())
}
