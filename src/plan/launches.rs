//! From tensors to launches: pure arithmetic, no GPU.
//!
//! A *chunk* of [`CHUNK_ELEMENTS`] elements is what one workgroup updates. Its state is one *block* in a *state buffer*. An [`Extent`] is a
//! run of a tensor's chunks whose blocks follow each other in one state buffer. A [`Launch`] is one dispatch: one update rule, one window
//! of a buffer of values, one of a buffer of gradients, one state buffer, and all chunks that lie within them. Tensors that share buffers
//! and a rule share a launch. A tensor that reaches past the end of a window is cut between two chunks.
//!
//! The chunk table depends on which tensors share a launch, not on where they lie. An engine whose tensors move within their pools
//! rewrites only the segments.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::ops::Range;

use super::allocator::Extent;
use super::limits::PlanLimits;
use crate::kernels::abi::{Chunk, Partial, QUAD_ELEMENTS, Segment, SegmentRows};
use crate::kernels::pipeline::{Kernel, NormEnd};
use crate::kernels::variant::{Access, Buffers, GradientBinding, Quantized, RowFeatures, Shadow, Variant};
use crate::options::{Diagnostics, Tuning};
use crate::rules::RuleForm;
use crate::storage::block::{BlockLayout, CHUNK_ELEMENTS, StateAccess, WORD_BYTES};
use crate::storage::dtype::DType;
use crate::storage::state::{Format, StateFormat};

/// Where a view lies: a buffer, numbered by the caller, a byte offset, and the data type.
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
    /// Its shadow copy, in a buffer that holds neither.
    pub shadow: Option<Location>,
    /// Its blocks of state, which together cover it.
    pub extents: &'a [Extent],
    /// The layout of a block.
    pub layout: BlockLayout,
    /// Key of its random numbers.
    pub key: [u32; 2],
    /// Its first quad in the tensor that it is a part of.
    pub first_quad: u64,
    /// Its update rule and states.
    pub form: RuleForm,
    /// Whether its group steps or decays cautiously.
    pub is_cautious: bool,
    /// Whether its columns have factors.
    pub has_factors: bool,
    /// The mask of its rows, and the elements of a row.
    pub row_mask: Option<(Location, u64)>,
}

impl Tensor<'_> {
    /// What keeps it apart from tensors that have neither factors nor a mask: the buffer of masks, if there is one.
    fn rows(&self) -> Option<Option<u32>> {
        let mask = self.row_mask.map(|(mask, _)| mask.buffer);
        (self.has_factors || mask.is_some()).then_some(mask)
    }

    fn format(&self) -> Format {
        Format {
            values: self.values.dtype,
            gradients: self.gradients.dtype,
            state: self.layout.state,
            master_weights: self.layout.master_weights,
            shadow: self.shadow.map_or(DType::F32, |shadow| shadow.dtype),
        }
    }
}

/// A bound range of a buffer.
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

/// The bound ranges of a launch, or of one of its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Of values.
    pub values: Window,
    /// Of gradients; the same as that of values with [`GradientBinding::Shared`].
    pub gradients: Window,
    /// Of shadow copies, if there are any.
    pub shadow: Option<Window>,
}

/// One dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The update rule and its states.
    pub form: RuleForm,
    /// Those of all segments, or one for each segment.
    pub windows: Vec<Windows>,
    /// The length of its binding arrays, if each segment has windows of its own. As a power of two it takes few values, because each has
    /// a pipeline of its own.
    pub array_len: Option<NonZeroU32>,
    /// How gradients are bound.
    pub binding: GradientBinding,
    /// How tensors are read and written.
    pub access: Access,
    /// How state is read and written.
    pub state_access: StateAccess,
    /// [`Format::bits`] of all tensors, if they have the same format.
    pub format: Option<u32>,
    /// Whether no tensor ends within the quads of a lane.
    pub is_whole: bool,
    /// Whether the group of any tensor steps or decays cautiously.
    pub is_cautious: bool,
    /// What a thread works on.
    pub quantized: Quantized,
    /// Number of the state buffer.
    pub state_buffer: u32,
    /// First entry in the chunk table, aligned for a binding.
    pub first_chunk: u32,
    /// Entries in the chunk table.
    pub chunks: u32,
    /// Its segments.
    pub segments: Range<u32>,
    /// Whether its tensors have factors of columns or masks, and the window of the masks.
    pub rows: Option<Option<Window>>,
}

