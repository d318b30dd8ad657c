//! The parameters of a checkpoint, and their data: in memory, or in files that are read when they are needed.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use safetensors::tensor::Dtype;

use super::error::CheckpointError;
use crate::storage::block::{BlockLayout, QUANT_BLOCK_ELEMENTS};
use crate::storage::dtype::DType;
use crate::storage::master::MasterWeights;
use crate::storage::state::StateFormat;

/// A parameter of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct SavedParameter {
    pub label: String,
    pub len: u64,
    pub dtype: DType,
    pub group: u32,
    pub step: u64,
    /// Its first element in a tensor of `whole` elements.
    pub first: u64,
    pub whole: u64,
    pub layout: BlockLayout,
    /// Whether its values are there, too.
    pub has_values: bool,
    /// Its data. The segments follow each other and cover all elements.
    pub segments: Vec<Segment>,
}

/// The data of some elements of a parameter.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub elements: u64,
    pub data: Data,
}

/// The bytes of each of [`SavedParameter::tensors`].
#[derive(Clone)]
pub(crate) enum Data {
    Memory(Arc<[Vec<u8>]>),
    #[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "a browser has no files"))]
    Stored(Arc<Stored>),
}

/// Tensors in a file.
#[derive(Debug)]
pub(crate) struct Stored {
    pub source: Arc<dyn Source>,
    /// The byte of the file at which each tensor starts.
    pub offsets: Vec<u64>,
    pub checksums: Checksums,
}

/// CRC32 of the pieces of each tensor, tensor by tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checksums {
    /// Elements of a piece, a multiple of [`QUANT_BLOCK_ELEMENTS`].
    pub piece: u64,
    pub of_pieces: Vec<u32>,
}

/// What data can be read from.
pub(crate) trait Source: fmt::Debug + Send + Sync {
    /// Fills `to` with the bytes from `offset` on.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), CheckpointError>;

    /// The error with the name of the file.
    fn named(&self, error: CheckpointError) -> CheckpointError;
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Data::Memory(tensors) => {
                let bytes: usize = tensors.iter().map(Vec::len).sum();
                write!(f, "Memory({bytes} bytes)")
            }
            Data::Stored(stored) => stored.fmt(f),
        }
    }
}

/// A tensor of a parameter in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tensor {
    State(usize),
    Scales,
    Master,
    Values,
}

impl SavedParameter {
    /// Its tensors. Checksums cover them in this order.
    pub fn tensors(&self) -> Vec<Tensor> {
        let scales = (self.layout.scale_words(1) > 0).then_some(Tensor::Scales);
        let master = (self.layout.master_weights != MasterWeights::None).then_some(Tensor::Master);
        let values = self.has_values.then_some(Tensor::Values);
        let states = (0..self.layout.states.len()).map(Tensor::State);
        states.chain(scales).chain(master).chain(values).collect()
    }

    /// The name of a tensor in a file.
    pub fn name_of(&self, tensor: Tensor) -> String {
        let what = match tensor {
            Tensor::State(index) => self.layout.states[index].name,
            Tensor::Scales => "scales",
            Tensor::Master => "master",
            Tensor::Values => "param",
        };
        format!("{what}.{}", self.label)
    }

    /// The type of a tensor's elements in a file.
    pub fn dtype_of(&self, tensor: Tensor) -> Dtype {
        match tensor {
            Tensor::State(_) => match self.layout.state {
                StateFormat::F32 => Dtype::F32,
                StateFormat::Bf16 => Dtype::BF16,
                StateFormat::Q8 => Dtype::U8,
            },
            Tensor::Scales => Dtype::U32,
            Tensor::Master => match self.layout.master_weights {
                // There is no such tensor.
                MasterWeights::None => Dtype::U8,
                MasterWeights::Split24 => Dtype::I8,
                MasterWeights::Split32 => Dtype::I16,
                MasterWeights::F32 => Dtype::I32,
            },
            Tensor::Values => match self.dtype {
                DType::F32 => Dtype::F32,
                DType::F16 => Dtype::F16,
                DType::Bf16 => Dtype::BF16,
            },
        }
    }

