// The tables that tell a workgroup what to do, and their bindings. src/kernels/abi.rs has their Rust twins, and a test compares the
// two by reflection. The host puts the numbers of all bindings in front (src/kernels/bindings.rs).

// Threads of a workgroup, chosen by the host.
override LANES: u32 = 256u;
// Elements of a chunk. A thread works on quads, four elements at a time.
const CHUNK_ELEMENTS = 1024u;

// The most states and coefficients of its own that a rule can have.
const MAX_STATES = 3u;
const MAX_COEFFICIENTS = 9u;

// Coefficients of one step, for parameters that share a group and a step count.
struct Coefficients {
    // The factor of the gradient is gradient_scale * gradient_prescale. The second is 1 unless the product would leave f32's normal range.
    gradient_scale: f32,
    gradient_prescale: f32,
    coupled_decay: f32,
    decoupled_decay: f32,
    // CAUTIOUS and CAUTIOUS_DECAY, or 0.
    options: u32,
    // INACTIVE, ACTIVE or SKIPPED.
    activity: u32,
    // t modulo 2^32, for random numbers.
    step: u32,
    // In the order of the rule's structure of coefficients.
    of_rule: array<f32, MAX_COEFFICIENTS>,
}

// An element moves only if its step has the sign of its gradient.
const CAUTIOUS = 1u;
// An element decays only where its step does not move it away from 0.
const CAUTIOUS_DECAY = 2u;

// The parameter has no gradient in this step and stays as it is.
const INACTIVE = 0u;
const ACTIVE = 1u;
// The step is skipped, because its gradients are not finite.
const SKIPPED = 2u;

// A run of a tensor's chunks. Positions are words of 32 bits from the start of the bound windows.
struct Segment {
    parameters: u32,
    gradients: u32,
    // Index into the coefficients.
    coefficients: u32,
    format: u32,
    // Key of the tensor's random numbers.
    key: vec2<u32>,
    // The first quad, counted from the start of the tensor.
    first_quad: u32,
    shadow: u32,
}

// What one workgroup updates. `first` counts elements from the start of the segment; `state` is a word of the bound state buffer.
struct Chunk {
    segment: u32,
    first: u32,
    elements: u32,
    state: u32,
}

@group(0) @binding(COEFFICIENTS_BINDING) var<storage, read> coefficients: array<Coefficients>;
@group(0) @binding(SEGMENTS_BINDING) var<storage, read> segments: array<Segment>;
@group(0) @binding(CHUNKS_BINDING) var<storage, read> chunks: array<Chunk>;
