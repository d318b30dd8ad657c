// 8-bit state: short floats below a scale that the 32 elements of a quant block share. src/storage/q8.rs mirrors this file line by line.
//
// Codes count the numbers with `mantissa` fraction bits from a bottom upwards. Encoding drops bits of an f32, and decoding puts them
// back: bits = bottom + (code << shift), where shift = 23 - mantissa and the bottom is a power of two, in bits too. 256 codes are
// 2^(8 - mantissa) octaves. A change of the bottom only shifts the codes, which loses nothing; this is why averages of slow decay do
// not drift. Rounding is stochastic, so that the average of what is stored is what was computed.
//
// The codes of a state depend on its sign. A signed state has a sign bit and 7 bits with 3 of fraction: 16 octaves, and evenly spaced
// numbers from the lowest of them to zero. Unsigned states have 8 bits with 3 to 6 of fraction, as many as the span of the quant block
// allows: 32 to 4 octaves. In a non-negative state code 0 is zero, and no other number is rounded to it: eta of a zero would be
// alpha / epsilon.
//
// The bottom of a quant block leaves room for its largest finite number rounded up, so no code of a finite number overflows. Infinity
// and NaN get some code. The parameter shows them and keeps them, and their neighbours are not affected.

const BLOCK_QUADS = 8u;
const SIGNED_SHIFT = 20u;
const LEAST_SHIFT = 17u;
const MOST_SHIFT = 20u;

// The scale of one state in a quant block.
struct Scale {
    // Bits of the number that code 0 would be.
    bottom: u32,
    shift: u32,
}

// The scales of a quant block are one word: the exponents of three bottoms, 8 bits each, then MOST_SHIFT minus each of three shifts,
// 2 bits each, in the order of states 1, 2 and 0.
fn shift_bit(index: u32) -> u32 {
    return select(22u + 2u * index, 28u, index == 0u);
}

fn bottom_in(scales: u32, index: u32) -> u32 {
    return (scales << (23u - 8u * index)) & 0x7f800000u;
}

fn shift_in(scales: u32, index: u32) -> u32 {
    return MOST_SHIFT - ((scales >> shift_bit(index)) & 3u);
}

fn scale_in(scales: u32, index: u32, sign: u32) -> Scale {
    if sign == SIGNED {
        return Scale(bottom_in(scales, index), SIGNED_SHIFT);
    }
    return Scale(bottom_in(scales, index), shift_in(scales, index));
}

