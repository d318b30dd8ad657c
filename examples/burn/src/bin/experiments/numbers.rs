//! Numbers in words, German and English: text with grammar of its own, in any amount, free of rights.
//!
//! German puts ones before tens, writes one word and inflects its 1; English does none of it. So translating takes a reordering.

/// Numbers that have words here: those below.
pub const END: u32 = 1_000_000;

const ENGLISH_BELOW_TWENTY: [&str; 20] = [
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
const ENGLISH_TENS: [&str; 8] =
    ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
const GERMAN_BELOW_TWENTY: [&str; 20] = [
    "null",
    "ein",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "zehn",
    "elf",
    "zwölf",
    "dreizehn",
    "vierzehn",
    "fünfzehn",
    "sechzehn",
    "siebzehn",
    "achtzehn",
    "neunzehn",
];
const GERMAN_TENS: [&str; 8] =
    ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"];

/// A number below [`END`] in English words: "twenty-three thousand four hundred five".
pub fn english(number: u32) -> String {
    let rest = |part, separator: &str| match part {
        0 => String::new(),
        _ => format!("{separator}{}", english(part)),
    };
    match number {
        0..20 => ENGLISH_BELOW_TWENTY[number as usize].into(),
        20..100 => format!("{}{}", ENGLISH_TENS[number as usize / 10 - 2], rest(number % 10, "-")),
        100..1000 => format!("{} hundred{}", english(number / 100), rest(number % 100, " ")),
        _ => format!("{} thousand{}", english(number / 1000), rest(number % 1000, " ")),
    }
}

/// A number below [`END`] in German words: "dreiundzwanzigtausendvierhundertfünf".
pub fn german(number: u32) -> String {
    // 1 ends in s where nothing follows it: eins, hunderteins, but einundzwanzig, einhundert.
    if number % 100 == 1 { attributive(number) + "s" } else { attributive(number) }
}

/// The form that stands before another word.
fn attributive(number: u32) -> String {
    let rest = |part| if part == 0 { String::new() } else { attributive(part) };
    match number {
        0..20 => GERMAN_BELOW_TWENTY[number as usize].into(),
        20..100 => {
            let tens = GERMAN_TENS[number as usize / 10 - 2];
            if number.is_multiple_of(10) {
                tens.into()
            } else {
                format!("{}und{tens}", attributive(number % 10))
            }
        }
        100..1000 => format!("{}hundert{}", attributive(number / 100), rest(number % 100)),
        _ => format!("{}tausend{}", attributive(number / 1000), rest(number % 1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn english_numbers_are_named_by_rule() {
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
    fn german_numbers_follow_the_exceptions() {
        for (number, words) in [
            (0, "null"),
            (1, "eins"),
            (11, "elf"),
            (16, "sechzehn"),
            (17, "siebzehn"),
            (21, "einundzwanzig"),
            (30, "dreißig"),
            (66, "sechsundsechzig"),
            (77, "siebenundsiebzig"),
            (100, "einhundert"),
            (101, "einhunderteins"),
            (111, "einhundertelf"),
            (1_001, "eintausendeins"),
            (21_000, "einundzwanzigtausend"),
            (23_000, "dreiundzwanzigtausend"),
            (101_000, "einhunderteintausend"),
            (201_701, "zweihunderteintausendsiebenhunderteins"),
            (999_999, "neunhundertneunundneunzigtausendneunhundertneunundneunzig"),
        ] {
            assert_eq!(german(number), words);
        }
    }

    #[test]
    fn different_numbers_have_different_words() {
        let numbers = || (0..END).step_by(7);
        let distinct =
            |words: fn(u32) -> String| numbers().map(words).collect::<std::collections::HashSet<_>>().len();
        assert_eq!(distinct(german), numbers().count());
        assert_eq!(distinct(english), numbers().count());
    }
}
