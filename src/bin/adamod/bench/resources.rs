//! Buffers, pipelines and grids of the bench's own kernels.

use std::num::NonZeroU64;

use adamod::Workgroups;

/// A storage buffer that can be copied from and to. wgpu fills it with zeros.
pub fn buffer(device: &wgpu::Device, label: &str, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

/// The most bytes that are bound at once.
pub fn binding_bytes(device: &wgpu::Device) -> u64 {
    let limits = device.limits();
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 31)
}

/// Cuts `total` into pieces of at most `piece`.
pub fn split(total: u64, piece: u64) -> impl Iterator<Item = u64> {
    (0..total.div_ceil(piece)).map(move |index| piece.min(total - index * piece))
}

/// A grid of at least `workgroups` workgroups.
pub fn grid(device: &wgpu::Device, workgroups: u64) -> (u32, u32) {
    let rows = workgroups.div_ceil(u64::from(device.limits().max_compute_workgroups_per_dimension)).max(1);
    (workgroups.div_ceil(rows) as u32, rows as u32)
}

/// A pipeline with as many threads per workgroup as the step has. With more, software adapters would be slower here than in the step.
pub fn pipeline(
    device: &wgpu::Device,
    label: &str,
    source: &str,
    entry_point: &str,
    constant: Option<(&str, f64)>,
) -> wgpu::ComputePipeline {
    let lanes = ("LANES", f64::from(Workgroups::Auto.lanes(device)));
    let constants: Vec<_> = constant.into_iter().chain([lanes]).collect();
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(label),
        layout: None,
        module: &module,
        entry_point: Some(entry_point),
        compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
        cache: None,
    })
}

/// Binds ranges of buffers, in order: byte offset and number of bytes.
pub fn bind(
    device: &wgpu::Device,
    pipeline: &wgpu::ComputePipeline,
    ranges: &[(&wgpu::Buffer, u64, u64)],
) -> wgpu::BindGroup {
    let entries: Vec<_> = (0..)
        .zip(ranges)
        .map(|(binding, &(buffer, offset, bytes))| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: NonZeroU64::new(bytes),
            }),
        })
        .collect();
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("adamod.bench"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    })
}
