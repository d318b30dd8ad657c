//! Reads the header of a checkpoint file, and finds where the data of each parameter are.

use std::collections::HashMap;
use std::fmt;

use safetensors::tensor::{Metadata, SafeTensorError, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::Checkpoint;
use super::error::CheckpointError;
use super::format::{self, CHECKSUM_KEY, Described, METADATA_KEY};
use super::saved::{Checksums, Data, SavedParameter, Segment, Tensor};
use crate::storage::block::BlockLayout;

/// The bytes of a safetensors file's length field.
const LENGTH_BYTES: u64 = 8;

/// What safetensors allows.
pub(super) const MOST_HEADER_BYTES: u64 = 100_000_000;

/// A checkpoint whose data are still in the file.
pub(super) struct Found {
    /// The parameters have no data.
    pub checkpoint: Checkpoint,
    /// For each parameter, the byte of the file at which each tensor starts, and checksums.
    pub places: Vec<(Vec<u64>, Checksums)>,
}

/// Reads bytes from an offset of a file.
type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<(), CheckpointError>;

/// The JSON at the start of a safetensors file.
struct Header {
    metadata: HashMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the tensors of a file by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { metadata: HashMap::new(), tensors: Vec::new() };
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        header.metadata = map.next_value()?;
                    } else {
                        header.tensors.push((key, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// Reads everything but the data. Verifies the metadata; data of files without checksums of pieces are read and verified, too.
pub(super) fn find(bytes: u64, read_at: ReadAt<'_>) -> Result<Found, CheckpointError> {
    if bytes < LENGTH_BYTES {
        return Err(CheckpointError::Truncated { bytes });
    }
    let mut length = [0; LENGTH_BYTES as usize];
    read_at(0, &mut length)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > bytes - LENGTH_BYTES {
        return Err(CheckpointError::Truncated { bytes });
    }
    if header_bytes > MOST_HEADER_BYTES {
        return Err(SafeTensorError::HeaderTooLarge.into());
    }
    let mut header = vec![0; header_bytes as usize];
    read_at(LENGTH_BYTES, &mut header)?;
    let header = std::str::from_utf8(&header).map_err(SafeTensorError::InvalidHeader)?;
    let Header { metadata, mut tensors } =
        serde_json::from_str(header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let count = tensors.len();
    let infos = Metadata::new(None, tensors)?;
    let start = LENGTH_BYTES + header_bytes;
    if start.checked_add(infos.data_len() as u64) != Some(bytes) {
        return Err(SafeTensorError::MetadataIncompleteBuffer.into());
    }
    let entry = |key: &'static str| {
        metadata.get(key).ok_or_else(|| CheckpointError::Metadata {
            what: format!("the file has no metadata {key:?}: it is not a checkpoint of adamod"),
        })
    };
    let (text, expected) = (entry(METADATA_KEY)?, entry(CHECKSUM_KEY)?);
    let Described { mut checkpoint, digits } = format::read(text)?;
    let offsets: Vec<Vec<u64>> = checkpoint
        .parameters
        .iter()
        .map(|parameter| offsets_of(parameter, &infos, start))
        .collect::<Result<_, _>>()?;
    let expected_count: usize = offsets.iter().map(Vec::len).sum();
    if count != expected_count {
        return Err(CheckpointError::Metadata {
            what: format!("the file has {count} tensors, expected {expected_count}, those of its parameters"),
        });
    }
    let parameters = checkpoint.parameters.iter();
    let checksums: Vec<Checksums> = match &digits {
        Some((piece, digits)) => parameters
            .zip(digits)
            .map(|(parameter, digits)| format::checksums(digits, *piece, parameter))
            .collect::<Result<_, _>>()?,
        None => parameters
            .zip(&offsets)
            .map(|(parameter, offsets)| checksums_of(parameter, offsets, read_at))
            .collect::<Result<_, _>>()?,
    };
    let found = checksum(text, checkpoint.parameters.iter().zip(&checksums));
    if found != *expected {
        return Err(CheckpointError::Checksum { found, expected: expected.clone() });
    }
    let mut places: Vec<_> = offsets.into_iter().zip(checksums).collect();
    for (parameter, place) in checkpoint.parameters.iter_mut().zip(&mut places) {
        let states = checkpoint.groups[parameter.group as usize].hyperparameters.rule.states();
        if states != parameter.layout.states {
            leave_states(parameter, place);
        }
    }
    Ok(Found { checkpoint, places })
}

/// Before version 3 SGD without momentum had a state that no step read. Leaves it in the file.
fn leave_states(parameter: &mut SavedParameter, (offsets, checksums): &mut (Vec<u64>, Checksums)) {
    let count = Checksums::pieces(checksums.piece, parameter.len) as usize;
    let pieces = checksums.of_pieces.chunks(count.max(1));
    let kept: Vec<_> = parameter
        .tensors()
        .into_iter()
        .zip(offsets.iter().zip(pieces))
        .filter(|(tensor, _)| matches!(tensor, Tensor::Master | Tensor::Values))
        .map(|(_, (offset, pieces))| (*offset, pieces.to_vec()))
        .collect();
    let of_pieces = kept.iter().flat_map(|(_, pieces)| pieces.iter().copied()).collect();
    *offsets = kept.into_iter().map(|(offset, _)| offset).collect();
    checksums.of_pieces = of_pieces;
    parameter.layout = BlockLayout::new(&[], parameter.layout.state, parameter.layout.master_weights);
}

/// Where each tensor of a parameter starts in the file. Checks types and shapes.
fn offsets_of(parameter: &SavedParameter, infos: &Metadata, start: u64) -> Result<Vec<u64>, CheckpointError> {
    let offset_of = |tensor| {
        let name = parameter.name_of(tensor);
        let Some(info) = infos.info(&name) else { return Err(CheckpointError::MissingTensor { name }) };
        let (dtype, elements) = (parameter.dtype_of(tensor), parameter.elements_of(tensor, parameter.len));
        if info.dtype != dtype || info.shape != [elements as usize] {
            let text = |dtype, shape: &[usize]| format!("{dtype:?} {shape:?}");
            return Err(CheckpointError::Tensor {
                name,
                found: text(info.dtype, &info.shape),
                expected: text(dtype, &[elements as usize]),
            });
        }
        Ok(start + info.data_offsets.0 as u64)
    };
    parameter.tensors().into_iter().map(offset_of).collect()
}

/// Computes the checksums of a parameter's pieces.
fn checksums_of(
    parameter: &SavedParameter,
    offsets: &[u64],
    read_at: ReadAt<'_>,
) -> Result<Checksums, CheckpointError> {
    let piece = Checksums::PIECE;
    let mut of_pieces = Vec::new();
    let mut buffer = Vec::new();
    for (tensor, offset) in parameter.tensors().into_iter().zip(offsets) {
        for number in 0..Checksums::pieces(piece, parameter.len) {
            let (first, last) = (number * piece, (number * piece + piece).min(parameter.len));
            let start = parameter.bytes_before(tensor, first);
            buffer.resize((parameter.bytes_before(tensor, last) - start) as usize, 0);
            read_at(offset + start, &mut buffer)?;
            of_pieces.push(crc32fast::hash(&buffer));
        }
    }
    Ok(Checksums { piece, of_pieces })
}

/// The checksum of a file: of its metadata, and of the tensors of each parameter.
pub(super) fn checksum<'a>(
    text: &str,
    parameters: impl Iterator<Item = (&'a SavedParameter, &'a Checksums)>,
) -> String {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(text.as_bytes());
    for (parameter, Checksums { piece, of_pieces }) in parameters {
        let mut of_pieces = of_pieces.iter();
        for tensor in parameter.tensors() {
            let mut first = 0;
            while first < parameter.len {
                let last = (first + piece).min(parameter.len);
                let bytes = parameter.bytes_before(tensor, last) - parameter.bytes_before(tensor, first);
                let checksum = of_pieces.next().copied().unwrap_or_default();
                hasher.combine(&crc32fast::Hasher::new_with_initial_len(checksum, bytes));
                first = last;
            }
        }
    }
    format!("{:08x}", hasher.finalize())
}

impl Checkpoint {
    /// Reads the content of a file of this version or an older one. Checks its structure, names, sizes, and the checksums of metadata
    /// and data.
    ///
    /// # Errors
    /// If anything is wrong with the content. The error says what and where.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let slice = |offset: u64, len: usize| {
            let range = offset as usize..(offset as usize).saturating_add(len);
            bytes.get(range).ok_or(CheckpointError::Truncated { bytes: bytes.len() as u64 })
        };
        let Found { mut checkpoint, places } = find(bytes.len() as u64, &|offset, to| {
            to.copy_from_slice(slice(offset, to.len())?);
            Ok(())
        })?;
        for (parameter, (offsets, checksums)) in checkpoint.parameters.iter_mut().zip(&places) {
            let mut data = Vec::with_capacity(offsets.len());
            for (tensor, offset) in parameter.tensors().into_iter().zip(offsets) {
                data.push(slice(*offset, parameter.bytes_before(tensor, parameter.len) as usize)?.to_vec());
            }
            verify(parameter, &data, checksums)?;
            let data = Data::Memory(data.into());
            parameter.segments = vec![Segment { elements: parameter.len, data }];
        }
        Ok(checkpoint)
    }
}

/// Checks the data of all tensors of a parameter.
fn verify(
    parameter: &SavedParameter,
    data: &[Vec<u8>],
    checksums: &Checksums,
) -> Result<(), CheckpointError> {
    let mut expected = checksums.of_pieces.iter();
    for (tensor, data) in parameter.tensors().into_iter().zip(data) {
        let piece_bytes = parameter.bytes_before(tensor, checksums.piece);
        for piece in data.chunks(piece_bytes as usize) {
            let (found, expected) = (crc32fast::hash(piece), expected.next().copied().unwrap_or_default());
            if found != expected {
                return Err(CheckpointError::TensorChecksum {
                    name: parameter.name_of(tensor),
                    found: format!("{found:08x}"),
                    expected: format!("{expected:08x}"),
                });
            }
        }
    }
    Ok(())
}
