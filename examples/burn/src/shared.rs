//! The core optimizer, which is shared with steps that Burn runs later, and a step over Burn's buffers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use adamod::{
    FreshRows, Group, GroupId, Hyperparameters, Optimizer, Options, ParameterId, Remap, Step, Update, View,
    Views, WeightDecay,
};
use burn::backend::StreamId;
use burn::backend::wgpu::{AutoCompiler, CubeTensor, into_contiguous};
use burn::tensor::DType;

use cubecl::wgpu::{WgpuResource, WgpuServer};

use crate::error::Error;
use crate::gpu::Gpu;

/// A parameter with a gradient in one step.
pub(crate) struct Job<T> {
    pub parameter: ParameterId,
    pub group: GroupId,
    pub learning_rate: f64,
    pub value: T,
    pub gradient: T,
}

/// A group as it is in one step.
#[derive(Clone, Copy)]
pub(crate) struct StepGroup {
    pub id: GroupId,
    pub group: Group,
    pub rounds_decay: bool,
}

impl StepGroup {
    /// Its hyperparameters at a learning rate.
    fn hyperparameters_at(&self, learning_rate: f64) -> Hyperparameters {
        let hyperparameters = self.group.hyperparameters.with_learning_rate(learning_rate);
        match hyperparameters.weight_decay {
            WeightDecay::Decoupled(lambda) if self.rounds_decay && learning_rate > 0.0 => {
                let kept = (1.0 - learning_rate * lambda) as f32;
                let rounded = (1.0 - f64::from(kept)) / learning_rate;
                hyperparameters.with_weight_decay(WeightDecay::Decoupled(rounded))
            }
            _ => hyperparameters,
        }
    }
}

/// The core's groups for one group whose parameters may have several learning rates.
#[derive(Debug)]
struct SplitGroup {
    /// Of the last step, with the first of its rates and without rounding.
    hyperparameters: Hyperparameters,
    /// One for each rate but the first.
    stand_ins: Vec<GroupId>,
}

/// What outlives a call, because with fusion a step runs when Burn's queue reaches it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub gpu: Gpu,
    core: Mutex<Optimizer>,
    /// Groups as the last step left them in the core.
    split: Mutex<HashMap<GroupId, SplitGroup>>,
    /// The first error of a step that ran later. Its values are unchanged.
    failure: Mutex<Option<Error>>,
    /// Streams of Burn that may hold steps.
    streams: Mutex<Vec<StreamId>>,
}

impl Shared {
    pub fn new(gpu: &Gpu, options: Options) -> Result<Self, Error> {
        if options.zero_gradients {
            return Err(Error::ZeroedGradients);
        }
        let core = Optimizer::with_kernels(&gpu.wgpu, &gpu.queue, options, &gpu.kernels)?;
        Ok(Self {
            gpu: gpu.clone(),
            core: Mutex::new(core),
            split: Mutex::default(),
            failure: Mutex::default(),
            streams: Mutex::default(),
        })
    }

