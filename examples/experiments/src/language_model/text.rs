//! A text as tokens: from files, or made of number words.

use std::path::Path;

use anyhow::{Context, ensure};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::words::{self, Vocabulary};
use crate::english_numbers::{self, english};
use crate::tokenizer::{END, Tokenizer};

const SEED: u64 = 0;

/// Tokens of a text. Every line ends with the same token.
pub struct Text {
    pub vocabulary: usize,
    pub training: Vec<u32>,
    pub test: Vec<u32>,
    /// The least perplexity that is possible on the test text on average, where it is known.
    pub least_perplexity: Option<f64>,
}

/// What a token is.
#[derive(Clone, Copy, Debug)]
pub enum Units {
    /// A character, or what this many merges of the byte-pair encoding make of several.
    Pieces { merges: usize },
    /// A word, of a vocabulary of at most this size.
    Words { limit: usize },
}

/// Which lines are not for training.
#[derive(Clone, Copy, Debug)]
pub struct HeldOut {
    /// So many lines at the end.
    pub test_lines: usize,
    /// Takes as many lines before them for the test, which are not for training then, either.
    pub validate: bool,
}

impl Text {
    /// So many random numbers in English words, a line each.
    pub fn number_words(lines: usize, held_out: HeldOut, merges: usize) -> anyhow::Result<Self> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let lines: Vec<_> = (0..lines).map(|_| english(rng.random_range(0..english_numbers::END))).collect();
        let mut text = Self::split(&lines, held_out, Units::Pieces { merges })?;
        // Nothing but the number is random, and all numbers are equally likely.
        let nats = held_out.test_lines as f64 * f64::from(english_numbers::END).ln();
        text.least_perplexity = Some((nats / text.test.len() as f64).exp());
        Ok(text)
    }

    /// A text file; its last lines are only tested on.
    pub fn read(path: &Path, held_out: HeldOut, units: Units) -> anyhow::Result<Self> {
        Self::split(&lines(path)?, held_out, units)
    }

    /// The Penn Treebank's text files as Mikolov et al. published them, `ptb.train.txt`, `ptb.valid.txt` and `ptb.test.txt`: a sentence a line,
    /// with spaces between its words. Tests are of the validation text, or of the test text.
    pub fn penn_treebank(folder: &Path, validate: bool, limit: usize) -> anyhow::Result<Self> {
        let [training, validation, test] =
            ["train", "valid", "test"].map(|name| lines(&folder.join(format!("ptb.{name}.txt"))));
        let (training, validation, test) = (training?, validation?, test?);
        Ok(Self::of_words(&training, if validate { &validation } else { &test }, limit))
    }

    fn split(
        lines: &[String],
        HeldOut { test_lines, validate }: HeldOut,
        units: Units,
    ) -> anyhow::Result<Self> {
        let held_out = if validate { test_lines.saturating_mul(2) } else { test_lines };
        ensure!(
            test_lines > 0 && held_out < lines.len(),
            "{test_lines} test lines{} of {}: expected at least one, and one left for training",
            if validate { " and as many for validation" } else { "" },
            lines.len()
        );
        let (training, rest) = lines.split_at(lines.len() - held_out);
        let test = &rest[..test_lines];
        Ok(match units {
            Units::Pieces { merges } => Self::of_pieces(training, test, merges),
            Units::Words { limit } => {
                let plain =
                    |lines: &[String]| lines.iter().map(|line| words::plain(line)).collect::<Vec<_>>();
                Self::of_words(&plain(training), &plain(test), limit)
            }
        })
    }

    fn of_pieces(training: &[String], test: &[String], merges: usize) -> Self {
        let tokenizer = Tokenizer::train(training.iter().map(String::as_str), merges);
        let tokens = |lines: &[String]| -> Vec<u32> {
            lines.iter().flat_map(|line| [tokenizer.encode(line), vec![END]].concat()).collect()
        };
        Self {
            vocabulary: tokenizer.vocabulary(),
            training: tokens(training),
            test: tokens(test),
            least_perplexity: None,
        }
    }

    /// Lines of words with spaces between them.
    fn of_words(training: &[String], test: &[String], limit: usize) -> Self {
        let vocabulary = Vocabulary::new(training.iter().flat_map(|line| line.split_whitespace()), limit);
        let tokens = |lines: &[String]| -> Vec<u32> {
            lines.iter().flat_map(|line| vocabulary.encode(line.split_whitespace())).collect()
        };
        Self {
            vocabulary: vocabulary.len(),
            training: tokens(training),
            test: tokens(test),
            least_perplexity: None,
        }
    }
}

