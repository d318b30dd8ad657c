// Access in words of 8 bytes: four numbers of 16 bits, or two f32. For launches in which every tensor starts at a multiple of 8
// bytes and its last quad lies within its buffer. A word without an element of the tensor is not written: another tensor may start there.

alias Word = vec2<u32>;

fn load_parameters(at: Place) -> vec4<u32> {
    let i = at.parameters / 2u + at.quad * (quad_words(values_dtype(at.format)) / 2u);
    if values_dtype(at.format) == F32 {
        return vec4(parameter_word(at.segment, i), parameter_word(at.segment, i + 1u));
    }
    return vec4(parameter_word(at.segment, i), 0u, 0u);
}

fn store_parameters(at: Place, raw: vec4<u32>) {
    let i = at.parameters / 2u + at.quad * (quad_words(values_dtype(at.format)) / 2u);
    set_parameter_word(at.segment, i, raw.xy);
    if values_dtype(at.format) == F32 && at.mask.z {
        set_parameter_word(at.segment, i + 1u, raw.zw);
    }
}

fn load_gradients(at: Place) -> vec4<u32> {
    let i = at.gradients / 2u + at.quad * (quad_words(gradients_dtype(at.format)) / 2u);
    if gradients_dtype(at.format) == F32 {
        return vec4(gradient_word(at.segment, i), gradient_word(at.segment, i + 1u));
    }
    return vec4(gradient_word(at.segment, i), 0u, 0u);
}

fn store_gradients(at: Place, raw: vec4<u32>) {
    let i = at.gradients / 2u + at.quad * (quad_words(gradients_dtype(at.format)) / 2u);
    set_gradient_word(at.segment, i, raw.xy);
    if gradients_dtype(at.format) == F32 && at.mask.z {
        set_gradient_word(at.segment, i + 1u, raw.zw);
    }
}
