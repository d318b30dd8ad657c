// State in 8 bits: short floats below a scale that 32 elements share. src/quantized.rs mirrors it line by line.
//
// A code counts the numbers of `mantissa` fraction bits that follow each other from a bottom upwards, so that coding cuts off bits
// of an f32 and decoding puts them back: bits = bottom + (code << shift), where shift = 23 - mantissa and the bottom is a power of
// two, in bits too. 256 codes are 2^(8 - mantissa) octaves. Changes of the bottom only shift the codes, which loses nothing; that
// is why averages of slow decay do not drift. Rounding is stochastic: the average of what is stored is what was computed.
//
// exp_avg has a sign and 7 bits with 3 of fraction: 16 octaves, and evenly spaced numbers from the lowest of them to zero.
// exp_avg_sq and exp_avg_lr have 8 bits with 3 to 6 of fraction, as many as the group's span allows: 32 to 4 octaves. Of
// exp_avg_sq, code 0 is zero, and nothing else is rounded to it: eta of a zero would be alpha / epsilon.
//
// A group's bottom leaves room for its largest finite number rounded up, so no code of one is past its bits. What is not finite gets some
// code or other: the parameter that it has reached shows it and keeps it, and its neighbours are none the worse.

const GROUP_WORDS = 8u;
const SIGNED_SHIFT = 20u;
const LEAST_SHIFT = 17u;
const MOST_SHIFT = 20u;

// A group's codes of one state.
struct Scale {
    // Bits of the number that code 0 would be.
    bottom: u32,
    shift: u32,
}

// A group's scales are one word: the exponents of three bottoms, of 8 bits, then MOST_SHIFT less each of two shifts, of 2 bits.
fn bottom_in(scales: u32, index: u32) -> u32 {
    return (scales << (23u - 8u * index)) & 0x7f800000u;
}

fn signed_scale(scales: u32) -> Scale {
    return Scale(bottom_in(scales, 0u), SIGNED_SHIFT);
}

fn unsigned_scale(scales: u32, index: u32) -> Scale {
    return Scale(bottom_in(scales, index), MOST_SHIFT - ((scales >> (22u + 2u * index)) & 3u));
}

fn place_of_scales(at: Place) -> u32 {
    return at.block + STATES * part_words(at, at.words) + at.word / GROUP_WORDS;
}

fn codes_at(at: Place, index: u32) -> vec4<u32> {
    return (vec4(state_1(place_in_part(at, index))) >> vec4(0u, 8u, 16u, 24u)) & vec4(0xffu);
}

// `codes` are in the high bytes.
fn set_codes_at(at: Place, index: u32, codes: vec4<u32>) {
    let some = (codes.x >> 24u) | ((codes.y >> 16u) & 0xff00u);
    let others = ((codes.z >> 8u) & 0xff0000u) | (codes.w & 0xff000000u);
    set_state_1(place_in_part(at, index), some | others);
}

fn decode_signed(codes: vec4<u32>, scale: Scale) -> vec4<f32> {
    let above = decode_positive(codes & vec4(0x7fu), scale);
    let magnitude = above - vec4(bitcast<f32>(scale.bottom));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(magnitude) | ((codes & vec4(0x80u)) << vec4(24u)));
}

fn decode_non_negative(codes: vec4<u32>, scale: Scale) -> vec4<f32> {
    return select(decode_positive(codes, scale), vec4(0.0), codes == vec4(0u));
}

fn decode_positive(codes: vec4<u32>, scale: Scale) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4(scale.bottom) + (codes << vec4(scale.shift)));
}

// The code of what lies above a bottom, in the high byte: random bits below it round up in proportion to what is cut off.
fn coded(above: vec4<u32>, shift: u32, random: vec4<u32>) -> vec4<u32> {
    return (above << vec4(24u - shift)) + (random >> vec4(8u));
}

fn encode_signed(value: vec4<f32>, scale: Scale, random: vec4<u32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(abs(value) + vec4(bitcast<f32>(scale.bottom)));
    let magnitude = coded(bits - vec4(scale.bottom), scale.shift, random);
    return (magnitude & MAGNITUDE) | (bitcast<vec4<u32>>(value) & ~MAGNITUDE);
}

fn encode_non_negative(value: vec4<f32>, scale: Scale, random: vec4<u32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(value);
    let lowest = scale.bottom + (1u << scale.shift);
    let above = max(bits, vec4(lowest)) - vec4(scale.bottom);
    return coded(select(above, vec4(0u), bits == vec4(0u)), scale.shift, random);
}

fn encode_positive(value: vec4<f32>, scale: Scale, random: vec4<u32>) -> vec4<u32> {
    let above = max(bitcast<vec4<u32>>(value), vec4(scale.bottom)) - vec4(scale.bottom);
    return coded(above, scale.shift, random);
}

// The exponent of the bottom from which so many octaves reach past the largest number, rounded up.
fn bottom_of(largest: u32, shift: u32, octaves: u32) -> u32 {
    let end = ((largest + (1u << shift)) >> 23u) + 1u;
    return max(end, octaves) - octaves;
}

// The largest magnitude's bits once a bottom 16 octaves below its end has been added, or a little more.
fn with_bottom(largest: u32) -> u32 {
    return largest + 0x400u;
}

