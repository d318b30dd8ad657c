//! Words as tokens, as in the Penn Treebank's text files of Mikolov et al. 2010: lower case, no punctuation, numbers are N, and a word that
//! the vocabulary lacks is `<unk>`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

/// Ends every line: `<eos>`.
pub const END: u32 = 0;
/// Stands for a word that is not in the vocabulary: [`UNKNOWN_WORD`].
pub const UNKNOWN: u32 = 1;
const UNKNOWN_WORD: &str = "<unk>";
/// Stands for a number.
const NUMBER: &str = "N";
/// [`END`] and [`UNKNOWN`].
const SPECIAL: usize = 2;

/// The words that have a token of their own.
pub struct Vocabulary {
    tokens: HashMap<String, u32>,
}

impl Vocabulary {
    /// The most frequent words of a text, of equals the first in the alphabet, so that there are at most `limit` tokens with the two others.
    pub fn new<'a>(words: impl Iterator<Item = &'a str>, limit: usize) -> Self {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for word in words.filter(|word| *word != UNKNOWN_WORD) {
            *counts.entry(word).or_default() += 1;
        }
        let mut words: Vec<_> = counts.into_iter().map(|(word, count)| (Reverse(count), word)).collect();
        words.sort_unstable();
        let numbered = words.into_iter().take(limit.saturating_sub(SPECIAL)).zip(SPECIAL as u32..);
        Self { tokens: numbered.map(|((_, word), token)| (word.to_owned(), token)).collect() }
    }

    /// Number of different tokens, the two others included.
    pub fn len(&self) -> usize {
        self.tokens.len() + SPECIAL
    }

    /// The tokens of a line, and [`END`].
    pub fn encode<'a>(&self, words: impl Iterator<Item = &'a str>) -> Vec<u32> {
        let token = |word| self.tokens.get(word).copied().unwrap_or(UNKNOWN);
        words.map(token).chain([END]).collect()
    }
}

/// The words of a line of any text, with one space between them.
pub fn plain(line: &str) -> String {
    // Letters and digits, with apostrophes, hyphens and, in numbers, points between them.
    static WORDS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"[\p{L}\p{M}\p{N}]+(?:['’-][\p{L}\p{M}\p{N}]+|[.,]\p{N}+)*")
            .expect("a pattern that is constant")
    });
    let line = line.to_lowercase();
    let words = WORDS.find_iter(&line).map(|found| {
        let is_number = found.as_str().chars().all(|character| !character.is_alphabetic());
        if is_number { NUMBER.to_owned() } else { found.as_str().replace('’', "'") }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_as_in_the_penn_treebank() {
        for (line, expected) in [
            ("“Don’t,” he said; ‘GO!’", "don't he said go"),
            ("In 1,234.5 of 7 twenty-one A4 sheets--all.", "in N of N twenty-one a4 sheets all"),
            ("1990-1991, x.y, 3.", "N x y N"),
            ("...", ""),
        ] {
            assert_eq!(plain(line), expected);
        }
    }

    #[test]
    fn the_most_frequent_words_have_tokens() {
        let text = "b a c b <unk> a d b c";
        let vocabulary = Vocabulary::new(text.split(' '), 5);
        // b, then a before c, which is as frequent.
        assert_eq!(vocabulary.encode("b a c d <unk>".split(' ')), [2, 3, 4, UNKNOWN, UNKNOWN, END]);
        assert_eq!(vocabulary.len(), 5);
        let all = Vocabulary::new(text.split(' '), usize::MAX);
        assert_eq!((all.len(), all.encode("d x".split(' '))), (6, vec![5, UNKNOWN, END]));
        let none = Vocabulary::new(text.split(' '), 0);
        assert_eq!((none.len(), none.encode("b".split(' '))), (2, vec![UNKNOWN, END]));
    }
}
