//! The core optimizer, shared with steps that Burn runs later, and a step over Burn's buffers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use adamod::{GroupId, Hyperparameters, Optimizer, Options, ParameterId, Update, View, Views};
use burn::backend::StreamId;
use burn::backend::wgpu::{AutoCompiler, CubeTensor, into_contiguous};
use burn::tensor::DType;

use cubecl::wgpu::{WgpuResource, WgpuServer};

use crate::error::Error;
use crate::gpu::Gpu;

/// A parameter with a gradient in one step.
pub(crate) struct Job<T> {
    pub parameter: ParameterId,
    pub value: T,
    pub gradient: T,
}

/// Hyperparameters of each group in one step.
pub(crate) type Groups = Vec<(GroupId, Hyperparameters)>;

/// What outlives a call: with fusion, steps run when Burn's queue gets to them.
#[derive(Debug)]
pub(crate) struct Shared {
    pub gpu: Gpu,
    core: Mutex<Optimizer>,
    /// The first error of a step that ran later; its values are unchanged.
    failure: Mutex<Option<Error>>,
    /// Streams of Burn that may hold steps.
    streams: Mutex<Vec<StreamId>>,
}

impl Shared {
    pub fn new(gpu: &Gpu, options: Options) -> Result<Self, Error> {
        if options.gradients != adamod::AfterUse::Keep {
            return Err(Error::ZeroedGradients);
        }
        let core = Optimizer::new(&gpu.wgpu, &gpu.queue, options)?;
        Ok(Self {
            gpu: gpu.clone(),
            core: Mutex::new(core),
            failure: Mutex::default(),
            streams: Mutex::default(),
        })
    }

    /// The core. Nothing of Burn may be called while it is held: Burn's threads wait for it.
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
    #[cfg(feature = "fusion")]
    pub fn note_stream(&self) {
        let stream = StreamId::current();
        let mut streams = lock(&self.streams);
        if !streams.contains(&stream) {
            streams.push(stream);
        }
    }

    /// Submits every step that is queued, and tells of the first one that failed.
    pub fn drain(&self) -> Result<(), Error> {
        let streams = std::mem::take(&mut *lock(&self.streams));
        for stream in streams {
            stream.executes(|| crate::backend::drain(&self.gpu))?;
        }
        self.take_failure()
    }

    /// Runs a step. Returns the values after it; those before it, if it failed.
    pub fn update(
        &self,
        groups: &[(GroupId, Hyperparameters)],
        jobs: Vec<Job<CubeTensor>>,
    ) -> (Vec<CubeTensor>, Result<(), Error>) {
        let jobs: Vec<_> = jobs
            .into_iter()
            .map(|Job { parameter, value, gradient }| Job {
                parameter,
                value: unshared(value),
                gradient: into_contiguous(gradient),
            })
            .collect();
        let outcome = match jobs.first() {
            None => Ok(()),
            Some(first) => {
                let client = first.value.client.clone();
                // On the device's thread nothing is queued or moved between the look-up of buffers and the submit, and every
                // call to the client is a plain one: one round trip in all.
                let recorded = client.exclusive(|| self.record(groups, &jobs));
                recorded.map_err(Error::burn).flatten()
            }
        };
        (jobs.into_iter().map(|job| job.value).collect(), outcome)
    }

    fn record(&self, groups: &[(GroupId, Hyperparameters)], jobs: &[Job<CubeTensor>]) -> Result<(), Error> {
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
        // What Burn has recorded and not yet submitted comes first.
        for stream in streams {
            stream.executes(|| client.flush()).map_err(Error::burn)?;
        }
        let updates = jobs
            .iter()
            .zip(&resources)
            .map(|(job, (value, gradient))| {
                let dtype = |tensor: &CubeTensor| core_dtype(tensor.dtype).unwrap_or(adamod::DType::F32);
                let values = view(value.resource(), dtype(&job.value));
                let gradients = view(gradient.resource(), dtype(&job.gradient));
                Update { parameter: job.parameter, views: Views::new(values, gradients) }
            })
            .collect::<Vec<_>>();
        let mut core = self.core();
        for &(group, hyperparameters) in groups {
            core.set_hyperparameters(group, hyperparameters)?;
        }
        core.step_views(&updates)?;
        Ok(())
    }
}

fn view(resource: &WgpuResource, dtype: adamod::DType) -> View<'_> {
    View { buffer: &resource.buffer, offset: resource.offset, dtype }
}

/// The core's type of that name; `None` if it has none.
pub(crate) fn core_dtype(dtype: DType) -> Option<adamod::DType> {
    match dtype {
        DType::F32 => Some(adamod::DType::F32),
        DType::F16 => Some(adamod::DType::F16),
        DType::BF16 => Some(adamod::DType::Bf16),
        _ => None,
    }
}

/// The tensor itself if no other handle sees its buffer, or else a copy: it will be written.
fn unshared(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() { tensor } else { tensor.copy() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves nothing half-written that matters here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
