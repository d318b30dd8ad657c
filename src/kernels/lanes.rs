//! Threads and workgroups, as suits the device.

use super::abi::{CPU_LANES, GPU_LANES};
use crate::options::{NormDispatch, Options, Workgroups};

impl Workgroups {
    fn is_cpu(self, device: &wgpu::Device) -> bool {
        match self {
            Self::Auto => device.adapter_info().device_type == wgpu::DeviceType::Cpu,
            Self::Gpu => false,
            Self::Cpu => true,
        }
    }

    /// Threads per workgroup.
    pub fn lanes(self, device: &wgpu::Device) -> u32 {
        if self.is_cpu(device) { CPU_LANES } else { GPU_LANES }
    }

    /// The most partial sums of the norm, one per workgroup. On a GPU they are enough to fill it, and few enough that the workgroup that
    /// sums them waits for memory only a few times. On a CPU each workgroup costs as much as a chunk (on llvmpipe the norm takes half the
    /// time with 256).
    pub(crate) fn most_partials(self, device: &wgpu::Device) -> u32 {
        let most = if self.is_cpu(device) { 256 } else { 2048 };
        device.limits().max_compute_workgroups_per_dimension.min(most)
    }
}

impl Options {
    /// Threads per workgroup of the step.
    pub(crate) fn update_lanes(&self, device: &wgpu::Device) -> u32 {
        self.tuning.lanes.unwrap_or_else(|| self.workgroups.lanes(device))
    }
}

impl NormDispatch {
    /// Whether the last workgroup of the pass over the gradients computes the norm.
    pub(crate) fn is_fused(self, device: &wgpu::Device) -> bool {
        match self {
            Self::Auto => {
                !matches!(device.adapter_info().backend, wgpu::Backend::Metal | wgpu::Backend::Dx12)
            }
            Self::Fused => true,
            Self::Separate => false,
        }
    }
}
