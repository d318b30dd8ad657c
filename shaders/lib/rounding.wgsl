// Conversion between f32 and 16 bits by integer arithmetic, which gives the same bits on every device, for subnormals, infinities and
// NaN too. src/storage/dtype.rs mirrors it line by line. A half is a 16-bit number in the low bits of a word.

// What infinities, NaN and other rare numbers need is behind a branch. Without it all lanes compute it, and results are the same.
override RARE_PATHS_APART: bool = true;

const MAGNITUDE = vec4(0x7fffffffu);
const INFINITY = vec4(0x7f800000u);

fn is_nan(bits: vec4<u32>) -> vec4<bool> {
    return (bits & MAGNITUDE) > INFINITY;
}

fn halves_of(packed: vec2<u32>) -> vec4<u32> {
    return vec4(packed.x & 0xffffu, packed.x >> 16u, packed.y & 0xffffu, packed.y >> 16u);
}

fn pack_halves(halves: vec4<u32>) -> vec2<u32> {
    return vec2(halves.x | (halves.y << 16u), halves.z | (halves.w << 16u));
}

fn f32_of_f16(half: vec4<u32>) -> vec4<u32> {
    let sign = (half & vec4(0x8000u)) << vec4(16u);
    let magnitude = half & vec4(0x7fffu);
    // The exponent's bias changes from 15 to 127; that of infinity and NaN is all ones in both.
    let rebiased = (magnitude << vec4(13u)) + select(vec4(0x38000000u), vec4(0x70000000u), magnitude >= vec4(0x7c00u));
    let subnormal = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 0x1p-24);
    return sign | select(rebiased, subnormal, magnitude < vec4(0x400u));
}

fn f16_of_f32(bits: vec4<u32>) -> vec4<u32> {
    let sign = (bits >> vec4(16u)) & vec4(0x8000u);
    let magnitude = bits & MAGNITUDE;
    let even = (magnitude >> vec4(13u)) & vec4(1u);
    // Past the largest f16 the carry gives infinity.
    let normal = (min(magnitude, vec4(0x47800000u)) - vec4(0x38000000u) + vec4(0xfffu) + even) >> vec4(13u);
    // Added to 1/2, a number below 2^-14 is rounded to multiples of 2^-24.
    let small = min(bitcast<vec4<f32>>(magnitude), vec4(0x1p-14));
    let subnormal = bitcast<vec4<u32>>(small + vec4(0.5)) - vec4(0x3f000000u);
    let finite = select(normal, subnormal, magnitude < vec4(0x38800000u));
    let nan = vec4(0x7e00u) | ((magnitude >> vec4(13u)) & vec4(0x3ffu));
    return sign | select(finite, nan, is_nan(bits));
}

fn bf16_of_f32(bits: vec4<u32>) -> vec4<u32> {
    let even = (bits >> vec4(16u)) & vec4(1u);
    return bf16_rounded_up_from(bits, vec4(0x7fffu) + even);
}

// Adds `addend`, which is below 2^16, and drops the lower 16 bits. A random addend makes the rounding unbiased.
fn bf16_rounded_up_from(bits: vec4<u32>, addend: vec4<u32>) -> vec4<u32> {
    var rounded = bits + addend;
    // One look at four numbers: the sum of their magnitudes is finite only if all of them are.
    let sizes = abs(bitcast<vec4<f32>>(bits));
    if !RARE_PATHS_APART || bitcast<u32>((sizes.x + sizes.y) + (sizes.z + sizes.w)) >= 0x7f800000u {
        rounded = with_special(rounded, bits);
    }
    return rounded >> vec4(16u);
}

// Infinity and NaN stay, and NaN becomes quiet.
fn with_special(rounded: vec4<u32>, bits: vec4<u32>) -> vec4<u32> {
    let special = (bits & INFINITY) == INFINITY;
    let quiet = select(vec4(0u), vec4(0x400000u), is_nan(bits));
    return select(rounded, bits | quiet, special);
}

// f32 bits of four numbers of a 16-bit type.
fn widen(dtype: u32, halves: vec4<u32>) -> vec4<u32> {
    if dtype == F16 {
        return f32_of_f16(halves);
    }
    return halves << vec4(16u);
}

// Rounds to the nearest, ties to even.
fn narrow(dtype: u32, bits: vec4<u32>) -> vec4<u32> {
    if dtype == F16 {
        return f16_of_f32(bits);
    }
    return bf16_of_f32(bits);
}
