// Where a quad, four elements of a chunk, lies.
struct Place {
    // Words of 32 bits of the three arrays; of the state, the chunk's block.
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

fn place(segment: Segment, chunk: Chunk, lane: u32) -> Place {
    let quads = quads_of(chunk);
    let quad = min(lane, quads - 1u);
    let format = format_of(segment);
    let first = chunk.first + 4u * quad;
    return Place(
        segment.parameters + words_of_elements(values_dtype(format), first),
        segment.gradients + words_of_elements(gradients_dtype(format), first),
        chunk.state,
        segment.shadow + first / 2u,
        quad,
        quads,
        segment.first_quad + first / 4u,
        vec4(chunk.elements - 4u * quad) > vec4(0u, 1u, 2u, 3u),
        lane >= quads,
        format,
        segment.key,
    );
}
