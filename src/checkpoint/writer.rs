//! Writes the content of a checkpoint file. Data come in the order of the parameters, a part at a time, and go to their places; the header
//! with the checksums comes last.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensorError, TensorInfo};

use super::Checkpoint;
use super::error::CheckpointError;
use super::format::{self, CHECKSUM_KEY, METADATA_KEY};
use super::reader::{MOST_HEADER_BYTES, checksum};
use super::saved::{BATCH_BYTES, Checksums, SavedParameter, batches, read_batch};

/// What content is written to.
pub(crate) trait Sink {
    /// Writes bytes at an offset.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError>;
}

impl Sink for Vec<u8> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let range = offset as usize..offset as usize + bytes.len();
        if self.len() < range.end {
            self.resize(range.end, 0);
        }
        self[range].copy_from_slice(bytes);
        Ok(())
    }
}

/// Writes one file.
pub(crate) struct Writer<'a, S> {
    checkpoint: &'a Checkpoint,
    sink: S,
    layout: FileLayout,
    checksums: Vec<Checksums>,
    /// The parameter that comes next, and how many of its elements have been written.
    next: (usize, u64),
    /// The unfinished checksum of each of its tensors.
    hashers: Vec<crc32fast::Hasher>,
    /// Bytes that wait for those after them, by type: the offset of the first one, and all of them.
    runs: BTreeMap<Dtype, (u64, Vec<u8>)>,
}

/// Where the tensors lie in the file.
struct FileLayout {
    /// For each parameter the offset and the type of each tensor. Offsets count from the first byte after the header.
    tensors: Vec<Vec<(u64, Dtype)>>,
    /// The JSON of names, types, shapes and offsets, without braces.
    infos: Vec<u8>,
    /// Bytes of the header with its length.
    start: u64,
}

/// The bytes of tensors of one type that are written at once.
const RUN_BYTES: usize = 4 << 20;

impl<'a, S: Sink> Writer<'a, S> {
    /// Starts to write a checkpoint. Only the data are not taken from it.
    pub fn new(checkpoint: &'a Checkpoint, sink: S) -> Result<Self, CheckpointError> {
        let (tensors, infos) = places(&checkpoint.parameters)?;
        let mut writer = Self {
            checkpoint,
            sink,
            layout: FileLayout { tensors, infos, start: 0 },
            checksums: checkpoint.parameters.iter().map(blank).collect(),
            next: (0, 0),
            hashers: Vec::new(),
            runs: BTreeMap::new(),
        };
        // Its length does not depend on the checksums.
        let zeros = |_: &str| "00000000".to_owned();
        writer.layout.start = writer.header(zeros)?.len() as u64;
        Ok(writer)
    }

    /// Writes the next elements of a parameter, given the bytes of each tensor.
    pub fn write(
        &mut self,
        parameter: usize,
        elements: u64,
        tensors: &[impl AsRef<[u8]>],
    ) -> Result<(), CheckpointError> {
        if self.next.0 != parameter {
            self.next = (parameter, 0);
        }
        let (_, first) = self.next;
        let saved = &self.checkpoint.parameters[parameter];
        self.hashers.resize_with(tensors.len(), crc32fast::Hasher::new);
        let Checksums { piece, of_pieces } = &mut self.checksums[parameter];
        let pieces = Checksums::pieces(*piece, saved.len);
        for (index, (tensor, bytes)) in saved.tensors().into_iter().zip(tensors).enumerate() {
            let bytes = bytes.as_ref();
            let start = saved.bytes_before(tensor, first);
            let mut from = first;
            while from < first + elements {
                let number = from / *piece;
                let to = ((number + 1) * *piece).min(first + elements);
                let place = |element| (saved.bytes_before(tensor, element) - start) as usize;
                let hasher = &mut self.hashers[index];
                hasher.update(&bytes[place(from)..place(to)]);
                if to.is_multiple_of(*piece) || to == saved.len {
                    let finished = std::mem::take(hasher).finalize();
                    of_pieces[(index as u64 * pieces + number) as usize] = finished;
                }
                from = to;
            }
            let (offset, dtype) = self.layout.tensors[parameter][index];
            write_run(&mut self.runs, &mut self.sink, dtype, self.layout.start + offset + start, bytes)?;
        }
        self.next.1 += elements;
        Ok(())
    }

    /// Writes what is left, and the header.
    pub fn finish(mut self) -> Result<S, CheckpointError> {
        for (offset, bytes) in std::mem::take(&mut self.runs).into_values() {
            self.sink.write_at(offset, &bytes)?;
        }
        let parameters = self.checkpoint.parameters.iter().zip(&self.checksums);
        let header = self.header(|text| checksum(text, parameters))?;
        self.sink.write_at(0, &header)?;
        Ok(self.sink)
    }

