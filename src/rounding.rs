//! Between f32 and 16 bits, random numbers, and master weights on the CPU: `shaders/rounding.wgsl`, `random.wgsl` and
//! `master.wgsl`, line by line.

use crate::format::{DType, MasterWeights};

const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;

fn is_special(bits: u32) -> bool {
    bits & INFINITY == INFINITY
}

fn is_nan(bits: u32) -> bool {
    bits & MAGNITUDE > INFINITY
}

/// WGSL `bf16_rounded_up_from`: adds `addend`, below 2^16, and cuts off 16 bits.
pub fn bf16_rounded_up_from(bits: u32, addend: u32) -> u32 {
    if is_special(bits) { bits >> 16 | if is_nan(bits) { 0x40 } else { 0 } } else { (bits + addend) >> 16 }
}

/// f32 bits of a number in `dtype`, given as its bits.
pub fn widen(dtype: DType, bits: u32) -> u32 {
    match dtype {
        DType::F32 => bits,
        DType::F16 => {
            let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7fff);
            sign | match magnitude {
                0..0x400 => (magnitude as f32 * 2_f32.powi(-24)).to_bits(),
                0x400..0x7c00 => (magnitude << 13) + 0x3800_0000,
                _ => (magnitude << 13) + 0x7000_0000,
            }
        }
        DType::Bf16 => bits << 16,
    }
}

/// Bits in `dtype` of the number nearest to an f32, ties to even.
pub fn narrow(dtype: DType, bits: u32) -> u32 {
    match dtype {
        DType::F32 => bits,
        DType::F16 => {
            let (sign, magnitude) = (bits >> 16 & 0x8000, bits & MAGNITUDE);
            let even = magnitude >> 13 & 1;
            sign | if is_nan(bits) {
                0x7e00 | magnitude >> 13 & 0x3ff
            } else if magnitude < 0x3880_0000 {
                (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000
            } else {
                (magnitude.min(0x4780_0000) - 0x3800_0000 + 0xfff + even) >> 13
            }
        }
        DType::Bf16 => bf16_rounded_up_from(bits, 0x7fff + (bits >> 16 & 1)),
    }
}

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

/// A random word for each number of an element that is rounded, which takes as many of its high bits as are cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    /// For the states, in their order.
    pub states: [u32; 3],
    /// For the parameter.
    pub parameter: u32,
}

impl Random {
    /// What makes rounding to nearest of the stochastic one.
    pub const TO_NEAREST: Self = Self { states: [0x8000_0000; 3], parameter: 0x8000_0000 };
}

/// Random numbers of four elements: those of word `word` of the tensor with this key.
pub fn random_of(key: [u32; 2], step: u32, word: u32) -> [Random; 4] {
    let hash = pcg4d([word, step, key[0], key[1]]);
    std::array::from_fn(|i| Random {
        states: [hash[i], hash[(i + 1) % 4], hash[(i + 2) % 4]],
        parameter: hash[(i + 3) % 4],
    })
}

/// Key of a tensor's random numbers: the optimizer's seed and the tensor's label (FNV-1a, then the finalizer of MurmurHash3).
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

fn rounded_to_24_bits(bits: u32) -> u32 {
    if is_special(bits) { bits } else { (bits + 0x7f + (bits >> 8 & 1)) & !0xff }
}

/// What is stored of an f32 value: bits of the parameter in its type, and the difference that its master weights keep.
/// `random` is what a parameter without master weights is rounded with.
pub fn split(dtype: DType, master: MasterWeights, value: f32, random: u32) -> (u32, u32) {
    let mut bits = value.to_bits();
    let narrowed = match (dtype, master) {
        (DType::F32, _) => return (bits, 0),
        (DType::Bf16, MasterWeights::None) => return (bf16_rounded_up_from(bits, random >> 16), 0),
        (_, MasterWeights::F32 | MasterWeights::None) => narrow(dtype, bits),
        (_, MasterWeights::Split24) => {
            bits = rounded_to_24_bits(bits);
            bf16_rounded_up_from(bits, 0x8000)
        }
        (_, MasterWeights::Split32) => bf16_rounded_up_from(bits, 0x8000),
    };
    let difference = if is_special(bits) { 0 } else { bits.wrapping_sub(widen(dtype, narrowed)) };
    (narrowed, difference)
}

