//! The exact sums of squares behind a norm, as `shaders/lib/sums.wgsl` keeps them, added over ranks. Sums are exact, so that the norm of
//! all ranks has the bits of the norm that one device would compute of all gradients.

/// Words of a sum in the control buffer.
pub(crate) type Words = [u32; 7];

/// A highest bin that stands for an element that is not finite.
const NOT_FINITE: u32 = 255;

/// Three counters, the highest bin first, in units of 2^(32 i - 350) for bin i; and the highest bin, or 0 for no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Squares {
    top: u32,
    counters: [u64; 3],
}

impl Squares {
    pub fn from_words(words: Words) -> Self {
        let counter = |bin: usize| u64::from(words[4 + bin]) << 32 | u64::from(words[bin]);
        Self { top: words[3], counters: [counter(0), counter(1), counter(2)] }
    }

    /// The same sum with another highest bin, which is not below its own. What lies below the three bins is dropped, as on the device.
    fn raised(self, top: u32) -> [u64; 3] {
        let [a, b, _] = self.counters;
        match top - self.top {
            0 => self.counters,
            1 => [0, a, b],
            2 => [0, 0, a],
            _ => [0; 3],
        }
    }

    pub fn plus(self, other: Self) -> Self {
        let top = self.top.max(other.top);
        let (a, b) = (self.raised(top), other.raised(top));
        Self { top, counters: std::array::from_fn(|bin| a[bin].wrapping_add(b[bin])) }
    }

    /// The norm, divided by the loss scale: infinite if an element was not finite, and the largest number if it is past f32.
    pub fn norm(self, loss_scale: f32) -> f32 {
        if self.top == NOT_FINITE {
            return f32::INFINITY;
        }
        let [a, b, c] = self.counters.map(u128::from);
        let all = (a << 64) + (b << 32) + c;
        if self.top == 0 || all == 0 {
            return 0.0;
        }
        let zeros = all.leading_zeros();
        let leading = ((all << zeros) >> 96) as u32;
        // The sum is mantissa * 2^(2 exponent), with a mantissa from 1 to 4.
        let exponent = 32 * self.top as i32 - 287 - zeros as i32;
        let mantissa = leading as f32 * power_of_two((exponent & 1) - 31);
        let exponent = exponent >> 1;
        let half = exponent / 2;
        let norm = mantissa.sqrt() * power_of_two(half) / loss_scale * power_of_two(exponent - half);
        if norm.is_finite() { norm } else { f32::MAX }
    }
}

/// Exact, unlike `powi`.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mantissa * 2^(32 bin - 350)`.
    fn words(bin: u32, mantissa: u32) -> Words {
        [mantissa, 0, 0, bin, 0, 0, 0]
    }

    #[test]
    fn a_norm_is_the_root_of_the_sum() {
        // 9 * 2^(32 * 11 - 350) = 36, and 16 * 4 = 64.
        let sum = Squares::from_words(words(11, 9)).plus(Squares::from_words(words(11, 16)));
        assert_eq!(sum.norm(1.0), 10.0);
        assert_eq!(sum.norm(4.0), 2.5);
        assert_eq!(Squares::from_words([0; 7]).norm(1.0), 0.0);
        let not_finite = Squares::from_words(words(NOT_FINITE, 0));
        assert_eq!(sum.plus(not_finite).norm(1.0), f32::INFINITY);
        assert_eq!(Squares::from_words(words(19, 1 << 31)).norm(f32::MIN_POSITIVE), f32::MAX);
    }

    #[test]
    fn sums_of_other_bins_are_added_in_any_order() {
        let all = [words(11, 7), words(12, 3), words(9, u32::MAX), words(13, 1)].map(Squares::from_words);
        let forwards = all.into_iter().reduce(Squares::plus);
        assert_eq!(forwards, all.into_iter().rev().reduce(Squares::plus));
        let sum = all[0].plus(all[1]).norm(1.0);
        // 3 * 2^34 + 28.
        assert!((f64::from(sum) - (3.0 * 2_f64.powi(34) + 28.0).sqrt()).abs() < 0.02, "{sum}");
    }
}