    /// The header with the present checksums of pieces, and the checksum that `whole` makes of the text of the metadata.
    fn header(&self, whole: impl FnOnce(&str) -> String) -> Result<Vec<u8>, CheckpointError> {
        let of_pieces: Vec<&[u32]> = self.checksums.iter().map(|of| of.of_pieces.as_slice()).collect();
        let text = format::text(self.checkpoint, &of_pieces)?;
        let checksum = whole(&text);
        let metadata = BTreeMap::from([(METADATA_KEY, text), (CHECKSUM_KEY, checksum)]);
        let json = |error| CheckpointError::Format(SafeTensorError::JsonError(error));
        let metadata = serde_json::to_vec(&metadata).map_err(json)?;
        let mut header = vec![0; 8];
        header.extend_from_slice(b"{\"__metadata__\":");
        header.extend(metadata);
        if !self.layout.infos.is_empty() {
            header.push(b',');
            header.extend_from_slice(&self.layout.infos);
        }
        header.push(b'}');
        // Data start at a multiple of 8 bytes.
        header.resize(header.len().next_multiple_of(8), b' ');
        let length = header.len() as u64 - 8;
        if length > MOST_HEADER_BYTES {
            return Err(CheckpointError::HeaderTooLarge { parameters: self.checksums.len() });
        }
        header[..8].copy_from_slice(&length.to_le_bytes());
        Ok(header)
    }
}

/// Checksums of zero for all pieces of a parameter.
fn blank(parameter: &SavedParameter) -> Checksums {
    let piece = Checksums::PIECE;
    let count = parameter.tensors().len() as u64 * Checksums::pieces(piece, parameter.len);
    Checksums { piece, of_pieces: vec![0; count as usize] }
}

/// Offset and type of each tensor, by parameter.
type Places = Vec<Vec<(u64, Dtype)>>;

/// Places tensors: those of the widest type first, so that all are aligned, and then in the order of the parameters. Also gives the JSON
/// of them all.
fn places(parameters: &[SavedParameter]) -> Result<(Places, Vec<u8>), CheckpointError> {
    let mut order = Vec::new();
    let mut places: Places = Vec::with_capacity(parameters.len());
    for (index, parameter) in parameters.iter().enumerate() {
        let tensors = parameter.tensors();
        let dtypes: Vec<_> = tensors.iter().map(|&tensor| (0, parameter.dtype_of(tensor))).collect();
        order.extend(
            dtypes
                .iter()
                .zip(tensors)
                .enumerate()
                .map(|(number, (&(_, dtype), tensor))| (dtype, index, number, tensor)),
        );
        places.push(dtypes);
    }
    order.sort_by(|(one, ..), (other, ..)| other.cmp(one));
    let mut infos = Vec::new();
    let mut end = 0;
    let json = |error| CheckpointError::Format(SafeTensorError::JsonError(error));
    for (dtype, index, number, tensor) in order {
        let parameter = &parameters[index];
        let bytes = parameter.bytes_before(tensor, parameter.len);
        places[index][number].0 = end;
        let info = TensorInfo {
            dtype,
            shape: vec![parameter.elements_of(tensor, parameter.len) as usize],
            data_offsets: (end as usize, (end + bytes) as usize),
        };
        if !infos.is_empty() {
            infos.push(b',');
        }
        serde_json::to_writer(&mut infos, &parameter.name_of(tensor)).map_err(json)?;
        infos.push(b':');
        serde_json::to_writer(&mut infos, &info).map_err(json)?;
        end += bytes;
    }
    Ok((places, infos))
}

/// Writes bytes together with those of the same type that they follow.
fn write_run(
    runs: &mut BTreeMap<Dtype, (u64, Vec<u8>)>,
    sink: &mut impl Sink,
    dtype: Dtype,
    offset: u64,
    bytes: &[u8],
) -> Result<(), CheckpointError> {
    let (start, run) = runs.entry(dtype).or_default();
    if offset != *start + run.len() as u64 || run.len() + bytes.len() > RUN_BYTES {
        if !run.is_empty() {
            sink.write_at(*start, run)?;
            run.clear();
        }
        *start = offset;
    }
    if bytes.len() >= RUN_BYTES {
        *start = offset + bytes.len() as u64;
        return sink.write_at(offset, bytes);
    }
    run.extend_from_slice(bytes);
    Ok(())
}

impl Checkpoint {
    /// The content of the file.
    ///
    /// # Errors
    /// If there are too many parameters for a safetensors header: more than some 200,000 with labels of 20 characters. If the data are in
    /// a file that cannot be read.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        self.write_to(Vec::new())
    }

    /// Writes the content of the file.
    pub(super) fn write_to<S: Sink>(&self, sink: S) -> Result<S, CheckpointError> {
        let mut writer = Writer::new(self, sink)?;
        for batch in batches(&self.parameters, BATCH_BYTES) {
            let data = read_batch(&self.parameters, &batch)?;
            for ((index, elements), tensors) in batch.into_iter().zip(data) {
                writer.write(index, elements.end - elements.start, &tensors)?;
            }
        }
        writer.finish()
    }
}
