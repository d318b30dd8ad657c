//! From tensors to launches: pure arithmetic, no GPU.
//!
//! A *chunk* of [`CHUNK_ELEMENTS`] elements is what one workgroup updates; its state is one *block* in a *page* of the arena.
//! An [`Extent`] is a run of a tensor's chunks whose blocks lie one after the other in one page. A [`Launch`] is one dispatch:
//! one window of a buffer of values, one of a buffer of gradients, one page, and all chunks that lie within the three. Tensors
//! that share buffers share a launch; a tensor past a window's end is cut at a chunk.
//!
//! The chunk table depends on which tensors share a launch, not on where they lie: engines whose tensors move within their
//! pools rewrite only the segments.

use std::collections::HashMap;
use std::ops::Range;

use crate::format::{BlockLayout, DType, Format, StateAccess};
use crate::layout::{CHUNK_ELEMENTS, Chunk, Partial, Segment};
use crate::shader::{Access, Copies, GradientBinding};

/// Bytes of the words that buffers are bound as, at the least. Every tensor starts at a multiple.
pub const WORD_BYTES: u64 = 4;
/// Bytes of the widest access.
const WIDEST_ACCESS_BYTES: u64 = 16;

/// What the device allows.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    /// Bytes of one storage binding: `max_storage_buffer_binding_size`.
    pub binding_bytes: u64,
    /// Alignment of a binding's offset: `min_storage_buffer_offset_alignment`.
    pub offset_alignment: u64,
    /// Chunks of one launch: a grid of two dimensions (`max_compute_workgroups_per_dimension` squared), and a chunk table within
    /// one binding.
    pub launch_chunks: u64,
}

impl PlanLimits {
    /// Least binding with which every tensor can be cut into launches: one chunk, and an offset's alignment at each end.
    pub const LEAST_BINDING_BYTES: u64 = 16 * 1024;

    /// Takes what matters from a device's limits.
    pub fn new(limits: &wgpu::Limits) -> Self {
        // Elements are addressed in u32 from a window's start, so windows stay below 2^32 bytes whatever the device says.
        let bytes =
            limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(u64::from(u32::MAX));
        Self {
            binding_bytes: bytes / 256 * 256,
            offset_alignment: u64::from(limits.min_storage_buffer_offset_alignment).max(WIDEST_ACCESS_BYTES),
            launch_chunks: u64::from(limits.max_compute_workgroups_per_dimension)
                .pow(2)
                .min(bytes / size_of::<Chunk>() as u64),
        }
    }

    /// Words of state that one page can hold.
    pub fn page_words(&self) -> u64 {
        self.binding_bytes / WORD_BYTES
    }

    /// Chunks of one tensor that surely fit into one window, wherever the tensor starts.
    fn window_chunks(&self) -> u64 {
        let chunk_bytes = u64::from(CHUNK_ELEMENTS) * DType::F32.bytes();
        ((self.binding_bytes - 2 * self.offset_alignment) / chunk_bytes).min(self.launch_chunks)
    }
}

/// The grid of a dispatch of so many workgroups: two dimensions where one is too short. The product may be a little larger.
pub fn grid(workgroups: u32, workgroups_per_dimension: u32) -> (u32, u32) {
    let rows = workgroups.div_ceil(workgroups_per_dimension).max(1);
    (workgroups.div_ceil(rows), rows)
}

/// A run of a tensor's chunks whose blocks of state lie one after the other in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The page.
    pub page: u32,
    /// Word of the page where the first block starts.
    pub state: u32,
    /// First chunk of the run, counted from the tensor's start.
    pub first_chunk: u64,
    /// Elements of the tensor that the run covers.
    pub elements: u64,
}

/// Hands out blocks of state in pages, and takes them back. Tensors of other pools have other pages, so that launches over
/// different buffers write different state, and the GPU need not finish one before the next.
#[derive(Clone, Debug)]
pub struct Allocator {
    page_words: u64,
    pages: Vec<Page>,
}

/// A page; one without words is vacant.
#[derive(Clone, Debug, Default)]
struct Page {
    pool: u32,
    capacity: u64,
    /// Free runs of words, in order; no two touch.
    free: Vec<Range<u64>>,
}

impl Page {
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
    /// Words of every page but a pool's first are at least this (or the largest a page can be), so that parameters registered one
    /// by one do not end in a launch each.
    const LEAST_PAGE_WORDS: u64 = 256 * 1024;

    /// No pages yet.
    pub fn new(limits: &PlanLimits) -> Self {
        Self { page_words: limits.page_words(), pages: Vec::new() }
    }

