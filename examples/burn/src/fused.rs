//! Burn with fusion: a step is one custom operation in Burn's queue over all parameters. Nothing waits for it.

use std::fmt;
use std::sync::Arc;

use burn::backend::fusion::custom::{
    CustomOpIr, HandleContainer, Operation, OperationIr, TensorId, TensorIr,
};
use burn::backend::fusion::{FusionBackend, FusionRuntime, FusionTensor, get_client};
use burn::backend::wgpu::CubeBackend;
use burn::backend::{ExecutionError, StreamId};

use crate::error::Error;
use crate::gpu::Gpu;
use crate::shared::{Groups, Job, Shared};

type Runtime = <CubeBackend as FusionBackend>::FusionRuntime;

/// A float tensor of Burn's.
pub(crate) type Primitive = FusionTensor<Runtime>;

/// Queues a step. The returned values are written when it runs.
pub(crate) fn run(
    shared: &Arc<Shared>,
    groups: Groups,
    jobs: Vec<Job<Primitive>>,
) -> (Vec<Primitive>, Result<(), Error>) {
    let Some(first) = jobs.first() else { return (Vec::new(), Ok(())) };
    let client = first.value.client.clone();
    let mut inputs = Vec::with_capacity(2 * jobs.len());
    let mut outputs = Vec::with_capacity(jobs.len());
    let jobs = jobs
        .into_iter()
        .map(|Job { parameter, value, gradient }| {
            let output = TensorIr::uninit(client.create_empty_handle(), value.shape.clone(), value.dtype);
            // Hands over a tensor to which nothing else refers, so that its buffer can be written.
            let (value, gradient) = (value.into_ir(), gradient.into_ir());
            inputs.extend([value.clone(), gradient.clone()]);
            outputs.push(output.clone());
            QueuedJob { job: Job { parameter, value, gradient }, output: output.id }
        })
        .collect();
    let step = QueuedStep { shared: shared.clone(), groups, jobs };
    shared.note_stream();
    let operation = OperationIr::Custom(CustomOpIr::new("adamod.step", &inputs, &outputs));
    (client.register(StreamId::current(), operation, step), Ok(()))
}

/// Runs the operations that are queued on the calling thread's stream.
pub(crate) fn drain(gpu: &Gpu) -> Result<(), Error> {
    get_client::<CubeBackend>(&gpu.cube).try_sync(|| ()).map_err(Error::burn)
}

struct QueuedJob {
    job: Job<TensorIr>,
    output: TensorId,
}

struct QueuedStep {
    shared: Arc<Shared>,
    groups: Groups,
    jobs: Vec<QueuedJob>,
}

impl fmt::Debug for QueuedStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("QueuedStep").field("parameters", &self.jobs.len()).finish_non_exhaustive()
    }
}

impl Operation<Runtime> for QueuedStep {
    fn execute(
        &self,
        handles: &mut HandleContainer<<Runtime as FusionRuntime>::FusionHandle>,
    ) -> Result<(), ExecutionError> {
        let jobs = self
            .jobs
            .iter()
            .map(|QueuedJob { job, .. }| Job {
                parameter: job.parameter,
                value: handles.get_float_tensor::<CubeBackend>(&job.value),
                gradient: handles.get_float_tensor::<CubeBackend>(&job.gradient),
            })
            .collect();
        let (values, outcome) = self.shared.update(&self.groups, jobs);
        for (QueuedJob { output, .. }, value) in self.jobs.iter().zip(values) {
            handles.register_float_tensor::<CubeBackend>(output, value);
        }
        // If this returned the error, Burn would drop the values.
        if let Err(error) = outcome {
            self.shared.fail(error);
        }
        Ok(())
    }
}
