//! The contents of a tensor's blocks on the CPU: decoded to f32, encoded from it, and sorted by part for checkpoints.

use super::block::{BlockLayout, CHUNK_ELEMENTS, QUANT_BLOCK_ELEMENTS, state_words};
use super::dtype::bf16_rounded_up_from;
use super::master::MasterWeights;
use super::q8;
use super::random::Random;
use super::state::StateFormat;

/// State of one tensor as f32 numbers, and the differences that its master weights store. Averages that the format stores
/// debiased stay debiased here.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// The elements of each state.
    pub states: Vec<Vec<f32>>,
    /// The difference of each element; zeros without master weights.
    pub differences: Vec<u32>,
}

impl Contents {
    /// The contents before the first step.
    pub fn zero(layout: BlockLayout, elements: u64) -> Self {
        Self {
            states: vec![vec![0.0; elements as usize]; layout.states.len()],
            differences: vec![0; elements as usize],
        }
    }

    /// Decodes the words of a tensor's blocks. A tensor without blocks, before its first step, is zero.
    pub fn decode(layout: BlockLayout, elements: u64, mut words: &[u32]) -> Self {
        if words.is_empty() {
            return Self::zero(layout, elements);
        }
        let mut contents = Self { states: vec![Vec::new(); layout.states.len()], differences: Vec::new() };
        let mut left = elements;
        while left > 0 {
            let chunk = left.min(CHUNK_ELEMENTS.into());
            let (block, rest) = words.split_at(layout.words(chunk) as usize);
            contents.decode_block(layout, chunk, block);
            words = rest;
            left -= chunk;
        }
        contents
    }

    fn decode_block(&mut self, layout: BlockLayout, elements: u64, block: &[u32]) {
        let part_words = layout.part_words(elements) as usize;
        for (index, state) in self.states.iter_mut().enumerate() {
            let part = &block[index * part_words..][..part_words];
            match layout.state {
                StateFormat::F32 => {
                    state.extend(part[..elements as usize].iter().map(|&bits| f32::from_bits(bits)));
                }
                StateFormat::Bf16 => {
                    let halves: &[u16] = bytemuck::cast_slice(part);
                    let halves = &halves[..elements as usize];
                    state.extend(halves.iter().map(|&half| f32::from_bits(u32::from(half) << 16)));
                }
                StateFormat::Q8 => {
                    let scales = &block[layout.states.len() * part_words..];
                    let codes: &[u8] = &bytemuck::cast_slice(part)[..elements as usize];
                    for (codes, &scales) in codes.chunks(QUANT_BLOCK_ELEMENTS as usize).zip(scales) {
                        state.extend(q8::decode(codes, scales, index, layout.states[index].sign));
                    }
                }
            }
        }
        let elements = elements as usize;
        let master = &block[layout.master_start(elements as u64) as usize..];
        match layout.master_weights {
            MasterWeights::None => self.differences.resize(self.differences.len() + elements, 0),
            MasterWeights::Split24 => {
                let bytes: &[i8] = &bytemuck::cast_slice(master)[..elements];
                self.differences.extend(bytes.iter().map(|&byte| (i32::from(byte) << 8) as u32));
            }
            MasterWeights::Split32 => {
                let halves: &[i16] = &bytemuck::cast_slice(master)[..elements];
                self.differences.extend(halves.iter().map(|&half| i32::from(half) as u32));
            }
            MasterWeights::F32 => self.differences.extend_from_slice(&master[..elements]),
        }
    }

    /// Multiplies each state by its scale in f64: from averages as they are stored debiased to the averages themselves.
    pub fn scale_states(&mut self, scales: &[f64]) {
        self.for_each_scaled(scales, |value, scale| value * scale);
    }

    /// Divides each state by its scale in f64: the inverse of [`Contents::scale_states`].
    pub fn unscale_states(&mut self, scales: &[f64]) {
        self.for_each_scaled(scales, |value, scale| value / scale);
    }

    fn for_each_scaled(&mut self, scales: &[f64], scaled: impl Fn(f64, f64) -> f64) {
        for (state, &scale) in self.states.iter_mut().zip(scales).filter(|(_, scale)| **scale != 1.0) {
            for value in state {
                *value = scaled(f64::from(*value), scale) as f32;
            }
        }
    }

    /// Encodes the contents, rounding to nearest.
    pub fn encode_to_nearest(&self, layout: BlockLayout) -> Vec<u32> {
        self.encode(layout, &[], |_| Random::TO_NEAREST)
    }