    /// Words of each page, in order; 0 of one that is vacant.
    pub fn capacities(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.pages.iter().map(|page| page.capacity)
    }

    /// Places a tensor's blocks. `pending` is what it and the tensors of its pool after it take together: a new page is made as
    /// large as that, where a page may be.
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
            let page = &mut self.pages[index];
            let Range { start, end } = page.free[run];
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
            extents.push(Extent { page: index as u32, state: start as u32, first_chunk, elements: taken });
            page.take(run, used);
            pending -= used;
            first_chunk += taken.div_ceil(CHUNK_ELEMENTS.into());
            left -= taken;
        }
        extents
    }

    /// The page and its free run that a tensor goes on in: the shortest run that holds all `words` of it, or else the longest, if
    /// that holds the next block, or else a new page.
    fn run_for(&mut self, pool: u32, words: u64, next_block: u64, pending: u64) -> (usize, usize) {
        let length = |run: &Range<u64>| run.end - run.start;
        let pages = self.pages.iter().enumerate().filter(|(_, page)| page.capacity > 0 && page.pool == pool);
        let is_first = pages.clone().next().is_none();
        let runs = pages.flat_map(|(index, page)| {
            page.free.iter().enumerate().map(move |(run, free)| ((index, run), length(free)))
        });
        let shortest = runs.clone().filter(|&(_, free)| free >= words).min_by_key(|&(_, free)| free);
        let longest = runs.filter(|&(_, free)| free >= next_block).max_by_key(|&(_, free)| free);
        if let Some((found, _)) = shortest.or(longest) {
            return found;
        }
        let least = if is_first { 0 } else { Self::LEAST_PAGE_WORDS };
        let capacity = pending.max(least).min(self.page_words);
        let page = Page { pool, capacity, free: std::iter::once(0..capacity).collect() };
        let vacant = self.pages.iter().position(|page| page.capacity == 0);
        let index = vacant.unwrap_or(self.pages.len());
        if vacant.is_some() {
            self.pages[index] = page;
        } else {
            self.pages.push(page);
        }
        (index, 0)
    }

    /// Takes a tensor's blocks back. Pages of which nothing is in use any more are vacant from then on.
    pub fn release(&mut self, layout: BlockLayout, extents: &[Extent]) {
        for extent in extents {
            let start = u64::from(extent.state);
            let page = &mut self.pages[extent.page as usize];
            page.give_back(start..start + state_words(layout, extent.elements));
            if page.is_free() {
                *page = Page::default();
            }
        }
    }
}

/// Words of state that a tensor of `elements` elements takes.
pub fn state_words(layout: BlockLayout, elements: u64) -> u64 {
    let chunk = u64::from(CHUNK_ELEMENTS);
    elements / chunk * layout.words(chunk) + layout.words(elements % chunk)
}

/// Where a view lies: a buffer, numbered by the caller, a byte offset, and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Index into the caller's buffers.
    pub buffer: u32,
    /// Byte offset in it.
    pub offset: u64,
    /// Type of the elements.
    pub dtype: DType,
}

/// A tensor to be updated.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its values.
    pub values: Location,
    /// Its gradient.
    pub gradients: Location,
    /// Its copy in 16 bits, in a buffer that holds neither.
    pub copies: Option<Location>,
    /// Its blocks of state; together they cover it.
    pub extents: &'a [Extent],
    /// What a block holds.
    pub layout: BlockLayout,
    /// Key of its random numbers.
    pub key: [u32; 2],
}

impl Tensor<'_> {
    fn format(&self) -> Format {
        Format {
            values: self.values.dtype,
            gradients: self.gradients.dtype,
            state: self.layout.state,
            master_weights: self.layout.master_weights,
            copies: self.copies.map_or(DType::F32, |copies| copies.dtype),
        }
    }
}

/// A range of a buffer that is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Index into the caller's buffers.
    pub buffer: u32,
    /// Byte offset, aligned for a binding.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Window {
    fn end(&self) -> u64 {
        self.offset + self.bytes
    }

    fn union(self, other: Self) -> Self {
        let offset = self.offset.min(other.offset);
        Self { buffer: self.buffer, offset, bytes: self.end().max(other.end()) - offset }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.buffer == other.buffer && self.offset < other.end() && other.offset < self.end()
    }
}

