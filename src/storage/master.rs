//! Master weights: what is stored of a 16-bit parameter's f32 value besides the parameter. Mirrors `shaders/lib/master.wgsl` line
//! by line.

use super::dtype::{DType, bf16_rounded_up_from, is_special, narrow, widen};

/// What is stored of a 16-bit parameter's f32 value besides the parameter itself. f32 parameters have no master weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MasterWeights {
    /// Nothing. Only for bf16, which is then rounded stochastically, so that small steps take effect on average.
    #[default]
    None,
    /// 8 extra mantissa bits, as in FlashOptim (arXiv 2602.23349). 1 byte per element.
    ///
    /// f16 has a fixed last place below 2^-14, 2^-24; with the extra bits it is 2^-32. Finite values past f16's largest number, 65,504,
    /// are held there.
    Split24,
    /// For bf16 the lower 16 bits of the f32 value, so that no bit is lost. 2 bytes per element.
    ///
    /// For f16 no bit is lost from 2^-17 (7.6e-6) up to f16's largest number, 65,504, where larger finite values are held. Below 2^-17 the
    /// last place is 2^-40 (9.1e-13).
    Split32,
    /// The whole f32 value. 4 bytes per element.
    F32,
}

impl MasterWeights {
    /// All kinds, in the order of their codes in WGSL.
    pub const ALL: [Self; 4] =
        [MasterWeights::None, MasterWeights::Split24, MasterWeights::Split32, MasterWeights::F32];

    /// The kind's name: `none`, `split24`, `split32` or `f32`.
    pub const fn name(self) -> &'static str {
        match self {
            MasterWeights::None => "none",
            MasterWeights::Split24 => "split24",
            MasterWeights::Split32 => "split32",
            MasterWeights::F32 => "f32",
        }
    }

    /// Bits per element.
    pub(crate) const fn bits(self) -> u32 {
        match self {
            MasterWeights::None => 0,
            MasterWeights::Split24 => 8,
            MasterWeights::Split32 => 16,
            MasterWeights::F32 => 32,
        }
    }

    /// Whether parameters of this data type can have them.
    pub const fn fit(self, values: DType) -> bool {
        matches!(
            (self, values),
            (_, DType::Bf16)
                | (MasterWeights::Split24 | MasterWeights::Split32 | MasterWeights::F32, DType::F16)
                | (MasterWeights::None, DType::F32)
        )
    }
}

fn rounded_to_24_bits(bits: u32) -> u32 {
    if is_special(bits) { bits } else { (bits + 0x7f + (bits >> 8 & 1)) & !0xff }
}

/// The largest magnitude of f16 for which split master weights are in fixed point.
const F16_FIXED: u32 = 0x400;
/// The f32 bits of 2^-14 and half of its last place in f16: smaller numbers are at most 2^-14 as f16.
const F16_FIXED_END: u32 = 0x3880_1000;

fn is_split_f16(dtype: DType, master: MasterWeights) -> bool {
    dtype == DType::F16 && matches!(master, MasterWeights::Split24 | MasterWeights::Split32)
}

/// [`split`] for f16 with split master weights. Finite numbers past the largest f16 are held there. Ties go up, so that the
/// difference fits.
fn split_f16(master: MasterWeights, bits: u32) -> (u32, u32) {
    if is_special(bits) {
        return (narrow(DType::F16, bits), 0);
    }
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    let is_24 = master == MasterWeights::Split24;
    let (half, rest) = if magnitude < F16_FIXED_END {
        let (scale, extra) = if is_24 { (2_f32.powi(32), 8) } else { (2_f32.powi(40), 16) };
        let fixed = (f32::from_bits(magnitude) * scale).round_ties_even() as u32;
        let half = (fixed + (1 << (extra - 1))) >> extra;
        let rest = fixed.wrapping_sub(half << extra);
        (half, if is_24 { rest << 8 } else { rest })
    } else {
        let normal = if is_24 {
            ((magnitude + 0xf + (magnitude >> 5 & 1)) & !0x1f).min(0x477f_efe0)
        } else {
            magnitude.min(0x477f_efff)
        };
        let half = (normal - 0x3800_0000 + 0x1000) >> 13;
        let rest = normal.wrapping_sub((half << 13) + 0x3800_0000);
        (half, if is_24 { rest << 3 } else { rest })
    };
    (sign | half, rest)
}