impl Launch {
    /// The kernel of the step. Rules without a learning rate for each element have no histograms.
    pub fn update_kernel(&self, diagnostics: Diagnostics) -> Kernel {
        let diagnostics = if self.form.rule().has_element_rates() { diagnostics } else { Diagnostics::Off };
        let variant = Variant {
            form: self.form,
            access: self.access,
            gradients: self.binding,
            buffers: if self.array_len.is_some() { Buffers::Array } else { Buffers::One },
            state: self.state_access,
            quantized: self.quantized,
            shadow: self.shadow_variant(),
            diagnostics,
            rows: if self.rows.is_some() { RowFeatures::On } else { RowFeatures::Off },
        };
        let has_masks = self.rows.flatten().is_some();
        let Self { format, is_whole, is_cautious, array_len, .. } = *self;
        Kernel::Update { variant, format, is_whole, is_cautious, array_len, has_masks }
    }

    /// The kernel of the norm of its gradients.
    pub fn norm_kernel(&self, end: NormEnd) -> Kernel {
        let Self { access, binding: gradients, array_len, format, .. } = *self;
        Kernel::Norm { access, gradients, array_len, format, end }
    }

    fn shadow_variant(&self) -> Shadow {
        if self.windows.iter().any(|windows| windows.shadow.is_some()) { Shadow::On } else { Shadow::Off }
    }
}

/// A run of a tensor's chunks in one launch. The chunk table depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    tensor: u32,
    state_buffer: u32,
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

    /// The word of a mask's buffer that has its first row, and that after the one that has its last row.
    fn mask_words(&self, mask: Location, row_len: u64) -> (u64, u64) {
        let first = self.first_chunk * u64::from(CHUNK_ELEMENTS);
        let word_of = |element: u64| mask.offset / WORD_BYTES + element / row_len / 32;
        (word_of(first), word_of(first + self.elements - 1) + 1)
    }

    /// Shortens the piece to its first `chunks` chunks and returns the rest.
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

/// All launches of a step and their segment table.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pieces: Vec<Piece>,
    /// The dispatches, in order.
    pub launches: Vec<Launch>,
    /// The segment table.
    pub segments: Vec<Segment>,
}

/// What the table of columns and rows needs to know of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct RowsOfTensor {
    /// Its first element in the tensor that it is a part of.
    pub first: u64,
    /// The mask of its rows, and the elements of a row.
    pub row_mask: Option<(Location, u64)>,
}

/// The windows and the size of a launch under construction.
#[derive(Clone, Copy)]
struct Bounds {
    values: Window,
    gradients: Window,
    shadow: Option<Window>,
    masks: Option<Window>,
    chunks: u64,
}

impl Bounds {
    fn of(piece: &Piece, tensor: &Tensor<'_>, sizes: &[u64], limits: &PlanLimits) -> Self {
        let window = |view: Location| {
            let (start, _) = piece.span(view);
            let offset = start / limits.offset_alignment * limits.offset_alignment;
            // The last quad is accessed whole where the buffer has it.
            let end = (start + piece.elements.next_multiple_of(4) * view.dtype.bytes())
                .min(sizes[view.buffer as usize] / WORD_BYTES * WORD_BYTES);
            Window { buffer: view.buffer, offset, bytes: end - offset }
        };
        let masks = tensor.row_mask.map(|(mask, row_len)| {
            let (first, end) = piece.mask_words(mask, row_len);
            let offset = first * WORD_BYTES / limits.offset_alignment * limits.offset_alignment;
            Window { buffer: mask.buffer, offset, bytes: end * WORD_BYTES - offset }
        });
        Self {
            values: window(tensor.values),
            gradients: window(tensor.gradients),
            shadow: tensor.shadow.map(window),
            masks,
            chunks: piece.chunks(),
        }
    }