    /// Encodes the contents as the words of the tensor's blocks. `before` is what the blocks held, on which the scales of 8-bit
    /// states depend; empty means zeros. `random` gives the random words of each element.
    pub fn encode(&self, layout: BlockLayout, before: &[u32], random: impl Fn(u64) -> Random) -> Vec<u32> {
        let elements = self.differences.len() as u64;
        let zeros;
        let before = if before.is_empty() {
            zeros = vec![0_u32; state_words(layout, elements) as usize];
            &zeros[..]
        } else {
            before
        };
        let mut words = Vec::with_capacity(before.len());
        let mut first = 0;
        while first < elements {
            let chunk = (elements - first).min(CHUNK_ELEMENTS.into());
            let start = words.len();
            words.resize(start + layout.words(chunk) as usize, 0);
            let before = &before[start..];
            self.encode_block(layout, first, chunk, before, &random, &mut words[start..]);
            first += chunk;
        }
        words
    }

    fn encode_block(
        &self,
        layout: BlockLayout,
        first: u64,
        elements: u64,
        before: &[u32],
        random: impl Fn(u64) -> Random,
        block: &mut [u32],
    ) {
        let part_words = layout.part_words(elements) as usize;
        let scales_start = layout.states.len() * part_words;
        let range = first as usize..(first + elements) as usize;
        for (index, state) in self.states.iter().enumerate() {
            let (parts, scales) = block.split_at_mut(scales_start);
            let part = &mut parts[index * part_words..][..part_words];
            let values = &state[range.clone()];
            match layout.state {
                StateFormat::F32 => part[..values.len()].copy_from_slice(bytemuck::cast_slice(values)),
                StateFormat::Bf16 => {
                    let halves: &mut [u16] = bytemuck::cast_slice_mut(part);
                    for (i, (half, value)) in halves.iter_mut().zip(values).enumerate() {
                        let random = random(first + i as u64).states[index];
                        *half = bf16_rounded_up_from(value.to_bits(), random >> 16) as u16;
                    }
                }
                StateFormat::Q8 => {
                    let codes: &mut [u8] = bytemuck::cast_slice_mut(part);
                    let sign = layout.states[index].sign;
                    let quant_blocks = values.chunks(QUANT_BLOCK_ELEMENTS as usize);
                    for (number, quant_block) in quant_blocks.enumerate() {
                        let start = number * QUANT_BLOCK_ELEMENTS as usize;
                        // All states of a quant block share a word; the first state starts from what was there.
                        if index == 0 {
                            scales[number] = before[scales_start + number];
                        }
                        let random = (start..).map(|i| random(first + i as u64).states[index]);
                        let encoded = q8::encode(quant_block, index, sign, &mut scales[number], random);
                        codes[start..start + quant_block.len()].copy_from_slice(&encoded);
                    }
                }
            }
        }
        let master = &mut block[layout.master_start(elements) as usize..];
        let differences = &self.differences[range];
        match layout.master_weights {
            MasterWeights::None => {}
            MasterWeights::Split24 => {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(master);
                for (byte, difference) in bytes.iter_mut().zip(differences) {
                    *byte = (difference >> 8) as u8;
                }
            }
            MasterWeights::Split32 => {
                let halves: &mut [u16] = bytemuck::cast_slice_mut(master);
                for (half, &difference) in halves.iter_mut().zip(differences) {
                    *half = difference as u16;
                }
            }
            MasterWeights::F32 => master[..differences.len()].copy_from_slice(differences),
        }
    }
}

/// Writes f32 states, given the bits of each state of each element, to the words of a tensor's blocks, whose master weights stay.
pub fn write_f32_states(
    layout: BlockLayout,
    elements: u64,
    bits: impl Fn(usize, usize) -> u32,
    words: &mut [u32],
) {
    let (mut rest, mut first) = (words, 0);
    while first < elements {
        let chunk = (elements - first).min(CHUNK_ELEMENTS.into());
        let (block, later) = rest.split_at_mut(layout.words(chunk) as usize);
        let part_words = layout.part_words(chunk) as usize;
        for state in 0..layout.states.len() {
            let part = &mut block[state * part_words..][..chunk as usize];
            for (word, element) in part.iter_mut().zip(first as usize..) {
                *word = bits(state, element);
            }
        }
        (rest, first) = (later, first + chunk);
    }
}

/// The parts of a tensor's blocks as they are stored, each in the order of the elements.
#[cfg(feature = "checkpoint")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The bytes of each state.
    pub states: Vec<Vec<u8>>,
    /// The words of the scales of 8-bit states.
    pub scales: Vec<u8>,
    /// The differences of the master weights.
    pub master: Vec<u8>,
}

#[cfg(feature = "checkpoint")]
impl Parts {
    /// Sorts the bytes of a tensor's blocks by part.
    pub fn of_blocks(layout: BlockLayout, elements: u64, blocks: &[u8]) -> Self {
        let mut parts = Self { states: vec![Vec::new(); layout.states.len()], ..Self::default() };
        Self::visit(layout, elements, |part, range| {
            let part = match part {
                Part::State(index) => &mut parts.states[index],
                Part::Scales => &mut parts.scales,
                Part::Master => &mut parts.master,
            };
            part.extend_from_slice(&blocks[range]);
        });
        parts
    }

