//! 8-bit state on the CPU. Mirrors `shaders/lib/q8.wgsl` line by line; the codes are explained there.

use super::block::QUANT_BLOCK_ELEMENTS;
use super::state::Sign;

const SIGNED_SHIFT: u32 = 20;
const LEAST_SHIFT: u32 = 17;
const MOST_SHIFT: u32 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    bottom: u32,
    shift: u32,
}

impl Scale {
    fn decode_signed(self, code: u32) -> f32 {
        let magnitude = self.decode_positive(code & 0x7f) - f32::from_bits(self.bottom);
        f32::from_bits(magnitude.to_bits() | (code & 0x80) << 24)
    }

    fn decode_non_negative(self, code: u32) -> f32 {
        if code == 0 { 0.0 } else { self.decode_positive(code) }
    }

    fn decode_positive(self, code: u32) -> f32 {
        f32::from_bits(self.bottom + (code << self.shift))
    }

    fn coding(self) -> Coding {
        let left = 24 - self.shift;
        if self.bottom == 0 {
            return Coding { factor: 1.0, bottom: 0.0, left };
        }
        Coding { factor: f32::from_bits(0x7f80_0000 - self.bottom), bottom: 2.0, left }
    }
}

/// A scale as encoding needs it.
#[derive(Clone, Copy, Debug)]
struct Coding {
    factor: f32,
    bottom: f32,
    left: u32,
}

impl Coding {
    /// The code in the high byte.
    fn coded(self, bits: u32, random: u32) -> u32 {
        (bits << self.left).wrapping_add(random >> 8)
    }

    fn encode_signed(self, value: f32, random: u32) -> u32 {
        let magnitude = value.abs() * self.factor + self.bottom;
        let code = self.coded(magnitude.to_bits(), random);
        code & 0x7fff_ffff | value.to_bits() & 0x8000_0000
    }

    fn coded_from(self, lowest: u32, value: f32, random: u32) -> u32 {
        self.coded((value * self.factor).to_bits().max(lowest), random)
    }

    fn encode_non_negative(self, value: f32, random: u32) -> u32 {
        if value.to_bits() == 0 {
            return 0;
        }
        self.coded_from(self.bottom.to_bits() + ((1 << 24) >> self.left), value, random)
    }

    fn encode_positive(self, value: f32, random: u32) -> u32 {
        self.coded_from(self.bottom.to_bits(), value, random)
    }
}

fn bottom_of(largest: u32, shift: u32, octaves: u32) -> u32 {
    let end = ((largest + (1 << shift)) >> 23) + 1;
    end.max(octaves) - octaves
}

fn with_bottom(largest: u32) -> u32 {
    largest + 0x400
}

fn shift_of(largest: u32, smallest: u32, before: u32) -> u32 {
    const FROM_EXPONENT: u32 = 127 - 16;
    let octaves = (largest >> 23) - (smallest.min(largest) >> 23) + 2;
    let least = ((octaves - 1) as f32).to_bits() >> 23;
    let most = (octaves as f32).to_bits() >> 23;
    let shift = (before + FROM_EXPONENT).max(least).min(most);
    shift.clamp(LEAST_SHIFT + FROM_EXPONENT, MOST_SHIFT + FROM_EXPONENT) - FROM_EXPONENT
}

/// Bit at which the shift of an unsigned state stands in the word of scales, by the state's index.
const SHIFT_BITS: [usize; 3] = [28, 24, 26];

/// The scale of state `index` in a quant block's word of scales.
fn scale_in(scales: u32, index: usize, sign: Sign) -> Scale {
    let shift = match sign {
        Sign::Signed => SIGNED_SHIFT,
        Sign::NonNegative | Sign::Positive => MOST_SHIFT - (scales >> SHIFT_BITS[index] & 3),
    };
    Scale { bottom: (scales >> (8 * index) & 0xff) << 23, shift }
}

/// The scales without that of state `index`: those of a quant block in which the state is zero.
pub fn without_scale(scales: u32, index: usize, sign: Sign) -> u32 {
    let shift = if sign == Sign::Signed { 0 } else { 3 << SHIFT_BITS[index] };
    scales & !(0xff << (8 * index)) & !shift
}

