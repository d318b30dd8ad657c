//! What can go wrong. Messages name the parameter, what was found and what is needed.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use adamod::{
    CheckpointError, CreateError, EncodeError, HyperparameterError, ReadError, RegisterError, WriteError,
};
use burn::tensor::wgpu::WgpuInitError;
use burn::tensor::{DType, Shape};
use thiserror::Error;

/// Anything that the adapter refuses or that fails under it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No group takes a parameter that has a gradient.
    #[error("no group takes parameter {label:?}; add one whose predicate is true for it")]
    NoGroup {
        /// Path of the parameter.
        label: String,
    },
    /// A tensor of a type without a kernel.
    #[error("the {role} of parameter {label:?} has type {found:?}, needed is one of F32, F16, BF16")]
    DType {
        /// Path of the parameter.
        label: String,
        /// Whether it is the parameter's value or its gradient.
        role: &'static str,
        /// Its type.
        found: DType,
    },
    /// A gradient that does not fit its parameter.
    #[error("the gradient of parameter {label:?} has shape {found:?}, the parameter {needed:?}")]
    Shape {
        /// Path of the parameter.
        label: String,
        /// The gradient's shape.
        found: Shape,
        /// The parameter's.
        needed: Shape,
    },
    /// A parameter on a device other than the optimizer's.
    #[error("parameter {label:?} is on {found}, the optimizer on {needed}")]
    Device {
        /// Path of the parameter.
        label: String,
        /// The parameter's device.
        found: String,
        /// The optimizer's.
        needed: String,
    },
    /// A parameter that is not what it was in an earlier step.
    #[error("parameter {label:?} has {found}, at its first step it had {needed}")]
    Changed {
        /// Path of the parameter.
        label: String,
        /// Its elements and type now.
        found: String,
        /// Those at its first step.
        needed: String,
    },
    /// [`adamod::AfterUse::Zero`]: Burn's gradients may be shared, and are dropped after a step anyway.
    #[error("the option `gradients` is Zero, needed is Keep: Burn's gradients may be shared")]
    ZeroedGradients,
    /// A type that only [`FusedOptimizer`](crate::FusedOptimizer) handles.
    #[error("a parameter of the per-tensor route has type {found:?}, needed is F32")]
    PerTensorDType {
        /// Its type.
        found: DType,
    },
    /// A hyperparameter, or a group of another optimizer.
    #[error(transparent)]
    Hyperparameter(#[from] HyperparameterError),
    /// The core optimizer cannot be made on this device.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The core refuses a parameter.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The core cannot record or submit a step.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// State or counters cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// State cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A checkpoint does not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Burn cannot open or register a device.
    #[error(transparent)]
    Init(#[from] WgpuInitError),
    /// Burn's runtime fails.
    #[error("Burn: {what}")]
    Burn {
        /// What it says.
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

    /// What went wrong.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The module, none of its values changed, and what went wrong.
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
