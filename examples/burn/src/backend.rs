//! Burn's wgpu backend with and without fusion. Cargo unites features over a whole build, so `burn/fusion` may be on whatever this package
//! asks for: the type of Burn's backend decides how a step runs, not a feature of this package.

use std::fmt;
use std::sync::Arc;

use burn::backend::wgpu::{CubeBackend, CubeTensor, Wgpu};
use burn::backend::{Backend, BackendTypes};
use burn::tensor::{Int, Tensor};
use burn_fusion::client::GlobalFusionClient;
use burn_fusion::custom::{
    CustomOpIr, HandleContainer, Operation, OperationIr, StreamId, TensorId, TensorIr,
};
use burn_fusion::{ExecutionError, Fusion, FusionBackend, FusionRuntime};

use crate::error::Error;
use crate::gpu::Gpu;
use crate::shared::{Job, Shared, StepGroup};

/// A float tensor of Burn's wgpu backend.
pub(crate) type Primitive = <Wgpu as BackendTypes>::FloatTensorPrimitive;

/// Runs a step. Returns the values after it, or those before it if it failed.
pub(crate) fn run(
    shared: &Arc<Shared>,
    groups: Vec<StepGroup>,
    jobs: Vec<Job<Primitive>>,
) -> (Vec<Primitive>, Result<(), Error>) {
    <Wgpu as StepBackend>::run(shared, groups, jobs)
}

/// Runs the operations that are queued on the calling thread's stream.
pub(crate) fn drain(gpu: &Gpu) -> Result<(), Error> {
    <Wgpu as StepBackend>::drain(gpu)
}

/// The buffer of an integer tensor. Queued operations that give the tensor run before.
pub(crate) fn integers(tensor: Tensor<1, Int>) -> Result<CubeTensor, Error> {
    let tensor = tensor.inner().try_into_primitive::<Wgpu>().map_err(Error::burn)?;
    Ok(<Wgpu as StepBackend>::integers(tensor))
}

/// How a backend runs a step.
trait StepBackend: Backend {
    fn run(
        shared: &Arc<Shared>,
        groups: Vec<StepGroup>,
        jobs: Vec<Job<Self::FloatTensorPrimitive>>,
    ) -> (Vec<Self::FloatTensorPrimitive>, Result<(), Error>);

    fn drain(gpu: &Gpu) -> Result<(), Error>;

    fn integers(tensor: Self::IntTensorPrimitive) -> CubeTensor;
}

/// Without fusion a step is submitted at once.
impl StepBackend for CubeBackend {
    fn run(
        shared: &Arc<Shared>,
        groups: Vec<StepGroup>,
        jobs: Vec<Job<CubeTensor>>,
    ) -> (Vec<CubeTensor>, Result<(), Error>) {
        shared.update(groups, jobs)
    }

    fn drain(_: &Gpu) -> Result<(), Error> {
        Ok(())
    }

    fn integers(tensor: CubeTensor) -> CubeTensor {
        tensor
    }
}

/// With fusion a step is one custom operation in Burn's queue over all parameters. Nothing waits for it.
impl<B, R> StepBackend for Fusion<B>
where
    B: FusionBackend<FloatTensorPrimitive = CubeTensor, IntTensorPrimitive = CubeTensor, FusionRuntime = R>,
    R: FusionRuntime<FusionDevice = cubecl::Device>,
{
    fn run(
        shared: &Arc<Shared>,
        groups: Vec<StepGroup>,
        jobs: Vec<Job<Self::FloatTensorPrimitive>>,
    ) -> (Vec<Self::FloatTensorPrimitive>, Result<(), Error>) {
        let Some(first) = jobs.first() else { return (Vec::new(), Ok(())) };
        let client = first.value.client.clone();
        let mut inputs = Vec::with_capacity(2 * jobs.len());
        let mut outputs = Vec::with_capacity(jobs.len());
        let jobs = jobs
            .into_iter()
            .map(|Job { parameter, group, learning_rate, value, gradient }| {
                let output = TensorIr::uninit(client.create_empty_handle(), value.shape.clone(), value.dtype);
                // Hands over a tensor to which nothing else refers, so that its buffer can be written.
                let (value, gradient) = (value.into_ir(), gradient.into_ir());
                inputs.extend([value.clone(), gradient.clone()]);
                outputs.push(output.clone());
                let job = Job { parameter, group, learning_rate, value, gradient };
                QueuedJob { job, output: output.id }
            })
            .collect();
        let step =
            QueuedStep::<B> { shared: shared.clone(), groups, jobs, backend: std::marker::PhantomData };
        shared.note_stream();
        let operation = OperationIr::Custom(CustomOpIr::new("adamod.step", &inputs, &outputs));
        (client.register(StreamId::current(), operation, step), Ok(()))
    }

    fn drain(gpu: &Gpu) -> Result<(), Error> {
        GlobalFusionClient::<R>::load(&gpu.cube).try_sync(|| ()).map_err(Error::burn)
    }

    fn integers(tensor: Self::IntTensorPrimitive) -> CubeTensor {
        tensor.client.clone().resolve_tensor_int::<B>(tensor)
    }
}

struct QueuedJob {
    job: Job<TensorIr>,
    output: TensorId,
}

struct QueuedStep<B> {
    shared: Arc<Shared>,
    groups: Vec<StepGroup>,
    jobs: Vec<QueuedJob>,
    backend: std::marker::PhantomData<B>,
}

impl<B> fmt::Debug for QueuedStep<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("QueuedStep").field("parameters", &self.jobs.len()).finish_non_exhaustive()
    }
}

impl<B> Operation<B::FusionRuntime> for QueuedStep<B>
where
    B: FusionBackend<FloatTensorPrimitive = CubeTensor>,
{
    fn execute(
        &self,
        handles: &mut HandleContainer<<B::FusionRuntime as FusionRuntime>::FusionHandle>,
    ) -> Result<(), ExecutionError> {
        let jobs = self
            .jobs
            .iter()
            .map(|QueuedJob { job, .. }| Job {
                parameter: job.parameter,
                group: job.group,
                learning_rate: job.learning_rate,
                value: handles.get_float_tensor::<B>(&job.value),
                gradient: handles.get_float_tensor::<B>(&job.gradient),
            })
            .collect();
        let (values, outcome) = self.shared.update(self.groups.clone(), jobs);
        for (QueuedJob { output, .. }, value) in self.jobs.iter().zip(values) {
            handles.register_float_tensor::<B>(output, value);
        }
        // If this returned the error, Burn would drop the values.
        if let Err(error) = outcome {
            self.shared.fail(error);
        }
        Ok(())
    }
}
