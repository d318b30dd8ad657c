// Access in words of 16 bytes: four f32. For launches of f32 tensors that all start at a multiple of 16 bytes and whose last
// quads lie within their buffers. What lies past a tensor's end in its last quad is stored back as it was.

alias Word = vec4<u32>;

fn load_parameters(at: Place) -> vec4<u32> {
    return parameter_word(at.segment, at.parameters / 4u + at.quad);
}

fn store_parameters(at: Place, raw: vec4<u32>) {
    set_parameter_word(at.segment, at.parameters / 4u + at.quad, raw);
}

fn load_gradients(at: Place) -> vec4<u32> {
    return gradient_word(at.segment, at.gradients / 4u + at.quad);
}

fn store_gradients(at: Place, raw: vec4<u32>) {
    set_gradient_word(at.segment, at.gradients / 4u + at.quad, raw);
}
