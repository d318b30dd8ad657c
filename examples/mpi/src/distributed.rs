//! [`Distributed`]: one optimizer over all ranks.

use std::collections::HashSet;

use adamod::low_level::abi::ControlHead;
use adamod::{
    Control, DType, Group, GroupId, Hyperparameters, Kernels, LossScale, NonFinite, Optimizer, Options,
    Parameter, ParameterId, Shard, Step, View, Views, wgpu,
};

use crate::agreement::{Description, hash_of};
use crate::bucket::{Bucket, Context, Findings, Tensor};
use crate::error::Error;
use crate::exact::{Squares, Words};
use crate::plan;
use crate::ranks::{Awaited, MOST_MESSAGE_BYTES, Progress, Ranks, tag};
use crate::settings::{Mode, Settings};
use crate::staging::{Mapping, Staging};

/// The groups and parameters of a run, before it starts. All ranks add the same ones in the same order.
pub struct Builder {
    ranks: Ranks,
    settings: Settings,
    options: Options,
    kernels: Kernels,
    groups: Vec<Group>,
    tensors: Vec<Tensor>,
    labels: HashSet<String>,
}

impl Builder {
    /// No groups and parameters. `options` are those of each rank's [`Optimizer`].
    pub fn new(ranks: &Ranks, settings: Settings, options: Options) -> Self {
        let (ranks, groups, tensors, labels) = (ranks.clone(), Vec::new(), Vec::new(), HashSet::new());
        Self { ranks, settings, options, kernels: Kernels::new(), groups, tensors, labels }
    }

    /// Shares compiled kernels with other optimizers of this rank.
    pub fn with_kernels(self, kernels: &Kernels) -> Self {
        Self { kernels: kernels.clone(), ..self }
    }

    /// Adds a group, and returns its number.
    pub fn add_group(&mut self, group: impl Into<Group>) -> usize {
        self.groups.push(group.into());
        self.groups.len() - 1
    }

    /// Adds a whole tensor with its views, and returns its number. The buffer of values has usages COPY_SRC and COPY_DST, and so has that
    /// of gradients.
    ///
    /// # Errors
    /// If the group does not exist, another parameter has the label, the parameter has no elements or views, is a shard or has a shadow
    /// copy, or a buffer is too small or lacks a usage. What else is wrong with a parameter shows in [`Builder::build`].
    pub fn add_parameter(&mut self, group: usize, parameter: Parameter<'_>) -> Result<usize, Error> {
        let Parameter { label, len, dtype, state, shard, views, .. } = parameter;
        let refused = |found| Error::Parameter { label: label.to_owned(), found };
        if group >= self.groups.len() {
            return Err(Error::Group { found: group, groups: self.groups.len() });
        }
        if len == 0 {
            return Err(refused("no elements"));
        }
        if shard.is_some() {
            return Err(refused("a shard"));
        }
        let Views { values, gradients, shadow, .. } = views.ok_or_else(|| refused("no views"))?;
        if shadow.is_some() {
            return Err(refused("a shadow copy"));
        }
        let gradient_dtype = gradients.dtype.unwrap_or(dtype);
        for (role, view, dtype) in [("values", values, dtype), ("gradients", gradients, gradient_dtype)] {
            let found = view.buffer.usage();
            let expected = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            if !found.contains(expected) {
                return Err(Error::Usage { label: label.to_owned(), role, found, expected });
            }
            let bytes = len.saturating_mul(dtype.bytes()).saturating_add(3) & !3;
            let (end, size) = (view.offset.saturating_add(bytes), view.buffer.size());
            if end > size {
                return Err(Error::OutOfBounds { label: label.to_owned(), role, end, size });
            }
        }
        if !self.labels.insert(label.to_owned()) {
            return Err(Error::DuplicateLabel { label: label.to_owned() });
        }
        self.tensors.push(Tensor {
            label: label.to_owned(),
            len,
            dtype,
            gradient_dtype,
            wire: if gradient_dtype == DType::F32 { self.settings.wire } else { gradient_dtype },
            state,
            group,
            values: (values.buffer.clone(), values.offset),
            gradients: (gradients.buffer.clone(), gradients.offset),
        });
        Ok(self.tensors.len() - 1)
    }

