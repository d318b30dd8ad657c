// The first pass of a step that needs the gradients' norm: each workgroup adds up equally many chunks that follow each other.

// What the host says of a parameter in this step.
struct Row {
    group: u32,
    activity: u32,
}

@group(0) @binding(8) var<storage, read> rows: array<Row>;
// One a workgroup.
@group(0) @binding(9) var<storage, read_write> partials: array<Partial>;

// Words that a lane loads before it adds the first: one alone would wait for its chunk, its segment and its gradients in turn.
const WORDS_AT_ONCE = 4u;
const CHUNK_WORDS = CHUNK_ELEMENTS / 4u;

// Bits of a word of gradients, counted from the first chunk on; zeros for what does not count.
fn gradients_of_word(first: u32, end: u32, word: u32) -> vec4<u32> {
    let index = first + word / CHUNK_WORDS;
    let chunk = chunks[min(index, end - 1u)];
    let segment = segments[chunk.segment];
    let at = place(segment, chunk, word % CHUNK_WORDS);
    let counts = index < end && rows[segment.coefficients].activity == ACTIVE;
    return select(vec4(0u), gradient_bits(at), at.mask & vec4(counts));
}

fn partial_of(words: array<vec4<u32>, WORDS_AT_ONCE>) -> Partial {
    let magnitudes = array(words[0] & MAGNITUDE, words[1] & MAGNITUDE, words[2] & MAGNITUDE, words[3] & MAGNITUDE);
    let four = max(max(magnitudes[0], magnitudes[1]), max(magnitudes[2], magnitudes[3]));
    let largest = max(max(four.x, four.y), max(four.z, four.w));
    if largest >= 0x7f800000u {
        return Partial(0.0, NOT_FINITE);
    }
    let exponent = clamp(i32(largest >> 23u) - 127, LEAST_EXPONENT, MOST_EXPONENT);
    let factor = power_of_two(-exponent);
    var squares = vec4(0.0);
    for (var i = 0u; i < WORDS_AT_ONCE; i++) {
        let scaled = bitcast<vec4<f32>>(magnitudes[i]) * factor;
        squares += scaled * scaled;
    }
    return Partial((squares.x + squares.y) + (squares.z + squares.w), exponent);
}

@compute @workgroup_size(LANES)
fn norm_of_chunks(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup.y * workgroups.x + workgroup.x;
    let needed = arrayLength(&partials);
    if index >= needed {
        return;
    }
    let count = arrayLength(&chunks);
    let share = (count + needed - 1u) / needed;
    let first = min(index * share, count);
    let end = min(first + share, count);
    var sum = ZERO;
    for (var word = lane; word < (end - first) * CHUNK_WORDS; word += WORDS_AT_ONCE * LANES) {
        sum = added(sum, partial_of(array(
            gradients_of_word(first, end, word),
            gradients_of_word(first, end, word + LANES),
            gradients_of_word(first, end, word + 2u * LANES),
            gradients_of_word(first, end, word + 3u * LANES),
        )));
    }
    let total = added_over_lanes(lane, sum);
    if lane == 0u {
        partials[index] = total;
    }
}
