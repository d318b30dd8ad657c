//! Where the blocks of state lie.

use std::ops::Range;

use super::limits::PlanLimits;
use crate::storage::block::{BlockLayout, CHUNK_ELEMENTS, state_words};

/// A run of a tensor's chunks whose blocks of state lie one after the other in one state buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of the state buffer.
    pub buffer: u32,
    /// Word of the state buffer where the first block starts.
    pub state: u32,
    /// First chunk of the run, counted from the tensor's start.
    pub first_chunk: u64,
    /// Elements of the tensor that the run covers.
    pub elements: u64,
}

/// Places blocks of state in state buffers and takes them back. Each pool has state buffers of its own, so that launches over different
/// buffers write different state buffers and the GPU need not finish one before the next.
#[derive(Clone, Debug)]
pub struct Allocator {
    most_words: u64,
    buffers: Vec<StateBuffer>,
}

/// A state buffer; one without words is vacant.
#[derive(Clone, Debug, Default)]
struct StateBuffer {
    pool: u32,
    capacity: u64,
    /// Free runs of words, in order; no two touch.
    free: Vec<Range<u64>>,
}

impl StateBuffer {
    fn take(&mut self, run: usize, words: u64) {
        let free = &mut self.free[run];
        free.start += words;
        if free.is_empty() {
            self.free.remove(run);
        }
    }

    fn give_back(&mut self, words: Range<u64>) {
        let next = self.free.partition_point(|free| free.start < words.start);
        let joins_next = self.free.get(next).is_some_and(|free| free.start == words.end);
        let joins_previous = next > 0 && self.free[next - 1].end == words.start;
        match (joins_previous, joins_next) {
            (true, true) => self.free[next - 1].end = self.free.remove(next).end,
            (true, false) => self.free[next - 1].end = words.end,
            (false, true) => self.free[next].start = words.start,
            (false, false) => self.free.insert(next, words),
        }
    }

    fn is_free(&self) -> bool {
        matches!(self.free.as_slice(), [all] if *all == (0..self.capacity))
    }
}

impl Allocator {
    /// The least words of every state buffer but the first of a pool, so that parameters registered one by one do not get a launch each.
    const LEAST_WORDS: u64 = 256 * 1024;

    /// No state buffers yet.
    pub fn new(limits: &PlanLimits) -> Self {
        Self { most_words: limits.state_buffer_words(), buffers: Vec::new() }
    }

    /// Words of each state buffer, in the order of their numbers; 0 for vacant ones.
    pub fn capacities(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.buffers.iter().map(|buffer| buffer.capacity)
    }

    /// Places a tensor's blocks. `pending` is the number of words that it and the tensors of its pool after it take together. A new state
    /// buffer is made as large as that, up to the device's limit.
    pub fn allocate(
        &mut self,
        pool: u32,
        layout: BlockLayout,
        elements: u64,
        mut pending: u64,
    ) -> Vec<Extent> {
        let whole_block = layout.words(CHUNK_ELEMENTS.into());
        let mut extents = Vec::new();
        let mut first_chunk = 0;
        let mut left = elements;
        while left > 0 {
            let next_block = layout.words(left.min(CHUNK_ELEMENTS.into()));
            let (index, run) = self.run_for(pool, state_words(layout, left), next_block, pending);
            let buffer = &mut self.buffers[index];
            let Range { start, end } = buffer.free[run];
            let whole_blocks = (end - start) / whole_block;
            let here = left.min(whole_blocks * u64::from(CHUNK_ELEMENTS));
            // The tail's block is smaller than a whole one and may fit where no whole one does.
            let rest = left - here;
            let mut taken = here;
            if rest > 0 && rest < u64::from(CHUNK_ELEMENTS) {
                let free = end - start - here.div_ceil(CHUNK_ELEMENTS.into()) * whole_block;
                if layout.words(rest) <= free {
                    taken += rest;
                }
            }
            let used = state_words(layout, taken);
            extents.push(Extent { buffer: index as u32, state: start as u32, first_chunk, elements: taken });
            buffer.take(run, used);
            pending -= used;
            first_chunk += taken.div_ceil(CHUNK_ELEMENTS.into());
            left -= taken;
        }
        extents
    }

    /// Places a tensor's blocks one after the other, in a new state buffer if no free run holds all of them. A tensor that is larger than a
    /// state buffer is placed as by [`Allocator::allocate`].
    pub fn allocate_together(&mut self, pool: u32, layout: BlockLayout, elements: u64) -> Vec<Extent> {
        let words = state_words(layout, elements);
        let holds = |buffer: &StateBuffer| {
            buffer.capacity > 0
                && buffer.pool == pool
                && buffer.free.iter().any(|free| free.end - free.start >= words)
        };
        if words <= self.most_words && !self.buffers.iter().any(holds) {
            self.add_buffer(pool, words);
        }
        self.allocate(pool, layout, elements, words)
    }

    /// The state buffer and its free run where a tensor continues: the shortest run that holds all its `words`, or else the longest run if
    /// it holds the next block, or else a new state buffer.
    fn run_for(&mut self, pool: u32, words: u64, next_block: u64, pending: u64) -> (usize, usize) {
        let length = |run: &Range<u64>| run.end - run.start;
        let buffers =
            self.buffers.iter().enumerate().filter(|(_, buffer)| buffer.capacity > 0 && buffer.pool == pool);
        let runs = buffers.flat_map(|(index, buffer)| {
            buffer.free.iter().enumerate().map(move |(run, free)| ((index, run), length(free)))
        });
        let shortest = runs.clone().filter(|&(_, free)| free >= words).min_by_key(|&(_, free)| free);
        let longest = runs.filter(|&(_, free)| free >= next_block).max_by_key(|&(_, free)| free);
        if let Some((found, _)) = shortest.or(longest) {
            return found;
        }
        (self.add_buffer(pool, pending), 0)
    }

    /// Adds a state buffer of at least so many words, up to the device's limit, and returns its index.
    fn add_buffer(&mut self, pool: u32, words: u64) -> usize {
        let is_first = !self.buffers.iter().any(|buffer| buffer.capacity > 0 && buffer.pool == pool);
        let least = if is_first { 0 } else { Self::LEAST_WORDS };
        let capacity = words.max(least).min(self.most_words);
        let buffer = StateBuffer { pool, capacity, free: std::iter::once(0..capacity).collect() };
        let vacant = self.buffers.iter().position(|buffer| buffer.capacity == 0);
        let index = vacant.unwrap_or(self.buffers.len());
        if vacant.is_some() {
            self.buffers[index] = buffer;
        } else {
            self.buffers.push(buffer);
        }
        index
    }

    /// Takes a tensor's blocks back. State buffers without blocks become vacant.
    pub fn release(&mut self, layout: BlockLayout, extents: &[Extent]) {
        for extent in extents {
            let start = u64::from(extent.state);
            let buffer = &mut self.buffers[extent.buffer as usize];
            buffer.give_back(start..start + state_words(layout, extent.elements));
            if buffer.is_free() {
                *buffer = StateBuffer::default();
            }
        }
    }
}
