//! The errors of [`Optimizer`](crate::Optimizer).

use std::fmt;
use std::time::Duration;

use crate::device::error_scope::DeviceError;
use crate::device::readback::SnapshotError;
use crate::options::DeviceControl;
use crate::rules::range::OutOfRange;
use crate::rules::{RuleForm, RuleKind};
use crate::storage::dtype::DType;
use crate::storage::master::MasterWeights;
use crate::storage::state::StateFormat;

/// An operation of an [`Optimizer`](crate::Optimizer) failed.
///
/// After any error the optimizer is as it was before the call. [`Error::kind`] says what is wrong, and [`Error::label`] names the
/// parameter that it is about, if it is about one.
///
/// ```
/// # use adamod::{ErrorKind, Optimizer, Options, Rule, Hyperparameters};
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// # let (device, queue) = doc::gpu();
/// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
/// let error = optimizer.add_group(Hyperparameters::new().with_learning_rate(-1.0)).unwrap_err();
/// assert!(matches!(error.kind(), ErrorKind::OutOfRange(of) if of.name == "learning_rate"));
/// # Ok::<(), adamod::Error>(())
/// ```
#[derive(Debug)]
pub struct Error {
    label: Option<String>,
    kind: ErrorKind,
}

impl Error {
    /// What is wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Label of the parameter that the error is about.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// The same error, about the parameter with this label.
    pub(crate) fn about(self, label: &str) -> Self {
        Self { label: Some(label.to_owned()), ..self }
    }

    /// Whether the device is lost. Then create a new device and a new optimizer, and restore the last checkpoint.
    pub fn is_lost(&self) -> bool {
        matches!(self.kind, ErrorKind::Lost)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(label) = &self.label {
            write!(f, "parameter {label:?}: ")?;
        }
        self.kind.fmt(f)
    }
}

impl std::error::Error for Error {}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { label: None, kind }
    }
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        ErrorKind::from(error).into()
    }
}

impl From<OutOfRange> for Error {
    fn from(error: OutOfRange) -> Self {
        ErrorKind::OutOfRange(error).into()
    }
}

/// Why an optimizer cannot take part in a [`JointStep`](crate::JointStep).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JointError {
    /// It belongs to another device than the first optimizer.
    #[error("belongs to another device than the first optimizer")]
    Device,
    /// It was created with [`Control::Host`](crate::Control::Host).
    #[error("was created with Control::Host, expected Control::Device")]
    Host,
    /// Its settings are not those of the first optimizer, which decides for all.
    #[error("has {found:?}, expected {expected:?}, which the first optimizer has")]
    Control {
        /// Its settings, with the largest norm as it is now.
        found: Box<DeviceControl>,
        /// The settings of the first optimizer.
        expected: Box<DeviceControl>,
    },
    /// Its step is another half than that of the first optimizer.
    #[error("takes another half of its step than the first optimizer")]
    Half,
}

