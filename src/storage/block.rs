//! A block: the state of one chunk of a tensor, and its layout in memory.

use super::master::MasterWeights;
use super::state::{StateFormat, StateTensor};

/// Elements of a chunk, which one workgroup updates and whose state is one block.
pub const CHUNK_ELEMENTS: u32 = 1024;

/// Elements that share scales in [`StateFormat::Q8`].
pub const QUANT_BLOCK_ELEMENTS: u64 = 32;

/// Bytes of a word of 32 bits. Every view and every block starts at a multiple.
pub const WORD_BYTES: u64 = 4;

/// The parts of a chunk's block: one for each state, then the scales of 8-bit states, then the master weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockLayout {
    /// The states of the update rule.
    pub states: &'static [StateTensor],
    /// Their format.
    pub state: StateFormat,
    /// Master weights.
    pub master_weights: MasterWeights,
}

impl BlockLayout {
    /// The layout of a rule's states. Without states there is no format, and f32 stands for it.
    pub fn new(states: &'static [StateTensor], state: StateFormat, master_weights: MasterWeights) -> Self {
        let state = if states.is_empty() { StateFormat::F32 } else { state };
        Self { states, state, master_weights }
    }

    /// Bits of one state of one element.
    #[cfg(feature = "checkpoint")]
    pub fn state_bits(&self) -> u64 {
        self.state.bits().into()
    }

    /// Bits of one element's master weights.
    #[cfg(feature = "checkpoint")]
    pub fn master_bits(&self) -> u64 {
        self.master_weights.bits().into()
    }

    /// Words of 32 bits of one state's part.
    pub fn part_words(&self, elements: u64) -> u64 {
        elements.next_multiple_of(4) * u64::from(self.state.bits()) / 32
    }

    /// Words of the scales.
    pub fn scale_words(&self, elements: u64) -> u64 {
        match self.state {
            StateFormat::Q8 => elements.div_ceil(QUANT_BLOCK_ELEMENTS),
            StateFormat::F32 | StateFormat::Bf16 => 0,
        }
    }

    /// Word at which the master weights' part starts.
    pub fn master_start(&self, elements: u64) -> u64 {
        self.states.len() as u64 * self.part_words(elements) + self.scale_words(elements)
    }

    /// Words of a block of `elements` elements, a multiple of 16 bytes. A block without states and master weights takes 16 bytes that
    /// no kernel touches, because a binding cannot be empty.
    pub fn words(&self, elements: u64) -> u64 {
        let master = elements.next_multiple_of(4) * u64::from(self.master_weights.bits()) / 32;
        let words = (self.master_start(elements) + master).next_multiple_of(4);
        if elements > 0 { words.max(4) } else { 0 }
    }

    /// The widest access that suits all parts of a block of `elements` elements, four elements at a time, or eight with 8-bit state.
    pub fn access(&self, elements: u64) -> StateAccess {
        let least =
            [self.state.bits(), self.master_weights.bits()].into_iter().filter(|&bits| bits > 0).min();
        match least {
            Some(32) => StateAccess::Words4,
            Some(16) => StateAccess::Words2,
            // Eight codes of a state are 8 bytes, and so are the scales of two quant blocks and eight master weights of a byte.
            _ if self.state == StateFormat::Q8
                && self.part_words(elements).is_multiple_of(2)
                && self.scale_words(elements).is_multiple_of(2) =>
            {
                StateAccess::Words2
            }
            _ => StateAccess::Words1,
        }
    }

    /// Bytes of state and master weights per element, without padding.
    pub fn bytes_per_parameter(&self) -> f64 {
        let scales = match self.state {
            StateFormat::Q8 => 4.0 / QUANT_BLOCK_ELEMENTS as f64,
            StateFormat::F32 | StateFormat::Bf16 => 0.0,
        };
        let bits = self.states.len() as u32 * self.state.bits() + self.master_weights.bits();
        f64::from(bits) / 8.0 + scales
    }
}

