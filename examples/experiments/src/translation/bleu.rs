//! Corpus BLEU (Papineni et al. 2002) as sacrebleu computes it by default: 4-grams, tokens "13a", exponential smoothing, one
//! reference a sentence, case as it is.

use std::collections::HashMap;

const ORDERS: usize = 4;

/// BLEU of the translations, from 0 to 100.
///
/// # Panics
/// If there are not as many translations as references.
pub fn corpus_bleu(translations: &[String], references: &[String]) -> f64 {
    assert_eq!(translations.len(), references.len(), "a translation a reference");
    let mut matches = [0_usize; ORDERS];
    let mut totals = [0_usize; ORDERS];
    let (mut length, mut reference_length) = (0, 0);
    for (translation, reference) in translations.iter().zip(references) {
        let (translation, reference) = (tokens(translation), tokens(reference));
        length += translation.len();
        reference_length += reference.len();
        for order in 1..=ORDERS {
            let in_reference = n_grams(&reference, order);
            for (n_gram, count) in n_grams(&translation, order) {
                matches[order - 1] += count.min(in_reference.get(n_gram).copied().unwrap_or(0));
                totals[order - 1] += count;
            }
        }
    }
    if matches == [0; ORDERS] || totals.contains(&0) {
        return 0.0;
    }
    // Chen and Cherry 2014, method 3: the k-th order without a match counts as 1/2^k of one.
    let mut smoothed = 1.0;
    let logarithms = matches.iter().zip(&totals).map(|(&matches, &total)| {
        let matches = if matches == 0 {
            smoothed /= 2.0;
            smoothed
        } else {
            matches as f64
        };
        (matches / total as f64).ln()
    });
    let mean = logarithms.sum::<f64>() / ORDERS as f64;
    let brevity = (1.0 - reference_length as f64 / length as f64).min(0.0);
    100.0 * (brevity + mean).exp()
}

fn n_grams(tokens: &[String], order: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for n_gram in tokens.windows(order) {
        *counts.entry(n_gram).or_insert(0) += 1;
    }
    counts
}

/// Words and punctuation marks, as the script mteval-v13a.pl of NIST cuts them.
fn tokens(line: &str) -> Vec<String> {
    let line = line.replace("<skipped>", "").replace('\n', " ");
    let line = line.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let is_mark = |c: char| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/');
    let is_point = |c: char| matches!(c, '.' | ',');
    let mut apart = String::from(" ");
    for c in line.chars() {
        if is_mark(c) {
            apart.extend([' ', c, ' ']);
        } else {
            apart.push(c);
        }
    }
    apart.push(' ');
    // Points stay inside numbers, as in 1,000.5; a hyphen after a digit is a word.
    let apart = separate(&apart, |a, b| !a.is_ascii_digit() && is_point(b), |a, b| vec![a, ' ', b, ' ']);
    let apart = separate(&apart, |a, b| is_point(a) && !b.is_ascii_digit(), |a, b| vec![' ', a, ' ', b]);
    let apart = separate(&apart, |a, b| a.is_ascii_digit() && b == '-', |a, b| vec![a, ' ', b, ' ']);
    apart.split_whitespace().map(Into::into).collect()
}

/// Replaces pairs of neighbours from left to right, none of which overlap.
fn separate(
    text: &str,
    applies: impl Fn(char, char) -> bool,
    replacement: impl Fn(char, char) -> Vec<char>,
) -> String {
    let mut result = String::new();
    let mut characters = text.chars().peekable();
    while let Some(a) = characters.next() {
        match characters.next_if(|&b| applies(a, b)) {
            Some(b) => result.extend(replacement(a, b)),
            None => result.push(a),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of sacrebleu 2.6.0, `corpus_bleu(translations, [references]).score`.
    #[test]
    fn scores_are_those_of_sacrebleu() {
        type Case = (&'static [&'static str], &'static [&'static str], f64);
        let cases: &[Case] = &[
            (
                &["the cat sat on the mat", "there is a dog"],
                &["the cat sat on a mat", "there is a dog here"],
                62.31838376616487,
            ),
            (
                &["seven hundred forty-two thousand four hundred five", "one hundred one"],
                &["seven hundred forty-two thousand four hundred five", "one hundred one"],
                100.0,
            ),
            // No trigram and no 4-gram matches: smoothed.
            (&["the the the the the the the"], &["the cat is on the mat"], 7.809849842300637),
            (
                &["seven hundred two thousand", "five hundred ten"],
                &["seven hundred twelve thousand one", "five thousand ten"],
                24.078565545102713,
            ),
            (
                &["It costs $1,000.50, doesn't it? \"Yes\" - 3-4 &amp; more..", "(a) b/c, d."],
                &["It costs $1,000.5, doesn't it? \"Yes\" - 3-5 & more.", "(a) b/c; d."],
                63.83838537286474,
            ),
            (&["a b c d e f", "g"], &["a b c d e f", "g"], 100.0),
            // Too short for a 4-gram, nothing in common, nothing at all.
            (&["a b"], &["a b"], 0.0),
            (&["x y z w"], &["a b c d"], 0.0),
            (&[""], &["one two three four"], 0.0),
        ];
        for (translations, references, expected) in cases {
            let strings = |lines: &[&str]| lines.iter().map(|line| line.to_string()).collect::<Vec<_>>();
            let score = corpus_bleu(&strings(translations), &strings(references));
            assert!((score - expected).abs() < 1e-9, "{translations:?}: {score}, expected {expected}");
        }
    }

    #[test]
    fn tokens_are_those_of_mteval_13a() {
        for (line, expected) in [
            ("a.,b ,. 3.x x.3 twenty-three 1990-2000,", "a . , b , . 3 . x x . 3 twenty-three 1990 - 2000 ,"),
            ("{q}~`[z]^_|\\ Straße: „Größe“ 5%", "{ q } ~ ` [ z ] ^ _ | \\ Straße : „Größe“ 5 %"),
        ] {
            assert_eq!(tokens(line).join(" "), expected);
        }
    }
}
