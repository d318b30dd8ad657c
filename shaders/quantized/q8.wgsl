// State in 8 bits: short floats below a scale that 32 elements share. src/quantized.rs mirrors it line by line.
//
// A code counts the numbers of `mantissa` fraction bits that follow each other from a base upwards, so that coding cuts off bits
// of an f32 and decoding puts them back: code + base = bits >> (23 - mantissa). The group's top exponent says where codes end:
// they end at 2^(top + 1). Changes of the top only shift the codes, which loses nothing; that is why averages of slow decay do
// not drift. Rounding is stochastic: the average of what is stored is what was computed.
//
// exp_avg has a sign and 7 bits with 3 of fraction: 16 octaves, and evenly spaced numbers from the lowest of them to zero.
// exp_avg_sq and exp_avg_lr have 8 bits with 3 to 6 of fraction, as many as the group's span allows: 32 to 4 octaves. Code 0 is
// zero, and nothing else is rounded to it: eta of a zero exp_avg_sq would be alpha / epsilon.

const GROUP_WORDS = 8u;
const SIGNED_CODES = 128u;
const UNSIGNED_CODES = 256u;
const LEAST_MANTISSA = 3u;
const MOST_MANTISSA = 6u;

// Where a group's codes of one state lie.
struct Scale {
    top: u32,
    mantissa: u32,
}

fn base_of(scale: Scale, codes: u32) -> u32 {
    let end = (scale.top + 1u) << scale.mantissa;
    return max(end, codes) - codes;
}

// A group's scales are one word: three tops of 8 bits, then two numbers of fraction bits less LEAST_MANTISSA, of 2 bits.
fn signed_scale(scales: u32) -> Scale {
    return Scale(scales & 0xffu, LEAST_MANTISSA);
}

fn unsigned_scale(scales: u32, index: u32) -> Scale {
    return Scale((scales >> (8u * index)) & 0xffu, LEAST_MANTISSA + ((scales >> (22u + 2u * index)) & 3u));
}

fn place_of_scales(at: Place) -> u32 {
    return at.block + STATES * part_words(at, at.words) + at.word / GROUP_WORDS;
}

fn codes_at(at: Place, index: u32) -> vec4<u32> {
    return (vec4(state_1(place_in_part(at, index))) >> vec4(0u, 8u, 16u, 24u)) & vec4(0xffu);
}

fn packed(bytes: vec4<u32>) -> u32 {
    let shifted = bytes << vec4(0u, 8u, 16u, 24u);
    return shifted.x | shifted.y | shifted.z | shifted.w;
}

fn set_codes_at(at: Place, index: u32, codes: vec4<u32>) {
    let held = packed(select(vec4(0u), vec4(0xffu), at.mask));
    set_state_1(place_in_part(at, index), packed(codes) & held);
}

fn decode_signed(codes: vec4<u32>, scale: Scale) -> vec4<f32> {
    let base = base_of(scale, SIGNED_CODES);
    let shift = 23u - scale.mantissa;
    let above = bitcast<vec4<f32>>((vec4(base) + (codes & vec4(0x7fu))) << vec4(shift));
    let magnitude = above - vec4(bitcast<f32>(base << shift));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(magnitude) | ((codes & vec4(0x80u)) << vec4(24u)));
}

fn decode_unsigned(codes: vec4<u32>, scale: Scale) -> vec4<f32> {
    let base = base_of(scale, UNSIGNED_CODES);
    let bits = (vec4(base) + codes) << vec4(23u - scale.mantissa);
    return bitcast<vec4<f32>>(select(bits, vec4(0u), codes == vec4(0u)));
}

// 16 random bits, spread evenly below 2^shift.
fn dither(random: vec4<u32>, shift: u32) -> vec4<u32> {
    return (random << vec4(shift - 16u)) + vec4(1u << (shift - 17u));
}

fn encode_signed(value: vec4<f32>, scale: Scale, random: vec4<u32>) -> vec4<u32> {
    let base = base_of(scale, SIGNED_CODES);
    let shift = 23u - scale.mantissa;
    let above = bitcast<vec4<u32>>(abs(value) + vec4(bitcast<f32>(base << shift)));
    let code = ((above + dither(random, shift)) >> vec4(shift)) - vec4(base);
    let sign = (bitcast<vec4<u32>>(value) >> vec4(24u)) & vec4(0x80u);
    return min(code, vec4(SIGNED_CODES - 1u)) | sign;
}

fn encode_unsigned(value: vec4<f32>, scale: Scale, random: vec4<u32>) -> vec4<u32> {
    let base = base_of(scale, UNSIGNED_CODES);
    let shift = 23u - scale.mantissa;
    let bits = bitcast<vec4<u32>>(value);
    let above = ((bits + dither(random, shift)) >> vec4(shift)) - vec4(base);
    let code = clamp(bitcast<vec4<i32>>(above), vec4(1i), vec4(i32(UNSIGNED_CODES) - 1i));
    return select(bitcast<vec4<u32>>(code), vec4(0u), bits == vec4(0u));
}

// The top above which rounding up cannot carry the largest number.
fn top_of(largest: u32, mantissa: u32) -> u32 {
    return clamp((largest + (1u << (23u - mantissa))) >> 23u, 1u, 255u);
}

