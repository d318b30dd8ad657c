//! What each operation can refuse. Every message names the parameter or field, what was found and what is needed; after an
//! error the optimizer is as it was before the call.

use thiserror::Error;

use crate::format::{DType, MasterWeights};
use crate::scope::Refusal;

/// [`Optimizer::new`](crate::Optimizer::new) failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The device's limits are below what the kernels need.
    #[error("the device allows {limit} = {found}, the kernels need {needed}")]
    Limit {
        /// Name of the limit in [`wgpu::Limits`].
        limit: &'static str,
        /// What the device was created with.
        found: u64,
        /// The least that is needed.
        needed: u64,
    },
    /// Histograms of learning rates were asked of a rule that has none.
    #[error("Diagnostics::LearningRates needs Rule::AdaMod or Rule::Adam: SGD has one rate for all elements")]
    NoLearningRates,
    /// A setting of [`DeviceControl`](crate::DeviceControl) is not finite or out of its range.
    #[error("{name} is {found}, needed is {needed}")]
    Control {
        /// The field.
        name: &'static str,
        /// The value.
        found: f64,
        /// Its range.
        needed: &'static str,
    },
    /// wgpu refused a pipeline or a buffer.
    #[error("the device refused a resource")]
    Device(#[source] wgpu::Error),
    /// The device is lost: make a new one.
    #[error("the device is lost")]
    Lost,
}

/// A hyperparameter, or the group it was meant for, was refused.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum HyperparameterError {
    /// A value is not finite or out of its range.
    #[error("{name} is {found}, needed is {needed}")]
    OutOfRange {
        /// The field of [`Hyperparameters`](crate::Hyperparameters).
        name: &'static str,
        /// The value.
        found: f64,
        /// Its range.
        needed: &'static str,
    },
    /// The group is not of this optimizer, or was removed.
    #[error("the group is of another optimizer, or was removed")]
    UnknownGroup,
}

/// What is wrong with a view of a parameter's values or gradients.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewError {
    /// The buffer lacks [`wgpu::BufferUsages::STORAGE`].
    #[error("its buffer has usages {found:?}, needed is STORAGE")]
    Usage {
        /// Usages of the buffer.
        found: wgpu::BufferUsages,
    },
    /// The offset is no multiple of 4 bytes, which every view starts at, whatever its type.
    #[error("its byte offset is {found}, needed is a multiple of 4")]
    Alignment {
        /// Byte offset of the view.
        found: u64,
    },
    /// The view reaches past its buffer.
    #[error("it ends at byte {end}, its buffer has {size} bytes")]
    OutOfBounds {
        /// First byte after the view; `u64::MAX` if it is past that.
        end: u64,
        /// Bytes of the buffer.
        size: u64,
    },
    /// The elements are not of the type that the parameter was registered with.
    #[error("its elements are {found}, the parameter was registered with {needed}")]
    DType {
        /// Type of the view's elements.
        found: DType,
        /// Type of the parameter.
        needed: DType,
    },
    /// A copy is for f32 parameters, and has 16 bits.
    #[error("a copy of {values} in {copy} was asked for, needed is one of f32 in f16 or bf16")]
    CopyDType {
        /// Type of the parameter.
        values: DType,
        /// Type of the copy.
        copy: DType,
    },
    /// A copy lies in a buffer that is bound already.
    #[error("it lies in the buffer of the parameter or of its gradient, needed is another one")]
    CopyBuffer,
    /// The view shares bytes with another one. A tensor of 16-bit elements owns its last word of 4 bytes whole.
    #[error("it overlaps the {other_role} of parameter {other_label:?} at byte {byte}")]
    Overlap {
        /// What the other view is.
        other_role: Role,
        /// The other parameter.
        other_label: String,
        /// First byte that both have.
        byte: u64,
    },
}

/// What a view holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The parameter itself.
    Values,
    /// Its gradient.
    Gradients,
    /// Its copy in 16 bits.
    Copy,
}