    fn union(self, other: Self) -> Self {
        Self {
            values: self.values.union(other.values),
            gradients: self.gradients.union(other.gradients),
            shadow: self.shadow.zip(other.shadow).map(|(one, other)| one.union(other)),
            masks: self.masks.zip(other.masks).map(|(one, other)| one.union(other)),
            chunks: self.chunks + other.chunks,
        }
    }

    /// How a launch over these windows binds its gradients; `None` if a binding or the grid is too small.
    fn binding(&self, limits: &PlanLimits, zeroes_gradients: bool) -> Option<GradientBinding> {
        let fits = |window: &Window| window.bytes <= limits.binding_bytes;
        let others = [self.shadow.as_ref(), self.masks.as_ref()];
        let all_fit = fits(&self.values) && fits(&self.gradients) && others.into_iter().flatten().all(fits);
        if !all_fit || self.chunks > limits.launch_chunks {
            None
        } else if self.values.buffer != self.gradients.buffer {
            Some(if zeroes_gradients { GradientBinding::ReadWrite } else { GradientBinding::Read })
        } else if fits(&self.values.union(self.gradients)) {
            Some(GradientBinding::Shared)
        } else if !self.values.overlaps(&self.gradients) {
            Some(GradientBinding::ReadWrite)
        } else {
            None
        }
    }
}

/// Elements of a tensor above which a dispatch of its own costs nothing next to the bytes that it moves.
pub const MOST_SHARED_ELEMENTS: u64 = 1 << 20;

/// A launch before it is joined with others: its pieces lie in the same windows.
struct Draft {
    pieces: Vec<Piece>,
    bounds: Bounds,
    binding: GradientBinding,
}

impl Draft {
    fn windows(&self) -> Windows {
        let Bounds { values, gradients, shadow, .. } = self.bounds;
        match self.binding {
            GradientBinding::Shared => {
                let both = values.union(gradients);
                Windows { values: both, gradients: both, shadow }
            }
            GradientBinding::Read | GradientBinding::ReadWrite => Windows { values, gradients, shadow },
        }
    }

    /// Its buffers, with what they hold.
    fn buffers(&self) -> impl Iterator<Item = (u32, Holds)> {
        let Bounds { values, gradients, shadow, .. } = self.bounds;
        let windows =
            [(Some(values), Holds::Values), (Some(gradients), Holds::Gradients), (shadow, Holds::Shadow)];
        windows.into_iter().filter_map(|(window, holds)| Some((window?.buffer, holds)))
    }

    /// What drafts that may share a dispatch have in common; `None` for a draft that keeps a dispatch of its own.
    fn key(&self, scene: &Scene<'_>) -> Option<impl Eq + Hash + use<>> {
        let [piece] = self.pieces.as_slice() else { return None };
        let tensor = scene.tensor_of(piece);
        let may_share = self.bounds.values.buffer != self.bounds.gradients.buffer
            && tensor.rows().is_none()
            && piece.elements <= MOST_SHARED_ELEMENTS;
        let format = tensor.format().bits();
        let access = scene.access(&self.pieces);
        let Bounds { values, gradients, shadow, .. } = self.bounds;
        let reaches = |window: Window, word_bytes| window.bytes / word_bytes <= scene.limits.array_words;
        let may_share = may_share
            && [values, gradients].into_iter().all(|window| reaches(window, access.word_bytes()))
            && shadow.is_none_or(|window| reaches(window, WORD_BYTES));
        may_share.then_some((tensor.form, format, access, self.binding, piece.state_buffer))
    }
}

/// What a step is planned from.
struct Scene<'a> {
    tensors: &'a [Tensor<'a>],
    /// Bytes of the buffers that locations name.
    sizes: &'a [u64],
    zeroes_gradients: bool,
    limits: &'a PlanLimits,
}