/// What is wrong with an operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A limit of the device is below what the kernels need. WebGPU's default limits suffice.
    #[error("the device has {limit} = {found}, expected at least {expected}")]
    Limit {
        /// Name of the limit in [`wgpu::Limits`].
        limit: &'static str,
        /// The device's limit.
        found: u64,
        /// The least that the kernels need.
        expected: u64,
    },
    /// The queue does not belong to the device.
    #[error("the queue belongs to another device")]
    Queue,
    /// A hyperparameter or a setting of [`DeviceControl`](crate::DeviceControl) is not finite or not in its range.
    #[error(transparent)]
    OutOfRange(OutOfRange),
    /// New hyperparameters have another rule than the group, whose parameters have the states of its rule.
    #[error("the rule is {found}, expected {expected}, the rule of the group")]
    Rule {
        /// The given rule.
        found: RuleKind,
        /// The rule of the group.
        expected: RuleKind,
    },
    /// Options of the rule would change which states parameters of the group have.
    #[error("the options give the rule the states of {found}, expected those of the group, {expected}")]
    Form {
        /// The form of the given rule.
        found: RuleForm,
        /// The form of the group.
        expected: RuleForm,
    },
    /// The WGSL of two rules of one's own declares the same name. An optimizer links all of its rules into one kernel, so it can have
    /// one version of a rule.
    #[error(
        "the WGSL of {found} declares {name:?}, as that of {other} does, which is the rule of another group of the optimizer"
    )]
    CommonDeclaration {
        /// The name.
        name: &'static str,
        /// The given rule.
        found: RuleKind,
        /// The rule of another group.
        other: RuleKind,
    },
    /// The rule does not offer the format of state.
    #[error("the state format is {}, expected one that {form} has: {reason}", found.name())]
    StateFormat {
        /// The rule and its states.
        form: RuleForm,
        /// The format.
        found: StateFormat,
        /// Why the rule does not have it.
        reason: &'static str,
    },
    /// The group belongs to another optimizer or was removed.
    #[error("the group belongs to another optimizer or was removed")]
    UnknownGroup,
    /// The parameter belongs to another optimizer or was removed.
    #[error("the parameter belongs to another optimizer or was removed")]
    UnknownParameter,
    /// Another parameter has the label.
    #[error("another parameter has this label")]
    DuplicateLabel,
    /// The label is empty.
    #[error("the label is empty")]
    EmptyLabel,
    /// The parameter has no elements.
    #[error("it has 0 elements, expected at least 1")]
    Empty,
    /// The parameter has more elements than a buffer can hold.
    #[error("it has {len} elements of {dtype}, expected at most {most}, which is what a buffer can hold")]
    TooLong {
        /// Its number of elements.
        len: u64,
        /// Their data type.
        dtype: DType,
        /// The most elements: [`wgpu::Limits::max_buffer_size`] in elements, and at most 2^40 bytes.
        most: u64,
    },
    /// The shard is not a part of its tensor.
    #[error("it is elements {first} to {end} of a tensor of {whole}, expected a range within the tensor")]
    Shard {
        /// The first element.
        first: u64,
        /// The element after the last one.
        end: u64,
        /// Number of elements of the whole tensor.
        whole: u64,
    },
    /// The shard starts or ends within elements that share random numbers or scales.
    #[error(
        "its shard has a boundary at element {found}, expected a multiple of {expected} or the end of the tensor"
    )]
    ShardAlignment {
        /// The first element, or the element after the last one.
        found: u64,
        /// The unit of shards in the parameter's formats, in elements.
        expected: u64,
    },
    /// The group's master weights do not fit the parameter's data type.
    #[error(
        "it is {dtype} in a group with MasterWeights::{found:?}, expected Split24, Split32 or F32 for f16"
    )]
    MasterWeights {
        /// The parameter's data type.
        dtype: DType,
        /// The group's master weights.
        found: MasterWeights,
    },
    /// The device counts the steps of this many parameters at most.
    #[error("an optimizer with Control::Device has at most {most} parameters")]
    TooMany {
        /// The most parameters.
        most: usize,
    },
    /// A view cannot be used.
    #[error("the view of its {role}: {error}")]
    View {
        /// Which of its views.
        role: Role,
        /// What is wrong with it.
        error: ViewError,
    },
    /// The parameter stands twice in one step.
    #[error("it stands twice in one step")]
    Repeated,
    /// The parameter has no registered views.
    #[error("it has no registered views, expected Step::at with its views, or a call of set_views")]
    NoViews,
    /// Half a step was asked of an optimizer that computes no norm.
    #[error(
        "the optimizer computes no norm, expected Control::Device with NonFinite::Skip, a max_norm or a dynamic loss scale"
    )]
    NoNorm,
    /// A schedule has no factors, or too many for a storage buffer of the device.
    #[error("the schedule has {found} factors, expected 1 to {most}")]
    Schedule {
        /// Number of factors.
        found: u64,
        /// The most factors: [`wgpu::Limits::max_storage_buffer_binding_size`] in f32.
        most: u64,
    },
    /// An optimizer cannot take part in a joint step with the first one.
    #[error("optimizer {optimizer:?} of the joint step {error}")]
    Joint {
        /// [`Options::label`](crate::Options::label) of the optimizer.
        optimizer: String,
        /// What is wrong.
        error: JointError,
    },
    /// The buffer of the parameter's values lacks a usage.
    #[error("the buffer of its values has usages {found:?}, expected {expected:?}")]
    Usage {
        /// Usages of the buffer.
        found: wgpu::BufferUsages,
        /// The missing usage.
        expected: wgpu::BufferUsages,
    },
    /// Rows of a remap do not divide the parameter.
    #[error("it has {len} elements in rows of {row_len}, expected whole rows of at least 1 element")]
    RowLength {
        /// The parameter's number of elements.
        len: u64,
        /// The elements of a row.
        row_len: u64,
    },
    /// Rows of a shard cannot move: they may belong to other devices.
    #[error("it is a shard of a tensor, expected a whole tensor")]
    RemapOfShard,
    /// The device cannot move rows of so many elements at once.
    #[error("it has {len} elements before or after, expected at most {most}")]
    RemapLength {
        /// Number of elements.
        len: u64,
        /// The most: 2^32 - 1.
        most: u64,
    },
    /// The parameter's state lies in more buffers than a kernel can read.
    #[error(
        "its state lies in {found} other state buffers, expected at most {most}: 16, or what \
         max_storage_buffers_per_shader_stage leaves after five"
    )]
    RemapBuffers {
        /// The number of state buffers besides the one that is written.
        found: usize,
        /// The most: 16, or what [`wgpu::Limits::max_storage_buffers_per_shader_stage`] leaves after five.
        most: usize,
    },
    /// There are too many factors of columns.
    #[error("it has {found} factors of columns, expected at most {most}")]
    ColumnFactors {
        /// The number of factors.
        found: usize,
        /// The most.
        most: usize,
    },
    /// The given states are not those of the parameter's rule.
    #[error("its states are {found:?}, expected {expected:?}")]
    States {
        /// The given names.
        found: Vec<String>,
        /// [`Rule::state_names`](crate::Rule::state_names).
        expected: Vec<&'static str>,
    },
    /// Values or a state have the wrong number of elements.
    #[error("{what} has {found} elements, expected {expected}")]
    Length {
        /// `values`, or the name of the state.
        what: String,
        /// The given number of elements.
        found: u64,
        /// The parameter's number of elements.
        expected: u64,
    },
    /// The step count is larger than the optimizer can continue from.
    #[error("its step count is {found}, expected at most {most}")]
    Steps {
        /// The given step count.
        found: u64,
        /// The largest step count.
        most: u64,
    },
    /// Parameters were added or removed, or state was written, after the step counts were taken.
    #[error("parameters or their state have changed since the step counts were taken")]
    StaleCounts,
    /// The group has parameters.
    #[error("the group has {members} parameters, among them {label:?}; remove or move them first")]
    GroupInUse {
        /// The number of its parameters.
        members: usize,
        /// Label of one of them.
        label: String,
    },
    /// The optimizer was created without [`Diagnostics::RateHistograms`](crate::Diagnostics::RateHistograms).
    #[error("the optimizer was created without Diagnostics::RateHistograms")]
    NoDiagnostics,
    /// The optimizer was created with [`Control::Host`](crate::Control::Host).
    #[error("the optimizer was created with Control::Host, expected Control::Device")]
    NoControl,
    /// The device did not finish within [`Options::device_timeout`](crate::Options::device_timeout).
    #[error("the device has not finished after {limit:?}")]
    Timeout {
        /// The time that the call waited.
        limit: Duration,
    },
    /// A read-back could not be mapped: the device may be lost.
    #[error("the read-back could not be mapped: {0}")]
    Map(wgpu::BufferAsyncError),
    /// wgpu refused a buffer, pipeline, bind group or copy. Causes are a lack of memory, or a buffer of the caller's that is destroyed
    /// or belongs to another device.
    #[error("the device refused the operation: {0}")]
    Device(wgpu::Error),
    /// The device is lost. Create a new device and a new optimizer, and restore the last checkpoint.
    #[error("the device is lost")]
    Lost,
}