/// The lines of a file that are not empty.
fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("could not read {} as UTF-8 text", path.display()))?;
    let lines: Vec<_> = text.lines().map(str::to_owned).filter(|line| !line.trim().is_empty()).collect();
    ensure!(!lines.is_empty(), "{} has no text", path.display());
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST_LINE: HeldOut = HeldOut { test_lines: 1, validate: false };

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn error_of(text: &str, held_out: HeldOut) -> String {
        let (_folder, path) = file(text);
        Text::read(&path, held_out, Units::Pieces { merges: 0 }).err().expect("an error").to_string()
    }

    #[test]
    fn a_missing_or_empty_file_is_named() {
        let read = Text::read(Path::new("/nowhere/text"), LAST_LINE, Units::Words { limit: 10 });
        assert!(read.err().unwrap().to_string().contains("/nowhere/text"));
        assert!(error_of(" \n\n", LAST_LINE).contains("has no text"));
    }

    #[test]
    fn a_text_without_lines_to_train_on_is_refused() {
        assert!(error_of("one line\n", LAST_LINE).contains("1 test lines of 1"));
        let validate = HeldOut { validate: true, ..LAST_LINE };
        assert!(
            error_of("one line\ntwo\n", validate).contains("1 test lines and as many for validation of 2")
        );
        for test_lines in [0, usize::MAX] {
            assert!(
                error_of("a\nb\nc\n", HeldOut { test_lines, validate: true })
                    .contains("expected at least one")
            );
        }
    }

    #[test]
    fn each_line_ends_once() {
        let held_out = HeldOut { test_lines: 10, validate: false };
        let text = Text::number_words(50, held_out, 0).unwrap();
        let ends = |tokens: &[u32], end: u32| tokens.iter().filter(|token| **token == end).count();
        assert_eq!((ends(&text.training, END), ends(&text.test, END)), (40, 10));
        assert!(text.least_perplexity.is_some_and(|perplexity| (1.1..2.0).contains(&perplexity)));
        let (_folder, path) = file("One, two.\n\nTwo three\nFour\nfive\n");
        let text = Text::read(&path, held_out_lines(2), Units::Words { limit: 100 }).unwrap();
        assert_eq!((ends(&text.training, words::END), ends(&text.test, words::END)), (2, 2));
    }

    fn held_out_lines(test_lines: usize) -> HeldOut {
        HeldOut { test_lines, validate: false }
    }

    #[test]
    fn words_come_from_the_training_text() {
        let (_folder, path) = file("One, two.\nTwo three\nfour two\nThree ONE five\n");
        let of = |validate, limit| {
            let held_out = HeldOut { test_lines: 1, validate };
            Text::read(&path, held_out, Units::Words { limit }).unwrap()
        };
        // two is 2, then four, one, three: once each.
        let text = of(false, 4);
        assert_eq!((text.vocabulary, text.training), (4, vec![1, 2, 0, 2, 1, 0, 3, 2, 0]));
        assert_eq!(text.test, [1, 1, 1, 0]);
        // The third line is for validation: four is not known.
        let text = of(true, 10);
        assert_eq!((text.vocabulary, text.training), (5, vec![3, 2, 0, 2, 4, 0]));
        assert_eq!(text.test, [1, 2, 0]);
    }

    #[test]
    fn the_penn_treebank_is_read_as_published() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let read = |validate| Text::penn_treebank(folder.path(), validate, usize::MAX);
        write("ptb.train.txt", " mr. <unk> is chairman of <unk> n.v. \n N is N \n");
        write("ptb.test.txt", " N <unk> is new \n");
        let error = format!("{:#}", read(false).err().expect("an error"));
        assert!(error.contains("ptb.valid.txt"), "{error}");
        write("ptb.valid.txt", " n.v. \n");
        let text = read(false).unwrap();
        // <eos>, <unk>, then N, is, chairman, mr., n.v., of.
        assert_eq!(text.vocabulary, 8);
        assert_eq!(text.training, [5, 1, 3, 4, 7, 1, 6, 0, 2, 3, 2, 0]);
        assert_eq!(text.test, [2, 1, 3, 1, 0]);
        assert_eq!(read(true).unwrap().test, [6, 0]);
        write("ptb.test.txt", "\n");
        assert!(read(true).err().unwrap().to_string().contains("ptb.test.txt has no text"));
    }
}
