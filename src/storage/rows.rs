//! Rows that move, on the CPU. Mirrors `shaders/kernels/remap.wgsl`.

use super::block::{BlockLayout, CHUNK_ELEMENTS, QUANT_BLOCK_ELEMENTS, state_words};
use super::contents::Contents;
use super::dtype::{DType, narrow, widen};
use super::q8;
use super::random::random_of;
use super::state::{StateFormat, StateTensor};

/// Index of the state that is a moving average without bias correction, which a fresh row needs a mean of.
pub fn rates_of(states: &[StateTensor]) -> Option<usize> {
    states.iter().position(|state| state.debiased_by.is_some())
}

/// The bands of rows over which a column is summed: as many as give the device some 65,536 threads, and 256 at most.
pub fn bands_of(rows: u64, row_len: u64) -> u32 {
    (65_536 / row_len).clamp(1, 256).min(rows) as u32
}

/// The key of the random numbers of a remap, whose steps have other ones.
pub fn remap_key(key: [u32; 2]) -> [u32; 2] {
    [key[0] ^ 0x9e37_79b9, key[1]]
}

fn bf16(number: f32) -> f32 {
    f32::from_bits(widen(DType::Bf16, narrow(DType::Bf16, number.to_bits())))
}

/// How rows move.
#[derive(Clone, Copy, Debug)]
pub struct RowMap<'a> {
    /// Elements of a row.
    pub row_len: usize,
    /// The old row of each new one; what is not one of them makes a fresh row.
    pub sources: &'a [u32],
    /// Whether fresh rows start from the mean of the rates.
    pub has_means: bool,
}

impl RowMap<'_> {
    /// The old element of each new one.
    pub fn origins(&self, old_elements: usize) -> Vec<Option<usize>> {
        let (row_len, old_rows) = (self.row_len, old_elements / self.row_len);
        self.sources
            .iter()
            .flat_map(|&source| {
                let source = Some(source as usize).filter(|&source| source < old_rows);
                (0..row_len).map(move |column| source.map(|source| source * row_len + column))
            })
            .collect()
    }

    /// The harmonic mean of each column of the rates above zero.
    pub fn means(&self, rates: &[f32]) -> Vec<f32> {
        let row_len = self.row_len;
        let rows = rates.len() / row_len;
        let bands = bands_of(rows as u64, row_len as u64) as usize;
        let of_column = |column: usize| {
            let (mut sum, mut count) = (0.0_f32, 0_u32);
            for band in 0..bands {
                let size = rows.div_ceil(bands);
                let mut sum_of_band = 0.0_f32;
                for row in (band * size).min(rows)..((band + 1) * size).min(rows) {
                    let rate = rates[row * row_len + column];
                    if rate.is_normal() && rate > 0.0 {
                        sum_of_band += 1.0 / rate;
                        count += 1;
                    }
                }
                sum += sum_of_band;
            }
            if count > 0 { count as f32 / sum } else { 0.0 }
        };
        (0..row_len).map(of_column).collect()
    }
}

/// The blocks of a tensor of `elements` elements after its rows have moved. `key` and `step` are those of its random numbers.
pub fn remapped(
    layout: BlockLayout,
    elements: u64,
    words: &[u32],
    map: RowMap<'_>,
    key: [u32; 2],
    step: u32,
) -> Vec<u32> {
    let old = Contents::decode(layout, elements, words);
    let origins = map.origins(elements as usize);
    let new_elements = origins.len() as u64;
    let mut new = Contents::zero(layout, new_elements);
    for (index, (state, old)) in new.states.iter_mut().zip(&old.states).enumerate() {
        let means = rates_of(layout.states).filter(|&rates| rates == index && map.has_means);
        let means = means.map_or_else(|| vec![0.0; map.row_len], |_| map.means(old));
        for (i, (value, origin)) in state.iter_mut().zip(&origins).enumerate() {
            *value = match origin {
                Some(from) => old[*from],
                None => {
                    let mean = means[i % map.row_len];
                    let is_bf16 = layout.state == StateFormat::Bf16;
                    if is_bf16 { bf16(mean) } else { mean }
                }
            };
        }
    }
    for (difference, origin) in new.differences.iter_mut().zip(&origins) {
        *difference = origin.map_or(0, |from| old.differences[from]);
    }
    let key = remap_key(key);
    let random = |i: u64| random_of(key, step, (i / 4) as u32)[(i % 4) as usize];
    let mut encoded = new.encode(layout, &[], random);
    if layout.state == StateFormat::Q8 && !words.is_empty() {
        let old_blocks = QuantBlocks { layout, elements };
        let new_blocks = QuantBlocks { layout, elements: new_elements };
        for (number, origins) in origins.chunks(QUANT_BLOCK_ELEMENTS as usize).enumerate() {
            let (_, scales) = new_blocks.places(number as u64);
            for (index, state) in new.states.iter().enumerate() {
                let start = number * QUANT_BLOCK_ELEMENTS as usize;
                let has_number = |value: &f32| *value != 0.0 && value.is_finite();
                if !state[start..start + origins.len()].iter().any(has_number) {
                    let sign = layout.states[index].sign;
                    encoded[scales] = q8::without_scale(encoded[scales], index, sign);
                }
            }
            let Some(first) = origins[0].filter(|from| from.is_multiple_of(QUANT_BLOCK_ELEMENTS as usize))
            else {
                continue;
            };
            if origins.iter().enumerate().all(|(i, from)| *from == Some(first + i)) {
                let from = first as u64 / QUANT_BLOCK_ELEMENTS;
                new_blocks.copy(number as u64, origins.len(), &mut encoded, &old_blocks, from, words);
            }
        }
    }
    encoded
}

/// The quant blocks of a tensor.
struct QuantBlocks {
    layout: BlockLayout,
    elements: u64,
}

impl QuantBlocks {
    /// Byte of the codes of each state of a quant block, and word of its scales.
    fn places(&self, number: u64) -> (Vec<usize>, usize) {
        let chunk_elements = u64::from(CHUNK_ELEMENTS);
        let first = number * QUANT_BLOCK_ELEMENTS;
        let (chunk, within) = (first / chunk_elements, first % chunk_elements);
        let elements = (self.elements - chunk * chunk_elements).min(chunk_elements);
        let block = state_words(self.layout, chunk * chunk_elements);
        let part = self.layout.part_words(elements);
        let states = self.layout.states.len() as u64;
        let codes = (0..states).map(|index| (4 * (block + index * part) + within) as usize).collect();
        (codes, (block + states * part + within / QUANT_BLOCK_ELEMENTS) as usize)
    }

    fn copy(&self, number: u64, count: usize, words: &mut [u32], old: &Self, from: u64, old_words: &[u32]) {
        let ((codes, scales), (old_codes, old_scales)) = (self.places(number), old.places(from));
        words[scales] = old_words[old_scales];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
        let old_bytes: &[u8] = bytemuck::cast_slice(old_words);
        for (at, old_at) in codes.into_iter().zip(old_codes) {
            bytes[at..at + count].copy_from_slice(&old_bytes[old_at..old_at + count]);
        }
    }
}
