//! The device's limits, as far as they shape launches.

use crate::kernels::abi::Chunk;
#[cfg(not(target_arch = "wasm32"))]
use crate::kernels::pipeline::Reach;
use crate::options::Tuning;
use crate::storage::block::{CHUNK_ELEMENTS, WORD_BYTES};
use crate::storage::dtype::DType;

/// Bytes of the widest access.
const WIDEST_ACCESS_BYTES: u64 = 16;

/// Binding arrays of a launch: parameters, gradients and shadow copies. Their lengths are powers of two.
#[cfg(not(target_arch = "wasm32"))]
const MOST_ARRAYS: u32 = 3;

/// The least length of binding arrays where kernels access only as many words of an element. Longer arrays hold larger tensors, but take
/// longer to bind.
#[cfg(not(target_arch = "wasm32"))]
const SHORT_ARRAY_LEN: u32 = 1024;

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
    /// The most windows of a launch; 1 without binding arrays.
    pub windows: u32,
    /// The least length of binding arrays.
    pub least_array_len: u32,
    /// The most words of a window in a binding array. A word has the width of the launch's accesses.
    pub array_words: u64,
    /// Threads per workgroup.
    pub lanes: u32,
    /// Choices that a benchmark may change.
    pub tuning: Tuning,
}

impl PlanLimits {
    /// The smallest binding with which every tensor can be cut into launches: one chunk, and the alignment of an offset at each end.
    pub const LEAST_BINDING_BYTES: u64 = 16 * 1024;

    /// Features of devices that can bind the buffers of many tensors at once.
    pub const BINDING_ARRAYS: wgpu::Features = wgpu::Features::BUFFER_BINDING_ARRAY
        .union(wgpu::Features::STORAGE_RESOURCE_BINDING_ARRAY)
        .union(wgpu::Features::SAMPLED_TEXTURE_AND_STORAGE_BUFFER_ARRAY_NON_UNIFORM_INDEXING);

    /// Takes what matters from a device's limits. Launches have no binding arrays.
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
            windows: 1,
            least_array_len: 1,
            array_words: 0,
            lanes,
            tuning,
        }
    }

    /// The most windows of a launch on this device, if its binding arrays work.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn most_windows(device: &wgpu::Device) -> u32 {
        if !device.features().contains(Self::BINDING_ARRAYS) {
            return 1;
        }
        // wgpu 30 gives Metal the sizes of all elements at once, for which Metal has 4 KiB.
        let most = if device.adapter_info().backend == wgpu::Backend::Metal { 256 } else { u32::MAX };
        match device.limits().max_binding_array_elements_per_shader_stage / MOST_ARRAYS {
            0 => 1,
            elements => most.min(1 << elements.ilog2()),
        }
    }

    /// With binding arrays whose kernels reach that far.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn with_arrays(self, windows: u32, reach: Reach) -> Self {
        match reach {
            Reach::Whole => Self { windows, array_words: u64::MAX, ..self },
            Reach::ArrayLength => {
                let len = windows.min(SHORT_ARRAY_LEN);
                Self { windows, least_array_len: len, array_words: len.into(), ..self }
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_hold_what_kernels_reach() {
        let limits = PlanLimits::new(&wgpu::Limits::default(), 256, Tuning::default());
        assert_eq!(limits.windows, 1);
        let whole = limits.with_arrays(4096, Reach::Whole);
        assert_eq!((whole.windows, whole.least_array_len, whole.array_words), (4096, 1, u64::MAX));
        let short = limits.with_arrays(4096, Reach::ArrayLength);
        assert_eq!((short.windows, short.least_array_len, short.array_words), (4096, 1024, 1024));
        let few = limits.with_arrays(64, Reach::ArrayLength);
        assert_eq!((few.windows, few.least_array_len, few.array_words), (64, 64, 64));
    }
}
