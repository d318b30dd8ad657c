//! The two kernels that a step is compared with: a copy of the same bytes, and the step's memory traffic without its arithmetic.

use std::num::NonZeroU64;

use adamod::Workgroups;

/// Quads of a chunk, which a workgroup moves; `QUADS` in the shaders.
const QUADS: u64 = 256;
/// Bytes of a quad, which a thread moves at a time.
const QUAD_BYTES: u64 = 16;
/// Elements of a chunk.
const CHUNK_ELEMENTS: u64 = QUADS * 4;
/// Uploads are cut into pieces of this size, so that they need little staging memory.
const UPLOAD_BYTES: u64 = 16 << 20;

/// One dispatch per window of the buffers. A window fits into a binding.
#[derive(Debug)]
struct Windows {
    pipeline: wgpu::ComputePipeline,
    launches: Vec<(wgpu::BindGroup, u32, u32)>,
}

impl Windows {
    fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        for (bind_group, x, y) in &self.launches {
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
    }
}

/// Copies buffers with known contents.
#[derive(Debug)]
pub struct Copy {
    windows: Windows,
    destinations: Vec<wgpu::Buffer>,
    bytes: u64,
}

impl Copy {
    /// Elements after which the contents repeat: a prime, so that a shifted copy is noticed.
    const PERIOD: u64 = 1_000_003;

    /// A kernel that reads and writes `bytes` bytes together, rounded up to whole quads.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue, bytes: u64) -> Self {
        let half = (bytes / 2).next_multiple_of(QUAD_BYTES);
        let source = include_str!("../../../../shaders/bench/copy.wgsl");
        let pipeline = pipeline(device, "adamod.copy", source, "copy", None);
        let period: Vec<u32> = (0..Self::PERIOD).map(Self::content).collect();
        let mut launches = Vec::new();
        let mut destinations = Vec::new();
        for window in split(half, binding_bytes(device) / QUAD_BYTES * QUAD_BYTES) {
            let source = buffer(device, "adamod.copy.source", window);
            let destination = buffer(device, "adamod.copy.destination", window);
            upload(device, queue, &source, bytemuck::cast_slice(&period));
            let bind_group = bind(device, &pipeline, &[&source, &destination]);
            let (x, y) = grid(device, (window / QUAD_BYTES).div_ceil(QUADS));
            launches.push((bind_group, x, y));
            destinations.push(destination);
        }
        Self { windows: Windows { pipeline, launches }, destinations, bytes: 2 * half }
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Records the copy.
    pub fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>) {
        self.windows.dispatch(pass);
    }

    /// The buffers that it writes, for verification.
    pub fn destinations(&self) -> &[wgpu::Buffer] {
        &self.destinations
    }

    /// The expected content of a destination at an element.
    pub fn content(element: u64) -> u32 {
        (element % Self::PERIOD) as u32 ^ 0x3f80_0000
    }
}

/// Reads and writes as many bytes as a step.
#[derive(Debug)]
pub struct Stream {
    windows: Windows,
    written: Vec<wgpu::Buffer>,
    bytes: u64,
}

impl Stream {
    /// A kernel over `elements` elements, rounded up to whole chunks, with `states` states.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue, elements: u64, states: u32) -> Self {
        let source = include_str!("../../../../shaders/bench/stream.wgsl");
        let pipeline =
            pipeline(device, "adamod.stream", source, "stream", Some(("STATES", f64::from(states))));
        let elements = elements.next_multiple_of(CHUNK_ELEMENTS);
        let state_bytes = 4 * u64::from(states);
        let window_elements = binding_bytes(device) / state_bytes.max(4) / CHUNK_ELEMENTS * CHUNK_ELEMENTS;
        let mut launches = Vec::new();
        let mut written = Vec::new();
        for window in split(elements, window_elements) {
            let gradients = buffer(device, "adamod.stream.gradients", 4 * window);
            let parameters = buffer(device, "adamod.stream.parameters", 4 * window);
            // A binding cannot be empty.
            let state = buffer(device, "adamod.stream.state", (state_bytes * window).max(16));
            upload(device, queue, &gradients, bytemuck::cast_slice(&[1.0_f32; 1 << 16]));
            let bind_group = bind(device, &pipeline, &[&gradients, &parameters, &state]);
            let (x, y) = grid(device, window / CHUNK_ELEMENTS);
            launches.push((bind_group, x, y));
            written.push(parameters);
            written.extend((states > 0).then_some(state));
        }
        let bytes = (4 * 3 + 2 * state_bytes) * elements;
        Self { windows: Windows { pipeline, launches }, written, bytes }
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Records one run, which adds 1 to every element that it writes.
    pub fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>) {
        self.windows.dispatch(pass);
    }

    /// The buffers that it writes, for verification.
    pub fn written(&self) -> &[wgpu::Buffer] {
        &self.written
    }
}

/// Fills a buffer with repetitions of `period`.
fn upload(device: &wgpu::Device, queue: &wgpu::Queue, buffer: &wgpu::Buffer, period: &[u8]) {
    let mut offset = 0;
    let mut staged = 0;
    while offset < buffer.size() {
        let bytes = (period.len() as u64).min(buffer.size() - offset);
        queue.write_buffer(buffer, offset, &period[..bytes as usize]);
        offset += bytes;
        staged += bytes;
        if staged >= UPLOAD_BYTES {
            queue.submit([]);
            // This only frees staging memory early. The next wait reports a lost device.
            let _ = device.poll(wgpu::PollType::wait_indefinitely());
            staged = 0;
        }
    }
}

/// Cuts `total` into pieces of at most `piece`.
fn split(total: u64, piece: u64) -> impl Iterator<Item = u64> {
    (0..total.div_ceil(piece)).map(move |index| piece.min(total - index * piece))
}

fn binding_bytes(device: &wgpu::Device) -> u64 {
    let limits = device.limits();
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 31)
}

fn grid(device: &wgpu::Device, workgroups: u64) -> (u32, u32) {
    let rows = workgroups.div_ceil(u64::from(device.limits().max_compute_workgroups_per_dimension)).max(1);
    (workgroups.div_ceil(rows) as u32, rows as u32)
}

fn buffer(device: &wgpu::Device, label: &str, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

fn pipeline(
    device: &wgpu::Device,
    label: &str,
    source: &str,
    entry_point: &str,
    constant: Option<(&str, f64)>,
) -> wgpu::ComputePipeline {
    // As many threads as the step has. With more, software adapters would be slower here than in the step.
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

/// Binds whole buffers, in order.
fn bind(
    device: &wgpu::Device,
    pipeline: &wgpu::ComputePipeline,
    buffers: &[&wgpu::Buffer],
) -> wgpu::BindGroup {
    let entries: Vec<_> = (0..)
        .zip(buffers)
        .map(|(binding, buffer)| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: 0,
                size: NonZeroU64::new(buffer.size()),
            }),
        })
        .collect();
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("adamod.bench"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    })
}
