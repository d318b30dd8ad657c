// Access in words of 4 bytes, for tensors that lie anywhere. A word without an element of the tensor is neither read nor written: the
// kernel reads the quad's first word in its place and never stores the value.

alias Word = u32;

@group(0) @binding(PARAMETERS_BINDING) var<storage, read_write> parameters: array<Word>;

// Which of the four words hold an element of the tensor.
fn words_held(dtype: u32, mask: vec4<bool>) -> vec4<bool> {
    return select(vec4(mask.xz, false, false), mask, dtype == F32);
}

fn indices(first: u32, held: vec4<bool>) -> vec4<u32> {
    return vec4(first) + select(vec4(0u), vec4(0u, 1u, 2u, 3u), held);
}

fn first_word_of_parameters(at: Place) -> u32 {
    return at.parameters + at.quad * quad_words(values_dtype(at.format));
}

fn first_word_of_gradients(at: Place) -> u32 {
    return at.gradients + at.quad * quad_words(gradients_dtype(at.format));
}

fn load_parameters(at: Place) -> vec4<u32> {
    let i = indices(first_word_of_parameters(at), words_held(values_dtype(at.format), at.mask));
    return vec4(parameters[i.x], parameters[i.y], parameters[i.z], parameters[i.w]);
}

fn store_parameters(at: Place, raw: vec4<u32>) {
    let first = first_word_of_parameters(at);
    let held = words_held(values_dtype(at.format), at.mask);
    if held.x { parameters[first] = raw.x; }
    if held.y { parameters[first + 1u] = raw.y; }
    if held.z { parameters[first + 2u] = raw.z; }
    if held.w { parameters[first + 3u] = raw.w; }
}

fn load_gradients(at: Place) -> vec4<u32> {
    let i = indices(first_word_of_gradients(at), words_held(gradients_dtype(at.format), at.mask));
    return vec4(gradient_word(i.x), gradient_word(i.y), gradient_word(i.z), gradient_word(i.w));
}

fn store_gradients(at: Place, raw: vec4<u32>) {
    let first = first_word_of_gradients(at);
    let held = words_held(gradients_dtype(at.format), at.mask);
    if held.x { set_gradient_word(first, raw.x); }
    if held.y { set_gradient_word(first + 1u, raw.y); }
    if held.z { set_gradient_word(first + 2u, raw.z); }
    if held.w { set_gradient_word(first + 3u, raw.w); }
}
