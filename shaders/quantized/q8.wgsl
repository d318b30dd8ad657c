// A lane works on two quads, which is how 8-bit state is stepped on a GPU: the four lanes of a quant block find its scales together. A launch
// may have tensors with other formats of state, too, or only such.

const LANE_QUADS = 2u;
const BLOCK_LANES = BLOCK_QUADS / LANE_QUADS;

// A branch that no lane takes costs little.
override SKIPS_RARE_PATHS: bool = RARE_PATHS_APART;

// Signs of states that the rule does not have are SIGNED.
fn is_signed_state(index: u32) -> bool {
    if SIGN_0 == SIGNED && SIGN_1 == SIGNED && SIGN_2 == SIGNED {
        return true;
    }
    return (SIGN_0 == SIGNED && index == 0u) || (SIGN_1 == SIGNED && index == 1u) || (SIGN_2 == SIGNED && index == 2u);
}

// What the lanes of a quant block tell each other, padded to a multiple of 16 bytes that spreads over the banks of the memory.
struct Shared {
    // Of each state: the largest number of each lane. The lane that finds the state's scale replaces them by it: the members of a `Coding`,
    // then the state's part of the word of scales.
    largest: array<array<u32, BLOCK_LANES>, MAX_STATES>,
    smallest: array<array<u32, BLOCK_LANES>, MAX_STATES>,
    // The word of scales before the step.
    scales: u32,
    padding: array<u32, 3>,
}

override BLOCKS: u32 = LANES / BLOCK_LANES;
var<workgroup> shared_by_block: array<Shared, BLOCKS>;

fn note_extremes(index: u32, sign: u32, lane: u32, extremes: Extremes) {
    let block = &shared_by_block[lane / BLOCK_LANES];
    (*block).largest[index][lane % BLOCK_LANES] = extremes.largest;
    if sign != SIGNED {
        (*block).smallest[index][lane % BLOCK_LANES] = extremes.smallest;
    }
}

// The new scale of one state of one quant block.
fn find_scale(index: u32, block: u32) {
    let at = &shared_by_block[block];
    let largest = &(*at).largest[index];
    let smallest = &(*at).smallest[index];
    let extremes = Extremes(
        largest_of(vec4((*largest)[0], (*largest)[1], (*largest)[2], (*largest)[3])),
        smallest_of(vec4((*smallest)[0], (*smallest)[1], (*smallest)[2], (*smallest)[3])),
    );
    let is_signed = is_signed_state(index);
    let scale = new_scale(is_signed, extremes, shift_in((*at).scales, index));
    let coding = coding_of(scale);
    (*largest)[0] = bitcast<u32>(coding.factor);
    (*largest)[1] = bitcast<u32>(coding.bottom);
    (*largest)[2] = coding.left;
    (*largest)[3] = part_of_scales(index, is_signed, scale);
}

// What `find_scale` has found.
fn coding_in(block: u32, index: u32) -> Coding {
    let found = &shared_by_block[block].largest[index];
    return Coding(bitcast<f32>((*found)[0]), bitcast<f32>((*found)[1]), (*found)[2]);
}

fn scales_in(block: u32) -> u32 {
    var scales = 0u;
    if STATES > 0u {
        scales = shared_by_block[block].largest[0][3];
    }
    if STATES > 1u {
        scales |= shared_by_block[block].largest[1][3];
    }
    if STATES > 2u {
        scales |= shared_by_block[block].largest[2][3];
    }
    return scales;
}

// Stores the parameters of two quads in bf16, as `store_theta` does.
fn store_rounded(a: Place, b: Place, a_theta: vec4<f32>, b_theta: vec4<f32>, a_random: vec4<u32>, b_random: vec4<u32>) {
    var a_rounded = bitcast<vec4<u32>>(a_theta) + (a_random >> vec4(16u));
    var b_rounded = bitcast<vec4<u32>>(b_theta) + (b_random >> vec4(16u));
    // One look at eight numbers.
    let sizes = abs(a_theta) + abs(b_theta);
    if !RARE_PATHS_APART || bitcast<u32>((sizes.x + sizes.y) + (sizes.z + sizes.w)) >= 0x7f800000u {
        a_rounded = with_special(a_rounded, bitcast<vec4<u32>>(a_theta));
        b_rounded = with_special(b_rounded, bitcast<vec4<u32>>(b_theta));
    }
    store_parameters(a, vec4(pack_halves(a_rounded >> vec4(16u)), 0u, 0u));
    store_parameters(b, vec4(pack_halves(b_rounded >> vec4(16u)), 0u, 0u));
}