/// One dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The window of values.
    pub values: Window,
    /// The window of gradients; the same as that of values with [`GradientBinding::Shared`].
    pub gradients: Window,
    /// The window of copies, if there are any.
    pub copies: Option<Window>,
    /// How gradients are bound.
    pub binding: GradientBinding,
    /// How tensors are read and written.
    pub access: Access,
    /// How state is read and written.
    pub state_access: StateAccess,
    /// [`Format::bits`] of all tensors, if they have the same.
    pub format: Option<u32>,
    /// The page of state.
    pub page: u32,
    /// First entry in the chunk table, aligned for a binding.
    pub first_chunk: u32,
    /// Entries in the chunk table.
    pub chunks: u32,
    /// Its segments.
    pub segments: Range<u32>,
}

impl Launch {
    /// Whether it writes copies.
    pub fn writes_copies(&self) -> Copies {
        if self.copies.is_some() { Copies::On } else { Copies::Off }
    }
}

/// A run of a tensor's chunks in one launch: what the chunk table depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    tensor: u32,
    page: u32,
    state: u32,
    first_chunk: u64,
    elements: u64,
    layout: BlockLayout,
}

impl Piece {
    fn chunks(&self) -> u64 {
        self.elements.div_ceil(CHUNK_ELEMENTS.into())
    }

    /// Bytes that the piece covers in a view at `offset`: start and end.
    fn span(&self, view: Location) -> (u64, u64) {
        let start = view.offset + self.first_chunk * u64::from(CHUNK_ELEMENTS) * view.dtype.bytes();
        (start, start + self.elements * view.dtype.bytes())
    }

    /// Cuts off what lies past the first `chunks` chunks.
    fn split(&mut self, chunks: u64) -> Option<Self> {
        if self.chunks() <= chunks {
            return None;
        }
        let elements = chunks * u64::from(CHUNK_ELEMENTS);
        let rest = Self {
            state: self.state + (chunks * self.layout.words(CHUNK_ELEMENTS.into())) as u32,
            first_chunk: self.first_chunk + chunks,
            elements: self.elements - elements,
            ..*self
        };
        self.elements = elements;
        Some(rest)
    }
}

/// All launches of a step, and the tables that they read.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pieces: Vec<Piece>,
    /// The dispatches, in order.
    pub launches: Vec<Launch>,
    /// The segment table.
    pub segments: Vec<Segment>,
}

/// What a step does with gradients once it has read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AfterUse {
    /// They stay as they are.
    #[default]
    Keep,
    /// They are set to zero, so that the engine saves a pass over them before it accumulates the next ones.
    Zero,
}

/// Windows and size of a launch that is being put together.
#[derive(Clone, Copy)]
struct Bounds {
    values: Window,
    gradients: Window,
    copies: Option<Window>,
    chunks: u64,
}

impl Bounds {
    fn of(piece: &Piece, tensor: &Tensor<'_>, sizes: &[u64], limits: &PlanLimits) -> Self {
        let window = |view: Location| {
            let (start, _) = piece.span(view);
            let offset = start / limits.offset_alignment * limits.offset_alignment;
            // The last four elements are accessed whole where the buffer has them.
            let end = (start + piece.elements.next_multiple_of(4) * view.dtype.bytes())
                .min(sizes[view.buffer as usize] / WORD_BYTES * WORD_BYTES);
            Window { buffer: view.buffer, offset, bytes: end - offset }
        };
        Self {
            values: window(tensor.values),
            gradients: window(tensor.gradients),
            copies: tensor.copies.map(window),
            chunks: piece.chunks(),
        }
    }

    fn union(self, other: Self) -> Self {
        Self {
            values: self.values.union(other.values),
            gradients: self.gradients.union(other.gradients),
            copies: self.copies.zip(other.copies).map(|(one, other)| one.union(other)),
            chunks: self.chunks + other.chunks,
        }
    }

    /// How a launch of these windows binds its gradients; `None` if one binding or the grid is too small.
    fn binding(&self, limits: &PlanLimits, after_use: AfterUse) -> Option<GradientBinding> {
        let fits = |window: &Window| window.bytes <= limits.binding_bytes;
        let all_fit = fits(&self.values) && fits(&self.gradients) && self.copies.as_ref().is_none_or(fits);
        if !all_fit || self.chunks > limits.launch_chunks {
            None
        } else if self.values.buffer != self.gradients.buffer {
            Some(match after_use {
                AfterUse::Keep => GradientBinding::Read,
                AfterUse::Zero => GradientBinding::ReadWrite,
            })
        } else if fits(&self.values.union(self.gradients)) {
            Some(GradientBinding::Shared)
        } else if !self.values.overlaps(&self.gradients) {
            Some(GradientBinding::ReadWrite)
        } else {
            None
        }
    }
}

