//! Byte-pair encoding (Sennrich et al. 2016) on the characters of words.

use std::collections::{BTreeSet, HashMap, HashSet};

/// Pads short sentences; never predicted.
pub const PADDING: u32 = 0;
/// Begins every target sentence.
pub const START: u32 = 1;
/// Ends every sentence.
pub const END: u32 = 2;
/// Stands for a character that the training text lacks.
pub const UNKNOWN: u32 = 3;
const SPECIAL: [&str; 4] = ["", "", "", "\u{fffd}"];
/// Begins a word, as in SentencePiece, so that spaces can be put back.
const WORD: char = '▁';

type Pair = (u32, u32);

/// Pieces of words, and the merges of neighbours in the order in which they apply.
pub struct Tokenizer {
    pieces: Vec<String>,
    characters: HashMap<char, u32>,
    /// The piece that a pair becomes. Earlier merges have smaller numbers.
    merges: HashMap<Pair, u32>,
}

/// A word of the training text in pieces, and how often it occurs.
struct Word {
    pieces: Vec<u32>,
    count: usize,
}

impl Tokenizer {
    /// Learns up to `merges` merges, each of the most frequent pair. Equal texts give equal tokenizers.
    pub fn train<'a>(lines: impl IntoIterator<Item = &'a str>, merges: usize) -> Self {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for word in lines.into_iter().flat_map(str::split_whitespace) {
            *counts.entry(word).or_default() += 1;
        }
        let alphabet: BTreeSet<char> = counts.keys().flat_map(|word| word.chars()).chain([WORD]).collect();
        let mut tokenizer = Self {
            pieces: SPECIAL.map(Into::into).to_vec(),
            characters: HashMap::new(),
            merges: HashMap::new(),
        };
        for character in alphabet {
            tokenizer.characters.insert(character, tokenizer.pieces.len() as u32);
            tokenizer.pieces.push(character.into());
        }
        let words: Vec<_> = (counts.iter())
            .map(|(word, &count)| Word { pieces: tokenizer.characters_of(word), count })
            .collect();
        tokenizer.learn(words, merges);
        tokenizer
    }

    fn learn(&mut self, mut words: Vec<Word>, merges: usize) {
        let mut frequencies: HashMap<Pair, usize> = HashMap::new();
        let mut places: HashMap<Pair, HashSet<usize>> = HashMap::new();
        for (place, word) in words.iter().enumerate() {
            for pair in pairs(&word.pieces) {
                *frequencies.entry(pair).or_default() += word.count;
                places.entry(pair).or_default().insert(place);
            }
        }
        for _ in 0..merges {
            // Among equally frequent pairs, takes that of the oldest pieces, so that the order of the map does not matter.
            let best = frequencies.iter().max_by_key(|&(&pair, &count)| (count, std::cmp::Reverse(pair)));
            let Some((&pair, _)) = best.filter(|&(_, &count)| count > 0) else { break };
            let piece = self.pieces.len() as u32;
            self.pieces.push(format!("{}{}", self.pieces[pair.0 as usize], self.pieces[pair.1 as usize]));
            self.merges.insert(pair, piece);
            for place in places.remove(&pair).unwrap_or_default() {
                let word = &mut words[place];
                for old in pairs(&word.pieces) {
                    *frequencies.entry(old).or_default() -= word.count;
                }
                merge(&mut word.pieces, pair, piece);
                for new in pairs(&word.pieces) {
                    *frequencies.entry(new).or_default() += word.count;
                    places.entry(new).or_default().insert(place);
                }
            }
            frequencies.remove(&pair);
        }
    }

    fn characters_of(&self, word: &str) -> Vec<u32> {
        let number = |character| self.characters.get(&character).copied().unwrap_or(UNKNOWN);
        [WORD].into_iter().chain(word.chars()).map(number).collect()
    }

    /// Number of different tokens, the special ones included.
    pub fn vocabulary(&self) -> usize {
        self.pieces.len()
    }

    /// The tokens of a sentence, without [`START`] and [`END`].
    pub fn encode(&self, sentence: &str) -> Vec<u32> {
        sentence.split_whitespace().flat_map(|word| self.encode_word(word)).collect()
    }

    fn encode_word(&self, word: &str) -> Vec<u32> {
        let mut pieces = self.characters_of(word);
        let earliest = |pieces: &[u32]| {
            let merges = pairs(pieces).filter_map(|pair| Some((pair, *self.merges.get(&pair)?)));
            merges.min_by_key(|(_, piece)| *piece)
        };
        while let Some((pair, piece)) = earliest(&pieces) {
            merge(&mut pieces, pair, piece);
        }
        pieces
    }

    /// The sentence, up to the first [`END`]; words are separated by one space.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let tokens = tokens.iter().take_while(|token| **token != END);
        let joined: String = tokens.map(|token| self.pieces[*token as usize].as_str()).collect();
        joined.replace(WORD, " ").trim().into()
    }
}

fn pairs(pieces: &[u32]) -> impl Iterator<Item = Pair> {
    pieces.windows(2).map(|pair| (pair[0], pair[1]))
}

/// Joins every occurrence of the pair, from left to right.
fn merge(pieces: &mut Vec<u32>, pair: Pair, piece: u32) {
    let mut merged = Vec::with_capacity(pieces.len());
    let mut rest = pieces.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let joins = first == pair.0 && rest.next_if_eq(&pair.1).is_some();
        merged.push(if joins { piece } else { first });
    }
    *pieces = merged;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::english_numbers::english;
    use crate::german_numbers::german;

    #[test]
    fn decoding_gives_back_what_was_encoded() {
        let text: Vec<_> = (0..2000).map(|i| german(i * 499)).collect();
        let tokenizer = Tokenizer::train(text.iter().map(String::as_str), 80);
        for sentence in ["einhunderteins", "fünf und  sechzig", "zwölf", ""] {
            let normal = sentence.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(tokenizer.decode(&tokenizer.encode(sentence)), normal);
        }
        for sentence in &text {
            assert_eq!(&tokenizer.decode(&tokenizer.encode(sentence)), sentence);
        }
    }

    #[test]
    fn the_most_frequent_pair_is_merged_first() {
        // "l o" occurs 7 times, "o w" 5 times, "_ l" 7 times: of equals, the pair of older pieces.
        let tokenizer = Tokenizer::train(["low low low low low lot lot"], 2);
        let merged: Vec<_> = tokenizer.pieces.iter().filter(|piece| piece.chars().count() > 1).collect();
        assert_eq!(merged, ["lo", "▁lo"]);
        assert_eq!(tokenizer.encode("low").len(), 2);
    }

    #[test]
    fn equal_texts_give_equal_tokenizers() {
        let text: Vec<_> = (0..500).map(|i| english(i * 1999)).collect();
        let train = || Tokenizer::train(text.iter().map(String::as_str), 60).pieces;
        assert_eq!(train(), train());
    }

    #[test]
    fn unknown_characters_are_one_token() {
        let tokenizer = Tokenizer::train(["abc"], 10);
        assert!(tokenizer.encode("axb").contains(&UNKNOWN));
        assert_eq!(tokenizer.decode(&tokenizer.encode("axb")), "a\u{fffd}b");
    }

    #[test]
    fn merging_stops_when_all_words_are_whole() {
        let tokenizer = Tokenizer::train(["ab ab"], 1000);
        assert_eq!(tokenizer.encode("ab ab").len(), 2);
    }
}