    /// The core. While it is held, Burn must not be called, because Burn's threads may wait for the core.
    pub fn core(&self) -> MutexGuard<'_, Optimizer> {
        lock(&self.core)
    }

    /// Keeps an error for the next call.
    pub fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
    }

    /// An error of an earlier step.
    pub fn take_failure(&self) -> Result<(), Error> {
        lock(&self.failure).take().map_or(Ok(()), Err)
    }

    /// Notes that steps were queued on the calling thread's stream.
    pub fn note_stream(&self) {
        let stream = StreamId::current();
        let mut streams = lock(&self.streams);
        if !streams.contains(&stream) {
            streams.push(stream);
        }
    }

    /// Submits every queued step. Returns the first error of a step that ran later.
    pub fn drain(&self) -> Result<(), Error> {
        let streams = std::mem::take(&mut *lock(&self.streams));
        for stream in streams {
            stream.executes(|| crate::backend::drain(&self.gpu))?;
        }
        self.take_failure()
    }

    /// Runs a step. Returns the values after it, or those before it if it failed.
    pub fn update(
        &self,
        groups: Vec<StepGroup>,
        jobs: Vec<Job<CubeTensor>>,
    ) -> (Vec<CubeTensor>, Result<(), Error>) {
        let jobs: Vec<_> = jobs
            .into_iter()
            .map(|job| Job { value: unshared(job.value), gradient: into_contiguous(job.gradient), ..job })
            .collect();
        let outcome = match jobs.first() {
            None => Ok(()),
            Some(first) => {
                let client = first.value.client.clone();
                // On the device's thread nothing is queued or moved between the look-up of buffers and the submit, and calls to the
                // client do not wait: one round trip in all.
                let recorded = client.exclusive(|| self.record(&groups, &jobs));
                recorded.map_err(Error::burn).flatten()
            }
        };
        (jobs.into_iter().map(|job| job.value).collect(), outcome)
    }

    fn record(&self, groups: &[StepGroup], jobs: &[Job<CubeTensor>]) -> Result<(), Error> {
        let client = &jobs[0].value.client;
        let mut streams = vec![StreamId::current()];
        let mut resource = |tensor: &CubeTensor| {
            if !streams.contains(&tensor.handle.stream) {
                streams.push(tensor.handle.stream);
            }
            client.get_resource::<WgpuServer<AutoCompiler>>(tensor.handle.clone()).map_err(Error::burn)
        };
        // They keep the buffers alive and in place until the step is submitted.
        let resources = jobs
            .iter()
            .map(|job| Ok((resource(&job.value)?, resource(&job.gradient)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        // Submits what Burn has recorded, because the step comes after it.
        for stream in streams {
            stream.executes(|| client.flush()).map_err(Error::burn)?;
        }
        let updates = jobs
            .iter()
            .zip(&resources)
            .map(|(job, (value, gradient))| {
                let (values, gradients) =
                    (view(value.resource(), &job.value), view(gradient.resource(), &job.gradient));
                Update::new(job.parameter, Views::new(values, gradients))
            })
            .collect::<Vec<_>>();
        let mut core = self.core();
        for group in groups {
            self.set_rates(&mut core, group, jobs)?;
        }
        core.submit(&Step::at(&updates))?;
        Ok(())
    }

    /// Lets the state of a parameter follow its rows, after all steps that were submitted.
    pub fn remap(
        &self,
        parameter: ParameterId,
        sources: CubeTensor,
        row_len: u64,
        fresh: FreshRows,
    ) -> Result<(), Error> {
        let sources = into_contiguous(sources);
        let client = sources.client.clone();
        let recorded = client.exclusive(|| {
            let resource = client.get_resource::<WgpuServer<AutoCompiler>>(sources.handle.clone());
            let resource = resource.map_err(Error::burn)?;
            for stream in [StreamId::current(), sources.handle.stream] {
                stream.executes(|| client.flush()).map_err(Error::burn)?;
            }
            let WgpuResource { buffer, offset, .. } = resource.resource();
            let rows = sources.meta.num_elements() as u64;
            let remap = Remap::new(row_len, rows, View::new(buffer, *offset)).with_fresh(fresh);
            let mut encoder = self.gpu.wgpu.create_command_encoder(&Default::default());
            self.core().remap(&mut encoder, parameter, &remap)?;
            self.gpu.queue.submit([encoder.finish()]);
            Ok(())
        });
        recorded.map_err(Error::burn).flatten()
    }

    /// Gives the parameters of a group their learning rates. In the core a group has one rate, so that each further rate is a group of its
    /// own. The order of rates is that of the parameters, which therefore move only when rates split or join.
    fn set_rates(&self, core: &mut Optimizer, of: &StepGroup, jobs: &[Job<CubeTensor>]) -> Result<(), Error> {
        let &StepGroup { id, group, .. } = of;
        let mut split = lock(&self.split);
        let SplitGroup { hyperparameters, stand_ins } = split
            .entry(id)
            .or_insert(SplitGroup { hyperparameters: group.hyperparameters, stand_ins: Vec::new() });
        let mut rates: Vec<(u64, GroupId)> = Vec::new();
        for job in jobs.iter().filter(|job| job.group == id) {
            let bits = job.learning_rate.to_bits();
            let of_rate = match rates.iter().find(|(of, _)| *of == bits) {
                Some(&(_, of_rate)) => of_rate,
                None => {
                    let at_rate = of.hyperparameters_at(job.learning_rate);
                    let of_rate = match rates.len().checked_sub(1) {
                        None => {
                            *hyperparameters = group.hyperparameters.with_learning_rate(job.learning_rate);
                            id
                        }
                        Some(index) if index < stand_ins.len() => stand_ins[index],
                        Some(_) => {
                            let new = Group::new(at_rate).with_precision(group.precision);
                            stand_ins.push(core.add_group(new)?);
                            stand_ins[stand_ins.len() - 1]
                        }
                    };
                    core.set_hyperparameters(of_rate, at_rate)?;
                    rates.push((bits, of_rate));
                    of_rate
                }
            };
            if core.group_of(job.parameter) != Some(of_rate) {
                core.set_group(job.parameter, of_rate)?;
            }
        }
        if rates.is_empty() {
            *hyperparameters = group.hyperparameters;
            core.set_hyperparameters(id, group.hyperparameters)?;
        }
        Ok(())
    }

    /// The core with each parameter in the group that it was added to and with unrounded hyperparameters, as a checkpoint lists them, once
    /// every queued step is submitted.
    pub fn settled(&self) -> Result<MutexGuard<'_, Optimizer>, Error> {
        self.drain()?;
        let mut core = self.core();
        for (id, SplitGroup { hyperparameters, stand_ins }) in std::mem::take(&mut *lock(&self.split)) {
            let is_in =
                |parameter: &ParameterId| core.group_of(*parameter).is_some_and(|of| stand_ins.contains(&of));
            let moved: Vec<_> = core.parameters().filter(is_in).collect();
            for parameter in moved {
                core.set_group(parameter, id)?;
            }
            for stand_in in stand_ins {
                core.remove_group(stand_in)?;
            }
            core.set_hyperparameters(id, hyperparameters)?;
        }
        Ok(core)
    }
}

fn view<'a>(resource: &'a WgpuResource, tensor: &CubeTensor) -> View<'a> {
    let view = View::new(&resource.buffer, resource.offset);
    core_dtype(tensor.dtype).map_or(view, |dtype| view.with_dtype(dtype))
}

/// The core's type with this name; `None` if it has none.
pub(crate) fn core_dtype(dtype: DType) -> Option<adamod::DType> {
    match dtype {
        DType::F32 => Some(adamod::DType::F32),
        DType::F16 => Some(adamod::DType::F16),
        DType::BF16 => Some(adamod::DType::Bf16),
        _ => None,
    }
}

/// The tensor, or a copy of it if another handle refers to its buffer, because the step writes it.
fn unshared(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() { tensor } else { tensor.copy() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another thread leaves these values whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
