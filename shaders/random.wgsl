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

// 16 bits for each of four elements and each number that is rounded.
struct Random {
    exp_avg: vec4<u32>,
    exp_avg_sq: vec4<u32>,
    exp_avg_lr: vec4<u32>,
    parameters: vec4<u32>,
}

fn random_of(key: vec2<u32>, step: u32, word: u32) -> Random {
    let first = pcg4d(vec4(word, step, key));
    let second = pcg4d(vec4(word, step, key.x, ~key.y));
    return Random(first >> vec4(16u), first & vec4(0xffffu), second >> vec4(16u), second & vec4(0xffffu));
}