// As many fraction bits as leave room for the group's span: 256 codes hold 2^(8 - mantissa) octaves. More than before are taken
// only with an octave to spare, so that they do not go to and fro: giving bits up rounds the whole group.
fn mantissa_of(largest: u32, smallest: u32, before: u32) -> u32 {
    let octaves = (largest >> 23u) - (min(smallest, largest) >> 23u) + 2u;
    return max(mantissa_for(octaves + 1u), min(mantissa_for(octaves), before));
}

fn mantissa_for(octaves: u32) -> u32 {
    return clamp(7u - firstLeadingBit(octaves - 1u), LEAST_MANTISSA, MOST_MANTISSA);
}

// Bits of non-negative f32 are ordered as the numbers are.
fn largest_of(bits: vec4<u32>) -> u32 {
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn load_scales(at: Place) -> u32 {
    if state_format(at.format) == STATE_Q8 {
        return state_1(place_of_scales(at));
    }
    return 0u;
}

fn load_quantized(at: Place, scales: u32) -> State {
    var loaded: State;
    loaded.exp_avg = decode_signed(codes_at(at, 0u), signed_scale(scales));
    if STATES > 1u {
        loaded.exp_avg_sq = decode_unsigned(codes_at(at, 1u), unsigned_scale(scales, 1u));
    }
    if STATES > 2u {
        loaded.exp_avg_lr = decode_unsigned(codes_at(at, 2u), unsigned_scale(scales, 2u));
    }
    return loaded;
}

// Of each group, a row of its lanes' extremes for each of: the largest of the three states, and the smallest above zero of the
// two without a sign. The latter are negated, so that zeros never win and all are found by `max`.
override GROUPS: u32 = LANES / GROUP_WORDS;
override ROWS: u32 = 5u * (LANES / GROUP_WORDS);
var<workgroup> extremes: array<array<u32, GROUP_WORDS>, ROWS>;
// What each state has of a group's scales.
var<workgroup> scale_of_state: array<array<u32, 3>, GROUPS>;

fn note_extremes(lane: u32, state: u32, bits: vec4<u32>) {
    let row = state * GROUPS + lane / GROUP_WORDS;
    extremes[row][lane % GROUP_WORDS] = largest_of(bits);
    if state > 0u {
        extremes[row + 2u * GROUPS][lane % GROUP_WORDS] = largest_of(vec4(0u) - bits);
    }
}

fn largest_in(row: u32) -> u32 {
    let lanes = &extremes[row];
    let some = vec4((*lanes)[0], (*lanes)[1], (*lanes)[2], (*lanes)[3]);
    let others = vec4((*lanes)[4], (*lanes)[5], (*lanes)[6], (*lanes)[7]);
    return largest_of(max(some, others));
}

fn scale_in_group(group: u32, state: u32, before: u32) -> u32 {
    let row = state * GROUPS + group;
    let largest = largest_in(row);
    if state == 0u {
        return top_of(largest, LEAST_MANTISSA);
    }
    let smallest = 0u - largest_in(row + 2u * GROUPS);
    let mantissa = mantissa_of(largest, smallest, unsigned_scale(before, state).mantissa);
    return (top_of(largest, mantissa) << (8u * state)) | ((mantissa - LEAST_MANTISSA) << (22u + 2u * state));
}

// Of a group's lanes, each of the first ones finds one state's scale for all of them. `before` are the scales that were loaded.
fn store_quantized(at: Place, lane: u32, before: u32, stepped: State, random: Random) {
    note_extremes(lane, 0u, select(vec4(0u), bitcast<vec4<u32>>(stepped.exp_avg) & MAGNITUDE, at.mask));
    if STATES > 1u {
        note_extremes(lane, 1u, select(vec4(0u), bitcast<vec4<u32>>(stepped.exp_avg_sq), at.mask));
    }
    if STATES > 2u {
        note_extremes(lane, 2u, select(vec4(0u), bitcast<vec4<u32>>(stepped.exp_avg_lr), at.mask));
    }
    // All lanes have loaded the scales that are replaced below.
    storageBarrier();
    workgroupBarrier();
    let group = lane / GROUP_WORDS;
    let state = lane % GROUP_WORDS;
    if state < STATES {
        scale_of_state[group][state] = scale_in_group(group, state, before);
    }
    workgroupBarrier();
    if !at.mask.x {
        return;
    }
    var scales = scale_of_state[group][0];
    if STATES > 1u {
        scales |= scale_of_state[group][1];
    }
    if STATES > 2u {
        scales |= scale_of_state[group][2];
    }
    set_codes_at(at, 0u, encode_signed(stepped.exp_avg, signed_scale(scales), random.exp_avg));
    if STATES > 1u {
        set_codes_at(at, 1u, encode_unsigned(stepped.exp_avg_sq, unsigned_scale(scales, 1u), random.exp_avg_sq));
    }
    if STATES > 2u {
        set_codes_at(at, 2u, encode_unsigned(stepped.exp_avg_lr, unsigned_scale(scales, 2u), random.exp_avg_lr));
    }
    if state == 0u {
        set_state_1(place_of_scales(at), scales);
    }
}
