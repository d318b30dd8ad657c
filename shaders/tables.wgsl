// The tables that tell a workgroup what to do, and their bindings. The Rust twins are in src/layout.rs; a test holds the
// two together by reflection.

// Threads of a workgroup; the host chooses.
override LANES: u32 = 256u;
// Elements of a chunk, and words of four of them.
const CHUNK_ELEMENTS = 1024u;
const CHUNK_WORDS = CHUNK_ELEMENTS / 4u;

// One step's coefficients of one cohort: the parameters of one group that have taken equally many steps.
struct Coefficients {
    gradient_scale: f32,
    coupled_decay: f32,
    decoupled_decay: f32,
    momentum: f32,
    exp_avg_weight: f32,
    exp_avg_sq_weight: f32,
    exp_avg_lr_weight: f32,
    step_size: f32,
    exp_avg_correction: f32,
    exp_avg_sq_correction: f32,
    epsilon: f32,
    // 0: the cohort has no gradient in this step and is left alone.
    enabled: u32,
}

// A run of a tensor's chunks. Positions are elements from the start of the bound windows.
struct Segment {
    parameters: u32,
    gradients: u32,
    coefficients: u32,
    padding: u32,
}

// What one workgroup updates. `first` counts from the segment's start; `state` is an element of the bound page.
struct Chunk {
    segment: u32,
    first: u32,
    elements: u32,
    state: u32,
}

@group(0) @binding(0) var<storage, read> coefficients: array<Coefficients>;
@group(0) @binding(1) var<storage, read> segments: array<Segment>;
@group(0) @binding(2) var<storage, read> chunks: array<Chunk>;
