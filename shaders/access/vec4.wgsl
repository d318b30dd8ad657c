// Access in words of four elements: word i of a chunk is elements 4i to 4i + 3. For launches in which every tensor starts
// at a multiple of 16 bytes and its last word lies within the buffer. Elements past a tensor's end share its last word: they
// are computed and their old bits stored back. Bits, not floats, so that whatever lies there survives unchanged.

alias Word = vec4<u32>;

@group(0) @binding(3) var<storage, read_write> parameters: array<Word>;
@group(0) @binding(5) var<storage, read_write> state: array<Word>;

// Where a word's four elements lie: words of the three arrays, words from one state to the next, and which of the four
// belong to the tensor.
struct Place {
    parameters: u32,
    gradients: u32,
    state: u32,
    state_stride: u32,
    mask: vec4<bool>,
}

fn words_of(chunk: Chunk) -> u32 {
    return (chunk.elements + 3u) / 4u;
}

fn place(segment: Segment, chunk: Chunk, word: u32) -> Place {
    let mask = vec4(4u * word) + vec4(0u, 1u, 2u, 3u) < vec4(chunk.elements);
    return Place(
        (segment.parameters + chunk.first) / 4u + word,
        (segment.gradients + chunk.first) / 4u + word,
        chunk.state / 4u + word,
        words_of(chunk),
        mask,
    );
}

fn load_parameters(at: Place) -> vec4<u32> {
    return parameters[at.parameters];
}

fn load_gradients(at: Place) -> vec4<u32> {
    return gradient_word(at.gradients);
}

fn load_state_word(at: Place, index: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(state[at.state + index * at.state_stride]);
}

fn store_parameters(at: Place, old: vec4<u32>, value: vec4<f32>) {
    parameters[at.parameters] = select(old, bitcast<vec4<u32>>(value), at.mask);
}

// State past a tensor's end is kept at zero.
fn store_state_word(at: Place, index: u32, value: vec4<f32>) {
    state[at.state + index * at.state_stride] = select(vec4(0u), bitcast<vec4<u32>>(value), at.mask);
}
