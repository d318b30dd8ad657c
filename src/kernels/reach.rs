//! How far kernels reach into the elements of binding arrays.

use std::time::Duration;

use super::bindings;
use super::pipeline::{Kernel, Pipelines, REACH_ELEMENTS, Reach};
use super::variant::REACH_WORDS;
use crate::device::gpu::range;
use crate::device::readback::{Snapshot, SnapshotError, Source};
use crate::storage::block::WORD_BYTES;

/// Elements of the arrays that are tried.
const ELEMENTS: u32 = REACH_ELEMENTS.get();
/// Words of each element.
const WORDS: u32 = REACH_WORDS;

impl Pipelines {
    /// Finds out on the device, once for all optimizers with the same [`Kernels`](crate::Kernels). `None` if binding arrays do not work there.
    pub fn array_reach(&mut self, timeout: Duration) -> Result<Option<Reach>, SnapshotError> {
        self.reach_or(|pipelines| pipelines.try_arrays(timeout))
    }

    fn try_arrays(&mut self, timeout: Duration) -> Result<Option<Reach>, SnapshotError> {
        let copied = self.copy_elements(timeout)?;
        let words =
            |element: u32| copied.get(element as usize).map(|bytes| bytemuck::pod_collect_to_vec(bytes));
        let arrives = |most: u32| {
            (0..ELEMENTS).all(|element| {
                words(element).is_some_and(|found: Vec<u32>| {
                    (0..most).all(|i| found.get(i as usize) == Some(&number(element, i)))
                })
            })
        };
        let short = || arrives(ELEMENTS).then_some(Reach::ArrayLength);
        Ok(if arrives(WORDS) { Some(Reach::Whole) } else { short() })
    }

    /// The elements of an array after a kernel has copied those of another one to it.
    fn copy_elements(&mut self, timeout: Duration) -> Result<Vec<Vec<u8>>, SnapshotError> {
        const BYTES: u64 = WORDS as u64 * WORD_BYTES;
        let kernel = Kernel::Reach;
        self.make(kernel)?;
        let gpu = self.gpu().clone();
        let (from, to): (Vec<_>, Vec<_>) = gpu.catch(|| {
            let element = |element: u32| {
                let numbers: Vec<u32> = (0..WORDS).map(|i| number(element, i)).collect();
                let usage = wgpu::BufferUsages::STORAGE;
                let from = gpu.buffer_with("reach", BYTES, usage, bytemuck::cast_slice(&numbers));
                (from, gpu.buffer("reach", BYTES, usage | wgpu::BufferUsages::COPY_SRC))
            };
            (0..ELEMENTS).map(element).unzip()
        })?;
        let tensors = [(bindings::GRADIENTS, &from), (bindings::PARAMETERS, &to)];
        let tensors = tensors.map(|(at, of)| (at, of.iter().map(|of| range(of, 0, BYTES)).collect()));
        let bind_groups = self.bind_groups(&kernel, Vec::new(), tensors.into())?;
        gpu.catch(|| {
            let mut encoder = gpu.encoder("reach");
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(self.get(&kernel));
            bind_groups.set(&mut pass, &[]);
            pass.dispatch_workgroups(ELEMENTS, 1, 1);
            drop(pass);
            gpu.queue.submit([encoder.finish()]);
        })?;
        let source = |buffer| Source { buffer, offset: 0, bytes: BYTES };
        let sources: Vec<_> = to.into_iter().map(source).collect();
        Snapshot::new(&gpu, &sources, false)?.wait(timeout)
    }
}

/// A different number for each word of each element.
fn number(element: u32, word: u32) -> u32 {
    1000 * (element + 1) + word
}
