//! Burn without fusion: a step is submitted at once.

use std::sync::Arc;

use burn::backend::wgpu::CubeTensor;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::shared::{Groups, Job, Shared};

/// A float tensor of Burn's.
pub(crate) type Primitive = CubeTensor;

/// Runs a step. Returns the values after it, or those before it if it failed.
pub(crate) fn run(
    shared: &Arc<Shared>,
    groups: Groups,
    jobs: Vec<Job<Primitive>>,
) -> (Vec<Primitive>, Result<(), Error>) {
    shared.update(&groups, jobs)
}

/// Nothing is queued.
pub(crate) fn drain(_: &Gpu) -> Result<(), Error> {
    Ok(())
}