    /// Number of elements that a tensor has for this many elements of the parameter.
    pub fn elements_of(&self, tensor: Tensor, elements: u64) -> u64 {
        match tensor {
            Tensor::Scales => elements.div_ceil(QUANT_BLOCK_ELEMENTS),
            Tensor::State(_) | Tensor::Master | Tensor::Values => elements,
        }
    }

    /// Bytes of a tensor before an element of the parameter. With scales, this is a multiple of 32 or the end.
    pub fn bytes_before(&self, tensor: Tensor, element: u64) -> u64 {
        let bits = match tensor {
            Tensor::State(_) => self.layout.state_bits(),
            Tensor::Scales => 32,
            Tensor::Master => self.layout.master_bits(),
            Tensor::Values => 8 * self.dtype.bytes(),
        };
        self.elements_of(tensor, element) * bits / 8
    }

    /// Bytes of all tensors for this many elements.
    pub fn bytes_of(&self, elements: u64) -> u64 {
        self.tensors().into_iter().map(|tensor| self.bytes_before(tensor, elements)).sum()
    }

    /// The element of the whole tensor after its last one.
    pub fn end(&self) -> u64 {
        self.first + self.len
    }

    /// Whether any of its data are in a file.
    pub fn is_stored(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment.data, Data::Stored(_)))
    }
}

impl Checksums {
    /// Elements of a piece in new files.
    pub const PIECE: u64 = 1 << 18;

    /// The number of pieces of each tensor of a parameter of `len` elements.
    pub fn pieces(piece: u64, len: u64) -> u64 {
        len.div_ceil(piece)
    }
}

/// Elements of a parameter that are to be read.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    pub parameter: &'a SavedParameter,
    pub elements: Range<u64>,
}

/// A piece of a tensor in a file, and what of it is wanted.
struct Piece<'a> {
    source: &'a Arc<dyn Source>,
    offset: u64,
    bytes: usize,
    checksum: u32,
    /// The wanted bytes of the piece, and where they go: index of the request, index and byte of the tensor.
    taken: Range<usize>,
    to: (usize, usize, usize),
}

/// The most bytes that one read takes from a file, apart from a piece that is larger.
const READ_BYTES: usize = 8 << 20;

