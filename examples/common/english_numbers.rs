//! Numbers in English words: text with a grammar, in any amount, free of rights.

/// The numbers below this have words here.
pub const END: u32 = 1_000_000;

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
const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// A number below [`END`] in English words: "twenty-three thousand four hundred five".
pub fn english(number: u32) -> String {
    let rest = |part, separator: &str| match part {
        0 => String::new(),
        _ => format!("{separator}{}", english(part)),
    };
    match number {
        0..20 => BELOW_TWENTY[number as usize].into(),
        20..100 => format!("{}{}", TENS[number as usize / 10 - 2], rest(number % 10, "-")),
        100..1000 => format!("{} hundred{}", english(number / 100), rest(number % 100, " ")),
        _ => format!("{} thousand{}", english(number / 1000), rest(number % 1000, " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_named_by_rule() {
        for (number, words) in [
            (0, "zero"),
            (1, "one"),
            (13, "thirteen"),
            (20, "twenty"),
            (99, "ninety-nine"),
            (101, "one hundred one"),
            (23_405, "twenty-three thousand four hundred five"),
            (100_017, "one hundred thousand seventeen"),
            (999_999, "nine hundred ninety-nine thousand nine hundred ninety-nine"),
        ] {
            assert_eq!(english(number), words);
        }
    }

    #[test]
    fn different_numbers_have_different_words() {
        let numbers = || (0..END).step_by(7);
        let distinct = numbers().map(english).collect::<std::collections::HashSet<_>>();
        assert_eq!(distinct.len(), numbers().count());
    }
}