/// The values of state `index` of a quant block.
pub fn decode(codes: &[u8], scales: u32, index: usize, sign: Sign) -> impl Iterator<Item = f32> + '_ {
    let scale = scale_in(scales, index, sign);
    codes.iter().map(move |&code| match sign {
        Sign::Signed => scale.decode_signed(code.into()),
        Sign::NonNegative => scale.decode_non_negative(code.into()),
        Sign::Positive => scale.decode_positive(code.into()),
    })
}

/// The codes of state `index` of a quant block of at most 32 elements. Replaces the state's scale in `scales`; the new scale
/// depends on the old one. `random` has a word for each element.
pub fn encode(
    values: &[f32],
    index: usize,
    sign: Sign,
    scales: &mut u32,
    random: impl Iterator<Item = u32>,
) -> Vec<u8> {
    assert!(values.len() as u64 <= QUANT_BLOCK_ELEMENTS, "one quant block");
    let magnitudes =
        values.iter().map(|value| value.to_bits() & 0x7fff_ffff).filter(|&bits| bits < 0x7f80_0000);
    let largest = magnitudes.clone().max().unwrap_or(0);
    let smallest = magnitudes.filter(|&bits| bits > 0).min().unwrap_or(u32::MAX);
    let (shift, bottom) = match sign {
        Sign::Signed => (SIGNED_SHIFT, bottom_of(with_bottom(largest), SIGNED_SHIFT, 16)),
        Sign::NonNegative | Sign::Positive => {
            let shift = shift_of(largest, smallest, scale_in(*scales, index, sign).shift);
            (shift, bottom_of(largest, shift, 1 << (shift - 15)))
        }
    };
    *scales = *scales & !(0xff << (8 * index)) | bottom << (8 * index);
    if sign != Sign::Signed {
        let at = SHIFT_BITS[index];
        *scales = *scales & !(3 << at) | (MOST_SHIFT - shift) << at;
    }
    let coding = Scale { bottom: bottom << 23, shift }.coding();
    values
        .iter()
        .zip(random)
        .map(|(&value, random)| match sign {
            Sign::Signed => coding.encode_signed(value, random),
            Sign::NonNegative => coding.encode_non_negative(value, random),
            Sign::Positive => coding.encode_positive(value, random),
        })
        .map(|code| (code >> 24) as u8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIGNS: [Sign; 3] = [Sign::Signed, Sign::NonNegative, Sign::Positive];

    fn round_trip(values: &[f32], index: usize, random: u32) -> (Vec<f32>, u32) {
        let mut scales = 0;
        let codes = encode(values, index, SIGNS[index], &mut scales, std::iter::repeat(random));
        (decode(&codes, scales, index, SIGNS[index]).collect(), scales)
    }

    /// The codes of a state depend on its sign, not on its place among the states.
    #[test]
    fn every_sign_is_coded_alike_at_every_index() {
        let values = [0.0, 1e-3, 2e-3, 5e-4, 1e-6];
        for sign in SIGNS {
            let at = |index: usize| {
                let mut scales = 0;
                let codes = encode(&values, index, sign, &mut scales, std::iter::repeat(1 << 31));
                (decode(&codes, scales, index, sign).collect::<Vec<_>>(), codes)
            };
            assert_eq!(at(0), at(1));
            assert_eq!(at(0), at(2));
        }
    }

    /// Positive numbers whose exponents span at most `octaves`.
    fn group(octaves: i32) -> impl Strategy<Value = Vec<f32>> {
        (-100..90_i32 - octaves).prop_flat_map(move |lowest| {
            let number = (lowest..=lowest + octaves - 2, 1.0_f32..2.0).prop_map(|(e, m)| m * 2_f32.powi(e));
            prop::collection::vec(number, 1..=32)
        })
    }

    proptest! {
        /// Whatever the random number, a code's value is the number's neighbour above or below: at most one step away.
        #[test]
        fn unsigned_codes_are_within_a_step(values in group(30), random in any::<u32>()) {
            let (decoded, _) = round_trip(&values, 1, random);
            for (value, decoded) in values.iter().zip(decoded) {
                prop_assert!((decoded / value - 1.0).abs() <= 0.125, "{value} became {decoded}");
                prop_assert!(decoded > 0.0);
            }
        }

        /// Narrow groups get more bits of fraction.
        #[test]
        fn narrow_groups_are_finer(values in group(3), random in any::<u32>()) {
            let (decoded, scales) = round_trip(&values, 2, random);
            // 3 octaves and what may carry need 5 of 8, one of them to spare.
            prop_assert!(scale_in(scales, 2, Sign::Positive).shift <= 18);
            for (value, decoded) in values.iter().zip(decoded) {
                prop_assert!((decoded / value - 1.0).abs() <= 1.0 / 32.0, "{value} became {decoded}");
            }
        }

        /// What was decoded is coded again as it was, whatever the random number: averages that rest do not drift. Where the
        /// bottom of signed codes moves, so does the even spacing around zero.
        #[test]
        fn decoded_numbers_are_fixed_points(values in group(30), random in any::<u32>(), index in 0_usize..3) {
            let mut scales = 0;
            let codes = encode(&values, index, SIGNS[index], &mut scales, std::iter::repeat(random));
            let decoded: Vec<f32> = decode(&codes, scales, index, SIGNS[index]).collect();
            let before = scales;
            let again = encode(&decoded, index, SIGNS[index], &mut scales, std::iter::repeat(!random));
            let values: Vec<f32> = decode(&again, scales, index, SIGNS[index]).collect();
            prop_assert!(values == decoded || index == 0 && scales != before, "{decoded:?} became {values:?}");
        }

        #[test]
        fn signed_codes_are_within_a_step(values in group(12), negative in any::<u32>(), random in any::<u32>()) {
            let signed: Vec<f32> =
                values.iter().enumerate().map(|(i, v)| if negative >> i & 1 == 1 { -v } else { *v }).collect();
            let largest = values.iter().copied().fold(0.0, f32::max);
            let (decoded, _) = round_trip(&signed, 0, random);
            for (value, decoded) in signed.iter().zip(decoded) {
                // Evenly spaced below 2^-15 of the group's largest power of two.
                let step = 0.126 * value.abs() + largest * 2_f32.powi(-17);
                prop_assert!((decoded - value).abs() <= step, "{value} became {decoded}");
            }
        }

        /// The average over all random numbers is the number.
        #[test]
        fn rounding_is_unbiased(values in group(8), index in 0_usize..3) {
            let mut sums = vec![0.0_f64; values.len()];
            const DRAWS: u32 = 512;
            for draw in 0..DRAWS {
                let (decoded, _) = round_trip(&values, index, (draw << 23) + (1 << 22));
                for (sum, decoded) in sums.iter_mut().zip(decoded) {
                    *sum += f64::from(decoded);
                }
            }
            for (value, sum) in values.iter().zip(sums) {
                let relative = sum / f64::from(DRAWS) / f64::from(*value) - 1.0;
                prop_assert!(relative.abs() < 1e-3, "{value}: off by {relative}");
            }
        }
    }

    #[test]
    fn zero_stays_zero_and_nothing_else_becomes_zero() {
        let (decoded, _) = round_trip(&[0.0, 1e30, 1e-30, f32::MIN_POSITIVE, 1e-42], 1, 0);
        assert_eq!(decoded[0], 0.0);
        assert!(decoded[1..].iter().all(|&value| value > 0.0), "{decoded:?}");
        for index in 0..3 {
            assert_eq!(round_trip(&[0.0; 5], index, u32::MAX).0, [0.0; 5]);
        }
        assert_eq!(round_trip(&[0.0, -0.0], 0, u32::MAX).0, [0.0, 0.0]);
        // Positive codes have no zero: beside other numbers it is the bottom.
        for random in [0, u32::MAX] {
            assert_eq!(round_trip(&[0.0, 1.0, 1.5], 2, random).0[0], 0.125);
        }
    }

    #[test]
    fn numbers_at_the_edges_of_f32_stay_finite_and_special_ones_do_no_harm() {
        for index in 0..3 {
            for random in [0, u32::MAX] {
                let (decoded, _) = round_trip(&[2_f32.powi(126), 1e-45, 1.0], index, random);
                assert!(decoded.iter().all(|value| value.is_finite()), "{decoded:?}");
                let special = [f32::INFINITY, f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff)];
                let (decoded, scales) = round_trip(&[&special[..], &[1.0, 1.5]].concat(), index, random);
                assert!(decoded.iter().all(|value| value.is_finite()), "{decoded:?}");
                let alone = round_trip(&[1.0, 1.5], index, random);
                assert_eq!((decoded[4..].to_vec(), scales), alone);
                assert!(round_trip(&special, index, random).0.iter().all(|value| value.is_finite()));
            }
        }
    }
}