impl Role {
    pub(crate) const COUNT: usize = Self::Copy as usize + 1;
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Values => "values",
            Role::Gradients => "gradients",
            Role::Copy => "copy",
        })
    }
}

/// A parameter was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The group is not of this optimizer, or was removed.
    #[error("parameter {label:?}: the group is of another optimizer, or was removed")]
    UnknownGroup {
        /// The parameter.
        label: String,
    },
    /// The parameter is not of this optimizer, or was removed.
    #[error("the parameter is of another optimizer, or was removed")]
    UnknownParameter,
    /// The label is taken.
    #[error("parameter {label:?}: there is a parameter of that label already")]
    DuplicateLabel {
        /// The parameter.
        label: String,
    },
    /// The parameter has no elements.
    #[error("parameter {label:?}: its length is 0, needed is at least 1")]
    Empty {
        /// The parameter.
        label: String,
    },
    /// The parameter has more elements than a buffer can hold.
    #[error("parameter {label:?}: {len} elements of {dtype} are more than the {most} that a buffer can hold")]
    TooLong {
        /// The parameter.
        label: String,
        /// Its elements.
        len: u64,
        /// Their type.
        dtype: DType,
        /// How many there can be: [`wgpu::Limits::max_buffer_size`] in elements, and no more than 2^40 bytes.
        most: u64,
    },
    /// The group's master weights are not for parameters of this type.
    #[error(
        "parameter {label:?} is {dtype} in a group with MasterWeights::{found:?}: f16 needs F32; bf16 takes any"
    )]
    MasterWeights {
        /// The parameter.
        label: String,
        /// Its type.
        dtype: DType,
        /// Those of the group.
        found: MasterWeights,
    },
    /// The device counts the steps of so many parameters only.
    #[error("parameter {label:?}: with Control::Device an optimizer has at most {most} parameters")]
    TooMany {
        /// The parameter.
        label: String,
        /// How many there can be.
        most: usize,
    },
    /// A view cannot be used.
    #[error("parameter {label:?}: the view of its {role} cannot be used: {source}")]
    View {
        /// The parameter.
        label: String,
        /// Which of its views.
        role: Role,
        /// What is wrong with it.
        source: ViewError,
    },
}

/// A step was not recorded; no step count has advanced.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The parameter is not of this optimizer, or was removed.
    #[error("a parameter was passed that is of another optimizer, or was removed")]
    UnknownParameter,
    /// A parameter was passed twice for one step.
    #[error("parameter {label:?} was passed twice for one step")]
    Repeated {
        /// The parameter.
        label: String,
    },
    /// The parameter has no views of its own.
    #[error(
        "parameter {label:?} was registered without views: step it through encode_views, or give it views"
    )]
    NoViews {
        /// The parameter.
        label: String,
    },
    /// A view cannot be used.
    #[error("parameter {label:?}: the view of its {role} cannot be used: {source}")]
    View {
        /// The parameter.
        label: String,
        /// Which of its views.
        role: Role,
        /// What is wrong with it.
        source: ViewError,
    },
    /// A step in two parts was asked of an optimizer that has no norm.
    #[error(
        "encode_norm and encode_after_norm need Control::Device with a norm: skip non-finite gradients, or set max_norm"
    )]
    NoNorm,
    /// wgpu refused a buffer, pipeline or bind group: out of memory, or a caller's buffer that is destroyed or of another
    /// device.
    #[error("the device refused a resource")]
    Device(#[source] wgpu::Error),
    /// The device is lost: make a new one, and an optimizer on it from the last checkpoint.
    #[error("the device is lost")]
    Lost,
}

