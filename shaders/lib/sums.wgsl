// Sums of squares of gradients, for the global norm and to find gradients that are not finite. Squares of f32 numbers do not fit into f32,
// so a sum has an exponent of its own: sum * 2^(2 exponent).

struct Partial {
    sum: f32,
    exponent: i32,
}

// An element was infinite or NaN.
const NOT_FINITE = 0x7fffffff;
const LEAST_EXPONENT = -100;
const MOST_EXPONENT = 126;

// 2^exponent, for exponents of normal numbers.
fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// A sum that is 2^126 times smaller than the other does not matter, so the factor stays a normal number.
fn scaled_to(partial: Partial, exponent: i32) -> f32 {
    return partial.sum * power_of_two(2 * max(partial.exponent - exponent, -63));
}

// A sum of zero has no exponent of its own.
fn exponent_of(partial: Partial) -> i32 {
    return select(partial.exponent, LEAST_EXPONENT, partial.sum == 0.0 && partial.exponent != NOT_FINITE);
}

fn added(one: Partial, other: Partial) -> Partial {
    let exponent = max(exponent_of(one), exponent_of(other));
    if exponent == NOT_FINITE {
        return Partial(0.0, NOT_FINITE);
    }
    return Partial(scaled_to(one, exponent) + scaled_to(other, exponent), exponent);
}

// The root of a sum, divided by the loss scale. It takes two steps, because 2^exponent and the quotient may each overflow f32.
fn norm_of(sum: Partial, loss_scale: f32) -> f32 {
    if sum.exponent == NOT_FINITE {
        return bitcast<f32>(0x7f800000u + u32(loss_scale < 0.0));
    }
    let half = sum.exponent / 2;
    return sqrt(sum.sum) * power_of_two(half) / loss_scale * power_of_two(sum.exponent - half);
}

// How many times the norm is larger than the largest finite number. It takes two steps, because many small gradients have an exponent
// from which 127 cannot be subtracted.
fn excess_of(sum: Partial, loss_scale: f32) -> f32 {
    let exponent = sum.exponent - 127;
    let half = exponent / 2;
    return sqrt(sum.sum) * power_of_two(half) / (loss_scale * (2.0 - 0x1p-23)) * power_of_two(exponent - half);
}

const ZERO = Partial(0.0, LEAST_EXPONENT);

// A sum of many numbers, one after the other, loses their last digits. So 64 numbers are summed first, and then their sums.
struct LongSum {
    total: Partial,
    some: Partial,
    count: u32,
}

// Call it after each number that was added to `some`.
fn counted(sum: LongSum) -> LongSum {
    let count = sum.count + 1u;
    if count % 64u == 0u {
        return LongSum(added(sum.total, sum.some), ZERO, count);
    }
    return LongSum(sum.total, sum.some, count);
}

const MOST_LANES = 256u;
var<workgroup> of_lane: array<Partial, MOST_LANES>;

// The sum of all lanes' partials, in lane 0. Call it in uniform control flow.
fn added_over_lanes(lane: u32, own: Partial) -> Partial {
    of_lane[lane] = own;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            of_lane[lane] = added(of_lane[lane], of_lane[lane + half]);
        }
    }
    return of_lane[lane];
}
