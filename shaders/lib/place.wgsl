// No tensor of the launch ends within the quads of a lane, so masks are constants.
override WHOLE: bool = false;

// Where a quad, four elements of a chunk, lies.
struct Place {
    // The chunk's segment.
    segment: u32,
    // Where the chunk starts, in words of 32 bits of each array; of the state, its block. All lanes have the same, so compilers can compute
    // it once.
    parameters: u32,
    gradients: u32,
    block: u32,
    shadow: u32,
    // Which of the chunk's quads it is, and how many there are.
    quad: u32,
    quads: u32,
    // The same quad, counted from the start of the tensor.
    quad_of_tensor: u32,
    // Which of the four elements belong to the tensor: the first always does.
    mask: vec4<bool>,
    // The lane is past the last quad. It does what that quad's lane does, and stores nothing.
    is_extra: bool,
    format: u32,
    key: vec2<u32>,
}

fn quads_of(chunk: Chunk) -> u32 {
    return (chunk.elements + 3u) / 4u;
}

// The place of a quad of the chunk.
fn place(segment: Segment, chunk: Chunk, quad: u32, is_extra: bool) -> Place {
    let format = format_of(segment);
    return Place(
        chunk.segment,
        segment.parameters + chunk.first / 4u * quad_words(values_dtype(format)),
        segment.gradients + chunk.first / 4u * quad_words(gradients_dtype(format)),
        chunk.state,
        segment.shadow + chunk.first / 2u,
        quad,
        quads_of(chunk),
        segment.first_quad + chunk.first / 4u + quad,
        vec4(WHOLE) | (vec4(chunk.elements - 4u * quad) > vec4(0u, 1u, 2u, 3u)),
        is_extra,
        format,
        segment.key,
    );
}

// The place of a quad, or of the last one.
fn place_within(segment: Segment, chunk: Chunk, quad: u32) -> Place {
    let quads = quads_of(chunk);
    return place(segment, chunk, min(quad, quads - 1u), quad >= quads);
}