    /// The words of the blocks: the inverse of [`Parts::of_blocks`]. Padding is zero.
    pub fn to_words(&self, layout: BlockLayout, elements: u64) -> Vec<u32> {
        let mut words = vec![0; state_words(layout, elements) as usize];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        let mut states: Vec<&[u8]> = self.states.iter().map(Vec::as_slice).collect();
        let (mut scales, mut master) = (self.scales.as_slice(), self.master.as_slice());
        Self::visit(layout, elements, |part, range| {
            let rest = match part {
                Part::State(index) => &mut states[index],
                Part::Scales => &mut scales,
                Part::Master => &mut master,
            };
            let (here, later) = rest.split_at(range.len());
            bytes[range].copy_from_slice(here);
            *rest = later;
        });
        words
    }

    /// Bytes of one state, of the scales and of the master weights of a tensor of `elements` elements.
    pub fn sizes(layout: BlockLayout, elements: u64) -> (u64, u64, u64) {
        let of_bits = |bits: u64| elements * bits / 8;
        let chunk = u64::from(CHUNK_ELEMENTS);
        let scale_words = elements / chunk * layout.scale_words(chunk) + layout.scale_words(elements % chunk);
        (of_bits(layout.state_bits()), 4 * scale_words, of_bits(layout.master_bits()))
    }

    /// Calls `visit` for each part of each block with its range in the bytes of the blocks, without padding.
    fn visit(layout: BlockLayout, elements: u64, mut visit: impl FnMut(Part, std::ops::Range<usize>)) {
        let mut start = 0;
        let mut left = elements;
        while left > 0 {
            let chunk = left.min(CHUNK_ELEMENTS.into());
            let (state_bytes, scale_bytes, master_bytes) = Self::sizes(layout, chunk);
            let part_bytes = 4 * layout.part_words(chunk);
            let range = |offset: u64, bytes: u64| {
                let first = start + offset;
                first as usize..(first + bytes) as usize
            };
            for index in 0..layout.states.len() {
                visit(Part::State(index), range(index as u64 * part_bytes, state_bytes));
            }
            visit(Part::Scales, range(layout.states.len() as u64 * part_bytes, scale_bytes));
            visit(Part::Master, range(4 * layout.master_start(chunk), master_bytes));
            start += 4 * layout.words(chunk);
            left -= chunk;
        }
    }
}

/// A part of a block.
#[cfg(feature = "checkpoint")]
#[derive(Clone, Copy, Debug)]
enum Part {
    State(usize),
    Scales,
    Master,
}

#[cfg(all(test, feature = "checkpoint"))]
mod tests {
    use super::*;
    use crate::storage::random::random_of;
    use crate::storage::state::{Sign, StateTensor};

    const STATES: [StateTensor; 3] = [
        StateTensor::new("signed", Sign::Signed),
        StateTensor::new("non_negative", Sign::NonNegative),
        StateTensor::new("positive", Sign::Positive),
    ];

    #[test]
    fn what_was_decoded_is_encoded_as_it_was() {
        for state in StateFormat::ALL {
            for master_weights in MasterWeights::ALL {
                for elements in [1_u64, 5, 33, 1024, 2500] {
                    let layout = BlockLayout { states: &STATES, state, master_weights };
                    let mut contents = Contents::zero(layout, elements);
                    for (i, value) in contents.states.iter_mut().flatten().enumerate() {
                        *value = (i as f32 * 0.37).sin().abs() * 1e-3;
                    }
                    if master_weights != MasterWeights::None {
                        for (i, difference) in contents.differences.iter_mut().enumerate() {
                            *difference = ((i as i32 % 256 - 128) << 8) as u32;
                        }
                    }
                    let words = state_words(layout, elements) as usize;
                    let random = |i: u64| random_of([1, 2], 3, i as u32 / 4)[i as usize % 4];
                    let encoded = contents.encode(layout, &vec![0; words], random);
                    assert_eq!(encoded.len(), words);
                    let decoded = Contents::decode(layout, elements, &encoded);
                    assert_eq!(decoded.differences, contents.differences);
                    let again = decoded.encode(layout, &encoded, random);
                    let twice = Contents::decode(layout, elements, &again);
                    assert_eq!(twice, decoded, "{layout:?}, {elements} elements");
                    let parts = Parts::of_blocks(layout, elements, bytemuck::cast_slice(&encoded));
                    assert_eq!(parts.to_words(layout, elements), encoded);
                    let (states, scales, master) = Parts::sizes(layout, elements);
                    assert!(parts.states.iter().all(|state| state.len() as u64 == states));
                    assert_eq!((parts.scales.len() as u64, parts.master.len() as u64), (scales, master));
                }
            }
        }
    }
}
