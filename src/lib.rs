//! Fused optimizer kernels for GPU training on wgpu: AdaMod, Adam and SGD with momentum.
//!
//! TODO

pub use wgpu;

mod device;
mod diagnostics;
mod error;
mod hyperparameters;
mod kernels;
mod optimizer;
mod options;
mod plan;
pub mod reference;
mod rules;
pub mod schedule;
mod storage;

#[cfg(feature = "checkpoint")]
mod checkpoint;

#[cfg(feature = "checkpoint")]
pub use checkpoint::error::CheckpointError;
#[cfg(feature = "checkpoint")]
pub use checkpoint::{Checkpoint, CheckpointParameter};
pub use diagnostics::{BINS, Progress, RateHistograms};
pub use error::{Error, ErrorKind, Role, ViewError};
pub use hyperparameters::{Group, Hyperparameters, Objective, WeightDecay};
pub use kernels::variant::{Access, GradientBinding};
pub use optimizer::{
    GroupId, LaunchInfo, Optimizer, Parameter, ParameterId, Readback, State, Step, StepCounts, Update,
};
pub use options::{Control, DeviceControl, Diagnostics, LossScale, NonFinite, Options, Workgroups};
pub use plan::views::{View, Views};
pub use rules::range::OutOfRange;
pub use rules::{AdaMod, Adam, Formula, Rule, RuleKind, Sgd};
pub use storage::dtype::DType;
pub use storage::master::MasterWeights;
pub use storage::state::{Precision, Sign, StateFormat, StateTensor};

pub mod low_level {
    //! The kernels themselves: their WGSL, the structures of their tables, and the layout of state, for tools that analyse or benchmark
    //! them. Not needed to train. These items change without notice between minor versions.

    pub use crate::kernels::abi;
    pub use crate::kernels::bindings;
    pub use crate::kernels::variant::{Shadow, Variant, norm_source, prepare_source};
    pub use crate::storage::block::{
        BlockLayout, CHUNK_ELEMENTS, QUANT_BLOCK_ELEMENTS, StateAccess, state_words,
    };
    pub use crate::storage::state::{Format, MAX_STATES};
}
