//! The two kernels that a step is compared with: a copy of the same bytes, and the step's memory traffic without its arithmetic.

use super::fill::{Content, Filler, Run, number};
use super::resources::{bind, binding_bytes, buffer, grid, pipeline, split};

/// Quads of a chunk, which a workgroup moves; `QUADS` in the shaders.
const QUADS: u64 = 256;
/// Bytes of a quad, which a thread moves at a time.
const QUAD_BYTES: u64 = 16;
/// Elements of a chunk.
const CHUNK_ELEMENTS: u64 = QUADS * 4;

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
    /// A kernel that reads and writes `bytes` bytes together, rounded up to whole quads.
    pub fn new(device: &wgpu::Device, filler: &Filler, bytes: u64) -> Self {
        let half = (bytes / 2).next_multiple_of(QUAD_BYTES);
        let source = include_str!("../../../../shaders/bench/copy.wgsl");
        let pipeline = pipeline(device, "adamod.copy", source, "copy", None);
        let mut launches = Vec::new();
        let mut destinations = Vec::new();
        for (key, window) in (0..).zip(split(half, binding_bytes(device) / QUAD_BYTES * QUAD_BYTES)) {
            let source = buffer(device, "adamod.copy.source", window);
            let destination = buffer(device, "adamod.copy.destination", window);
            filler.fill(&source, Content::F32, &[Run { offset: 0, bytes: window, key }]);
            let bind_group =
                bind(device, &pipeline, &[&source, &destination].map(|buffer| (buffer, 0, window)));
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
    pub fn content(destination: usize, element: u64) -> u32 {
        number(destination as u32, element as u32).to_bits()
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
    pub fn new(device: &wgpu::Device, filler: &Filler, elements: u64, states: u32) -> Self {
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
            filler.fill(&gradients, Content::Ones, &[Run { offset: 0, bytes: 4 * window, key: 0 }]);
            let buffers = [&gradients, &parameters, &state].map(|buffer| (buffer, 0, buffer.size()));
            let bind_group = bind(device, &pipeline, &buffers);
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
