//! Generated text: numbers in words, one per line.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::english_numbers::{END, english};
use crate::network::{Examples, Inputs};

/// The number of characters from which the network predicts the next one.
pub const CONTEXT: usize = 6;
/// ASCII: most characters never occur, as in large vocabularies, and their embeddings' gradients are always zero.
pub const CHARACTERS: usize = 128;

/// Every position in the text of `numbers` random numbers: the characters before it, and the character itself.
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
