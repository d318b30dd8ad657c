// Counter-based random numbers for stochastic rounding. They depend only on the optimizer's seed and the tensor's label (both in the
// key), the step and the element. src/storage/random.rs mirrors this file line by line. The hash is PCG4D (Jarzynski and Olano, "Hash Functions for GPU
// Rendering", JCGT 2020).

const PCG_FACTOR = 1664525u;

// The start of the hash of a counter. That of the next quad is PCG_FACTOR larger in its first word.
fn seed_of(key: vec2<u32>, step: u32, quad: u32) -> vec4<u32> {
    return vec4(quad, step, key) * vec4(PCG_FACTOR) + vec4(1013904223u);
}

fn pcg4d(seed: vec4<u32>) -> vec4<u32> {
    var v = seed;
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    v ^= v >> vec4(16u);
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    return v;
}

// A word for each of four elements and each number that is rounded. Rounding uses as many of the high bits as it drops.
struct Random {
    state: array<vec4<u32>, MAX_STATES>,
    parameters: vec4<u32>,
}

// One hash serves all: no two numbers of an element share a word of it, and no two elements the word of one number.
fn random_of(seed: vec4<u32>) -> Random {
    let hash = pcg4d(seed);
    return Random(array<vec4<u32>, MAX_STATES>(hash, hash.yzwx, hash.zwxy), hash.wxyz);
}
