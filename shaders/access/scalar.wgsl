// Access in words of 4 bytes, for tensors that lie anywhere. A word without an element of the tensor is neither read nor written: the
// kernel reads the quad's first word in its place and never stores the value.

alias Word = u32;

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
    return vec4(
        parameter_word(at.segment, i.x),
        parameter_word(at.segment, i.y),
        parameter_word(at.segment, i.z),
        parameter_word(at.segment, i.w),
    );
}

fn store_parameters(at: Place, raw: vec4<u32>) {
    let first = first_word_of_parameters(at);
    let held = words_held(values_dtype(at.format), at.mask);
    if held.x { set_parameter_word(at.segment, first, raw.x); }
    if held.y { set_parameter_word(at.segment, first + 1u, raw.y); }
    if held.z { set_parameter_word(at.segment, first + 2u, raw.z); }
    if held.w { set_parameter_word(at.segment, first + 3u, raw.w); }
}

fn load_gradients(at: Place) -> vec4<u32> {
    let i = indices(first_word_of_gradients(at), words_held(gradients_dtype(at.format), at.mask));
    return vec4(
        gradient_word(at.segment, i.x),
        gradient_word(at.segment, i.y),
        gradient_word(at.segment, i.z),
        gradient_word(at.segment, i.w),
    );
}

fn store_gradients(at: Place, raw: vec4<u32>) {
    let first = first_word_of_gradients(at);
    let held = words_held(gradients_dtype(at.format), at.mask);
    if held.x { set_gradient_word(at.segment, first, raw.x); }
    if held.y { set_gradient_word(at.segment, first + 1u, raw.y); }
    if held.z { set_gradient_word(at.segment, first + 2u, raw.z); }
    if held.w { set_gradient_word(at.segment, first + 3u, raw.w); }
}