/// The f32 value that `split` stored.
pub fn join(dtype: DType, narrowed: u32, difference: u32) -> f32 {
    f32::from_bits(widen(dtype, narrowed).wrapping_add(difference))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_halves_widen_as_the_half_crate_does_and_come_back() {
        for bits in 0..=u16::MAX {
            let (f16, bf16) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
            for (dtype, expected) in [(DType::F16, f16.to_f32()), (DType::Bf16, bf16.to_f32())] {
                let wide = widen(dtype, bits.into());
                if expected.is_nan() {
                    assert!(f32::from_bits(wide).is_nan(), "{dtype} {bits:04x}");
                } else {
                    assert_eq!(wide, expected.to_bits(), "{dtype} {bits:04x}");
                    assert_eq!(narrow(dtype, wide), u32::from(bits), "{dtype} {bits:04x}");
                }
            }
        }
    }

    #[test]
    fn nan_keeps_its_sign_and_upper_payload() {
        assert_eq!(narrow(DType::Bf16, 0xff81_2345), 0xffc1);
        assert_eq!(narrow(DType::F16, 0xff83_2345), 0xfe19);
        assert_eq!(narrow(DType::Bf16, 0x7f80_0001), 0x7fc0);
    }

    /// f32 bits, many of them where 16-bit types round: at ties, in f16's subnormals, around overflow.
    fn bits() -> impl Strategy<Value = u32> {
        prop_oneof![
            any::<u32>(),
            (any::<u16>(), prop::sample::select(vec![0x7fff_u32, 0x8000, 0x8001, 0, 0xffff]))
                .prop_map(|(high, low)| u32::from(high) << 16 | low),
            (0x3300_0000_u32..0x3900_0000),
            (0x477f_0000_u32..0x4780_8000),
        ]
    }

    proptest! {
        #[test]
        fn narrowing_is_to_nearest_even(bits in bits()) {
            let value = f32::from_bits(bits);
            prop_assume!(!value.is_nan());
            prop_assert_eq!(narrow(DType::F16, bits), u32::from(half::f16::from_f32(value).to_bits()));
            prop_assert_eq!(narrow(DType::Bf16, bits), u32::from(half::bf16::from_f32(value).to_bits()));
        }

        #[test]
        fn split32_and_f32_keep_every_bit(bits in bits()) {
            let value = f32::from_bits(bits);
            prop_assume!(!value.is_nan());
            for (dtype, master) in [
                (DType::Bf16, MasterWeights::Split32),
                (DType::Bf16, MasterWeights::F32),
                (DType::F16, MasterWeights::F32),
            ] {
                let (narrowed, difference) = split(dtype, master, value, 0);
                prop_assert_eq!(join(dtype, narrowed, difference).to_bits(), bits);
                if master == MasterWeights::Split32 {
                    prop_assert_eq!(difference as i32, i32::from(difference as u16 as i16), "fits 16 bits");
                }
            }
        }

        #[test]
        fn split24_keeps_16_bits_of_fraction(bits in bits()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            let (narrowed, difference) = split(DType::Bf16, MasterWeights::Split24, value, 0);
            prop_assert_eq!(difference & 0xff, 0);
            prop_assert_eq!(difference as i32 >> 8, i32::from((difference >> 8) as u8 as i8), "fits 8 bits");
            let joined = join(DType::Bf16, narrowed, difference);
            prop_assert!(joined.to_bits().abs_diff(bits) <= 0x80);
        }

        #[test]
        fn stochastic_rounding_gives_a_neighbour(bits in bits(), random in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            let (narrowed, _) = split(DType::Bf16, MasterWeights::None, value, random);
            let below = bits >> 16;
            prop_assert!(narrowed == below || narrowed == below + 1);
            if bits & 0xffff == 0 {
                prop_assert_eq!(narrowed, below);
            }
        }
    }

    /// Mean of uniform numbers, and correlations between neighbours, steps, keys and states: within five standard
    /// deviations of what independence gives.
    #[test]
    fn random_numbers_are_uniform_and_independent() {
        const WORDS: u32 = 1 << 15;
        let draw = |key: [u32; 2], step: u32| -> Vec<[f64; 4]> {
            (0..WORDS)
                .flat_map(|word| random_of(key, step, word))
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