/// Values or state could not be loaded; nothing was written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The parameter is not of this optimizer, or was removed.
    #[error("the parameter is of another optimizer, or was removed")]
    UnknownParameter,
    /// The parameter has no views of its own.
    #[error(
        "parameter {label:?} was registered without views: say where its values are, to the method that ends in _at"
    )]
    NoViews {
        /// The parameter.
        label: String,
    },
    /// The view of the values cannot be used.
    #[error("parameter {label:?}: the view of its values cannot be used: {source}")]
    View {
        /// The parameter.
        label: String,
        /// What is wrong with it.
        source: ViewError,
    },
    /// The buffer lacks [`wgpu::BufferUsages::COPY_DST`].
    #[error("parameter {label:?}: its buffer has usages {found:?}, writing needs COPY_DST")]
    Usage {
        /// The parameter.
        label: String,
        /// Usages of the buffer.
        found: wgpu::BufferUsages,
    },
    /// The states given are not exactly those of the rule.
    #[error("parameter {label:?}: the states given are {found:?}, needed are {needed:?}")]
    States {
        /// The parameter.
        label: String,
        /// Names given.
        found: Vec<&'static str>,
        /// [`Rule::state_names`](crate::Rule::state_names).
        needed: &'static [&'static str],
    },
    /// Another number of elements was given.
    #[error("parameter {label:?}: {what} has {found} elements, needed are {needed}")]
    Length {
        /// The parameter.
        label: String,
        /// The values, or the name of the state.
        what: &'static str,
        /// Elements given.
        found: u64,
        /// Elements of the parameter.
        needed: u64,
    },
    /// The step count is larger than the optimizer can go on from.
    #[error("parameter {label:?}: its step count is {found}, needed is at most {most}")]
    Steps {
        /// The parameter.
        label: String,
        /// The count given.
        found: u64,
        /// The largest one.
        most: u64,
    },
    /// Parameters were added or removed, or state was written, after the counts were taken.
    #[error("parameters or their state have changed since the step counts were taken")]
    StaleCounts,
    /// wgpu refused a buffer or a write.
    #[error("the device refused a resource")]
    Device(#[source] wgpu::Error),
    /// The device is lost: make a new one, and an optimizer on it from the last checkpoint.
    #[error("the device is lost")]
    Lost,
}

/// A parameter or a group could not be removed; it is still there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// The parameter is not of this optimizer, or was removed.
    #[error("the parameter is of another optimizer, or was removed")]
    UnknownParameter,
    /// The group is not of this optimizer, or was removed.
    #[error("the group is of another optimizer, or was removed")]
    UnknownGroup,
    /// The group has parameters.
    #[error("the group has {members} parameters, {label:?} among them: remove them first")]
    GroupInUse {
        /// How many.
        members: usize,
        /// One of them.
        label: String,
    },
    /// wgpu refused to clear the parameter's state.
    #[error("the device refused a resource")]
    Device(#[source] wgpu::Error),
    /// The device is lost: make a new one, and an optimizer on it from the last checkpoint.
    #[error("the device is lost")]
    Lost,
}

