#![doc = include_str!("../README.md")]

pub use wgpu;

mod arena;
mod blocks;
#[cfg(feature = "checkpoint")]
mod checkpoint;
mod cohorts;
mod control;
mod diagnostics;
mod error;
#[doc(hidden)]
pub mod format;
mod hyperparameters;
#[doc(hidden)]
pub mod layout;
mod optimizer;
mod pipeline;
mod plan;
mod quantized;
mod readback;
pub mod reference;
mod ring;
mod rounding;
pub mod schedule;
mod scope;
#[doc(hidden)]
pub mod shader;
mod tables;
mod upload;
mod views;

#[cfg(feature = "checkpoint")]
pub use checkpoint::{Checkpoint, CheckpointParameter};
pub use control::{Control, DeviceControl, LossScale, NonFinite, Progress};
pub use diagnostics::{BINS, Diagnostics, LearningRates};
#[cfg(feature = "checkpoint")]
pub use error::CheckpointError;
pub use error::{
    CreateError, EncodeError, HyperparameterError, ReadError, RegisterError, RemoveError, Role, ViewError,
    WriteError,
};
pub use format::{DType, MasterWeights, Precision, StateFormat};
pub use hyperparameters::{Formula, Hyperparameters, Objective, Rule, WeightDecay};
pub use layout::Workgroups;
pub use optimizer::{
    GroupId, LaunchInfo, Optimizer, Options, Parameter, ParameterId, State, StepCounts, Update,
};
pub use plan::AfterUse;
pub use shader::{Access, GradientBinding};
pub use views::{View, Views};
