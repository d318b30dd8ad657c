//! The errors of checkpoints.

use safetensors::SafeTensorError;

use crate::error::Error;
use crate::rules::range::OutOfRange;

/// A checkpoint could not be written, read or restored. The optimizer is as it was before the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file system refused an operation.
    #[error("{}: could not {action} it: {error}", path.display())]
    Io {
        /// The file or folder.
        path: std::path::PathBuf,
        /// What was being done.
        action: &'static str,
        /// Why not.
        error: std::io::Error,
    },
    /// The file ends before its header does.
    #[error("the file has {bytes} bytes and ends within its header")]
    Truncated {
        /// Size of the file in bytes.
        bytes: u64,
    },
    /// The names and offsets of the tensors take more than a safetensors header may have.
    #[error("names and offsets of {parameters} parameters take more than the 100 MB of a safetensors header")]
    HeaderTooLarge {
        /// Number of parameters.
        parameters: usize,
    },
    /// It is not a safetensors file, or a damaged one.
    #[error("the file is not a whole safetensors file: {0}")]
    Format(SafeTensorError),
    /// The metadata are missing or wrong.
    #[error("the metadata of the checkpoint: {what}")]
    Metadata {
        /// What is wrong.
        what: String,
    },
    /// The file is of another version of the format.
    #[error("the checkpoint has version {found}, expected at most {expected}")]
    Version {
        /// Version of the file.
        found: u32,
        /// The newest version that this crate reads.
        expected: u32,
    },
    /// A tensor is missing.
    #[error("the checkpoint has no tensor {name:?}")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor has another type or shape.
    #[error("tensor {name:?} of the checkpoint is {found}, expected {expected}")]
    Tensor {
        /// Its name.
        name: String,
        /// Type and shape in the file.
        found: String,
        /// Type and shape that the metadata demand.
        expected: String,
    },
    /// The file has changed since it was written.
    #[error("the checkpoint is damaged: the checksum of its content is {found}, expected {expected}")]
    Checksum {
        /// Checksum of the content.
        found: String,
        /// Checksum in the file.
        expected: String,
    },
    /// A hyperparameter is not in its range.
    #[error("the hyperparameters of the checkpoint: {0}")]
    Hyperparameters(OutOfRange),
    /// The checkpoint and the optimizer differ.
    #[error("{what} of the checkpoint is {found}, expected {expected} as in the optimizer")]
    Mismatch {
        /// What differs: the rule of a group, the length of a parameter.
        what: String,
        /// In the checkpoint.
        found: String,
        /// In the optimizer.
        expected: String,
    },
    /// The optimizer has a parameter that the checkpoint lacks.
    #[error("the checkpoint has no parameter {label:?}")]
    MissingParameter {
        /// The parameter.
        label: String,
    },
    /// The checkpoint has a parameter that the optimizer lacks.
    #[error("the checkpoint has a parameter {label:?}, but the optimizer has none with this label")]
    ExtraParameter {
        /// The parameter.
        label: String,
    },
    /// The optimizer could not write the state.
    #[error(transparent)]
    Optimizer(#[from] Error),
}

impl From<SafeTensorError> for CheckpointError {
    fn from(error: SafeTensorError) -> Self {
        Self::Format(error)
    }
}

impl From<OutOfRange> for CheckpointError {
    fn from(error: OutOfRange) -> Self {
        Self::Hyperparameters(error)
    }
}