    /// Compares all ranks, divides the tensors among them, and creates this rank's optimizer. The values have been written before, and are
    /// the same on all ranks.
    ///
    /// # Errors
    /// [`Error::Disagreement`] on all ranks if one of them was built otherwise or has other values; as [`Optimizer::add_parameter`]; if a
    /// tensor is too large to be sent; or if another rank fails.
    pub fn build(self, device: &wgpu::Device, queue: &wgpu::Queue) -> Result<Distributed, Error> {
        let ranks = self.ranks.clone();
        self.build_with(device, queue).inspect_err(|error| ranks.fail_with(error))
    }

    fn build_with(self, device: &wgpu::Device, queue: &wgpu::Queue) -> Result<Distributed, Error> {
        let Self { ranks, settings, options, kernels, groups, tensors, .. } = self;
        ranks.allow(settings.save_limit);
        let (mode, rank) = (settings.mode, ranks.rank());
        let sizes: Vec<_> =
            tensors.iter().map(|tensor| (tensor.len, tensor.len * tensor.gradient_dtype.bytes())).collect();
        let plans = plan::buckets(&sizes, settings.bucket_bytes, ranks.size());
        let most = ((tag::LARGEST - tag::FIRST_BUCKET) / tag::OF_BUCKET) as usize;
        if plans.len() > most {
            return Err(Error::BucketCount { found: plans.len(), most });
        }
        let mut buckets: Vec<_> = plans
            .into_iter()
            .enumerate()
            .map(|(index, plan)| Bucket::new(index, plan, &tensors, rank, mode))
            .collect();
        let most = device.limits().max_buffer_size.min(MOST_MESSAGE_BYTES);
        for (bucket, of) in buckets.iter().enumerate() {
            let found = of.staging_bytes();
            if found > most {
                return Err(Error::BucketSize { bucket, found, most });
            }
        }
        let staging_bytes = buckets.iter().map(Bucket::staging_bytes).max().unwrap_or(0);
        let control = options.control;
        let mut optimizer = Optimizer::with_kernels(device, queue, options, &kernels)?;
        let group_ids =
            groups.iter().map(|&group| optimizer.add_group(group)).collect::<Result<Vec<_>, _>>()?;
        let mut places: Vec<Option<Place>> = vec![None; tensors.len()];
        for bucket in &mut buckets {
            if mode.is_sharded() {
                let shards =
                    if mode == Mode::ShardedGradients { bucket.keep_shards(device, rank) } else { None };
                for (index, part) in bucket.parts(rank).iter().enumerate() {
                    let gradients = shards.as_ref().map(|(buffer, starts)| (buffer.clone(), starts[index]));
                    let shard = Shard::new(part.elements.start, tensors[part.tensor].len);
                    places[part.tensor] = Some(Place { shard, len: part.len(), gradients });
                }
            } else {
                for &tensor in bucket.tensors() {
                    let len = tensors[tensor].len;
                    places[tensor] = Some(Place { shard: Shard::new(0, len), len, gradients: None });
                }
            }
        }
        let mut parameters = Vec::new();
        for (tensor, place) in tensors.iter().zip(&places) {
            let Some(Place { shard, len, gradients }) = place else { continue };
            let values = View::new(&tensor.values.0, tensor.values.1 + shard.first * tensor.dtype.bytes());
            let gradients = match gradients {
                Some((buffer, start)) => View::new(buffer, *start),
                None => View::new(
                    &tensor.gradients.0,
                    tensor.gradients.1 + shard.first * tensor.gradient_dtype.bytes(),
                ),
            };
            let views = Views::new(values, gradients.with_dtype(tensor.gradient_dtype));
            let mut parameter =
                Parameter::new(&tensor.label, *len).with_dtype(tensor.dtype).with_views(views);
            parameter.state = tensor.state;
            parameter.shard = mode.is_sharded().then_some(*shard);
            parameters.push(optimizer.add_parameter(group_ids[tensor.group], parameter)?);
        }
        let control_staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod-mpi.control"),
            size: size_of::<ControlHead>() as u64,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut distributed = Distributed {
            staging: Staging::new(device, queue, staging_bytes),
            zero_gradients: optimizer.options().zero_gradients,
            device: device.clone(),
            queue: queue.clone(),
            messages: ranks.clone(),
            ranks,
            settings,
            control,
            optimizer,
            groups: group_ids,
            parameters,
            tensors,
            buckets,
            control_staging,
            findings: Findings::default(),
            schedule: 0,
            max_norm: None,
            steps: 0,
            skips_in_a_row: 0,
            has_failed: false,
        };
        distributed.warm_up()?;
        distributed.check_agreement(&groups)?;
        distributed.messages = distributed.messages.duplicate()?;
        Ok(distributed)
    }
}

