// 8-bit state: short floats below a scale that the 32 elements of a quant block share. src/storage/q8.rs mirrors this file line by line.
// The files of quantized/ say which lanes work on a quant block.
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

// Numbers of two quads.
struct Pair {
    a: vec4<f32>,
    b: vec4<f32>,
}

// The scale of one state in a quant block.
struct Scale {
    // Bits of the number that code 0 would be.
    bottom: u32,
    shift: u32,
}

// The scales of a quant block are one word: the exponents of three bottoms, 8 bits each, then MOST_SHIFT minus each of three shifts,
// 2 bits each, in the order of states 1, 2 and 0.
fn shift_bit(index: u32) -> u32 {
    return select(22u + 2u * index, 28u, SIGN_0 != SIGNED && index == 0u);
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

fn unpacked(word: u32) -> vec4<u32> {
    return (vec4(word) >> vec4(0u, 8u, 16u, 24u)) & vec4(0xffu);
}

// The codes are in the high bytes.
fn packed(codes: vec4<u32>) -> u32 {
    return (codes.x >> 24u) | ((codes.y >> 16u) & 0xff00u) | ((codes.z >> 8u) & 0xff0000u) | (codes.w & 0xff000000u);
}

fn decode_positive(word: u32, scale: Scale) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4(scale.bottom) + (unpacked(word) << vec4(scale.shift)));
}

fn decode_signed(word: u32, scale: Scale) -> vec4<f32> {
    let above = decode_positive(word & 0x7f7f7f7fu, scale);
    let magnitude = above - vec4(bitcast<f32>(scale.bottom));
    let signs = (vec4(word) << vec4(24u, 16u, 8u, 0u)) & ~MAGNITUDE;
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(magnitude) | signs);
}

// The highest bit of each byte that is zero, and of some bytes above one.
fn zero_bytes(word: u32) -> u32 {
    return (word - 0x01010101u) & ~word & 0x80808080u;
}

fn decode(sign: u32, words: vec2<u32>, scale: Scale) -> Pair {
    if sign == SIGNED {
        return Pair(decode_signed(words.x, scale), decode_signed(words.y, scale));
    }
    var pair = Pair(decode_positive(words.x, scale), decode_positive(words.y, scale));
    if sign == NON_NEGATIVE {
        if !SKIPS_RARE_PATHS || (zero_bytes(words.x) | zero_bytes(words.y)) != 0u {
            pair.a = select(pair.a, vec4(0.0), unpacked(words.x) == vec4(0u));
            pair.b = select(pair.b, vec4(0.0), unpacked(words.y) == vec4(0u));
        }
    }
    return pair;
}

// A scale as encoding needs it. Numbers are multiplied by a power of two that makes the bottom 2.0, whose bits a shift drops. A bottom of
// zero stays zero.
struct Coding {
    factor: f32,
    bottom: f32,
    // Bits from the lowest of a code to the lowest of a word's high byte.
    left: u32,
}

fn coding_of(scale: Scale) -> Coding {
    if scale.bottom == 0u {
        return Coding(1.0, 0.0, 24u - scale.shift);
    }
    return Coding(bitcast<f32>(0x7f800000u - scale.bottom), 2.0, 24u - scale.shift);
}

// The codes of bits that are not below the bottom, in the high bytes. Random bits below round up in proportion to what is dropped.
fn coded(bits: vec4<u32>, left: u32, random: vec4<u32>) -> vec4<u32> {
    return (bits << vec4(left)) + (random >> vec4(8u));
}

fn encode_signed(value: vec4<f32>, coding: Coding, random: vec4<u32>) -> u32 {
    let magnitude = abs(value) * coding.factor + coding.bottom;
    let codes = coded(bitcast<vec4<u32>>(magnitude), 24u - SIGNED_SHIFT, random);
    return packed(insertBits(bitcast<vec4<u32>>(value), codes, 0u, 31u));
}

// The codes of an unsigned state, in the high bytes, if no number is coded below `lowest`.
fn coded_from(lowest: u32, value: vec4<f32>, coding: Coding, random: vec4<u32>) -> vec4<u32> {
    return coded(max(bitcast<vec4<u32>>(value * coding.factor), vec4(lowest)), coding.left, random);
}

fn encode(sign: u32, value: Pair, has_zero: bool, coding: Coding, a: vec4<u32>, b: vec4<u32>) -> vec2<u32> {
    if sign == SIGNED {
        return vec2(encode_signed(value.a, coding, a), encode_signed(value.b, coding, b));
    }
    var lowest = bitcast<u32>(coding.bottom);
    if sign == NON_NEGATIVE {
        lowest += (1u << 24u) >> coding.left;
    }
    var a_codes = coded_from(lowest, value.a, coding, a);
    var b_codes = coded_from(lowest, value.b, coding, b);
    if sign == NON_NEGATIVE {
        if has_zero {
            a_codes = select(a_codes, vec4(0u), bitcast<vec4<u32>>(value.a) == vec4(0u));
            b_codes = select(b_codes, vec4(0u), bitcast<vec4<u32>>(value.b) == vec4(0u));
        }
    }
    return vec2(packed(a_codes), packed(b_codes));
}

