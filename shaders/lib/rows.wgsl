// Which row of a chunk's rows an element is in. Division of integers is slow on many devices.

// floor(n / divisor), where n is below divisor + 2048 and `inverse` is 1 / divisor.
fn rows_in(n: vec4<u32>, divisor: u32, inverse: f32) -> vec4<u32> {
    if divisor >= 0x400000u {
        return select(vec4(0u), vec4(1u), n >= vec4(divisor));
    }
    // Numbers of 23 bits are exact, so the quotient is off by one at most.
    var quotient = vec4<u32>(vec4<i32>(vec4<f32>(vec4<i32>(n)) * inverse));
    quotient -= select(vec4(0u), vec4(1u), quotient * divisor > n);
    quotient += select(vec4(0u), vec4(1u), n - quotient * divisor >= vec4(divisor));
    return quotient;
}