/// What a rank's optimizer has of a tensor.
#[derive(Clone)]
struct Place {
    shard: Shard,
    len: u64,
    /// Where its averaged gradients are, if not in the engine's buffer.
    gradients: Option<(wgpu::Buffer, u64)>,
}

/// An optimizer over all ranks: each computes gradients of its own part of a batch, and all take the same step with their average.
///
/// Every rank makes the same calls in the same order. Values have the same bits on all ranks after every step, and in all [modes](Mode).
///
/// After an error, other ranks have been told why and all further calls fail.
pub struct Distributed {
    ranks: Ranks,
    /// The ranks, with messages of this optimizer alone.
    pub(crate) messages: Ranks,
    pub(crate) settings: Settings,
    device: wgpu::Device,
    queue: wgpu::Queue,
    control: Control,
    pub(crate) optimizer: Optimizer,
    groups: Vec<GroupId>,
    parameters: Vec<ParameterId>,
    pub(crate) tensors: Vec<Tensor>,
    buckets: Vec<Bucket>,
    staging: Staging,
    control_staging: wgpu::Buffer,
    findings: Findings,
    zero_gradients: bool,
    /// Hash of the schedule.
    schedule: u64,
    /// The largest norm, if it was set since the start.
    max_norm: Option<Option<f64>>,
    /// Steps, taken or skipped.
    pub(crate) steps: u64,
    skips_in_a_row: u32,
    has_failed: bool,
}

/// What a step was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The ranks whose gradients were infinite or NaN, as they were sent. Unless it is empty, the step was skipped.
    pub not_finite: Vec<usize>,
}

/// What a rank tells all others in a step.
struct Summary {
    step: u64,
    hyperparameters: u64,
    flags: u32,
    squares: Words,
}

const NOT_FINITE: u32 = 1;
const AVERAGE_NOT_FINITE: u32 = 2;

impl Summary {
    const BYTES: usize = 48;

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend(self.step.to_le_bytes());
        bytes.extend(self.hyperparameters.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.squares.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let word = |index: usize| bytemuck::pod_read_unaligned::<u32>(&bytes[4 * index..4 * index + 4]);
        let long = |index: usize| u64::from(word(index)) | u64::from(word(index + 1)) << 32;
        Self {
            step: long(0),
            hyperparameters: long(2),
            flags: word(4),
            squares: std::array::from_fn(|index| word(5 + index)),
        }
    }
}

impl Distributed {
    /// This rank and the others.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// This rank's optimizer: of all parameters, or of this rank's shards.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Steps, taken or skipped.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The number of buckets. The first one has the tensors that were added last.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// The labels of a bucket's tensors; nothing if there is no such bucket.
    pub fn labels(&self, bucket: usize) -> impl Iterator<Item = &str> {
        let tensors = self.buckets.get(bucket).map_or(&[][..], Bucket::tensors);
        tensors.iter().map(|&tensor| self.tensors[tensor].label.as_str())
    }