/// The bytes of each tensor for each request. Reads files in the order of their bytes, whole pieces at a time, and verifies their
/// checksums.
pub(crate) fn read(wanted: &[Wanted<'_>]) -> Result<Vec<Vec<Vec<u8>>>, CheckpointError> {
    let mut found: Vec<Vec<Vec<u8>>> = Vec::with_capacity(wanted.len());
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    for (request, Wanted { parameter, elements }) in wanted.iter().enumerate() {
        let tensors = parameter.tensors();
        let before = |tensor, element| parameter.bytes_before(tensor, element) as usize;
        let size = |&tensor: &Tensor| vec![0; before(tensor, elements.end) - before(tensor, elements.start)];
        let mut target: Vec<Vec<u8>> = tensors.iter().map(size).collect();
        let mut start = 0;
        for segment in &parameter.segments {
            let end = start + segment.elements;
            let (from, to) = (elements.start.max(start), elements.end.min(end));
            if from < to {
                // Elements counted from the start of the segment.
                let local = from - start..to - start;
                for (index, &tensor) in tensors.iter().enumerate() {
                    let place = before(tensor, from) - before(tensor, elements.start);
                    match &segment.data {
                        Data::Memory(data) => {
                            let bytes = &data[index][before(tensor, local.start)..before(tensor, local.end)];
                            target[index][place..place + bytes.len()].copy_from_slice(bytes);
                        }
                        Data::Stored(stored) => {
                            let Checksums { piece, of_pieces } = &stored.checksums;
                            let count = Checksums::pieces(*piece, segment.elements);
                            for number in local.start / piece..local.end.div_ceil(*piece) {
                                let first = number * piece;
                                let last = (first + piece).min(segment.elements);
                                let offset = before(tensor, first);
                                let taken = before(tensor, local.start.max(first))
                                    ..before(tensor, local.end.min(last));
                                let at = place + taken.start - before(tensor, local.start);
                                pieces.push(Piece {
                                    source: &stored.source,
                                    offset: stored.offsets[index] + offset as u64,
                                    bytes: before(tensor, last) - offset,
                                    checksum: of_pieces[(index as u64 * count + number) as usize],
                                    taken: taken.start - offset..taken.end - offset,
                                    to: (request, index, at),
                                });
                            }
                        }
                    }
                }
            }
            start = end;
        }
        found.push(target);
    }
    let address = |piece: &Piece<'_>| Arc::as_ptr(piece.source).cast::<()>() as usize;
    pieces.sort_by_key(|piece| (address(piece), piece.offset));
    let mut buffer = Vec::new();
    let mut rest = pieces.as_slice();
    while let Some(first) = rest.first() {
        // Pieces that follow each other in a file share a read.
        let mut count = 1;
        let mut bytes = first.bytes;
        while let Some(next) = rest.get(count)
            && address(next) == address(first)
            && next.offset == first.offset + bytes as u64
            && bytes + next.bytes <= READ_BYTES
        {
            bytes += next.bytes;
            count += 1;
        }
        buffer.resize(bytes, 0);
        first.source.read_at(first.offset, &mut buffer)?;
        let mut start = 0;
        for piece in &rest[..count] {
            let data = &buffer[start..start + piece.bytes];
            let (request, index, at) = piece.to;
            let checksum = crc32fast::hash(data);
            if checksum != piece.checksum {
                let parameter = wanted[request].parameter;
                return Err(piece.source.named(CheckpointError::TensorChecksum {
                    name: parameter.name_of(parameter.tensors()[index]),
                    found: format!("{checksum:08x}"),
                    expected: format!("{:08x}", piece.checksum),
                }));
            }
            let taken = &data[piece.taken.clone()];
            found[request][index][at..at + taken.len()].copy_from_slice(taken);
            start += piece.bytes;
        }
        rest = &rest[count..];
    }
    Ok(found)
}

/// Divides parameters into batches of at most `most` bytes, or of one piece where that is larger.
pub(crate) fn batches(parameters: &[SavedParameter], most: u64) -> Vec<Vec<(usize, Range<u64>)>> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut bytes = 0;
    for (index, parameter) in parameters.iter().enumerate() {
        let mut first = 0;
        while first < parameter.len {
            let last = (first + Checksums::PIECE).min(parameter.len);
            let size = parameter.bytes_of(last - first);
            if bytes + size > most && !batch.is_empty() {
                batches.push(std::mem::take(&mut batch));
                bytes = 0;
            }
            batch.push((index, first..last));
            bytes += size;
            first = last;
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// Reads a batch.
pub(crate) fn read_batch(
    parameters: &[SavedParameter],
    batch: &[(usize, Range<u64>)],
) -> Result<Vec<Vec<Vec<u8>>>, CheckpointError> {
    let wanted: Vec<_> = batch
        .iter()
        .map(|(index, elements)| Wanted { parameter: &parameters[*index], elements: elements.clone() })
        .collect();
    read(&wanted)
}

/// Bytes of a batch.
pub(crate) const BATCH_BYTES: u64 = 16 << 20;

/// Whether parameters and their data are the same. Reads the data; those that cannot be read equal nothing.
pub(crate) fn are_equal(parameters: &[SavedParameter], others: &[SavedParameter]) -> bool {
    fn head(parameter: &SavedParameter) -> impl PartialEq + '_ {
        let SavedParameter { label, len, dtype, group, step, first, whole, layout, has_values, segments: _ } =
            parameter;
        (label, len, dtype, group, step, (first, whole), layout, has_values)
    }
    parameters.len() == others.len()
        && parameters.iter().zip(others).all(|(one, other)| head(one) == head(other))
        && batches(parameters, BATCH_BYTES).iter().all(|batch| {
            let (one, other) = (read_batch(parameters, batch), read_batch(others, batch));
            one.is_ok_and(|one| other.is_ok_and(|other| one == other))
        })
}