/// Words of state that a tensor of `elements` elements takes.
pub fn state_words(layout: BlockLayout, elements: u64) -> u64 {
    let chunk = u64::from(CHUNK_ELEMENTS);
    elements / chunk * layout.words(chunk) + layout.words(elements % chunk)
}

/// How a launch reads and writes state; the narrowest of its tensors decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StateAccess {
    /// In words of 4 bytes.
    Words1,
    /// In words of 8 bytes.
    Words2,
    /// In words of 16 bytes.
    Words4,
}

impl StateAccess {
    /// All accesses.
    pub const ALL: [Self; 3] = [StateAccess::Words4, StateAccess::Words2, StateAccess::Words1];

    /// The name in labels.
    pub const fn name(self) -> &'static str {
        match self {
            StateAccess::Words1 => "words1",
            StateAccess::Words2 => "words2",
            StateAccess::Words4 => "words4",
        }
    }

    /// The widest access in words of at most so many bytes.
    pub const fn of_word_bytes(bytes: u64) -> Self {
        match bytes {
            16.. => Self::Words4,
            8..16 => Self::Words2,
            _ => Self::Words1,
        }
    }

    /// Bytes per word.
    pub const fn word_bytes(self) -> u64 {
        match self {
            StateAccess::Words1 => 4,
            StateAccess::Words2 => 8,
            StateAccess::Words4 => 16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::state::Sign;

    const STATES: [StateTensor; 3] = [StateTensor::new("state", Sign::Signed); 3];

    #[test]
    fn bytes_of_state_are_what_the_formats_promise() {
        let bytes = |states, state, master_weights| {
            let layout = BlockLayout { states: &STATES[..states], state, master_weights };
            assert_eq!(layout.words(1024) as f64 * 4.0 / 1024.0, layout.bytes_per_parameter());
            layout.bytes_per_parameter()
        };
        assert_eq!(bytes(3, StateFormat::F32, MasterWeights::None), 12.0);
        assert_eq!(bytes(3, StateFormat::Bf16, MasterWeights::None), 6.0);
        assert_eq!(bytes(3, StateFormat::Q8, MasterWeights::None), 3.125);
        assert_eq!(bytes(2, StateFormat::Q8, MasterWeights::Split24), 3.125);
        assert_eq!(bytes(1, StateFormat::Q8, MasterWeights::Split32), 3.125);
    }

    #[test]
    fn pairs_of_codes_are_words_of_8_bytes_where_every_part_starts_at_a_multiple() {
        let access = |elements, master_weights| {
            BlockLayout { states: &STATES, state: StateFormat::Q8, master_weights }.access(elements)
        };
        // 40 elements have 10 words of codes and 2 of scales; 36 have 9 and 2, 32 have 8 and 1.
        for (elements, expected) in [
            (1024, StateAccess::Words2),
            (40, StateAccess::Words2),
            (36, StateAccess::Words1),
            (32, StateAccess::Words1),
        ] {
            for master_weights in [MasterWeights::None, MasterWeights::Split24] {
                assert_eq!(access(elements, master_weights), expected, "{elements}, {master_weights:?}");
            }
        }
        let f32 =
            BlockLayout { states: &STATES, state: StateFormat::F32, master_weights: MasterWeights::Split24 };
        assert_eq!(f32.access(1024), StateAccess::Words1);
    }

    #[test]
    fn parts_follow_each_other_whatever_the_length() {
        for state in StateFormat::ALL {
            for elements in [1_u64, 3, 4, 5, 31, 32, 33, 1023, 1024] {
                let layout = BlockLayout { states: &STATES, state, master_weights: MasterWeights::Split24 };
                let padded = elements.next_multiple_of(4);
                assert_eq!(layout.part_words(elements) * 32, padded * u64::from(state.bits()));
                let end = layout.master_start(elements) + padded / 4;
                assert_eq!(layout.words(elements), end.next_multiple_of(4));
            }
        }
    }
}
