// Where a word of four elements lies.
struct Place {
    // Words of 32 bits of the three arrays; of the state, the chunk's block.
    parameters: u32,
    gradients: u32,
    block: u32,
    copies: u32,
    // Which of the chunk's words it is, and how many there are.
    word: u32,
    words: u32,
    // The same, counted from the tensor's start.
    word_of_tensor: u32,
    // Which of the four elements belong to the tensor: the first always does.
    mask: vec4<bool>,
    // The lane is past the last word: it does what that one's lane does, and stores nothing.
    is_extra: bool,
    format: u32,
    key: vec2<u32>,
}

fn words_of(chunk: Chunk) -> u32 {
    return (chunk.elements + 3u) / 4u;
}

fn place(segment: Segment, chunk: Chunk, lane: u32) -> Place {
    let words = words_of(chunk);
    let word = min(lane, words - 1u);
    let format = format_of(segment);
    let first = chunk.first + 4u * word;
    return Place(
        segment.parameters + words_of_elements(values_dtype(format), first),
        segment.gradients + words_of_elements(gradients_dtype(format), first),
        chunk.state,
        segment.copies + first / 2u,
        word,
        words,
        segment.first_word + first / 4u,
        vec4(chunk.elements - 4u * word) > vec4(0u, 1u, 2u, 3u),
        lane >= words,
        format,
        segment.key,
    );
}
