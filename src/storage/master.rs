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
    /// Only for bf16: 8 extra mantissa bits, as in FlashOptim (arXiv 2602.23349). 1 byte per element.
    Split24,
    /// Only for bf16: the lower 16 bits of the f32 value, so that no bit is lost. 2 bytes per element.
    Split32,
    /// For f16 and bf16: the whole f32 value. 4 bytes per element.
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
            (_, DType::Bf16) | (MasterWeights::F32, DType::F16) | (MasterWeights::None, DType::F32)
        )
    }
}

fn rounded_to_24_bits(bits: u32) -> u32 {
    if is_special(bits) { bits } else { (bits + 0x7f + (bits >> 8 & 1)) & !0xff }
}

/// Splits an f32 value into the bits of the parameter in its data type and the difference that its master weights store.
/// `random` rounds a parameter without master weights.
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

/// The f32 value that [`split`] took apart.
pub fn join(dtype: DType, narrowed: u32, difference: u32) -> f32 {
    f32::from_bits(widen(dtype, narrowed).wrapping_add(difference))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::dtype::tests::bits;
    use proptest::prelude::*;

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
}
