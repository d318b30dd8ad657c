//! Text by rule: numbers below a million in words, a line each.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::network::{Examples, Inputs};

/// Characters from which the next one is predicted.
pub const CONTEXT: usize = 6;
/// ASCII: most characters never occur, as in large vocabularies, and their embeddings' gradients are always zero.
pub const CHARACTERS: usize = 128;

const BELOW_TWENTY: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] =
    ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// A number below a million in words.
pub fn words(number: usize) -> String {
    let rest = |part: usize, separator: &str| match part {
        0 => String::new(),
        _ => format!("{separator}{}", words(part)),
    };
    match number {
        0..20 => BELOW_TWENTY[number].into(),
        20..100 => format!("{}{}", TENS[number / 10], rest(number % 10, "-")),
        100..1000 => format!("{} hundred{}", words(number / 100), rest(number % 100, " ")),
        _ => format!("{} thousand{}", words(number / 1000), rest(number % 1000, " ")),
    }
}

/// Every place in the text of so many random numbers: the characters before it, and the one that is there.
pub fn examples(numbers: usize, seed: u64) -> Examples {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let lines = (0..numbers).map(|_| words(rng.random_range(0..1_000_000)) + "\n");
    let text = lines.collect::<String>().into_bytes();
    let windows = text.windows(CONTEXT + 1);
    let tokens = windows.clone().flat_map(|window| &window[..CONTEXT]).copied().collect();
    Examples {
        inputs: Inputs::Tokens(tokens),
        labels: windows.map(|window| window[CONTEXT].into()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_named_by_rule() {
        assert_eq!(words(0), "zero");
        assert_eq!(words(23_405), "twenty-three thousand four hundred five");
        assert_eq!(words(100_017), "one hundred thousand seventeen");
    }
}