impl ErrorKind {
    /// The error about the parameter with this label.
    pub(crate) fn of(self, label: &str) -> Error {
        Error { label: Some(label.to_owned()), kind: self }
    }

    /// The error of a read-back with this time limit.
    #[cfg_attr(
        target_arch = "wasm32",
        expect(unused_variables, reason = "nothing has a time limit in a browser")
    )]
    pub(crate) fn of_snapshot(error: SnapshotError, limit: Duration) -> Self {
        match error {
            SnapshotError::Device(error) => error.into(),
            SnapshotError::Map(error) => Self::Map(error),
            #[cfg(not(target_arch = "wasm32"))]
            SnapshotError::Timeout => Self::Timeout { limit },
        }
    }
}

impl From<DeviceError> for ErrorKind {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Refused(error) => Self::Device(error),
            DeviceError::Lost => Self::Lost,
        }
    }
}

/// What is wrong with a view.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewError {
    /// The buffer lacks [`wgpu::BufferUsages::STORAGE`].
    #[error("its buffer has usages {found:?}, expected STORAGE")]
    Usage {
        /// Usages of the buffer.
        found: wgpu::BufferUsages,
    },
    /// The offset is not a multiple of 4 bytes.
    #[error("its byte offset is {found}, expected a multiple of 4")]
    Alignment {
        /// The offset in bytes.
        found: u64,
    },
    /// The view reaches past the end of its buffer.
    #[error("it ends at byte {end}, expected at most {size}, the size of its buffer")]
    OutOfBounds {
        /// The first byte after the view; `u64::MAX` if it is larger.
        end: u64,
        /// The size of the buffer in bytes.
        size: u64,
    },
    /// The data type of the values is not the parameter's.
    #[error("its elements are {found}, expected {expected} as at registration")]
    DType {
        /// The data type of the view.
        found: DType,
        /// The data type of the parameter.
        expected: DType,
    },
    /// Only f32 parameters have shadow copies, and only in 16 bits.
    #[error("it is {shadow} for a parameter in {values}, expected f16 or bf16 for a parameter in f32")]
    ShadowDType {
        /// The data type of the parameter.
        values: DType,
        /// The data type of the shadow copy.
        shadow: DType,
    },
    /// The shadow copy lies in the buffer of the parameter or of its gradient.
    #[error("it lies in the buffer of the parameter or of its gradient, expected another buffer")]
    ShadowBuffer,
    /// Rows of a mask have no elements, or too many.
    #[error("its rows have {row_len} elements, expected 1 to 2^31")]
    RowLength {
        /// Elements of a row.
        row_len: u64,
    },
    /// A shard starts within a row of its mask.
    #[error("its shard starts at element {first}, expected a multiple of {row_len}, the elements of a row")]
    RowOfShard {
        /// The first element of the shard.
        first: u64,
        /// Elements of a row.
        row_len: u64,
    },
    /// The mask lies in the buffer of the parameter, its gradient or its shadow copy.
    #[error(
        "it lies in the buffer of the parameter, its gradient or its shadow copy, expected another buffer"
    )]
    RowMaskBuffer,
    /// The view shares bytes with another one. A tensor of 16-bit elements owns the whole of its last word of 4 bytes.
    #[error("it overlaps the {other_role} of parameter {other_label:?} at byte {byte}")]
    Overlap {
        /// The role of the other view.
        other_role: Role,
        /// Label of the other parameter.
        other_label: String,
        /// The first shared byte.
        byte: u64,
    },
}

/// What a view holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The parameter itself.
    Values,
    /// Its gradient.
    Gradients,
    /// Its 16-bit shadow copy.
    Shadow,
    /// The mask of the rows that step.
    RowMask,
    /// The old row of each new one, in a [`Remap`](crate::Remap).
    SourceRows,
}

impl Role {
    pub(crate) const COUNT: usize = Self::RowMask as usize + 1;
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Values => "values",
            Role::Gradients => "gradients",
            Role::Shadow => "shadow copy",
            Role::RowMask => "row mask",
            Role::SourceRows => "source rows",
        })
    }
}
