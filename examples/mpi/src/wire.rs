//! Numbers as they are sent: what is rounded, and the sum over ranks in their order.

use adamod::DType;
use half::{bf16, f16};

/// Appends numbers of one type in another one, rounded to the nearest, ties to even.
pub(crate) fn convert(from: DType, bytes: &[u8], to: DType, out: &mut Vec<u8>) {
    if from == to {
        out.extend_from_slice(bytes);
        return;
    }
    match to {
        DType::F32 => numbers(from, bytes, |number| out.extend(number.to_le_bytes())),
        DType::F16 => numbers(from, bytes, |number| out.extend(f16::from_f32(number).to_le_bytes())),
        DType::Bf16 => numbers(from, bytes, |number| out.extend(bf16::from_f32(number).to_le_bytes())),
        other => unknown(other),
    }
}

/// Calls a function for each number.
pub(crate) fn numbers(dtype: DType, bytes: &[u8], mut of: impl FnMut(f32)) {
    let halves = || bytes.chunks_exact(2).map(|half| [half[0], half[1]]);
    match dtype {
        DType::F32 => bytes
            .chunks_exact(4)
            .for_each(|word| of(f32::from_le_bytes([word[0], word[1], word[2], word[3]]))),
        DType::F16 => halves().for_each(|half| of(f16::from_le_bytes(half).to_f32())),
        DType::Bf16 => halves().for_each(|half| of(bf16::from_le_bytes(half).to_f32())),
        other => unknown(other),
    }
}

/// The library may learn other types.
fn unknown(dtype: DType) -> ! {
    panic!("gradients and values are {dtype}, expected f32, f16 or bf16")
}

/// Whether no number is infinite or NaN.
pub(crate) fn are_finite(dtype: DType, bytes: &[u8]) -> bool {
    let mut all = true;
    numbers(dtype, bytes, |number| all &= number.is_finite());
    all
}

/// The sum of some numbers of all ranks, which are added in the order of the ranks in f32.
#[derive(Default)]
pub(crate) struct Sum {
    numbers: Vec<f32>,
}

impl Sum {
    /// Starts a new sum with the numbers of rank 0: zeros keep their signs.
    pub fn start(&mut self) {
        self.numbers.clear();
    }

    /// Appends numbers of the first rank.
    pub fn append(&mut self, dtype: DType, bytes: &[u8]) {
        numbers(dtype, bytes, |number| self.numbers.push(number));
    }

    /// Adds numbers of the next rank to those from index `first` on. Returns the index after them.
    pub fn add(&mut self, first: usize, dtype: DType, bytes: &[u8]) -> usize {
        let mut sums = self.numbers[first..].iter_mut();
        let mut count = 0;
        numbers(dtype, bytes, |number| {
            if let Some(sum) = sums.next() {
                *sum += number;
                count += 1;
            }
        });
        first + count
    }

    /// Divides by the number of ranks: the average.
    pub fn divide(&mut self, ranks: usize) -> &[f32] {
        let ranks = ranks as f32;
        self.numbers.iter_mut().for_each(|sum| *sum /= ranks);
        &self.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn numbers_are_rounded_as_the_library_rounds_them() {
        let values: Vec<f32> =
            (0..4000).map(|i| f32::from_bits(i * 0x0010_0d3f)).chain([-0.0, 1e-45, f32::MAX]).collect();
        let values: Vec<f32> = values.into_iter().filter(|value| !value.is_nan()).collect();
        for dtype in DType::ALL {
            let mut found = Vec::new();
            convert(DType::F32, &bytes(&values), dtype, &mut found);
            let expected = adamod::reference::rounded(dtype, &values);
            let mut at = expected.iter();
            numbers(dtype, &found, |number| {
                assert_eq!(Some(number.to_bits()), at.next().map(|number| number.to_bits()), "{dtype}");
            });
            assert!(at.next().is_none());
        }
    }

    #[test]
    fn a_sum_is_taken_in_the_order_of_the_ranks() {
        let ranks = [[1e8_f32, -0.0], [1.0, -0.0], [-1e8, -0.0]];
        let mut sum = Sum::default();
        sum.start();
        sum.append(DType::F32, &bytes(&ranks[0]));
        for rank in &ranks[1..] {
            assert_eq!(sum.add(0, DType::F32, &bytes(rank)), 2);
        }
        let found = sum.divide(3);
        assert_eq!(found[0], 0.0, "1 is lost beside 1e8");
        assert!(found[1].is_sign_negative());
    }

    #[test]
    fn what_is_not_finite_is_found() {
        assert!(are_finite(DType::F32, &bytes(&[1.0, f32::MAX])));
        assert!(!are_finite(DType::F32, &bytes(&[1.0, f32::NAN])));
        let mut wire = Vec::new();
        convert(DType::F32, &bytes(&[1.0, 1e6]), DType::F16, &mut wire);
        assert!(!are_finite(DType::F16, &wire), "1e6 is infinite in f16");
    }
}