// Bits of non-negative f32 are ordered as the numbers are.
fn largest_of(bits: vec4<u32>) -> u32 {
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn smallest_of(bits: vec4<u32>) -> u32 {
    return min(min(bits.x, bits.y), min(bits.z, bits.w));
}

// What a scale depends on, in bits: the largest number or magnitude that is finite, or 0; the smallest number above zero of an unsigned
// state, or a large one.
struct Extremes {
    largest: u32,
    smallest: u32,
}

// One after the other, because GPUs have an instruction for the maximum of three.
fn largest_of_pair(a: vec4<u32>, b: vec4<u32>) -> u32 {
    return max(max(max(max(max(max(max(a.x, a.y), a.z), a.w), b.x), b.y), b.z), b.w);
}

fn smallest_of_pair(a: vec4<u32>, b: vec4<u32>) -> u32 {
    return min(min(min(min(min(min(min(a.x, a.y), a.z), a.w), b.x), b.y), b.z), b.w);
}

// The extremes if no number is zero, infinite or NaN.
fn usual_extremes(sign: u32, value: Pair) -> Extremes {
    let a = bitcast<vec4<u32>>(value.a);
    let b = bitcast<vec4<u32>>(value.b);
    let largest = largest_of_pair(a, b);
    if sign == SIGNED {
        // As integers: NaN may take the place of the other number in a maximum of floats, and be lost itself in the next one. The largest
        // signed integer is the largest positive number, and the largest unsigned one the largest negative number, if there is one.
        let p = bitcast<vec4<i32>>(value.a);
        let q = bitcast<vec4<i32>>(value.b);
        let positive = max(max(max(max(max(max(max(p.x, p.y), p.z), p.w), q.x), q.y), q.z), q.w);
        return Extremes(u32(max(positive, i32(largest & MAGNITUDE.x))), 1u);
    }
    return Extremes(largest, smallest_of_pair(a, b));
}

fn is_usual(extremes: Extremes) -> bool {
    return max(extremes.largest, extremes.smallest - 1u) < 0x7f800000u;
}

// With this added, bits of infinity and NaN wrap around to below those of zero.
const RAISED = 0x80800000u;

fn all_extremes(sign: u32, value: Pair) -> Extremes {
    let a = bitcast<vec4<u32>>(value.a);
    let b = bitcast<vec4<u32>>(value.b);
    if sign == SIGNED {
        let raised = largest_of(max((a & MAGNITUDE) + vec4(RAISED), (b & MAGNITUDE) + vec4(RAISED)));
        return Extremes(max(raised, RAISED) - RAISED, 1u);
    }
    let raised = largest_of(max(a + vec4(RAISED), b + vec4(RAISED)));
    // Below zero wraps around to the largest.
    let lowered = smallest_of(min(a - vec4(1u), b - vec4(1u)));
    return Extremes(max(raised, RAISED) - RAISED, max(lowered, lowered + 1u));
}

// The shift that leaves room for the span of the quant block: 256 codes hold 2^(shift - 15) octaves. A smaller shift than before is
// taken only with an octave to spare, because each change to a larger one rounds the whole quant block.
fn shift_of(extremes: Extremes, before: u32) -> u32 {
    let octaves = i32((extremes.largest >> 23u) - (min(extremes.smallest, extremes.largest) >> 23u)) + 2;
    // A span needs the shift 16 plus the index of the first bit of what is one below it, which is the exponent of an f32.
    let least = bitcast<u32>(f32(octaves - 1)) >> 23u;
    let most = bitcast<u32>(f32(octaves)) >> 23u;
    const FROM_EXPONENT = 127u - 16u;
    let shift = min(max(before + FROM_EXPONENT, least), most);
    return clamp(shift, LEAST_SHIFT + FROM_EXPONENT, MOST_SHIFT + FROM_EXPONENT) - FROM_EXPONENT;
}

// The new scale of a state. Its bottom is so many octaves below what the largest number may be rounded up to. A signed state has 16
// octaves, and its bottom is added before rounding: that makes the largest number 2^-13 larger at most.
fn new_scale(is_signed: bool, extremes: Extremes, before: u32) -> Scale {
    let shift = select(shift_of(extremes, before), SIGNED_SHIFT, is_signed);
    let octaves = select(1u << (shift - 15u), 16u, is_signed);
    let rounding = (1u << shift) + select(0u, 0x400u, is_signed);
    let end = ((extremes.largest + rounding) >> 23u) + 1u;
    return Scale((max(end, octaves) - octaves) << 23u, shift);
}

// A state's part of the word of scales.
fn part_of_scales(index: u32, is_signed: bool, scale: Scale) -> u32 {
    let shift = select((MOST_SHIFT - scale.shift) << shift_bit(index), 0u, is_signed);
    return (scale.bottom >> (23u - 8u * index)) | shift;
}

// The codes of each state.
alias Codes = array<vec2<u32>, MAX_STATES>;
alias Pairs = array<Pair, MAX_STATES>;

fn load_codes(at: Place, pair: u32, has_second: bool) -> Codes {
    var codes: Codes;
    if STATES > 0u {
        codes[0] = state_pair(start_of_state(at, 0u), pair, has_second);
    }
    if STATES > 1u {
        codes[1] = state_pair(start_of_state(at, 1u), pair, has_second);
    }
    if STATES > 2u {
        codes[2] = state_pair(start_of_state(at, 2u), pair, has_second);
    }
    return codes;
}

fn decode_all(codes: Codes, scales: u32) -> Pairs {
    var pairs: Pairs;
    if STATES > 0u {
        pairs[0] = decode(SIGN_0, codes[0], scale_in(scales, 0u, SIGN_0));
    }
    if STATES > 1u {
        pairs[1] = decode(SIGN_1, codes[1], scale_in(scales, 1u, SIGN_1));
    }
    if STATES > 2u {
        pairs[2] = decode(SIGN_2, codes[2], scale_in(scales, 2u, SIGN_2));
    }
    return pairs;
}