/// A checkpoint could not be written, read, or given to an optimizer; the optimizer is as it was.
#[cfg(feature = "checkpoint")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{}: could not {action} it", path.display())]
    Io {
        /// The file or folder.
        path: std::path::PathBuf,
        /// What was being done.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The file ends before its header does.
    #[error("the file has {bytes} bytes and ends within its header")]
    Truncated {
        /// Size of the file.
        bytes: u64,
    },
    /// Names and places of the tensors are longer than a safetensors header may be.
    #[error("names and places of {parameters} parameters take more than the 100 MB of a safetensors header")]
    HeaderTooLarge {
        /// How many there are.
        parameters: usize,
    },
    /// It is no safetensors file, or a damaged one.
    #[error("the file is no whole safetensors file")]
    Format(#[from] safetensors::SafeTensorError),
    /// The metadata are missing or say what cannot be.
    #[error("the checkpoint's metadata: {what}")]
    Metadata {
        /// What is wrong.
        what: String,
    },
    /// The file is of another version of the format.
    #[error("the checkpoint has version {found}, needed is {needed}")]
    Version {
        /// Of the file.
        found: u32,
        /// Of this crate.
        needed: u32,
    },
    /// A tensor is missing.
    #[error("the checkpoint has no tensor {name:?}")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor has another type or shape.
    #[error("tensor {name:?} of the checkpoint is {found}, needed is {needed}")]
    Tensor {
        /// Its name.
        name: String,
        /// Type and shape in the file.
        found: String,
        /// What they have to be.
        needed: String,
    },
    /// The file was changed since it was written.
    #[error("the checkpoint is damaged: its checksum is {found}, written was {needed}")]
    Checksum {
        /// Of the content.
        found: String,
        /// In the file.
        needed: String,
    },
    /// A hyperparameter cannot be.
    #[error("the checkpoint's hyperparameters cannot be used")]
    Hyperparameters(#[from] HyperparameterError),
    /// The checkpoint is of another optimizer.
    #[error("{what} of the checkpoint is {found}, the optimizer has {needed}")]
    Mismatch {
        /// What differs: the rule, the formula, a parameter's length.
        what: String,
        /// In the checkpoint.
        found: String,
        /// In the optimizer.
        needed: String,
    },
    /// The optimizer has a parameter that the checkpoint lacks.
    #[error("the checkpoint has no parameter {label:?}")]
    MissingParameter {
        /// The parameter.
        label: String,
    },
    /// The checkpoint has a parameter that the optimizer lacks.
    #[error("the checkpoint has a parameter {label:?}, the optimizer has none of that label")]
    ExtraParameter {
        /// The parameter.
        label: String,
    },
    /// wgpu refused a buffer or a write.
    #[error("the device refused a resource")]
    Device(#[source] wgpu::Error),
    /// The device is lost: make a new one, and an optimizer on it from the last checkpoint.
    #[error("the device is lost")]
    Lost,
}

/// A read-back failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The parameter is not of this optimizer, or was removed.
    #[error("the parameter is of another optimizer, or was removed")]
    UnknownParameter,
    /// The parameter has no views of its own.
    #[error(
        "parameter {label:?} was registered without views: say where its values are, to the method that ends in _at"
    )]
    NoViews {
        /// The parameter.
        label: String,
    },
    /// The view of the values cannot be used.
    #[error("parameter {label:?}: the view of its values cannot be used: {source}")]
    View {
        /// The parameter.
        label: String,
        /// What is wrong with it.
        source: ViewError,
    },
    /// The buffer lacks [`wgpu::BufferUsages::COPY_SRC`].
    #[error("parameter {label:?}: its buffer has usages {found:?}, reading needs COPY_SRC")]
    Usage {
        /// The parameter.
        label: String,
        /// Usages of the buffer.
        found: wgpu::BufferUsages,
    },
    /// The optimizer was made without [`Diagnostics::LearningRates`](crate::Diagnostics::LearningRates).
    #[error("the optimizer was made without Diagnostics::LearningRates")]
    NoDiagnostics,
    /// The optimizer was made with [`Control::Host`](crate::Control::Host).
    #[error("the optimizer was made with Control::Host: the device keeps no progress")]
    NoControl,
    /// wgpu refused the copy.
    #[error("the device refused the copy")]
    Device(#[source] wgpu::Error),
    /// The copy could not be mapped: the device is lost, or the buffer was destroyed.
    #[error("the copy could not be mapped, the device may be lost")]
    Map(#[from] wgpu::BufferAsyncError),
    /// The device did not finish within [`Options::device_timeout`](crate::Options::device_timeout).
    #[error("the device has not finished after {limit:?}")]
    Timeout {
        /// How long was waited.
        limit: std::time::Duration,
    },
    /// The device is lost: make a new one, and an optimizer on it from the last checkpoint.
    #[error("the device is lost")]
    Lost,
}

macro_rules! from_refusal {
    ($($error:ty),*) => {$(
        impl From<Refusal> for $error {
            fn from(refusal: Refusal) -> Self {
                match refusal {
                    Refusal::Device(error) => Self::Device(error),
                    Refusal::Lost => Self::Lost,
                }
            }
        }
    )*};
}

from_refusal!(CreateError, EncodeError, WriteError, RemoveError, ReadError);
#[cfg(feature = "checkpoint")]
from_refusal!(CheckpointError);
