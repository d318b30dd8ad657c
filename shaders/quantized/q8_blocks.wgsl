// 8-bit state on a software adapter: a lane works on a whole quant block. Lanes that wait for each other cost half of the time there, since
// all values that live across a barrier go through memory. All tensors of a launch have one format.

const LANE_QUADS = BLOCK_QUADS;

// Both sides of a branch cost their time.
const SKIPS_RARE_PATHS = false;

// Two quads that have been stepped; their state is not stored yet.
struct SteppedPair {
    at: Place,
    pair: u32,
    has_second: bool,
    after: Pairs,
    a: Random,
    b: Random,
}

// Steps pair `index` of the chunk, and stores all but 8-bit state. A pair past the last one counts for nothing and stores nothing.
fn step_pair(
    c: Coefficients,
    general: General,
    segment: Segment,
    chunk: Chunk,
    scales: u32,
    index: u32,
) -> SteppedPair {
    let quads = quads_of(chunk);
    let pairs = (quads + 1u) / 2u;
    var pair = index;
    if !WHOLE {
        pair = min(pair, pairs - 1u);
    }
    let is_extra = !WHOLE && index >= pairs;
    let has_second = WHOLE || 2u * pair + 1u < quads;
    let at_a = place(segment, chunk, 2u * pair, is_extra);
    let at_b = place(segment, chunk, 2u * pair + u32(has_second), is_extra || !has_second);
    var a = load_quad(at_a, load_bytes(at_a));
    var b = load_quad(at_b, load_bytes(at_b));
    let old = decode_all(load_codes(at_a, pair, has_second), scales);
    a.elements.state = State(old[0].a, old[1].a, old[2].a);
    b.elements.state = State(old[0].b, old[1].b, old[2].b);
    let a_stepped = step_quad(c, general, a);
    let b_stepped = step_quad(c, general, b);
    var stepped: SteppedPair;
    stepped.at = at_a;
    stepped.pair = pair;
    stepped.has_second = has_second;
    stepped.after = Pairs(
        Pair(a_stepped.state[0], b_stepped.state[0]),
        Pair(a_stepped.state[1], b_stepped.state[1]),
        Pair(a_stepped.state[2], b_stepped.state[2]),
    );
    if !WHOLE && is_extra {
        // The loaded quads have been stepped already. Zeros do not change a scale.
        stepped.after = Pairs();
    }
    let seed = seed_of(at_a.key, c.step, at_a.quad_of_tensor);
    stepped.a = random_of(seed);
    stepped.b = random_of(seed + vec4(PCG_FACTOR, 0u, 0u, 0u));
    if WHOLE || !at_a.is_extra {
        store_quad(a, a_stepped, stepped.a);
    }
    if WHOLE || !at_b.is_extra {
        store_quad(b, b_stepped, stepped.b);
    }
    return stepped;
}

fn extremes_in(index: u32, sign: u32, p: SteppedPair, q: SteppedPair, r: SteppedPair, s: SteppedPair) -> Extremes {
    let some = both(all_extremes(sign, p.after[index]), all_extremes(sign, q.after[index]));
    return both(some, both(all_extremes(sign, r.after[index]), all_extremes(sign, s.after[index])));
}

fn both(one: Extremes, other: Extremes) -> Extremes {
    return Extremes(max(one.largest, other.largest), min(one.smallest, other.smallest));
}

fn scale_of(index: u32, sign: u32, scales: u32, p: SteppedPair, q: SteppedPair, r: SteppedPair, s: SteppedPair) -> Scale {
    return new_scale(sign == SIGNED, extremes_in(index, sign, p, q, r, s), shift_in(scales, index));
}

fn store_codes(index: u32, sign: u32, coding: Coding, stepped: SteppedPair) {
    let codes = encode(sign, stepped.after[index], true, coding, stepped.a.state[index], stepped.b.state[index]);
    if WHOLE || !stepped.at.is_extra {
        set_state_pair(start_of_state(stepped.at, index), stepped.pair, stepped.has_second, codes);
    }
}

fn store_all_codes(index: u32, sign: u32, scale: Scale, p: SteppedPair, q: SteppedPair, r: SteppedPair, s: SteppedPair) {
    let coding = coding_of(scale);
    store_codes(index, sign, coding, p);
    store_codes(index, sign, coding, q);
    store_codes(index, sign, coding, r);
    store_codes(index, sign, coding, s);
}

fn update_lane(c: Coefficients, general: General, segment: Segment, chunk: Chunk, format: u32, first: u32, lane: u32) {
    let block = first + lane;
    let quads = quads_of(chunk);
    if block * BLOCK_QUADS >= quads {
        return;
    }
    let at = place(segment, chunk, block * BLOCK_QUADS, false);
    let scale_start = start_of_state(at, STATES);
    let scales = state_1(scale_start, block);
    let p = step_pair(c, general, segment, chunk, scales, 4u * block);
    let q = step_pair(c, general, segment, chunk, scales, 4u * block + 1u);
    let r = step_pair(c, general, segment, chunk, scales, 4u * block + 2u);
    let s = step_pair(c, general, segment, chunk, scales, 4u * block + 3u);
    var word = 0u;
    if STATES > 0u {
        let scale = scale_of(0u, SIGN_0, scales, p, q, r, s);
        store_all_codes(0u, SIGN_0, scale, p, q, r, s);
        word = part_of_scales(0u, SIGN_0 == SIGNED, scale);
    }
    if STATES > 1u {
        let scale = scale_of(1u, SIGN_1, scales, p, q, r, s);
        store_all_codes(1u, SIGN_1, scale, p, q, r, s);
        word |= part_of_scales(1u, SIGN_1 == SIGNED, scale);
    }
    if STATES > 2u {
        let scale = scale_of(2u, SIGN_2, scales, p, q, r, s);
        store_all_codes(2u, SIGN_2, scale, p, q, r, s);
        word |= part_of_scales(2u, SIGN_2 == SIGNED, scale);
    }
    set_state_1(scale_start, block, word);
}

// A skipped step.
fn skip_lane(segment: Segment, chunk: Chunk, block: u32) {
    for (var quad = block * BLOCK_QUADS; quad < min((block + 1u) * BLOCK_QUADS, quads_of(chunk)); quad++) {
        zero_gradients(place(segment, chunk, quad, false));
    }
}
