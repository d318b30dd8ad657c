// Fills runs of words with numbers in [-1, 1) that depend only on the key of the run and the element, or with ones.
// src/bin/adamod/bench/fill.rs mirrors `number`.

// Threads per workgroup, as many as the step has on the device.
override LANES: u32 = 256u;

const F32 = 0u;
// Two numbers in a word, the first in the low half.
const BF16 = 1u;
const ONES = 2u;
override CONTENT: u32 = F32;

// Positions are words of 32 bits. `first` counts from the start of the bound window, `done` from the start of the run to what this window
// has of it.
struct Run {
    first: u32,
    words: u32,
    done: u32,
    key: u32,
}

@group(0) @binding(0) var<storage, read> runs: array<Run>;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;

// The output function RXS-M-XS of PCG (O'Neill 2014) after one step of its generator.
fn pcg(seed: u32) -> u32 {
    let state = seed * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

// The bits of a number of 24 bits, which f32 holds exactly.
fn number(key: u32, element: u32) -> u32 {
    let hash = pcg(pcg(element) + key);
    return bitcast<u32>(f32(i32(hash >> 8u) - 0x800000) * 0x1p-23);
}

fn content(key: u32, word: u32) -> u32 {
    if CONTENT == ONES {
        return 0x3f800000u;
    }
    if CONTENT == BF16 {
        return (number(key, 2u * word) >> 16u) | (number(key, 2u * word + 1u) & 0xffff0000u);
    }
    return number(key, word);
}

// A row of workgroups fills a run.
@compute @workgroup_size(LANES)
fn fill(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = runs[workgroup.y];
    for (var word = workgroup.x * LANES + lane; word < run.words; word += workgroups.x * LANES) {
        words[run.first + word] = content(run.key, run.done + word);
    }
}
