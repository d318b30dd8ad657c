//! Text by rule: numbers in words, a line each.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::english_numbers::{END, english};
use crate::network::{Examples, Inputs};

/// Characters from which the next one is predicted.
pub const CONTEXT: usize = 6;
/// ASCII: most characters never occur, as in large vocabularies, and their embeddings' gradients are always zero.
pub const CHARACTERS: usize = 128;

/// Every place in the text of so many random numbers: the characters before it, and the one that is there.
pub fn examples(numbers: usize, seed: u64) -> Examples {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let lines = (0..numbers).map(|_| english(rng.random_range(0..END)) + "\n");
    let text = lines.collect::<String>().into_bytes();
    let windows = text.windows(CONTEXT + 1);
    let tokens = windows.clone().flat_map(|window| &window[..CONTEXT]).copied().collect();
    Examples {
        inputs: Inputs::Tokens(tokens),
        labels: windows.map(|window| window[CONTEXT].into()).collect(),
    }
}
