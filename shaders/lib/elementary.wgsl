// Functions that coefficients of step t need. WGSL's own log2 near 1 and exp may be off by hundreds of units in the last place. These are
// off by a few.

// ln 2 in 16 bits, so that small multiples are exact, and the rest.
const LN_2: f32 = 0x1.62e4p-1;
const LN_2_REST: f32 = 0x1.7f7d1cp-20;

// The natural logarithm of a normal number above 0.
fn log_of(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    var exponent = i32(bits >> 23u) - 127;
    var mantissa = bitcast<f32>((bits & 0x7fffffu) | 0x3f800000u);
    if mantissa > 1.4142135 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh(s), and |s| is at most 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let s2 = s * s;
    let series = s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0))));
    let e = f32(exponent);
    return e * LN_2 + (2.0 * s + (2.0 * s * series + e * LN_2_REST));
}

// exp(x) as power * (1 + small), where power is a power of two and small is exp - 1 of at most 0.35. x is clamped to what f32 holds.
struct Exponential {
    power: f32,
    small: f32,
}

fn exponential(x: f32) -> Exponential {
    let n = round(clamp(x, -87.0, 87.0) / 0.6931472);
    let r = (clamp(x, -87.0, 87.0) - n * LN_2) - n * LN_2_REST;
    let series = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0)));
    let small = r + r * r * (0.5 + r * (1.0 / 6.0 + r * series));
    return Exponential(bitcast<f32>(u32(i32(n) + 127) << 23u), small);
}

fn exp_of(x: f32) -> f32 {
    let e = exponential(x);
    return e.power + e.power * e.small;
}

fn exp_minus_one(x: f32) -> f32 {
    let e = exponential(x);
    return e.power * e.small + (e.power - 1.0);
}