    /// Bytes of averaged gradients that this rank keeps in buffers of its own.
    pub fn gradient_bytes(&self) -> u64 {
        self.buckets.iter().map(Bucket::shard_bytes).sum()
    }

    /// Sets a group's learning rate from the next step on. The same on all ranks.
    ///
    /// # Errors
    /// As [`Optimizer::set_learning_rate`], and if the group does not exist.
    pub fn set_learning_rate(&mut self, group: usize, learning_rate: f64) -> Result<(), Error> {
        let id = self.group(group)?;
        Ok(self.optimizer.set_learning_rate(id, learning_rate)?)
    }

    /// Replaces a group's hyperparameters from the next step on. The same on all ranks.
    ///
    /// # Errors
    /// As [`Optimizer::set_hyperparameters`], and if the group does not exist.
    pub fn set_hyperparameters(
        &mut self,
        group: usize,
        hyperparameters: impl Into<Hyperparameters>,
    ) -> Result<(), Error> {
        let id = self.group(group)?;
        Ok(self.optimizer.set_hyperparameters(id, hyperparameters)?)
    }

    /// Sets or removes the largest norm from the next step on. The same on all ranks.
    ///
    /// # Errors
    /// As [`Optimizer::set_max_norm`].
    pub fn set_max_norm(&mut self, max_norm: Option<f64>) -> Result<(), Error> {
        self.optimizer.set_max_norm(max_norm)?;
        self.max_norm = Some(max_norm);
        Ok(())
    }

    /// Multiplies all learning rates by a schedule of steps taken. The same on all ranks.
    ///
    /// # Errors
    /// As [`Optimizer::set_schedule`].
    pub fn set_schedule(&mut self, factors: &[f32]) -> Result<(), Error> {
        self.optimizer.set_schedule(factors)?;
        self.schedule = hash_of(bytemuck::cast_slice(factors));
        Ok(())
    }

    fn group(&self, group: usize) -> Result<GroupId, Error> {
        let groups = self.groups.len();
        let missing = || Error::Group { found: group, groups };
        self.groups.get(group).copied().ok_or_else(missing)
    }

    /// Starts to average the gradients of a bucket, which have been submitted. Meanwhile the engine goes on with its backward pass. The
    /// gradients may be written again after the step; with [`Mode::ShardedGradients`], in any later submission.
    ///
    /// # Errors
    /// If the bucket was reduced already, the device fails, or another rank fails.
    pub fn reduce(&mut self, bucket: usize) -> Result<(), Error> {
        let count = self.buckets.len();
        match self.buckets.get(bucket) {
            None => return Err(Error::Bucket { bucket, found: "missing", count }),
            Some(of) if !of.is_idle() => {
                return Err(Error::Bucket { bucket, found: "reduced already", count });
            }
            Some(_) => {}
        }
        self.guarded(|this| {
            // Staging buffers are freed by this rank's device alone, whatever other ranks do.
            this.drive(|this| {
                let (buckets, mut context) = this.parts();
                buckets[bucket].reduce(&mut context)
            })
        })
    }

    /// Moves messages and copies on without waiting. To be called now and then during a long backward pass.
    ///
    /// # Errors
    /// If the device or another rank fails.
    pub fn poll(&mut self) -> Result<(), Error> {
        self.guarded(|this| {
            this.messages.poll()?;
            this.advance().map(drop)
        })
    }

    /// Whether the gradients of a bucket have been averaged.
    pub fn is_reduced(&self, bucket: usize) -> bool {
        self.buckets.get(bucket).is_some_and(Bucket::is_reduced)
    }

