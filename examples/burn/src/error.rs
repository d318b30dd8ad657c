//! The errors of the adapter. Messages name the parameter, what was found and what was expected.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use adamod::CheckpointError;
use burn::tensor::wgpu::WgpuInitError;
use burn::tensor::{DType, DeviceKind, Shape};
use thiserror::Error;

/// An operation of the adapter failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No group takes a parameter that has a gradient.
    #[error("no group takes parameter {label:?}; add one whose predicate is true for it")]
    NoGroup {
        /// Path of the parameter.
        label: String,
    },
    /// A module whose values are to be saved lacks a parameter that has stepped.
    #[error("the module has no parameter {label:?}, expected those that have stepped")]
    NotInModule {
        /// Path of the parameter.
        label: String,
    },
    /// A tensor of a type without a kernel.
    #[error("the {role} of parameter {label:?} has type {found:?}, expected F32, F16 or BF16")]
    DType {
        /// Path of the parameter.
        label: String,
        /// `value` or `gradient`.
        role: &'static str,
        /// Its type.
        found: DType,
    },
    /// The shape of a gradient is not its parameter's.
    #[error("the gradient of parameter {label:?} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Path of the parameter.
        label: String,
        /// The gradient's shape.
        found: Shape,
        /// The parameter's shape.
        expected: Shape,
    },
    /// A parameter on a device other than the optimizer's.
    #[error("parameter {label:?} is on {found}, expected {expected}, the device of the optimizer")]
    Device {
        /// Path of the parameter.
        label: String,
        /// The parameter's device.
        found: String,
        /// The optimizer's device.
        expected: String,
    },
    /// The length or type of a parameter has changed since its last step.
    #[error(
        "parameter {label:?} has {found}, expected {expected} as before; remap lets its state follow rows, forget starts it anew"
    )]
    Changed {
        /// Path of the parameter.
        label: String,
        /// Its elements and type now.
        found: String,
        /// Its elements and type before.
        expected: String,
    },
    /// Source rows that a parameter cannot follow.
    #[error("the source rows of parameter {label:?} are {found}, expected at least one of type I32 or U32")]
    SourceRows {
        /// Path of the parameter.
        label: String,
        /// Their number and type.
        found: String,
    },
    /// [`adamod::Options::zero_gradients`] is set. Burn's gradients may be shared, and are dropped after a step anyway.
    #[error("the option zero_gradients is true, expected false, because Burn's gradients may be shared")]
    ZeroedGradients,
    /// A type that only [`FusedOptimizer`](crate::FusedOptimizer) handles.
    #[error("a tensor of PerTensor or its gradient has type {found:?}, expected F32")]
    PerTensorDType {
        /// Its type.
        found: DType,
    },
    /// A gradient multiplier that is not finite.
    #[error("the gradient multiplier is {found}, expected a finite number")]
    Multiplier {
        /// The multiplier.
        found: f32,
    },
    /// A field of a configuration of Burn's for which the core has no kernel.
    #[error("{config}: {field} is {found}, expected {expected}: adamod has no kernel for it")]
    Config {
        /// Type of the configuration.
        config: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The value that the core has a kernel for.
        expected: String,
    },
    /// A configuration of Burn's with other fields than those of Burn 0.22.
    #[error("{config}: {what}")]
    UnknownConfig {
        /// Type of the configuration.
        config: &'static str,
        /// What is not as in Burn 0.22.
        what: String,
    },
    /// Burn's clipping, which knows no loss scale.
    #[error(
        "gradient clipping needs a loss scale of 1, expected LossScale::Constant(1.0), got {found}; clip to max_norm instead"
    )]
    ClippingWithLossScale {
        /// The loss scale.
        found: String,
    },
    /// A record of an optimizer's state that cannot be continued.
    #[error("the record of parameter {label:?}: {what}")]
    Record {
        /// Path of the parameter, or Burn's id of it.
        label: String,
        /// Why.
        what: String,
    },
    /// Burn has opened the device itself.
    #[error(
        "Burn has opened {kind:?} before ({message}), and it does not give out that device: call Gpu::open before the first tensor and \
         create tensors on Gpu::device(), or give a device of your own to Gpu::from_setup"
    )]
    InUse {
        /// The device.
        kind: DeviceKind,
        /// Burn's message.
        message: String,
    },
    /// An operation of the core failed.
    #[error(transparent)]
    Core(#[from] adamod::Error),
    /// The core could not restore a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Burn could not open or register a device.
    #[error(transparent)]
    Init(#[from] WgpuInitError),
    /// Burn's runtime failed.
    #[error("Burn: {what}")]
    Burn {
        /// Its message.
        what: String,
    },
}

impl Error {
    pub(crate) fn burn(error: impl fmt::Debug) -> Self {
        Self::Burn { what: format!("{error:?}") }
    }
}

/// A step that failed, with the module as it was before.
pub struct StepError<M>(Box<(Error, Mutex<M>)>);

impl<M> StepError<M> {
    pub(crate) fn new(error: Error, module: M) -> Self {
        // The mutex makes the error Sync, as error types like anyhow's need, for modules that are only Send.
        Self(Box::new((error, Mutex::new(module))))
    }

    /// The error.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The module, with the values from before the step, and the error.
    pub fn into_parts(self) -> (M, Error) {
        let (error, module) = *self.0;
        (module.into_inner().unwrap_or_else(PoisonError::into_inner), error)
    }
}

impl<M> From<StepError<M>> for Error {
    fn from(error: StepError<M>) -> Self {
        error.into_parts().1
    }
}

impl<M> fmt::Debug for StepError<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("StepError").field(self.error()).finish()
    }
}

impl<M> fmt::Display for StepError<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(formatter)
    }
}

impl<M> std::error::Error for StepError<M> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error().source()
    }
}