impl Scene<'_> {
    fn tensor_of(&self, piece: &Piece) -> &Tensor<'_> {
        &self.tensors[piece.tensor as usize]
    }

    fn bounds(&self, piece: &Piece) -> Bounds {
        Bounds::of(piece, self.tensor_of(piece), self.sizes, self.limits)
    }

    fn binding(&self, bounds: &Bounds) -> Option<GradientBinding> {
        bounds.binding(self.limits, self.zeroes_gradients)
    }

    /// The widest words in which a launch can read and write all its tensors.
    fn access(&self, pieces: &[Piece]) -> Access {
        let holds_words = |bytes: u64| {
            pieces.iter().all(|piece| {
                let tensor = self.tensor_of(piece);
                [tensor.values, tensor.gradients].into_iter().all(|view| {
                    let (start, _) = piece.span(view);
                    let end = start + piece.elements.next_multiple_of(4) * view.dtype.bytes();
                    start.is_multiple_of(bytes)
                        && 4 * view.dtype.bytes() >= bytes
                        && end <= self.sizes[view.buffer as usize]
                })
            })
        };
        match self.limits.tuning.most_word_bytes {
            16.. if holds_words(16) => Access::Vec4,
            8.. if holds_words(8) => Access::Vec2,
            _ => Access::Scalar,
        }
    }

    /// The launches of pieces that may share one: all of them, or as many as windows and the grid hold.
    fn drafts(&self, mut group: Vec<Piece>) -> Vec<Draft> {
        let everything = group.iter().map(|piece| self.bounds(piece)).reduce(Bounds::union);
        if let Some(bounds) = everything
            && let Some(binding) = self.binding(&bounds)
        {
            return vec![Draft { pieces: group, bounds, binding }];
        }
        // Too large for one window: cut, and fill windows in the order of addresses. Values and gradients that meet within the alignment
        // of an offset, and are too large for a window together, are cut in half. Then a half lies between them.
        let mut cut = Vec::with_capacity(group.len());
        while let Some(mut piece) = group.pop() {
            let (chunks, most) = (piece.chunks(), self.limits.window_chunks());
            let meets = chunks <= most && self.binding(&self.bounds(&piece)).is_none();
            match piece.split(if meets { chunks.div_ceil(2) } else { most }) {
                Some(rest) => group.extend([rest, piece]),
                None => cut.push(piece),
            }
        }
        cut.sort_by_key(|piece| piece.span(self.tensor_of(piece).values).0);
        let mut drafts: Vec<Draft> = Vec::new();
        for piece in cut {
            let alone = self.bounds(&piece);
            if let Some(open) = drafts.last_mut()
                && let Some(binding) = self.binding(&open.bounds.union(alone))
            {
                open.bounds = open.bounds.union(alone);
                open.binding = binding;
                open.pieces.push(piece);
            } else {
                // A piece that was cut has a binding.
                let binding = self.binding(&alone).unwrap_or(GradientBinding::ReadWrite);
                drafts.push(Draft { pieces: vec![piece], bounds: alone, binding });
            }
        }
        drafts
    }

    /// Drafts that share a dispatch, in order of first appearance: those with a tensor in buffers of its own, where the device has
    /// binding arrays.
    fn shared(&self, drafts: Vec<Draft>) -> Vec<Vec<Draft>> {
        let mut shared = Vec::new();
        let mut open: HashMap<_, SharedDrafts> = HashMap::new();
        for draft in drafts {
            match draft.key(self).filter(|_| self.limits.windows > 1) {
                None => shared.push(vec![draft]),
                Some(key) => {
                    let of_key = open.entry(key).or_insert_with(|| {
                        shared.push(Vec::new());
                        SharedDrafts::new(shared.len() - 1)
                    });
                    if !of_key.takes(&draft, self.limits) {
                        shared.push(Vec::new());
                        *of_key = SharedDrafts::new(shared.len() - 1);
                    }
                    of_key.add(&draft);
                    shared[of_key.index].push(draft);
                }
            }
        }
        shared
    }
}

/// A launch that further drafts may share.
struct SharedDrafts {
    index: usize,
    windows: u32,
    chunks: u64,
    /// A buffer holds one thing only. wgpu refuses one that a dispatch both writes and reads through other bindings, and the last quad of a
    /// tensor may write back what lies after it.
    buffers: HashMap<u32, Holds>,
}