fn place_of_scales(at: Place) -> u32 {
    return at.block + STATES * part_words(at, at.quads) + at.quad / BLOCK_QUADS;
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

fn decode(sign: u32, codes: vec4<u32>, scale: Scale) -> vec4<f32> {
    switch sign {
        case SIGNED: {
            return decode_signed(codes, scale);
        }
        case NON_NEGATIVE: {
            return decode_non_negative(codes, scale);
        }
        default: {
            return decode_positive(codes, scale);
        }
    }
}

// The code of what lies above a bottom, in the high byte. Random bits below it round up in proportion to what is dropped.
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

fn encode(sign: u32, value: vec4<f32>, scale: Scale, random: vec4<u32>) -> vec4<u32> {
    switch sign {
        case SIGNED: {
            return encode_signed(value, scale, random);
        }
        case NON_NEGATIVE: {
            return encode_non_negative(value, scale, random);
        }
        default: {
            return encode_positive(value, scale, random);
        }
    }
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

// The shift that leaves room for the span of the quant block: 256 codes hold 2^(shift - 15) octaves. A smaller shift than before is
// taken only with an octave to spare, because each change to a larger one rounds the whole quant block.
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

fn load_codes(at: Place, scales: u32, index: u32, sign: u32) -> vec4<f32> {
    return decode(sign, codes_at(at, index), scale_in(scales, index, sign));
}

fn load_quantized(at: Place, scales: u32) -> State {
    var loaded: State;
    loaded[0] = load_codes(at, scales, 0u, SIGN_0);
    if STATES > 1u {
        loaded[1] = load_codes(at, scales, 1u, SIGN_1);
    }
    if STATES > 2u {
        loaded[2] = load_codes(at, scales, 2u, SIGN_2);
    }
    return loaded;
}

// Of each quant block, the extremes of its lanes: the largest number of each state, raised, and the smallest above zero of each
// unsigned state. The latter are negated, so that zeros never win, nor infinity and NaN beside other numbers, and `max` finds all of
// them.
override BLOCKS: u32 = LANES / BLOCK_QUADS;
const ROWS_WITHOUT_SMALLEST = select(0u, 1u, SIGN_0 == SIGNED);
const SMALLEST = MAX_STATES - ROWS_WITHOUT_SMALLEST;
var<workgroup> extremes: array<array<array<u32, BLOCK_QUADS>, MAX_STATES + SMALLEST>, BLOCKS>;
// The scales of the quant blocks before the step, and the new scale of each state.
var<workgroup> scales_before: array<u32, BLOCKS>;
var<workgroup> scale_of_state: array<array<u32, MAX_STATES>, BLOCKS>;

fn note_extremes(block: u32, lane_of_block: u32, index: u32, sign: u32, value: vec4<f32>) {
    let bits = bitcast<vec4<u32>>(value);
    if sign == SIGNED {
        extremes[block][index][lane_of_block] = largest_of((bits & MAGNITUDE) + vec4(RAISED));
    } else {
        extremes[block][index][lane_of_block] = largest_of(bits + vec4(RAISED));
        extremes[block][SMALLEST + index][lane_of_block] = largest_of(vec4(0u) - bits);
    }
}

fn largest_in(block: u32, row: u32) -> u32 {
    let lanes = &extremes[block][row];
    let some = vec4((*lanes)[0], (*lanes)[1], (*lanes)[2], (*lanes)[3]);
    let others = vec4((*lanes)[4], (*lanes)[5], (*lanes)[6], (*lanes)[7]);
    return largest_of(max(some, others));
}

fn sign_of(index: u32) -> u32 {
    return select(select(SIGN_2, SIGN_1, index == 1u), SIGN_0, index == 0u);
}

fn new_scale(block: u32, index: u32) -> u32 {
    let largest = max(largest_in(block, index), RAISED) - RAISED;
    if sign_of(index) == SIGNED {
        return bottom_of(with_bottom(largest), SIGNED_SHIFT, 16u) << (8u * index);
    }
    let smallest = 0u - largest_in(block, SMALLEST + index);
    let shift = shift_of(largest, smallest, shift_in(scales_before[block], index));
    let bottom = bottom_of(largest, shift, 1u << (shift - 15u));
    return (bottom << (8u * index)) | ((MOST_SHIFT - shift) << shift_bit(index));
}

// The new scales of a lane's quant block. All lanes call it together, with a uniform format. `before` are the scales that were loaded.
// Past the tensor's end state is zero.
fn scales_of(at: Place, format: u32, lane: u32, before: u32, state: State) -> u32 {
    if state_format(format) != STATE_Q8 {
        return 0u;
    }
    let block = lane / BLOCK_QUADS;
    let lane_of_block = lane % BLOCK_QUADS;
    note_extremes(block, lane_of_block, 0u, SIGN_0, state[0]);
    if STATES > 1u {
        note_extremes(block, lane_of_block, 1u, SIGN_1, state[1]);
    }
    if STATES > 2u {
        note_extremes(block, lane_of_block, 2u, SIGN_2, state[2]);
    }
    if lane_of_block == 0u {
        scales_before[block] = before;
    }
    // What is written above depends on the loaded scales. Past this barrier all lanes have theirs, and the scales may be replaced.
    workgroupBarrier();
    // One lane finds one scale. These lanes are next to each other, so that the other subgroups need not wait for them.
    let index = lane / BLOCKS;
    if index < STATES {
        scale_of_state[lane % BLOCKS][index] = new_scale(lane % BLOCKS, index);
    }
    workgroupBarrier();
    var scales = scale_of_state[block][0];
    if STATES > 1u {
        scales |= scale_of_state[block][1];
    }
    if STATES > 2u {
        scales |= scale_of_state[block][2];
    }
    return scales;
}

fn store_codes(at: Place, scales: u32, index: u32, sign: u32, value: vec4<f32>, random: vec4<u32>) {
    set_codes_at(at, index, encode(sign, value, scale_in(scales, index, sign), random));
}

fn store_quantized(at: Place, scales: u32, state: State, random: Random) {
    store_codes(at, scales, 0u, SIGN_0, state[0], random.state[0]);
    if STATES > 1u {
        store_codes(at, scales, 1u, SIGN_1, state[1], random.state[1]);
    }
    if STATES > 2u {
        store_codes(at, scales, 2u, SIGN_2, state[2], random.state[2]);
    }
    if at.quad % BLOCK_QUADS == 0u {
        set_state_1(place_of_scales(at), scales);
    }
}
