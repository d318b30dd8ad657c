//! Numbers in German words. German puts ones before tens, writes one word and inflects its 1; English does none of it. So translating
//! takes a reordering.

const BELOW_TWENTY: [&str; 20] = [
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
const TENS: [&str; 8] =
    ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"];

/// A number below a million in German words: "dreiundzwanzigtausendvierhundertfünf".
pub fn german(number: u32) -> String {
    // 1 ends in s where nothing follows it: eins, hunderteins, but einundzwanzig, einhundert.
    if number % 100 == 1 { attributive(number) + "s" } else { attributive(number) }
}

/// The form that stands before another word.
fn attributive(number: u32) -> String {
    let rest = |part| if part == 0 { String::new() } else { attributive(part) };
    match number {
        0..20 => BELOW_TWENTY[number as usize].into(),
        20..100 => {
            let tens = TENS[number as usize / 10 - 2];
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
        let numbers = || (0..crate::english_numbers::END).step_by(7);
        let distinct = numbers().map(german).collect::<std::collections::HashSet<_>>();
        assert_eq!(distinct.len(), numbers().count());
    }
}
