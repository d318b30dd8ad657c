//! The device's limits, as far as they shape launches.

use crate::kernels::abi::Chunk;
use crate::options::Tuning;
use crate::storage::block::{CHUNK_ELEMENTS, WORD_BYTES};
use crate::storage::dtype::DType;

/// Bytes of the widest access.
const WIDEST_ACCESS_BYTES: u64 = 16;

/// The limits of a device that shape launches.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    /// The most bytes of a storage binding: `max_storage_buffer_binding_size`.
    pub binding_bytes: u64,
    /// Alignment of a binding's offset: `min_storage_buffer_offset_alignment`.
    pub offset_alignment: u64,
    /// The most chunks of a launch: a grid of two dimensions (`max_compute_workgroups_per_dimension` squared) and a chunk table within
    /// one binding.
    pub launch_chunks: u64,
    /// Threads per workgroup.
    pub lanes: u32,
    /// Choices that a benchmark may change.
    pub tuning: Tuning,
}

impl PlanLimits {
    /// The smallest binding with which every tensor can be cut into launches: one chunk, and the alignment of an offset at each end.
    pub const LEAST_BINDING_BYTES: u64 = 16 * 1024;

    /// Takes what matters from a device's limits.
    pub fn new(limits: &wgpu::Limits, lanes: u32, tuning: Tuning) -> Self {
        // Elements are addressed in u32 from a window's start, so windows stay below 2^32 bytes whatever the device says.
        let bytes =
            limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(u64::from(u32::MAX));
        Self {
            binding_bytes: bytes / 256 * 256,
            offset_alignment: u64::from(limits.min_storage_buffer_offset_alignment).max(WIDEST_ACCESS_BYTES),
            launch_chunks: u64::from(limits.max_compute_workgroups_per_dimension)
                .pow(2)
                .min(bytes / size_of::<Chunk>() as u64),
            lanes,
            tuning,
        }
    }

    /// Words of state that one state buffer can hold.
    pub fn state_buffer_words(&self) -> u64 {
        self.binding_bytes / WORD_BYTES
    }

    /// Chunks of one tensor that fit into one window wherever the tensor starts.
    pub fn window_chunks(&self) -> u64 {
        let chunk_bytes = u64::from(CHUNK_ELEMENTS) * DType::F32.bytes();
        ((self.binding_bytes - 2 * self.offset_alignment) / chunk_bytes).min(self.launch_chunks)
    }
}

/// The grid of a dispatch of `workgroups` workgroups, in two dimensions where one is too short. It may have a few more.
pub fn grid(workgroups: u32, workgroups_per_dimension: u32) -> (u32, u32) {
    let rows = workgroups.div_ceil(workgroups_per_dimension).max(1);
    (workgroups.div_ceil(rows), rows)
}