// The shift that leaves room for the group's span: 256 codes hold 2^(shift - 15) octaves. A smaller one than before is taken only
// with an octave to spare, so that they do not go to and fro: giving bits up rounds the whole group.
fn shift_of(largest: u32, smallest: u32, before: u32) -> u32 {
    let octaves = (largest >> 23u) - (min(smallest, largest) >> 23u) + 2u;
    return min(shift_for(octaves + 1u), max(shift_for(octaves), before));
}

fn shift_for(octaves: u32) -> u32 {
    return clamp(16u + firstLeadingBit(octaves - 1u), LEAST_SHIFT, MOST_SHIFT);
}

// Bits of non-negative f32 are ordered as the numbers are.
fn largest_of(bits: vec4<u32>) -> u32 {
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

// The same of what is finite: with this added, bits of infinity and NaN wrap around to below those of zero.
const RAISED = 0x80800000u;

// All lanes work together.
fn is_idle(at: Place) -> bool {
    return false;
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
        loaded.exp_avg_sq = decode_non_negative(codes_at(at, 1u), unsigned_scale(scales, 1u));
    }
    if STATES > 2u {
        loaded.exp_avg_lr = decode_positive(codes_at(at, 2u), unsigned_scale(scales, 2u));
    }
    return loaded;
}

// Of each group, its lanes' extremes: the largest of each state, raised, and the smallest above zero of the two without a sign. The
// latter are negated, so that zeros never win, nor infinity and NaN beside other numbers, and all are found by `max`.
override GROUPS: u32 = LANES / GROUP_WORDS;
const SMALLEST = 3u;
var<workgroup> extremes: array<array<array<u32, GROUP_WORDS>, 5>, GROUPS>;
// What each state had, and then has, of a group's scales.
var<workgroup> scales_before: array<u32, GROUPS>;
var<workgroup> scale_of_state: array<array<u32, 3>, GROUPS>;

fn largest_in(group: u32, row: u32) -> u32 {
    let lanes = &extremes[group][row];
    let some = vec4((*lanes)[0], (*lanes)[1], (*lanes)[2], (*lanes)[3]);
    let others = vec4((*lanes)[4], (*lanes)[5], (*lanes)[6], (*lanes)[7]);
    return largest_of(max(some, others));
}

fn scale_in_group(group: u32, state: u32) -> u32 {
    let largest = max(largest_in(group, state), RAISED) - RAISED;
    if state == 0u {
        return bottom_of(with_bottom(largest), SIGNED_SHIFT, 16u);
    }
    let smallest = 0u - largest_in(group, SMALLEST + state - 1u);
    let shift = shift_of(largest, smallest, unsigned_scale(scales_before[group], state).shift);
    let bottom = bottom_of(largest, shift, 1u << (shift - 15u));
    return (bottom << (8u * state)) | ((MOST_SHIFT - shift) << (22u + 2u * state));
}

// The scales that a lane's group gets. To be called by all lanes together, with a uniform format. `before` are the scales that were
// loaded; past the tensor's end state is zero.
fn scales_of(at: Place, format: u32, lane: u32, before: u32, stepped: State) -> u32 {
    if state_format(format) != STATE_Q8 {
        return 0u;
    }
    let group = lane / GROUP_WORDS;
    let word = lane % GROUP_WORDS;
    let m = bitcast<vec4<u32>>(stepped.exp_avg) & MAGNITUDE;
    let v = bitcast<vec4<u32>>(stepped.exp_avg_sq);
    let s = bitcast<vec4<u32>>(stepped.exp_avg_lr);
    extremes[group][0][word] = largest_of(m + vec4(RAISED));
    if STATES > 1u {
        extremes[group][1][word] = largest_of(v + vec4(RAISED));
        extremes[group][SMALLEST][word] = largest_of(vec4(0u) - v);
    }
    if STATES > 2u {
        extremes[group][2][word] = largest_of(s + vec4(RAISED));
        extremes[group][SMALLEST + 1u][word] = largest_of(vec4(0u) - s);
    }
    if word == 0u {
        scales_before[group] = before;
    }
    // What is written above depends on the scales that were loaded: past this, all lanes have theirs, and they may be replaced.
    workgroupBarrier();
    // One lane a scale, next to each other: the other subgroups need not wait for theirs.
    let state = lane / GROUPS;
    if state < STATES {
        scale_of_state[lane % GROUPS][state] = scale_in_group(lane % GROUPS, state);
    }
    workgroupBarrier();
    var scales = scale_of_state[group][0];
    if STATES > 1u {
        scales |= scale_of_state[group][1];
    }
    if STATES > 2u {
        scales |= scale_of_state[group][2];
    }
    return scales;
}

fn store_quantized(at: Place, scales: u32, stepped: State, random: Random) {
    set_codes_at(at, 0u, encode_signed(stepped.exp_avg, signed_scale(scales), random.exp_avg));
    if STATES > 1u {
        set_codes_at(at, 1u, encode_non_negative(stepped.exp_avg_sq, unsigned_scale(scales, 1u), random.exp_avg_sq));
    }
    if STATES > 2u {
        set_codes_at(at, 2u, encode_positive(stepped.exp_avg_lr, unsigned_scale(scales, 2u), random.exp_avg_lr));
    }
    if at.word % GROUP_WORDS == 0u {
        set_state_1(place_of_scales(at), scales);
    }
}
