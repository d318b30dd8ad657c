//! Data types of parameters and gradients, and conversion between f32 and 16 bits. Mirrors `shaders/lib/rounding.wgsl` line by
//! line.

/// Data type of the elements of a parameter or gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE binary32.
    #[default]
    F32,
    /// IEEE binary16: 5 exponent bits and 10 mantissa bits.
    F16,
    /// bfloat16: the upper half of an f32.
    Bf16,
}

impl DType {
    /// Bytes per element.
    pub const fn bytes(self) -> u64 {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// All types, in the order of their codes in WGSL.
    pub const ALL: [Self; 3] = [DType::F32, DType::F16, DType::Bf16];

    /// The type's name: `f32`, `f16` or `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;

pub fn is_special(bits: u32) -> bool {
    bits & INFINITY == INFINITY
}

fn is_nan(bits: u32) -> bool {
    bits & MAGNITUDE > INFINITY
}

/// Adds `addend`, which is below 2^16, and drops the lower 16 bits.
pub fn bf16_rounded_up_from(bits: u32, addend: u32) -> u32 {
    if is_special(bits) { bits >> 16 | if is_nan(bits) { 0x40 } else { 0 } } else { (bits + addend) >> 16 }
}

/// The f32 bits of a number given as its bits in `dtype`.
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

/// Rounds an f32, given as its bits, to the nearest number in `dtype`, ties to even.
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

#[cfg(test)]
pub(crate) mod tests {
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
    pub(crate) fn bits() -> impl Strategy<Value = u32> {
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
    }
}