    /// Averages the gradients of all buckets that were not reduced yet, takes the step, and gathers the values. They are there for whatever
    /// is submitted later.
    ///
    /// # Errors
    /// If the step or the device fails, another rank fails or sends nothing within the time limit, or gradients are not finite and
    /// such steps are not skipped.
    pub fn step(&mut self) -> Result<Outcome, Error> {
        self.guarded(|this| {
            for bucket in 0..this.buckets.len() {
                if this.buckets[bucket].is_idle() {
                    this.reduce(bucket)?;
                }
            }
            this.drive(|this| this.buckets.iter().all(Bucket::is_reduced))?;
            let outcome = this.take_step()?;
            this.steps += 1;
            this.findings = Findings::default();
            let gathers = this.settings.mode.is_sharded();
            this.buckets.iter_mut().for_each(|bucket| bucket.stepped(gathers));
            this.drive(|this| this.buckets.iter().all(Bucket::is_idle))?;
            this.messages.flush()?;
            Ok(outcome)
        })
    }

    /// Reads what the values of a parameter are on this rank, in f32.
    ///
    /// # Errors
    /// If there is no such parameter, or the device does not finish in time.
    pub fn read_values(&mut self, label: &str) -> Result<Vec<f32>, Error> {
        self.guarded(|this| {
            let mut values = Vec::new();
            this.each_value(|tensor, bytes| {
                if tensor.label == label {
                    crate::wire::numbers(tensor.dtype, bytes, |number| values.push(number));
                }
            })?;
            Ok(values)
        })
    }

    /// Gathers the values of all shards.
    pub(crate) fn gather(&mut self) -> Result<(), Error> {
        self.buckets.iter_mut().for_each(|bucket| bucket.stepped(true));
        self.drive(|this| this.buckets.iter().all(Bucket::is_idle))?;
        self.messages.flush()
    }

    pub(crate) fn is_between_steps(&self) -> bool {
        self.buckets.iter().all(Bucket::is_idle)
    }

