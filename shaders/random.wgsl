// Random numbers for stochastic rounding, from a counter: they depend on the optimizer's seed and the tensor's label (both in
// the key), the step and the element, and on nothing else. The hash is PCG4D (Jarzynski and Olano, "Hash Functions for GPU
// Rendering", JCGT 2020).

fn pcg4d(counter: vec4<u32>) -> vec4<u32> {
    var v = counter * vec4(1664525u) + vec4(1013904223u);
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

// A word for each of four elements and each number that is rounded, which takes as many of its high bits as are cut off.
struct Random {
    exp_avg: vec4<u32>,
    exp_avg_sq: vec4<u32>,
    exp_avg_lr: vec4<u32>,
    parameters: vec4<u32>,
}

// One hash serves all: no two numbers of an element share a word of it, and no two elements the word of one number.
fn random_of(key: vec2<u32>, step: u32, word: u32) -> Random {
    let hash = pcg4d(vec4(word, step, key));
    return Random(hash, hash.yzwx, hash.zwxy, hash.wxyz);
}
