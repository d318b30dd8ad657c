//! Pairs of sentences: from two files, or made of number words.

use std::path::Path;

use anyhow::{Context, ensure};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{SliceRandom, index};

use crate::english_numbers::{END, english};
use crate::german_numbers::german;

/// All runs share one corpus and one split, whatever their seed.
const SPLIT_SEED: u64 = 0;

/// A sentence and its translation.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    pub source: String,
    pub target: String,
}

/// Disjoint sets of pairs.
pub struct Corpus {
    pub training: Vec<Pair>,
    pub test: Vec<Pair>,
}

impl Corpus {
    /// So many different numbers in German and in English.
    pub fn number_words(count: usize, test: usize) -> anyhow::Result<Self> {
        ensure!(count <= END as usize, "there are number words for {} numbers, not {count}", END);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(SPLIT_SEED);
        let drawn = index::sample(&mut rng, END as usize, count);
        let pairs = drawn
            .into_iter()
            .map(|number| number as u32)
            .map(|number| Pair { source: german(number), target: english(number) });
        Self::split(pairs.collect(), test)
    }

    /// Parallel text: line by line, the same sentence in two languages. Pairs with an empty side are left out, and the rest is
    /// shuffled.
    pub fn read(source: &Path, target: &Path, test: usize) -> anyhow::Result<Self> {
        let lines = |path: &Path| {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("{} cannot be read as UTF-8 text", path.display()))?;
            ensure!(!text.trim().is_empty(), "{} holds no text", path.display());
            Ok(text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>())
        };
        let (sources, targets) = (lines(source)?, lines(target)?);
        ensure!(
            sources.len() == targets.len(),
            "{} has {} lines, {} has {}: needed is one sentence a line, the same in both",
            source.display(),
            sources.len(),
            target.display(),
            targets.len()
        );
        let pairs = sources.into_iter().zip(targets).map(|(source, target)| Pair { source, target });
        let mut pairs: Vec<_> =
            pairs.filter(|pair| !pair.source.is_empty() && !pair.target.is_empty()).collect();
        pairs.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(SPLIT_SEED));
        Self::split(pairs, test)
    }

    fn split(mut pairs: Vec<Pair>, test: usize) -> anyhow::Result<Self> {
        ensure!(
            (1..pairs.len()).contains(&test),
            "{test} test sentences of {}: needed is at least one, and one left to train on",
            pairs.len()
        );
        let training = pairs.split_off(test);
        Ok(Self { training, test: pairs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn files(source: &str, target: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let paths = [("de", source), ("en", target)].map(|(name, text)| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        });
        let [source, target] = paths;
        (folder, source, target)
    }

    fn error_of(source: &str, target: &str, test: usize) -> String {
        let (_folder, source, target) = files(source, target);
        format!("{:#}", Corpus::read(&source, &target, test).err().expect("an error"))
    }

    #[test]
    fn no_sentence_is_in_both_sets() {
        let corpus = Corpus::number_words(3000, 200).unwrap();
        assert_eq!((corpus.training.len(), corpus.test.len()), (2800, 200));
        assert!(corpus.test.iter().all(|pair| !corpus.training.contains(pair)));
    }

    #[test]
    fn files_are_read_line_by_line() {
        let (_folder, source, target) = files("eins\r\nzwei\n\ndrei\n", "one\ntwo\nno source\nthree\n");
        let corpus = Corpus::read(&source, &target, 1).unwrap();
        let mut pairs = [corpus.training, corpus.test].concat();
        pairs.sort_by(|a, b| a.target.cmp(&b.target));
        let expected = [("eins", "one"), ("drei", "three"), ("zwei", "two")]
            .map(|(source, target)| Pair { source: source.into(), target: target.into() });
        assert_eq!(pairs, expected);
    }

    #[test]
    fn unequal_line_counts_are_named() {
        let error = error_of("a\nb\nc\n", "a\nb\n", 1);
        assert!(error.contains("has 3 lines") && error.contains("has 2"), "{error}");
    }

    #[test]
    fn empty_files_are_refused() {
        assert!(error_of("", "a", 1).contains("holds no text"));
        assert!(error_of("a", "\n \n", 1).contains("holds no text"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let missing = Path::new("/nowhere/train.de");
        let error = Corpus::read(missing, missing, 1).err().unwrap();
        assert!(error.to_string().contains("/nowhere/train.de"));
    }

    #[test]
    fn a_test_set_that_leaves_nothing_to_train_on_is_refused() {
        assert!(error_of("a\nb\n", "a\nb\n", 2).contains("2 test sentences of 2"));
        assert!(Corpus::number_words(10, 0).is_err());
        assert!(Corpus::number_words(2_000_000, 10).is_err());
    }
}