/// [`join`] for f16 with split master weights.
fn join_f16(master: MasterWeights, half: u32, difference: u32) -> u32 {
    let (sign, magnitude) = ((half & 0x8000) << 16, half & 0x7fff);
    let is_24 = master == MasterWeights::Split24;
    let rest = if is_24 { (difference as i32 >> 8) as u32 } else { difference };
    if magnitude <= F16_FIXED {
        let (scale, extra) = if is_24 { (2_f32.powi(-32), 8) } else { (2_f32.powi(-40), 16) };
        let fixed = (magnitude << extra).wrapping_add(rest);
        sign | (fixed as f32 * scale).to_bits()
    } else {
        widen(DType::F16, half).wrapping_add(if is_24 { rest << 5 } else { rest })
    }
}

/// Splits an f32 value into the bits of the parameter in its data type and the difference that its master weights store.
/// `random` rounds a parameter without master weights.
pub fn split(dtype: DType, master: MasterWeights, value: f32, random: u32) -> (u32, u32) {
    let mut bits = value.to_bits();
    let narrowed = match (dtype, master) {
        (DType::F32, _) => return (bits, 0),
        (DType::Bf16, MasterWeights::None) => return (bf16_rounded_up_from(bits, random >> 16), 0),
        _ if is_split_f16(dtype, master) => return split_f16(master, bits),
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

/// The f32 value that [`split`] took apart.
pub fn join(dtype: DType, master: MasterWeights, narrowed: u32, difference: u32) -> f32 {
    if is_split_f16(dtype, master) {
        return f32::from_bits(join_f16(master, narrowed, difference));
    }
    f32::from_bits(widen(dtype, narrowed).wrapping_add(difference))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::dtype::tests::bits;
    use proptest::prelude::*;

    /// What the engine writes is kept, and a split value is split again into the same bits.
    #[test]
    fn every_f16_number_and_difference_comes_back() {
        for master in [MasterWeights::Split24, MasterWeights::Split32] {
            for bits in 0..=u16::MAX {
                let bits = u32::from(bits);
                let joined = join(DType::F16, master, bits, 0);
                assert_eq!(joined.to_bits(), widen(DType::F16, bits), "{bits:04x}");
                for rest in [-128_i32, -127, -1, 1, 2, 127] {
                    let difference = (rest << if master == MasterWeights::Split24 { 8 } else { 0 }) as u32;
                    let joined = join(DType::F16, master, bits, difference);
                    let is_below_zero = bits & 0x7fff == 0 && rest < 0;
                    if joined.is_finite() && bits & 0x7fff < 0x7c00 && !is_below_zero {
                        let again = split(DType::F16, master, joined, 0);
                        assert_eq!(join(DType::F16, master, again.0, again.1), joined, "{bits:04x} {rest}");
                    }
                }
            }
        }
    }

    proptest! {
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
                prop_assert_eq!(join(dtype, master, narrowed, difference).to_bits(), bits);
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
            let joined = join(DType::Bf16, MasterWeights::Split24, narrowed, difference);
            prop_assert!(joined.to_bits().abs_diff(bits) <= 0x80);
        }

        /// Against f64: the joined value is the nearest in units of the format, and the half is the nearest f16.
        #[test]
        fn split_f16_rounds_to_the_nearest(bits in bits()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            for (master, extra_bits) in [(MasterWeights::Split24, 8), (MasterWeights::Split32, 16)] {
                let (narrowed, difference) = split(DType::F16, master, value, 0);
                let joined = f64::from(join(DType::F16, master, narrowed, difference));
                let stored = difference as i32 >> if master == MasterWeights::Split24 { 8 } else { 0 };
                prop_assert!((-1 << (extra_bits - 1)..1 << (extra_bits - 1)).contains(&stored), "fits");
                let exact = f64::from(value);
                let magnitude = exact.abs();
                if magnitude > 65_519.8 {
                    prop_assert_eq!(narrowed & 0x7fff, 0x7bff);
                    prop_assert!(joined.abs() >= 65_519.8 && joined.abs() <= magnitude);
                    continue;
                }
                // The last place of f16, extra bits below it, and that of f32.
                let place = magnitude.max(2_f64.powi(-14)).log2().floor();
                let unit = (place - 10.0 - f64::from(extra_bits)).exp2();
                let unit = if magnitude > 2_f64.powi(-14) { unit.max((place - 23.0).exp2()) } else { unit };
                prop_assert!((joined - exact).abs() <= unit / 2.0, "{joined:e} for {exact:e}");
                if master == MasterWeights::Split32 && magnitude >= 2_f64.powi(-17) {
                    prop_assert_eq!(joined, exact);
                }
                let half = f64::from(f32::from_bits(widen(DType::F16, narrowed)));
                prop_assert!((half - joined).abs() <= (place - 11.0).exp2(), "{half:e} for {joined:e}");
                prop_assert_eq!(half.is_sign_negative(), value.is_sign_negative());
            }
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
}
