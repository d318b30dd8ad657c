//! The errors of checkpoints.

use safetensors::SafeTensorError;

use crate::error::Error;
use crate::rules::range::OutOfRange;

/// A checkpoint could not be written, read or restored. The optimizer is as it was before the call, except after
/// [`CheckpointError::Interrupted`].
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
    /// A tensor has changed since it was written.
    #[error("tensor {name:?} of the checkpoint is damaged: its checksum is {found}, expected {expected}")]
    TensorChecksum {
        /// Its name.
        name: String,
        /// Checksum of a piece of it.
        found: String,
        /// Checksum of the piece in the metadata.
        expected: String,
    },
    /// A file is wrong.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        error: Box<CheckpointError>,
    },
    /// A hyperparameter is not in its range.
    #[error("the hyperparameters of group {group} of the checkpoint: {error}")]
    Hyperparameters {
        /// Index of the group, in the order in which the groups were added.
        group: usize,
        /// The hyperparameter.
        error: OutOfRange,
    },
    /// A group has a rule of one's own that this program has not made, or has made of another source.
    #[error(
        "the rule of group {group} of the checkpoint is {found}, expected one that Rule::custom has made: {}",
        if made.is_empty() { "none of this name".to_owned() } else { made.join(", ") }
    )]
    CustomRule {
        /// Index of the group, in the order in which the groups were added.
        group: usize,
        /// Name and fingerprint of the rule.
        found: String,
        /// Name and fingerprint of the rules of that name that have been made, the latest first.
        made: Vec<String>,
    },
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
    /// Values that are to be added to a checkpoint have another number of bytes than the parameter.
    #[error("the values of parameter {label:?} have {found} bytes, expected {expected}")]
    ValueBytes {
        /// The parameter.
        label: String,
        /// Bytes of the values.
        found: u64,
        /// Bytes of the parameter's elements in its data type.
        expected: u64,
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
    /// Two parameters of the checkpoint would have one label.
    #[error("parameters {first:?} and {second:?} of the checkpoint are both renamed to {label:?}")]
    SameLabel {
        /// The label of the first one before.
        first: String,
        /// The label of the second one before.
        second: String,
        /// The new label.
        label: String,
    },
    /// There is no checkpoint to merge.
    #[error("there are 0 checkpoints to merge, expected at least 1")]
    NothingToMerge,
    /// Checkpoints that are to be merged differ.
    #[error("{what} of checkpoint {checkpoint} is {found}, expected {expected} as in those before it")]
    Merge {
        /// What differs: the seed, the step count of a parameter.
        what: String,
        /// Which checkpoint differs, counted from 0.
        checkpoint: usize,
        /// In this checkpoint.
        found: String,
        /// In those before it.
        expected: String,
    },
    /// No merged checkpoint has these elements of a parameter, though there are shards on both sides.
    #[error("no checkpoint has elements {first}..{end} of parameter {label:?}")]
    Gap {
        /// The parameter.
        label: String,
        /// The first missing element.
        first: u64,
        /// The element after the last missing one.
        end: u64,
    },
    /// Two merged checkpoints have these elements of a parameter.
    #[error(
        "elements {first}..{end} of parameter {label:?} are in two checkpoints, expected one, or equal copies"
    )]
    Overlap {
        /// The parameter.
        label: String,
        /// The first element that both have.
        first: u64,
        /// The element after the last one that both have.
        end: u64,
    },
    /// The checkpoint has no values of a parameter.
    #[error("the checkpoint has no values of parameter {label:?}, expected one of checkpoint_with_values")]
    NoValues {
        /// The parameter.
        label: String,
    },
    /// Reading or writing failed after a part of a checkpoint in a file was restored. Some state is the checkpoint's and some is not;
    /// step counts and hyperparameters are as they were. Restore a checkpoint before the next step.
    #[error("the restore stopped after a part of the state was written: {0}")]
    Interrupted(Box<CheckpointError>),
    /// The optimizer could not write the state.
    #[error(transparent)]
    Optimizer(#[from] Error),
}

impl From<SafeTensorError> for CheckpointError {
    fn from(error: SafeTensorError) -> Self {
        Self::Format(error)
    }
}
