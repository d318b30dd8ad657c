// Histograms of the learning rates by powers of two, of eta as Adam computes it and of the rate that is used, min(eta, s), and sums of
// the squares of what is added to parameters. A workgroup counts in workgroup memory and adds its counts to the totals at the end.

const BINS = 64u;
// Bin i counts rates from 2^(i - 40) up to 2^(i - 39); the first and the last include what lies beyond.
const LOWEST_EXPONENT = -40;
const BOUNDED = BINS;
// Elements in which the bound was the smaller.
const CLIPPED = 2u * BINS;
// Quads with an update that is infinite or NaN.
const NOT_FINITE_UPDATES = CLIPPED + 1u;
// Sums of squares as integers, which add up to the same whatever their order: bin i is in units of 2^(4 i - 146).
const SQUARES = CLIPPED + 2u;
const COUNTERS = SQUARES + BINS;

// Counters of 64 bits: low word, high word.
@group(0) @binding(HISTOGRAM_BINDING) var<storage, read_write> histogram: array<atomic<u32>, 2u * COUNTERS>;

var<workgroup> counts: array<atomic<u32>, COUNTERS>;

fn bin_of(rate: f32) -> u32 {
    let exponent = i32(bitcast<u32>(rate) >> 23u) - 127;
    return u32(clamp(exponent - LOWEST_EXPONENT, 0, i32(BINS) - 1));
}

fn observe_element(eta: f32, bounded: f32) {
    atomicAdd(&counts[bin_of(eta)], 1u);
    atomicAdd(&counts[BOUNDED + bin_of(bounded)], 1u);
    if bounded < eta {
        atomicAdd(&counts[CLIPPED], 1u);
    }
}

// Rounded to 20 bits, so that the 256 quads of a chunk fit into a counter.
fn observe_squares(sum: f32) {
    let bits = bitcast<u32>(sum);
    let exponent = (bits >> 23u) & 0xffu;
    if exponent == 0xffu {
        atomicAdd(&counts[NOT_FINITE_UPDATES], 1u);
    } else if exponent > 0u {
        let mantissa = (((bits & 0x7fffffu) | 0x800000u) + 8u) >> 4u;
        atomicAdd(&counts[SQUARES + exponent / 4u], mantissa << (exponent % 4u));
    }
}

fn begin_observation(lane: u32) {
    for (var i = lane; i < COUNTERS; i += LANES) {
        atomicStore(&counts[i], 0u);
    }
    workgroupBarrier();
}

fn observe(at: Place, theta: vec4<f32>, stepped: Stepped) {
    // The first element belongs to the tensor, but may rest.
    if !HAS_MASKS || at.mask.x { observe_element(stepped.eta.x, stepped.bounded.x); }
    if at.mask.y { observe_element(stepped.eta.y, stepped.bounded.y); }
    if at.mask.z { observe_element(stepped.eta.z, stepped.bounded.z); }
    if at.mask.w { observe_element(stepped.eta.w, stepped.bounded.w); }
    let moved = select(vec4(0.0), stepped.theta - theta, at.mask);
    observe_squares(dot(moved, moved));
}

fn end_observation(lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < COUNTERS; i += LANES) {
        let count = atomicLoad(&counts[i]);
        if count > 0u {
            let before = atomicAdd(&histogram[2u * i], count);
            if before + count < before {
                atomicAdd(&histogram[2u * i + 1u], 1u);
            }
        }
    }
}
