// Sums of squares of gradients, for the global norm and to find gradients that are not finite.

// The sum of a few numbers. Squares of f32 numbers do not fit into f32, so it has an exponent of its own: sum * 2^(2 exponent).
struct Squares {
    sum: f32,
    exponent: i32,
}

// An element was infinite or NaN.
const NOT_FINITE = 0x7fffffff;
const LEAST_EXPONENT = -100;
const MOST_EXPONENT = 126;

const ZERO = Squares(0.0, LEAST_EXPONENT);

// 2^exponent, for exponents of normal numbers.
fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// A sum that is 2^126 times smaller than the other does not matter, so the factor stays a normal number.
fn scaled_to(squares: Squares, exponent: i32) -> f32 {
    return squares.sum * power_of_two(2 * max(squares.exponent - exponent, -63));
}

// The root of a sum, divided by the loss scale. It takes two steps, because 2^exponent and the quotient may each overflow f32.
fn norm_of(squares: Squares, loss_scale: f32) -> f32 {
    if squares.exponent == NOT_FINITE {
        return bitcast<f32>(0x7f800000u + u32(loss_scale < 0.0));
    }
    let half = squares.exponent / 2;
    return sqrt(squares.sum) * power_of_two(half) / loss_scale * power_of_two(squares.exponent - half);
}

// How many times the norm is larger than the largest finite number. It takes two steps, because many small gradients have an exponent
// from which 127 cannot be subtracted.
fn excess_of(squares: Squares, loss_scale: f32) -> f32 {
    let exponent = squares.exponent - 127;
    let half = exponent / 2;
    return sqrt(squares.sum) * power_of_two(half) / (loss_scale * (2.0 - 0x1p-23)) * power_of_two(exponent - half);
}

// A sum of many numbers that has the same bits in whatever order they are added. Numbers are cut into integers for bins of 32 bits: bin i
// counts in units of 2^(32 i - 350). There are counters of 64 bits for three bins, the highest that any number reaches and the two below
// it, and no counter carries into another. So what a number adds to a counter does not depend on other numbers. What lies below the bins is
// 2^64 times smaller than the largest number.
struct Partial {
    // Low words of the counters, the highest bin first.
    low: vec3<u32>,
    // The highest bin, from 1 to 19; 0 if every number was zero.
    top: u32,
    // High words of the counters.
    high: vec3<u32>,
}

const EMPTY = Partial(vec3(0u), 0u, vec3(0u));
// An element was infinite or NaN.
const TOP_NOT_FINITE = 255u;

fn partial_of(squares: Squares) -> Partial {
    if squares.exponent == NOT_FINITE {
        return Partial(vec3(0u), TOP_NOT_FINITE, vec3(0u));
    }
    let bits = bitcast<u32>(squares.sum);
    if bits == 0u {
        return EMPTY;
    }
    // The number is mantissa * 2^(place - 350).
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    let place = (bits >> 23u) + u32(2 * (squares.exponent - LEAST_EXPONENT));
    let shift = place % 32u;
    return Partial(vec3((mantissa >> 1u) >> (31u - shift), mantissa << shift, 0u), place / 32u + 1u, vec3(0u));
}

// The same sum with another highest bin, which is not below its own.
fn raised(partial: Partial, top: u32) -> Partial {
    switch top - partial.top {
        case 0u: {
            return partial;
        }
        case 1u: {
            return Partial(vec3(0u, partial.low.xy), top, vec3(0u, partial.high.xy));
        }
        case 2u: {
            return Partial(vec3(0u, 0u, partial.low.x), top, vec3(0u, 0u, partial.high.x));
        }
        default: {
            return Partial(vec3(0u), top, vec3(0u));
        }
    }
}

fn added(one: Partial, other: Partial) -> Partial {
    let top = max(one.top, other.top);
    let a = raised(one, top);
    let b = raised(other, top);
    let low = a.low + b.low;
    let carry = select(vec3(0u), vec3(1u), low < b.low);
    return Partial(low, top, a.high + b.high + carry);
}

// A word of which the first bit is set, rounded to nearest even. WGSL leaves the rounding of a conversion to the device.
fn rounded_to_f32(word: u32) -> f32 {
    let mantissa = word >> 8u;
    let rest = word & 0xffu;
    let up = rest > 0x80u || (rest == 0x80u && (mantissa & 1u) == 1u);
    return f32(mantissa + u32(up)) * 0x1p8;
}

// The sum as a number from 1 to 4 with an exponent.
fn squares_of(partial: Partial) -> Squares {
    if partial.top == TOP_NOT_FINITE {
        return Squares(0.0, NOT_FINITE);
    }
    if partial.top == 0u {
        return ZERO;
    }
    // One integer of four words, the highest first.
    var words = vec4(partial.high.x, partial.low);
    words.z += partial.high.z;
    let carry = u32(words.z < partial.high.z);
    words.y += carry;
    words.x += u32(words.y < carry);
    words.y += partial.high.y;
    words.x += u32(words.y < partial.high.y);
    var top = i32(partial.top);
    while words.x == 0u {
        words = vec4(words.yzw, 0u);
        top--;
    }
    let zeros = countLeadingZeros(words.x);
    let leading = (words.x << zeros) | ((words.y >> 1u) >> (31u - zeros));
    let exponent = 32 * top - 287 - i32(zeros);
    return Squares(rounded_to_f32(leading) * power_of_two((exponent & 1) - 31), exponent >> 1u);
}

var<workgroup> top_of_lanes: atomic<u32>;
var<workgroup> low_of_lanes: array<atomic<u32>, 3>;
var<workgroup> high_of_lanes: array<atomic<u32>, 3>;

fn count_of_lane(bin: u32, low: u32, high: u32) {
    if (low | high) != 0u {
        let before = atomicAdd(&low_of_lanes[bin], low);
        let carried = high + u32(before + low < before);
        if carried != 0u {
            atomicAdd(&high_of_lanes[bin], carried);
        }
    }
}

// The sum of all lanes' partial sums. Call it in uniform control flow, and not again before another barrier.
fn added_over_lanes(lane: u32, own: Partial) -> Partial {
    if lane == 0u {
        atomicStore(&top_of_lanes, 0u);
    }
    if lane < 3u {
        atomicStore(&low_of_lanes[lane], 0u);
        atomicStore(&high_of_lanes[lane], 0u);
    }
    workgroupBarrier();
    atomicMax(&top_of_lanes, own.top);
    workgroupBarrier();
    let top = atomicLoad(&top_of_lanes);
    let counted = raised(own, top);
    count_of_lane(0u, counted.low.x, counted.high.x);
    count_of_lane(1u, counted.low.y, counted.high.y);
    count_of_lane(2u, counted.low.z, counted.high.z);
    workgroupBarrier();
    let low = vec3(atomicLoad(&low_of_lanes[0]), atomicLoad(&low_of_lanes[1]), atomicLoad(&low_of_lanes[2]));
    let high = vec3(atomicLoad(&high_of_lanes[0]), atomicLoad(&high_of_lanes[1]), atomicLoad(&high_of_lanes[2]));
    return Partial(low, top, high);
}
