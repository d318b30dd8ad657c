// Access in single elements, for launches in which a tensor starts between multiples of 16 bytes or ends in a word that its
// buffer does not hold. Word i of a chunk is elements i, i + 256, i + 512 and i + 768, so that neighbouring lanes touch
// neighbouring addresses. The state has the same layout as with vec4 access: a tensor may change between them.

alias Word = u32;

@group(0) @binding(3) var<storage, read_write> parameters: array<Word>;
@group(0) @binding(5) var<storage, read_write> state: array<Word>;

// Where a word's four elements lie: elements of the three arrays, elements from one state to the next, and which of the
// four belong to the tensor.
struct Place {
    parameters: u32,
    gradients: u32,
    state: u32,
    state_stride: u32,
    mask: vec4<bool>,
}

const STRIDE = vec4(0u, CHUNK_WORDS, 2u * CHUNK_WORDS, 3u * CHUNK_WORDS);

fn words_of(chunk: Chunk) -> u32 {
    return min(chunk.elements, CHUNK_WORDS);
}

fn place(segment: Segment, chunk: Chunk, word: u32) -> Place {
    return Place(
        segment.parameters + chunk.first + word,
        segment.gradients + chunk.first + word,
        chunk.state + word,
        (chunk.elements + 3u) / 4u * 4u,
        vec4(word) + STRIDE < vec4(chunk.elements),
    );
}

// An element past the end is read where the first one is: that is always in bounds, and its value is never stored.
fn elements_at(first: u32, mask: vec4<bool>) -> vec4<u32> {
    return vec4(first) + select(vec4(0u), STRIDE, mask);
}

fn load_parameters(at: Place) -> vec4<u32> {
    let i = elements_at(at.parameters, at.mask);
    return vec4(parameters[i.x], parameters[i.y], parameters[i.z], parameters[i.w]);
}

fn load_gradients(at: Place) -> vec4<u32> {
    let i = elements_at(at.gradients, at.mask);
    return vec4(gradient_word(i.x), gradient_word(i.y), gradient_word(i.z), gradient_word(i.w));
}

fn load_state_word(at: Place, index: u32) -> vec4<f32> {
    let i = elements_at(at.state + index * at.state_stride, at.mask);
    return bitcast<vec4<f32>>(vec4(state[i.x], state[i.y], state[i.z], state[i.w]));
}

fn store_parameters(at: Place, old: vec4<u32>, value: vec4<f32>) {
    let i = vec4(at.parameters) + STRIDE;
    let bits = bitcast<vec4<u32>>(value);
    if at.mask.x { parameters[i.x] = bits.x; }
    if at.mask.y { parameters[i.y] = bits.y; }
    if at.mask.z { parameters[i.z] = bits.z; }
    if at.mask.w { parameters[i.w] = bits.w; }
}

fn store_state_word(at: Place, index: u32, value: vec4<f32>) {
    let i = vec4(at.state + index * at.state_stride) + STRIDE;
    let bits = bitcast<vec4<u32>>(value);
    if at.mask.x { state[i.x] = bits.x; }
    if at.mask.y { state[i.y] = bits.y; }
    if at.mask.z { state[i.z] = bits.z; }
    if at.mask.w { state[i.w] = bits.w; }
}