fn update_lane(c: Coefficients, general: General, segment: Segment, chunk: Chunk, format: u32, first: u32, lane: u32) {
    let quads = quads_of(chunk);
    let pairs = (quads + 1u) / 2u;
    let pair = min(first + lane, pairs - 1u);
    // A lane past the last pair does what that pair's lane does, because all lanes work together, and stores nothing.
    let is_extra = first + lane >= pairs;
    let has_second = WHOLE || 2u * pair + 1u < quads;
    let at_a = place(segment, chunk, 2u * pair, is_extra);
    let at_b = place(segment, chunk, 2u * pair + u32(has_second), is_extra || !has_second);
    let is_quantized = state_format(format) == STATE_Q8;
    // All loads are before the first branch.
    let scale_start = start_of_state(at_a, STATES);
    var scales = 0u;
    var codes: Codes;
    if is_quantized {
        scales = state_1(scale_start, pair / BLOCK_LANES);
        codes = load_codes(at_a, pair, has_second);
    }
    var bytes: vec2<u32>;
    if master_weights(format) == MASTER_SPLIT24 {
        bytes = state_pair(start_of_master(at_a), pair, has_second);
    }
    var a = load_quad(at_a, bytes.x);
    var b = load_quad(at_b, bytes.y);
    if is_quantized {
        let old = decode_all(codes, scales);
        a.elements.state = State(old[0].a, old[1].a, old[2].a);
        b.elements.state = State(old[0].b, old[1].b, old[2].b);
    } else {
        a.elements.state = load_state(at_a);
        b.elements.state = load_state(at_b);
    }
    let a_stepped = step_quad(c, general, a);
    let b_stepped = step_quad(c, general, b);
    let after = Pairs(
        Pair(a_stepped.state[0], b_stepped.state[0]),
        Pair(a_stepped.state[1], b_stepped.state[1]),
        Pair(a_stepped.state[2], b_stepped.state[2]),
    );
    var has_zero = false;
    if is_quantized {
        has_zero = find_scales(after, scales, lane);
    }
    if is_extra {
        return;
    }
    var a_random: Random;
    var b_random: Random;
    if needs_random(format) {
        let seed = seed_of(at_a.key, c.step, at_a.quad_of_tensor);
        a_random = random_of(seed);
        b_random = random_of(seed + vec4(PCG_FACTOR, 0u, 0u, 0u));
    }
    if is_quantized {
        let block = lane / BLOCK_LANES;
        if STATES > 0u {
            let coding = coding_in(block, 0u);
            let codes = encode(SIGN_0, after[0], has_zero, coding, a_random.state[0], b_random.state[0]);
            set_state_pair(start_of_state(at_a, 0u), pair, has_second, codes);
        }
        if STATES > 1u {
            let coding = coding_in(block, 1u);
            let codes = encode(SIGN_1, after[1], has_zero, coding, a_random.state[1], b_random.state[1]);
            set_state_pair(start_of_state(at_a, 1u), pair, has_second, codes);
        }
        if STATES > 2u {
            let coding = coding_in(block, 2u);
            let codes = encode(SIGN_2, after[2], has_zero, coding, a_random.state[2], b_random.state[2]);
            set_state_pair(start_of_state(at_a, 2u), pair, has_second, codes);
        }
        if lane % (2u * BLOCK_LANES) == 0u {
            // Two quant blocks.
            let has_next = pair + BLOCK_LANES < pairs;
            set_state_pair(scale_start, pair / (2u * BLOCK_LANES), has_next, vec2(scales_in(block), scales_in(block + 1u)));
        }
    } else {
        store_state(at_a, a_stepped.state, a_random);
        if WHOLE || !at_b.is_extra {
            store_state(at_b, b_stepped.state, b_random);
        }
    }
    if WHOLE && is_rounded_stochastically(format) {
        store_rounded(at_a, at_b, a_stepped.theta, b_stepped.theta, a_random.parameters, b_random.parameters);
        finish_quad(a, a_stepped);
        finish_quad(b, b_stepped);
        return;
    }
    let a_bytes = store_theta(at_a, a.raw, bitcast<vec4<u32>>(a_stepped.theta), a_random.parameters);
    finish_quad(a, a_stepped);
    var b_bytes = 0u;
    if WHOLE || !at_b.is_extra {
        b_bytes = store_theta(at_b, b.raw, bitcast<vec4<u32>>(b_stepped.theta), b_random.parameters);
        finish_quad(b, b_stepped);
    }
    if master_weights(format) == MASTER_SPLIT24 {
        set_state_pair(start_of_master(at_a), pair, has_second, vec2(a_bytes, b_bytes));
    }
}

// Finds the new scales of all quant blocks of the lanes. All lanes call it together. Returns whether a number of the lane may be zero
// or not finite.
fn find_scales(after: Pairs, before: u32, lane: u32) -> bool {
    var extremes: array<Extremes, MAX_STATES>;
    var usual = SKIPS_RARE_PATHS;
    if STATES > 0u {
        extremes[0] = usual_extremes(SIGN_0, after[0]);
        usual = usual && is_usual(extremes[0]);
    }
    if STATES > 1u {
        extremes[1] = usual_extremes(SIGN_1, after[1]);
        usual = usual && is_usual(extremes[1]);
    }
    if STATES > 2u {
        extremes[2] = usual_extremes(SIGN_2, after[2]);
        usual = usual && is_usual(extremes[2]);
    }
    if !usual {
        if STATES > 0u {
            extremes[0] = all_extremes(SIGN_0, after[0]);
        }
        if STATES > 1u {
            extremes[1] = all_extremes(SIGN_1, after[1]);
        }
        if STATES > 2u {
            extremes[2] = all_extremes(SIGN_2, after[2]);
        }
    }
    if STATES > 0u {
        note_extremes(0u, SIGN_0, lane, extremes[0]);
    }
    if STATES > 1u {
        note_extremes(1u, SIGN_1, lane, extremes[1]);
    }
    if STATES > 2u {
        note_extremes(2u, SIGN_2, lane, extremes[2]);
    }
    if lane % BLOCK_LANES == 0u {
        shared_by_block[lane / BLOCK_LANES].scales = before;
    }
    // What is written above depends on the loaded scales. Past this barrier all lanes have theirs, and the scales may be replaced.
    workgroupBarrier();
    // One lane finds one scale. These lanes are next to each other, so that the other subgroups need not wait for them.
    let index = lane / BLOCKS;
    if index < STATES {
        find_scale(index, lane % BLOCKS);
    }
    workgroupBarrier();
    return !usual;
}

// A skipped step.
fn skip_lane(segment: Segment, chunk: Chunk, pair: u32) {
    let quads = quads_of(chunk);
    if 2u * pair < quads {
        zero_gradients(place(segment, chunk, 2u * pair, false));
    }
    if 2u * pair + 1u < quads {
        zero_gradients(place(segment, chunk, 2u * pair + 1u, false));
    }
}