    /// Does something unless the run has failed. If that fails, all other ranks are told.
    pub(crate) fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.has_failed {
            return Err(Error::Ended);
        }
        work(self).inspect_err(|error| {
            self.has_failed = true;
            self.messages.fail_with(error);
        })
    }

    fn parts(&mut self) -> (&mut Vec<Bucket>, Context<'_>) {
        let context = Context {
            tensors: &self.tensors,
            ranks: &self.messages,
            staging: &mut self.staging,
            findings: &mut self.findings,
            mode: self.settings.mode,
            zero_gradients: self.zero_gradients,
        };
        (&mut self.buckets, context)
    }

    fn advance(&mut self) -> Result<bool, Error> {
        self.staging.poll()?;
        let (buckets, mut context) = self.parts();
        let mut moved = false;
        for bucket in buckets {
            moved |= bucket.advance(&mut context)?;
        }
        Ok(moved)
    }

    /// Moves all buckets on until something holds.
    fn drive(&mut self, mut until: impl FnMut(&mut Self) -> bool) -> Result<(), Error> {
        let ranks = self.messages.clone();
        ranks.wait(ranks.limit(), || {
            let moved = self.advance()?;
            Ok(if until(self) {
                (Progress::Done(()), None)
            } else if moved {
                (Progress::Moved, None)
            } else {
                (Progress::Stuck, Some(self.awaited()))
            })
        })
    }

    /// What the buckets wait for. Messages before the device, because a message that is missing is another rank's.
    fn awaited(&self) -> Awaited {
        let step = self.steps + 1;
        let mut all: Vec<_> = self.buckets.iter().filter_map(|bucket| bucket.awaited(step)).collect();
        let of_ranks = all.iter().position(|awaited| matches!(awaited, Awaited::Ranks(..)));
        match of_ranks {
            Some(index) => all.swap_remove(index),
            None => all.pop().unwrap_or_else(|| Awaited::Device("a staging buffer".to_owned())),
        }
    }

    fn settings_of_control(&self) -> Option<&adamod::DeviceControl> {
        match &self.control {
            Control::Device(settings) => Some(settings),
            _ => None,
        }
    }

    fn skips(&self) -> bool {
        self.settings_of_control().is_some_and(|of| {
            of.non_finite == NonFinite::Skip || matches!(of.loss_scale, LossScale::Dynamic { .. })
        })
    }

    /// Decides with all other ranks whether and how the step takes place, and submits it.
    fn take_step(&mut self) -> Result<Outcome, Error> {
        let mut head = None;
        if self.joins_norms() {
            self.optimizer.submit(&Step::all().norm())?;
            head = Some(self.read_control()?);
        }
        let step = self.steps + 1;
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let own = Summary {
            step,
            hyperparameters: self.hash_of_hyperparameters(),
            flags: flag(self.findings.is_not_finite, NOT_FINITE)
                | flag(self.findings.average_is_not_finite, AVERAGE_NOT_FINITE),
            squares: head.map_or([0; 7], |head| head.sum_of_squares),
        };
        let what = format!("its summary of step {step}");
        let all = self.messages.all_gather(self.messages.limit(), tag::SUMMARY, &what, own.to_bytes())?;
        let all: Vec<_> = all.iter().map(|bytes| Summary::from_bytes(bytes)).collect();
        for (rank, of) in all.iter().enumerate() {
            if of.step != all[0].step {
                return Err(Error::StepNumber { rank, found: of.step, expected: all[0].step });
            }
            if of.hyperparameters != all[0].hyperparameters {
                return Err(Error::Hyperparameters { rank, step });
            }
        }
        let with = |flag: u32| {
            let found = all.iter().enumerate().filter(move |(_, of)| of.flags & flag != 0);
            found.map(|(rank, _)| rank).collect::<Vec<_>>()
        };
        let not_finite = with(NOT_FINITE);
        self.check_finite(&not_finite, !with(AVERAGE_NOT_FINITE).is_empty(), step)?;
        if let Some(head) = head {
            let squares = all.iter().map(|of| Squares::from_words(of.squares));
            if let (Some(squares), Some(control)) =
                (squares.reduce(Squares::plus), self.optimizer.control_buffer())
            {
                let norm = squares.norm(head.control.loss_scale);
                self.queue.write_buffer(control, Optimizer::NORM_OFFSET, &norm.to_le_bytes());
            }
            self.optimizer.submit(&Step::all().after_norm())?;
        } else {
            self.optimizer.submit(&Step::all())?;
        }
        Ok(Outcome { not_finite })
    }

    /// Ends the run if gradients are not finite and the step cannot be skipped, or too many were.
    fn check_finite(&mut self, not_finite: &[usize], overflows: bool, step: u64) -> Result<(), Error> {
        if not_finite.is_empty() && !overflows {
            self.skips_in_a_row = 0;
            return Ok(());
        }
        self.skips_in_a_row += 1;
        let is_over = self.settings.most_skips.is_some_and(|most| self.skips_in_a_row > most);
        match (self.skips() && !is_over, not_finite.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => Err(Error::Overflow { step }),
            (false, false) => Err(Error::NonFinite { ranks: not_finite.to_vec(), step }),
        }
    }

    /// Reads the start of the control buffer.
    fn read_control(&mut self) -> Result<ControlHead, Error> {
        let bytes = size_of::<ControlHead>() as u64;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        if let Some(control) = self.optimizer.control_buffer() {
            encoder.copy_buffer_to_buffer(control, 0, &self.control_staging, 0, bytes);
        }
        self.queue.submit([encoder.finish()]);
        let copy = Mapping::start(self.control_staging.clone(), wgpu::MapMode::Read);
        let ranks = self.messages.clone();
        ranks.wait(ranks.limit(), || {
            self.staging.poll()?;
            Ok(match copy.is_mapped()? {
                true => (Progress::Done(()), None),
                false => (Progress::Stuck, Some(Awaited::Device("the norm".to_owned()))),
            })
        })?;
        let head = bytemuck::pod_read_unaligned(&self.control_staging.get_mapped_range(..)?);
        self.control_staging.unmap();
        Ok(head)
    }

    /// Compiles the kernels and allocates the state, which takes some ranks longer than others.
    fn warm_up(&mut self) -> Result<(), Error> {
        if self.joins_norms() {
            self.optimizer.warm_up(&Step::all().norm())?;
            return Ok(self.optimizer.warm_up(&Step::all().after_norm())?);
        }
        Ok(self.optimizer.warm_up(&Step::all())?)
    }

    /// Whether the norm is that of all ranks' shards. Replicated ranks have all gradients, and each computes the norm.
    fn joins_norms(&self) -> bool {
        let uses_norm = self.settings_of_control().is_some_and(adamod::DeviceControl::uses_norm);
        uses_norm && self.settings.mode.is_sharded()
    }

    /// A hash of everything of a step that the host may change.
    fn hash_of_hyperparameters(&self) -> u64 {
        let groups: Vec<_> = self.optimizer.groups().map(|(_, group)| *group).collect();
        hash_of(format!("{groups:?} {:?} {}", self.max_norm, self.schedule).as_bytes())
    }

    /// Compares this rank with all others.
    fn check_agreement(&mut self, groups: &[Group]) -> Result<(), Error> {
        let mut description = Description::default();
        let Settings { mode, wire, bucket_bytes, most_skips, .. } = &self.settings;
        description.add("the mode", mode);
        description.add("the data type of gradients on their way", wire);
        description.add("the number of bytes of a bucket", bucket_bytes);
        description.add("the largest number of skips", most_skips);
        description.add("the seed", self.optimizer.options().seed);
        description.add("the control", self.control);
        description.add("whether gradients are set to zero", self.zero_gradients);
        description.add("the number of groups", groups.len());
        for (number, group) in groups.iter().enumerate() {
            description.add(format!("group {number}"), group);
        }
        description.add("the number of parameters", self.tensors.len());
        for (number, tensor) in self.tensors.iter().enumerate() {
            let Tensor { label, len, dtype, gradient_dtype, state, group, .. } = tensor;
            description.add(format!("the label of parameter {number}"), label);
            description.add(format!("the length of parameter {label:?}"), len);
            description.add(format!("the data type of parameter {label:?}"), dtype);
            description.add(format!("the data type of the gradients of parameter {label:?}"), gradient_dtype);
            description.add(format!("the format of state of parameter {label:?}"), state);
            description.add(format!("the group of parameter {label:?}"), group);
        }
        self.each_value(|tensor, bytes| {
            description
                .add(format!("the hash of the values of parameter {:?}", tensor.label), hash_of(bytes));
        })?;
        description.agree(&self.messages)
    }

    /// Reads all values, bucket by bucket.
    fn each_value(&mut self, mut of: impl FnMut(&Tensor, &[u8])) -> Result<(), Error> {
        let ranks = self.messages.clone();
        for bucket in 0..self.buckets.len() {
            let mut mapping = None;
            ranks.wait(ranks.limit(), || {
                self.staging.poll()?;
                if mapping.is_none() {
                    mapping = self.buckets[bucket].download_values(&mut self.staging);
                }
                let (bucket, tensors) = (&self.buckets[bucket], &self.tensors);
                let done = match &mapping {
                    Some(mapping) => self.staging.read(mapping, |bytes| {
                        for (tensor, bytes) in bucket.values_within(tensors, bytes) {
                            of(&tensors[tensor], bytes);
                        }
                    })?,
                    None => None,
                };
                Ok(match done {
                    Some(()) => (Progress::Done(()), None),
                    None => (Progress::Stuck, Some(Awaited::Device("the values".to_owned()))),
                })
            })?;
        }
        Ok(())
    }

    /// The parameters of this rank's optimizer.
    pub fn parameters(&self) -> &[ParameterId] {
        &self.parameters
    }
}
