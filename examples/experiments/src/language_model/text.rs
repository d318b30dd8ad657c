//! A text as tokens: from a file, or made of number words.

use std::path::Path;

use anyhow::{Context, ensure};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::english_numbers::{self, english};
use crate::tokenizer::{END, Tokenizer};

const SEED: u64 = 0;

/// Tokens of a text; every line ends with [`END`].
pub struct Text {
    pub vocabulary: usize,
    pub training: Vec<u32>,
    pub test: Vec<u32>,
    /// The least perplexity that is possible on the test text on average, where it is known.
    pub least_perplexity: Option<f64>,
}

impl Text {
    /// So many random numbers in English words, a line each.
    pub fn number_words(lines: usize, test_lines: usize, merges: usize) -> anyhow::Result<Self> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let lines: Vec<_> = (0..lines).map(|_| english(rng.random_range(0..english_numbers::END))).collect();
        let mut text = Self::new(&lines, test_lines, merges)?;
        // Nothing but the number is random, and all numbers are equally likely.
        let nats = test_lines as f64 * f64::from(english_numbers::END).ln();
        text.least_perplexity = Some((nats / text.test.len() as f64).exp());
        Ok(text)
    }

    /// A text file; its last lines are only tested on.
    pub fn read(path: &Path, test_lines: usize, merges: usize) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("could not read {} as UTF-8 text", path.display()))?;
        let lines: Vec<_> = text.lines().map(str::to_owned).filter(|line| !line.trim().is_empty()).collect();
        ensure!(!lines.is_empty(), "{} has no text", path.display());
        Self::new(&lines, test_lines, merges)
    }

    fn new(lines: &[String], test_lines: usize, merges: usize) -> anyhow::Result<Self> {
        ensure!(
            (1..lines.len()).contains(&test_lines),
            "{test_lines} test lines of {}: expected at least one, and one left for training",
            lines.len()
        );
        let (training, test) = lines.split_at(lines.len() - test_lines);
        let tokenizer = Tokenizer::train(training.iter().map(String::as_str), merges);
        let tokens = |lines: &[String]| -> Vec<u32> {
            lines.iter().flat_map(|line| [tokenizer.encode(line), vec![END]].concat()).collect()
        };
        Ok(Self {
            vocabulary: tokenizer.vocabulary(),
            training: tokens(training),
            test: tokens(test),
            least_perplexity: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, text).unwrap();
        Text::read(&path, 1, 0).err().expect("an error").to_string()
    }

    #[test]
    fn a_missing_or_empty_file_is_named() {
        let error = Text::read(Path::new("/nowhere/text"), 1, 0).err().unwrap();
        assert!(error.to_string().contains("/nowhere/text"));
        assert!(error_of(" \n\n").contains("has no text"));
    }

    #[test]
    fn a_text_without_lines_to_train_on_is_refused() {
        assert!(error_of("one line\n").contains("1 test lines of 1"));
    }

    #[test]
    fn each_line_ends_once() {
        let text = Text::number_words(50, 10, 0).unwrap();
        let ends = |tokens: &[u32]| tokens.iter().filter(|token| **token == END).count();
        assert_eq!((ends(&text.training), ends(&text.test)), (40, 10));
        assert!(text.least_perplexity.is_some_and(|perplexity| (1.1..2.0).contains(&perplexity)));
    }
}
