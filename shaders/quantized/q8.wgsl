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

fn set_codes_at(at: Place, index: u32, codes: vec4<u32>) {
    let shifted = select(vec4(0u), codes, at.mask) << vec4(0u, 8u, 16u, 24u);
    set_state_1(place_in_part(at, index), shifted.x | shifted.y | shifted.z | shifted.w);
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
    let above = (bits + dither(random, shift)) >> vec4(shift);
    let code = min(max(above, vec4(base + 1u)) - vec4(base), vec4(UNSIGNED_CODES - 1u));
    return select(code, vec4(0u), bits == vec4(0u));
}

// The top above which rounding up cannot carry the largest number.
fn top_of(largest: u32, mantissa: u32) -> u32 {
    return clamp((largest + (1u << (23u - mantissa))) >> 23u, 1u, 255u);
}

// As many fraction bits as leave room for the group's span. More than before are taken only with an octave to spare, so that
// they do not go to and fro: giving bits up rounds the whole group.
fn mantissa_of(largest: u32, smallest: u32, before: u32) -> u32 {
    let octaves = (largest >> 23u) - (min(smallest, largest) >> 23u) + 2u;
    var mantissa = LEAST_MANTISSA;
    if octaves + u32(before < 4u) <= UNSIGNED_CODES >> 4u { mantissa = 4u; }
    if octaves + u32(before < 5u) <= UNSIGNED_CODES >> 5u { mantissa = 5u; }
    if octaves + u32(before < 6u) <= UNSIGNED_CODES >> 6u { mantissa = MOST_MANTISSA; }
    return mantissa;
}

// Bits of non-negative f32 are ordered as the numbers are.
fn largest_of(bits: vec4<u32>) -> u32 {
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn smallest_above_zero_of(bits: vec4<u32>) -> u32 {
    let above_zero = select(bits, vec4(0xffffffffu), bits == vec4(0u));
    return min(min(above_zero.x, above_zero.y), min(above_zero.z, above_zero.w));
}

fn load_quantized(at: Place) -> State {
    let scales = state_1(place_of_scales(at));
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

const MOST_LANES = 256u;

// Of each lane's four elements: the largest of each state, the smallest above zero of the two without a sign.
var<workgroup> largest_of_lane: array<vec3<u32>, MOST_LANES>;
var<workgroup> smallest_of_lane: array<vec2<u32>, MOST_LANES>;

fn store_quantized(at: Place, lane: u32, stepped: State, random: Random) {
    let before = state_1(place_of_scales(at));
    let exp_avg = select(vec4(0u), bitcast<vec4<u32>>(stepped.exp_avg) & MAGNITUDE, at.mask);
    let exp_avg_sq = select(vec4(0u), bitcast<vec4<u32>>(stepped.exp_avg_sq), at.mask);
    let exp_avg_lr = select(vec4(0u), bitcast<vec4<u32>>(stepped.exp_avg_lr), at.mask);
    // The last round's readers are done, and so are those of `before`.
    storageBarrier();
    workgroupBarrier();
    largest_of_lane[lane] = vec3(largest_of(exp_avg), largest_of(exp_avg_sq), largest_of(exp_avg_lr));
    smallest_of_lane[lane] = vec2(smallest_above_zero_of(exp_avg_sq), smallest_above_zero_of(exp_avg_lr));
    workgroupBarrier();
    var largest = vec3(0u);
    var smallest = vec2(0xffffffffu);
    let first = lane / GROUP_WORDS * GROUP_WORDS;
    for (var i = 0u; i < GROUP_WORDS; i++) {
        largest = max(largest, largest_of_lane[first + i]);
        smallest = min(smallest, smallest_of_lane[first + i]);
    }
    if !at.mask.x {
        return;
    }
    let signed = Scale(top_of(largest.x, LEAST_MANTISSA), LEAST_MANTISSA);
    var scales = signed.top;
    set_codes_at(at, 0u, encode_signed(stepped.exp_avg, signed, random.exp_avg));
    if STATES > 1u {
        let mantissa = mantissa_of(largest.y, smallest.x, unsigned_scale(before, 1u).mantissa);
        let scale = Scale(top_of(largest.y, mantissa), mantissa);
        scales |= (scale.top << 8u) | ((mantissa - LEAST_MANTISSA) << 24u);
        set_codes_at(at, 1u, encode_unsigned(stepped.exp_avg_sq, scale, random.exp_avg_sq));
    }
    if STATES > 2u {
        let mantissa = mantissa_of(largest.z, smallest.y, unsigned_scale(before, 2u).mantissa);
        let scale = Scale(top_of(largest.z, mantissa), mantissa);
        scales |= (scale.top << 16u) | ((mantissa - LEAST_MANTISSA) << 26u);
        set_codes_at(at, 2u, encode_unsigned(stepped.exp_avg_lr, scale, random.exp_avg_lr));
    }
    if at.word % GROUP_WORDS == 0u {
        set_state_1(place_of_scales(at), scales);
    }
}
