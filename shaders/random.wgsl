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

// One hash serves all: an element's four numbers share no bit of it, and neither do the same numbers of four elements.
fn random_of(key: vec2<u32>, step: u32, word: u32) -> Random {
    let hash = pcg4d(vec4(word, step, key));
    return Random(
        (hash.yzwx >> vec4(8u)) & vec4(0xffffu),
        hash >> vec4(16u),
        hash & vec4(0xffffu),
        (hash.zwxy >> vec4(8u)) & vec4(0xffffu),
    );
}
