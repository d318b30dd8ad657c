// The tables that tell a workgroup what to do, and their bindings. The Rust twins are in src/layout.rs; a test holds the
// two together by reflection.

// Threads of a workgroup; the host chooses.
override LANES: u32 = 256u;
// Elements of a chunk. Threads work on words of four of them.
const CHUNK_ELEMENTS = 1024u;

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
    // INACTIVE, ACTIVE or SKIPPED.
    activity: u32,
    // The same average kept debiased, s / (1 - beta3^t), as the formats below 32 bits have it: its weight for `ema`, and 1 - beta3^t.
    debiased_lr_weight: f32,
    debiased_lr_scale: f32,
    // t, for random numbers.
    step: u32,
    padding: u32,
}

// The cohort has no gradient in this step and is left alone.
const INACTIVE = 0u;
const ACTIVE = 1u;
// The step was called off: its gradients are not finite.
const SKIPPED = 2u;

// A run of a tensor's chunks. Positions are words of 32 bits from the start of the bound windows.
struct Segment {
    parameters: u32,
    gradients: u32,
    coefficients: u32,
    format: u32,
    // Key of the tensor's random numbers.
    key: vec2<u32>,
    // Elements of the tensor before the segment, in fours.
    first_word: u32,
    copies: u32,
}

// What one workgroup updates. `first` counts elements from the segment's start; `state` is a word of 32 bits of the bound page.
struct Chunk {
    segment: u32,
    first: u32,
    elements: u32,
    state: u32,
}

@group(0) @binding(0) var<storage, read> coefficients: array<Coefficients>;
@group(0) @binding(1) var<storage, read> segments: array<Segment>;
@group(0) @binding(2) var<storage, read> chunks: array<Chunk>;
