//! Counter-based random numbers for stochastic rounding. Mirrors `shaders/lib/random.wgsl` line by line.

use super::state::MAX_STATES;

fn pcg4d(counter: [u32; 4]) -> [u32; 4] {
    let mut v = counter.map(|x| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let mix = |v: &mut [u32; 4]| {
        v[0] = v[0].wrapping_add(v[1].wrapping_mul(v[3]));
        v[1] = v[1].wrapping_add(v[2].wrapping_mul(v[0]));
        v[2] = v[2].wrapping_add(v[0].wrapping_mul(v[1]));
        v[3] = v[3].wrapping_add(v[1].wrapping_mul(v[2]));
    };
    mix(&mut v);
    v = v.map(|x| x ^ x >> 16);
    mix(&mut v);
    v
}

/// The random words of one element, one for each number that is rounded. Rounding uses as many of the high bits as it drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    /// For the states, in order.
    pub states: [u32; MAX_STATES],
    /// For the parameter.
    pub parameter: u32,
}

impl Random {
    /// Turns stochastic rounding into rounding to nearest.
    pub const TO_NEAREST: Self = Self { states: [0x8000_0000; MAX_STATES], parameter: 0x8000_0000 };
}

/// The random words of the four elements of quad `quad` of the tensor with this key.
pub fn random_of(key: [u32; 2], step: u32, quad: u32) -> [Random; 4] {
    let hash = pcg4d([quad, step, key[0], key[1]]);
    std::array::from_fn(|i| Random {
        states: [hash[i], hash[(i + 1) % 4], hash[(i + 2) % 4]],
        parameter: hash[(i + 3) % 4],
    })
}

/// The key of a tensor's random numbers: a hash of the optimizer's seed and the tensor's label (FNV-1a, then the finalizer of
/// MurmurHash3).
pub fn key_of(seed: u64, label: &str) -> [u32; 2] {
    let fnv = label.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut hash = fnv ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    [hash as u32, (hash >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean of uniform numbers, and correlations between neighbours, steps, keys and states: within five standard
    /// deviations of what independence gives.
    #[test]
    fn random_numbers_are_uniform_and_independent() {
        const QUADS: u32 = 1 << 15;
        let draw = |key: [u32; 2], step: u32| -> Vec<[f64; 4]> {
            (0..QUADS)
                .flat_map(|quad| random_of(key, step, quad))
                .map(|r| {
                    [r.states[0], r.states[1], r.states[2], r.parameter]
                        .map(|x| f64::from(x) / f64::from(u32::MAX) - 0.5)
                })
                .collect()
        };
        let here = draw(key_of(1, "a"), 7);
        let bound = |n: usize| 5.0 / (n as f64).sqrt();
        let n = here.len();
        // The variance of a uniform number of width 1 is 1/12.
        let correlation = |pairs: &mut dyn Iterator<Item = (f64, f64)>| {
            pairs.map(|(a, b)| 12.0 * a * b).sum::<f64>() / n as f64
        };
        for stream in 0..4 {
            let column = |draws: &[[f64; 4]]| -> Vec<f64> { draws.iter().map(|d| d[stream]).collect() };
            let own = column(&here);
            let mean = own.iter().sum::<f64>() / n as f64;
            assert!(mean.abs() * 12_f64.sqrt() < bound(n), "mean of stream {stream}: {mean}");
            let variance = correlation(&mut own.iter().map(|&x| (x, x)));
            assert!((variance - 1.0).abs() < bound(n), "variance of stream {stream}: {variance}");
            for lag in [1, 4, 32, 1024] {
                let c = correlation(&mut own.iter().zip(&own[lag..]).map(|(&a, &b)| (a, b)));
                assert!(c.abs() < bound(n), "stream {stream}, elements {lag} apart: {c}");
            }
            for (name, other) in [
                ("the next step", draw(key_of(1, "a"), 8)),
                ("another label", draw(key_of(1, "b"), 7)),
                ("another seed", draw(key_of(2, "a"), 7)),
            ] {
                let c = correlation(&mut own.iter().copied().zip(column(&other)));
                assert!(c.abs() < bound(n), "stream {stream}, {name}: {c}");
            }
            for other in stream + 1..4 {
                let c = correlation(&mut here.iter().map(|d| (d[stream], d[other])));
                assert!(c.abs() < bound(n), "streams {stream} and {other}: {c}");
            }
        }
    }
}
