//! Pairs of sentences, from files or of number words.

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

/// Numbers of pairs that are not for training.
#[derive(Clone, Copy, Debug)]
pub struct HeldOut {
    pub validation: usize,
    pub test: usize,
}

/// Disjoint sets of pairs.
pub struct Corpus {
    pub training: Vec<Pair>,
    pub validation: Vec<Pair>,
    pub test: Vec<Pair>,
}

impl Corpus {
    /// Different numbers in German and in English.
    pub fn number_words(count: usize, held_out: HeldOut) -> anyhow::Result<Self> {
        ensure!(count <= END as usize, "there are number words for {} numbers, not {count}", END);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(SPLIT_SEED);
        let drawn = index::sample(&mut rng, END as usize, count);
        let pairs = drawn
            .into_iter()
            .map(|number| number as u32)
            .map(|number| Pair { source: german(number), target: english(number) });
        Self::split(pairs.collect(), held_out)
    }

    /// Parallel text, with the same sentence in two languages on each line. Leaves out pairs with an empty side and shuffles the rest.
    pub fn read(source: &Path, target: &Path, held_out: HeldOut) -> anyhow::Result<Self> {
        let lines = |path: &Path| {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("could not read {} as UTF-8 text", path.display()))?;
            ensure!(!text.trim().is_empty(), "{} has no text", path.display());
            Ok(text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>())
        };
        let (sources, targets) = (lines(source)?, lines(target)?);
        ensure!(
            sources.len() == targets.len(),
            "{} has {} lines, {} has {}: expected one sentence per line, and as many in both",
            source.display(),
            sources.len(),
            target.display(),
            targets.len()
        );
        let pairs = sources.into_iter().zip(targets).map(|(source, target)| Pair { source, target });
        let pairs = pairs.filter(|pair| !pair.source.is_empty() && !pair.target.is_empty()).collect();
        Self::shuffled(pairs, held_out)
    }

    /// Pairs in an order that is always the same, split.
    pub fn shuffled(mut pairs: Vec<Pair>, held_out: HeldOut) -> anyhow::Result<Self> {
        pairs.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(SPLIT_SEED));
        Self::split(pairs, held_out)
    }

    /// Takes the test pairs from the start and the validation pairs from the end, so that neither set depends on the size of the other.
    fn split(mut pairs: Vec<Pair>, HeldOut { validation, test }: HeldOut) -> anyhow::Result<Self> {
        ensure!(
            validation > 0 && test > 0 && validation.saturating_add(test) < pairs.len(),
            "{validation} validation and {test} test sentences of {}: expected at least one each, and one left for training",
            pairs.len()
        );
        let mut training = pairs.split_off(test);
        let validation = training.split_off(training.len() - validation);
        Ok(Self { training, validation, test: pairs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
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

    fn held_out(validation: usize, test: usize) -> HeldOut {
        HeldOut { validation, test }
    }

    fn error_of(source: &str, target: &str) -> String {
        let (_folder, source, target) = files(source, target);
        format!("{:#}", Corpus::read(&source, &target, held_out(1, 1)).err().expect("an error"))
    }

    #[test]
    fn no_sentence_is_in_two_sets() {
        let corpus = Corpus::number_words(3000, held_out(100, 200)).unwrap();
        let sets = [&corpus.training, &corpus.validation, &corpus.test];
        assert_eq!(sets.map(Vec::len), [2700, 100, 200]);
        let different: HashSet<_> = sets.into_iter().flatten().map(|pair| &pair.target).collect();
        assert_eq!(different.len(), 3000);
    }

    #[test]
    fn validation_pairs_come_out_of_the_training_pairs() {
        let [few, many] =
            [1, 100].map(|validation| Corpus::number_words(3000, held_out(validation, 200)).unwrap());
        assert_eq!(few.test, many.test);
        assert_eq!(few.training[..2700], many.training);
        assert_eq!(few.training[2700..], many.validation[..99]);
    }

    #[test]
    fn files_are_read_line_by_line() {
        let (_folder, source, target) = files("eins\r\nzwei\n\ndrei\n", "one\ntwo\nno source\nthree\n");
        let corpus = Corpus::read(&source, &target, held_out(1, 1)).unwrap();
        let mut pairs = [corpus.training, corpus.validation, corpus.test].concat();
        pairs.sort_by(|a, b| a.target.cmp(&b.target));
        let expected = [("eins", "one"), ("drei", "three"), ("zwei", "two")]
            .map(|(source, target)| Pair { source: source.into(), target: target.into() });
        assert_eq!(pairs, expected);
    }

    #[test]
    fn unequal_line_counts_are_named() {
        let error = error_of("a\nb\nc\n", "a\nb\n");
        assert!(error.contains("has 3 lines") && error.contains("has 2"), "{error}");
    }

    #[test]
    fn empty_files_are_refused() {
        assert!(error_of("", "a").contains("has no text"));
        assert!(error_of("a", "\n \n").contains("has no text"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let missing = Path::new("/nowhere/train.de");
        let error = Corpus::read(missing, missing, held_out(1, 1)).err().unwrap();
        assert!(error.to_string().contains("/nowhere/train.de"));
    }

    #[test]
    fn sets_that_leave_nothing_to_train_on_are_refused() {
        assert!(error_of("a\nb\n", "a\nb\n").contains("1 validation and 1 test sentences of 2"));
        assert!(Corpus::number_words(10, held_out(1, 0)).is_err());
        assert!(Corpus::number_words(10, held_out(0, 1)).is_err());
        assert!(Corpus::number_words(10, held_out(usize::MAX, 1)).is_err());
        assert!(Corpus::number_words(2_000_000, held_out(10, 10)).is_err());
    }
}
