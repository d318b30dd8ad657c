// Histograms of the learning rates, by powers of two: eta as Adam computes it, and the rate that was used, min(eta, s).
// A workgroup counts in its own memory and adds up at its end.

const BINS = 64u;
// Bin i counts rates from 2^(i - 40) up to 2^(i - 39); the first and the last take what lies beyond.
const LOWEST_EXPONENT = -40;
// Bins of eta, bins of the rate used, and the number of elements in which the bound was the smaller.
const COUNTERS = 2u * BINS + 1u;

// Counters of 64 bits: low word, high word.
@group(0) @binding(6) var<storage, read_write> histogram: array<atomic<u32>, 2u * COUNTERS>;

var<workgroup> counts: array<atomic<u32>, COUNTERS>;

fn bin_of(rate: f32) -> u32 {
    let exponent = i32(bitcast<u32>(rate) >> 23u) - 127;
    return u32(clamp(exponent - LOWEST_EXPONENT, 0, i32(BINS) - 1));
}

fn observe_element(eta: f32, bounded: f32) {
    atomicAdd(&counts[bin_of(eta)], 1u);
    atomicAdd(&counts[BINS + bin_of(bounded)], 1u);
    if bounded < eta {
        atomicAdd(&counts[2u * BINS], 1u);
    }
}

fn observe(at: Place, stepped: Stepped) {
    if at.mask.x { observe_element(stepped.eta.x, stepped.bounded.x); }
    if at.mask.y { observe_element(stepped.eta.y, stepped.bounded.y); }
    if at.mask.z { observe_element(stepped.eta.z, stepped.bounded.z); }
    if at.mask.w { observe_element(stepped.eta.w, stepped.bounded.w); }
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