impl Plan {
    /// Plans a step over `tensors`. `sizes` are the bytes of the buffers that their locations name.
    pub fn new(tensors: &[Tensor<'_>], sizes: &[u64], after_use: AfterUse, limits: &PlanLimits) -> Self {
        let mut plan = Self::default();
        for mut group in groups(tensors) {
            let everything = group
                .iter()
                .map(|piece| Bounds::of(piece, &tensors[piece.tensor as usize], sizes, limits))
                .reduce(Bounds::union);
            if let Some(bounds) = everything
                && let Some(binding) = bounds.binding(limits, after_use)
            {
                plan.push(&group, bounds, binding, tensors, sizes, limits);
                continue;
            }
            // Too large for one window: cut, and fill windows in the order of addresses. Values and gradients that meet within one
            // offset's alignment, and are too large for a window together, are cut in half: then a half lies between them.
            let alone = |piece: &Piece| Bounds::of(piece, &tensors[piece.tensor as usize], sizes, limits);
            let mut cut = Vec::with_capacity(group.len());
            while let Some(mut piece) = group.pop() {
                let (chunks, most) = (piece.chunks(), limits.window_chunks());
                let meets = chunks <= most && alone(&piece).binding(limits, after_use).is_none();
                match piece.split(if meets { chunks.div_ceil(2) } else { most }) {
                    Some(rest) => group.extend([rest, piece]),
                    None => cut.push(piece),
                }
            }
            cut.sort_by_key(|piece| piece.span(tensors[piece.tensor as usize].values).0);
            let mut open: Option<(Vec<Piece>, Bounds, GradientBinding)> = None;
            for piece in cut {
                let alone = alone(&piece);
                match &mut open {
                    Some((pieces, bounds, binding))
                        if bounds.union(alone).binding(limits, after_use).is_some() =>
                    {
                        *bounds = bounds.union(alone);
                        *binding = bounds.binding(limits, after_use).unwrap_or(*binding);
                        pieces.push(piece);
                    }
                    _ => {
                        if let Some((pieces, bounds, binding)) = open.take() {
                            plan.push(&pieces, bounds, binding, tensors, sizes, limits);
                        }
                        // A piece that was cut has one.
                        let binding = alone.binding(limits, after_use).unwrap_or(GradientBinding::ReadWrite);
                        open = Some((vec![piece], alone, binding));
                    }
                }
            }
            if let Some((pieces, bounds, binding)) = open {
                plan.push(&pieces, bounds, binding, tensors, sizes, limits);
            }
        }
        plan
    }

    fn push(
        &mut self,
        pieces: &[Piece],
        bounds: Bounds,
        binding: GradientBinding,
        tensors: &[Tensor<'_>],
        sizes: &[u64],
        limits: &PlanLimits,
    ) {
        let (values, gradients) = match binding {
            GradientBinding::Shared => {
                let both = bounds.values.union(bounds.gradients);
                (both, both)
            }
            GradientBinding::Read | GradientBinding::ReadWrite => (bounds.values, bounds.gradients),
        };
        let tensor_of = |piece: &Piece| &tensors[piece.tensor as usize];
        // Whether the launch can read and write all its tensors in words of so many bytes, four elements at a time.
        let holds_words = |bytes: u64| {
            pieces.iter().all(|piece| {
                let tensor = tensor_of(piece);
                [tensor.values, tensor.gradients].into_iter().all(|view| {
                    let (start, _) = piece.span(view);
                    let end = start + piece.elements.next_multiple_of(4) * view.dtype.bytes();
                    start.is_multiple_of(bytes)
                        && 4 * view.dtype.bytes() >= bytes
                        && end <= sizes[view.buffer as usize]
                })
            })
        };
        let access = match () {
            () if holds_words(16) => Access::Vec4,
            () if holds_words(8) => Access::Vec2,
            () => Access::Scalar,
        };
        let formats = || pieces.iter().map(|piece| tensor_of(piece).format().bits());
        let first_format = tensor_of(&pieces[0]).format().bits();
        let entries_per_alignment = (limits.offset_alignment / size_of::<Chunk>() as u64) as u32;
        let first_chunk = self
            .launches
            .last()
            .map_or(0, |launch| (launch.first_chunk + launch.chunks).next_multiple_of(entries_per_alignment));
        let first_segment = self.segments.len() as u32;
        let word_in = |window: &Window, (start, _)| ((start - window.offset) / WORD_BYTES) as u32;
        self.segments.extend(pieces.iter().map(|piece| {
            let tensor = tensor_of(piece);
            Segment {
                parameters: word_in(&values, piece.span(tensor.values)),
                gradients: word_in(&gradients, piece.span(tensor.gradients)),
                coefficients: 0,
                format: tensor.format().bits(),
                key: tensor.key,
                first_word: (piece.first_chunk * u64::from(CHUNK_ELEMENTS / 4)) as u32,
                copies: bounds
                    .copies
                    .zip(tensor.copies)
                    .map_or(0, |(window, view)| word_in(&window, piece.span(view))),
            }
        }));
        self.pieces.extend_from_slice(pieces);
        self.launches.push(Launch {
            values,
            gradients,
            binding,
            copies: bounds.copies,
            access,
            state_access: pieces
                .iter()
                .map(|piece| piece.layout.access())
                .min()
                .unwrap_or(StateAccess::Words4),
            format: formats().all(|format| format == first_format).then_some(first_format),
            page: pieces[0].page,
            first_chunk,
            chunks: pieces.iter().map(|piece| piece.chunks() as u32).sum(),
            segments: first_segment..self.segments.len() as u32,
        });
    }

    /// Sets each segment's row in the coefficients; `row` is asked with the index of its tensor.
    pub fn set_coefficients(&mut self, row: impl Fn(usize) -> u32) {
        for (segment, piece) in self.segments.iter_mut().zip(&self.pieces) {
            segment.coefficients = row(piece.tensor as usize);
        }
    }

    /// Which partial sums of the gradients' norm each launch has, one a workgroup; bindings start at multiples of `alignment`
    /// bytes. Besides what that takes, they are no more than `most` and one a launch; a launch has no more than `most`.
    pub fn partials(&self, alignment: u64, most: u32) -> Vec<Range<u64>> {
        let chunks: u64 = self.launches.iter().map(|launch| u64::from(launch.chunks)).sum();
        let chunks_per_partial = chunks.div_ceil(most.into()).max(1);
        let mut next = 0_u64;
        let mut partials = Vec::with_capacity(self.launches.len());
        for launch in &self.launches {
            let first = next.next_multiple_of((alignment / size_of::<Partial>() as u64).max(1));
            next = first + u64::from(launch.chunks).div_ceil(chunks_per_partial);
            partials.push(first..next);
        }
        partials
    }

    /// Whether the chunk table of `other` serves this plan too.
    pub fn has_chunks_of(&self, other: &Self) -> bool {
        let ranges = |plan: &Self| {
            plan.launches
                .iter()
                .map(|launch| (launch.first_chunk, launch.segments.clone()))
                .collect::<Vec<_>>()
        };
        self.pieces == other.pieces && ranges(self) == ranges(other)
    }

    /// The chunk table. Entries between launches are never bound.
    pub fn chunk_table(&self) -> Vec<Chunk> {
        let mut table = Vec::new();
        for launch in &self.launches {
            table.resize(launch.first_chunk as usize, Chunk::default());
            for segment in launch.segments.clone() {
                let piece = &self.pieces[segment as usize];
                for chunk in 0..piece.chunks() {
                    let first = chunk * u64::from(CHUNK_ELEMENTS);
                    table.push(Chunk {
                        segment,
                        first: first as u32,
                        elements: (piece.elements - first).min(CHUNK_ELEMENTS.into()) as u32,
                        state: piece.state + (chunk * piece.layout.words(CHUNK_ELEMENTS.into())) as u32,
                    });
                }
            }
        }
        table
    }
}

/// Pieces that may share a launch, in order of first appearance: same buffers, same page.
fn groups(tensors: &[Tensor<'_>]) -> Vec<Vec<Piece>> {
    let mut index = HashMap::new();
    let mut groups: Vec<Vec<Piece>> = Vec::new();
    // Tensors of one pool come in a row: look at the last group first.
    let mut recent = None;
    for (number, tensor) in tensors.iter().enumerate() {
        for extent in tensor.extents {
            let copies = tensor.copies.map(|copies| copies.buffer);
            let key = (tensor.values.buffer, tensor.gradients.buffer, copies, extent.page);
            let group = match recent {
                Some((recent, group)) if recent == key => group,
                _ => *index.entry(key).or_insert_with(|| {
                    groups.push(Vec::new());
                    groups.len() - 1
                }),
            };
            recent = Some((key, group));
            groups[group].push(Piece {
                tensor: number as u32,
                page: extent.page,
                state: extent.state,
                first_chunk: extent.first_chunk,
                elements: extent.elements,
                layout: tensor.layout,
            });
        }
    }
    groups
}

#[cfg(test)]
mod tests;