/// What a buffer holds of the tensors of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Values,
    Gradients,
    Shadow,
}

impl SharedDrafts {
    fn new(index: usize) -> Self {
        Self { index, windows: 0, chunks: 0, buffers: HashMap::new() }
    }

    fn takes(&self, draft: &Draft, limits: &PlanLimits) -> bool {
        self.windows < limits.windows
            && self.chunks + draft.bounds.chunks <= limits.launch_chunks
            && draft.buffers().all(|(buffer, holds)| self.buffers.get(&buffer).is_none_or(|of| *of == holds))
    }

    fn add(&mut self, draft: &Draft) {
        self.windows += 1;
        self.chunks += draft.bounds.chunks;
        self.buffers.extend(draft.buffers());
    }
}

impl Plan {
    /// Plans a step over `tensors`. `sizes` are the bytes of the buffers that their locations name.
    pub fn new(tensors: &[Tensor<'_>], sizes: &[u64], zeroes_gradients: bool, limits: &PlanLimits) -> Self {
        let scene = Scene { tensors, sizes, zeroes_gradients, limits };
        let drafts = groups(tensors, limits).into_iter().flat_map(|group| scene.drafts(group)).collect();
        let mut plan = Self::default();
        for drafts in scene.shared(drafts) {
            plan.push(&scene, &drafts);
        }
        plan
    }

    /// Adds a launch.
    fn push(&mut self, scene: &Scene<'_>, drafts: &[Draft]) {
        let limits = scene.limits;
        let pieces: Vec<_> = drafts.iter().flat_map(|draft| &draft.pieces).copied().collect();
        let windows: Vec<_> = drafts.iter().map(Draft::windows).collect();
        let tensor_of = |piece: &Piece| scene.tensor_of(piece);
        let Tuning { two_quads, constant_masks, most_word_bytes, .. } = limits.tuning;
        let access = scene.access(&pieces);
        let is_quantized = pieces.iter().any(|piece| piece.layout.state == StateFormat::Q8);
        let quantized = match Quantized::for_lanes(limits.lanes) {
            quantized if is_quantized => quantized,
            Quantized::Shared if two_quads => Quantized::Shared,
            _ => Quantized::Off,
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
        let placed = drafts
            .iter()
            .zip(&windows)
            .flat_map(|(draft, windows)| draft.pieces.iter().map(move |piece| (piece, windows)));
        self.segments.extend(placed.map(|(piece, Windows { values, gradients, shadow })| {
            let tensor = tensor_of(piece);
            Segment {
                parameters: word_in(values, piece.span(tensor.values)),
                gradients: word_in(gradients, piece.span(tensor.gradients)),
                coefficients: 0,
                format: tensor.format().bits(),
                key: tensor.key,
                first_quad: (tensor.first_quad
                    + piece.first_chunk * u64::from(CHUNK_ELEMENTS / QUAD_ELEMENTS))
                    as u32,
                shadow: shadow
                    .zip(tensor.shadow)
                    .map_or(0, |(window, view)| word_in(&window, piece.span(view))),
            }
        }));
        self.pieces.extend_from_slice(&pieces);
        self.launches.push(Launch {
            form: tensor_of(&pieces[0]).form,
            array_len: match windows.len() as u32 {
                0 | 1 => None,
                len => NonZeroU32::new(len.next_power_of_two().max(limits.least_array_len)),
            },
            windows,
            binding: drafts[0].binding,
            access,
            state_access: match quantized {
                // Pairs of words are no faster on a CPU.
                Quantized::Whole => StateAccess::Words1,
                Quantized::Off | Quantized::Shared => pieces
                    .iter()
                    .map(|piece| piece.layout.access(piece.elements % u64::from(CHUNK_ELEMENTS)))
                    .chain([StateAccess::of_word_bytes(most_word_bytes)])
                    .min()
                    .unwrap_or(StateAccess::Words4),
            },
            format: formats().all(|format| format == first_format).then_some(first_format),
            is_whole: constant_masks
                && pieces.iter().all(|piece| piece.elements.is_multiple_of(quantized.lane_elements().into())),
            is_cautious: pieces.iter().any(|piece| tensor_of(piece).is_cautious),
            quantized,
            state_buffer: pieces[0].state_buffer,
            first_chunk,
            chunks: pieces.iter().map(|piece| piece.chunks() as u32).sum(),
            segments: first_segment..self.segments.len() as u32,
            rows: tensor_of(&pieces[0]).rows().map(|_| drafts[0].bounds.masks),
        });
    }

    /// Sets the index of each segment's coefficients; `row` gives it for the index of a tensor.
    pub fn set_coefficients(&mut self, row: impl Fn(usize) -> u32) {
        for (segment, piece) in self.segments.iter_mut().zip(&self.pieces) {
            segment.coefficients = row(piece.tensor as usize);
        }
    }

    /// The table of columns and rows of all segments; `factors` gives the factors of the columns of a tensor's index. Empty if no launch
    /// needs it.
    pub fn row_table<'a>(
        &self,
        tensors: &[RowsOfTensor],
        factors: impl Fn(usize) -> Option<&'a [f32]>,
    ) -> Vec<u32> {
        if self.launches.iter().all(|launch| launch.rows.is_none()) {
            return Vec::new();
        }
        let mut table = vec![0; self.pieces.len() * size_of::<SegmentRows>() / WORD_BYTES as usize];
        let mut starts = HashMap::new();
        let windows =
            self.launches.iter().flat_map(|launch| launch.segments.clone().map(|_| launch.rows.flatten()));
        for (segment, (piece, window)) in self.pieces.iter().zip(windows).enumerate() {
            let tensor = piece.tensor as usize;
            let first = piece.first_chunk * u64::from(CHUNK_ELEMENTS);
            let RowsOfTensor { first: first_of_tensor, row_mask } = tensors[tensor];
            let mut rows = SegmentRows::default();
            if let Some(factors) = factors(tensor) {
                rows.factors = *starts.entry(tensor).or_insert_with(|| {
                    table.extend(factors.iter().map(|factor| factor.to_bits()));
                    (table.len() - factors.len()) as u32
                });
                rows.period = factors.len() as u32;
                rows.phase = ((first_of_tensor + first) % factors.len() as u64) as u32;
            }
            if let (Some((mask, row_len)), Some(window)) = (row_mask, window) {
                let (first_word, _) = piece.mask_words(mask, row_len);
                rows.mask = (first_word - window.offset / WORD_BYTES) as u32;
                rows.row_len = row_len as u32;
                rows.row = (first / row_len % 32) as u32;
                rows.column = (first % row_len) as u32;
            }
            let words = size_of::<SegmentRows>() / WORD_BYTES as usize;
            table[segment * words..(segment + 1) * words].copy_from_slice(bytemuck::cast_slice(&[rows]));
        }
        table
    }

    /// The partial sums of the gradients' norm that each launch has, one per workgroup. Bindings start at multiples of `alignment` bytes.
    /// Without padding there are at most `most`, plus one per launch; a launch has at most `most`.
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

    /// Whether this plan has the chunk table of `other`.
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

/// Pieces that may share a launch, in order of first appearance: same buffers, state buffer, rule and states.
fn groups(tensors: &[Tensor<'_>], limits: &PlanLimits) -> Vec<Vec<Piece>> {
    let quantized = Quantized::for_lanes(limits.lanes);
    let mut index = HashMap::new();
    let mut groups: Vec<Vec<Piece>> = Vec::new();
    // Tensors of one pool often follow each other, so look at the last group first.
    let mut recent = None;
    for (number, tensor) in tensors.iter().enumerate() {
        for extent in tensor.extents {
            let shadow = tensor.shadow.map(|shadow| shadow.buffer);
            let buffers = (tensor.values.buffer, tensor.gradients.buffer, shadow, extent.buffer);
            let format = quantized.format_apart(tensor.format());
            let key = (buffers, tensor.form, tensor.rows(), format);
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
                state_buffer: extent.buffer,
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
