//! Fused optimizer kernels for GPU training on [wgpu](https://wgpu.rs): AdaMod, Adam, SGD with momentum, and
//! the rules beside them: [`Rule`] lists all.
//!
//! An [`Optimizer`] keeps the state of an engine's parameters on the GPU and records its steps into the engine's encoders. One dispatch
//! updates every tensor that shares buffers and an update rule. It reads parameters, gradients and state once and writes them once.
//!
//! # A first step
//!
//! ```
//! # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
//! use adamod::{AdaMod, Hyperparameters, Optimizer, Options, Parameter, Step, View, Views};
//!
//! # let (device, queue) = doc::gpu();
//! # let (weights, gradients) = (doc::buffer(&device, 4096), doc::buffer(&device, 4096));
//! # queue.write_buffer(&gradients, 0, &vec![63; 4096]);
//! // `device` and `queue` are wgpu's; `weights` and `gradients` are buffers of 1,024 f32 numbers.
//! let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
//! let group = optimizer.add_group(Hyperparameters::from(AdaMod::new()).with_learning_rate(1e-3))?;
//! let views = Views::new(View::new(&weights, 0), View::new(&gradients, 0));
//! let weight = optimizer.add_parameter(group, Parameter::new("layer.weight", 1024).with_views(views))?;
//!
//! let mut encoder = device.create_command_encoder(&Default::default());
//! // ... record the forward and backward passes ...
//! optimizer.encode(&mut encoder, &Step::all())?;
//! queue.submit([encoder.finish()]);
//!
//! let values = optimizer.read_parameter(weight).wait()?;
//! assert!(values.iter().all(|value| *value < 0.0));
//! # Ok::<(), adamod::Error>(())
//! ```
//!
//! # Where to look
//!
//! | task | item |
//! | --- | --- |
//! | rules and their hyperparameters | [`AdaMod`], [`Adam`], [`Sgd`], [`Hyperparameters`], [`Group`] |
//! | learning rates that change | [`schedule`], [`Optimizer::set_learning_rate`] |
//! | parameters without a gradient, tensors that move, sharded norms | [`Step`] |
//! | 16-bit parameters, low-bit state, master weights | [`Precision`], [`DType`], [`StateFormat`], [`MasterWeights`] |
//! | clip, loss scale and skipping on the device | [`DeviceControl`] |
//! | reading values, state and counters | [`Readback`] |
//! | saving and resuming | `Checkpoint`, `Optimizer::save`, `Restore`, with the feature `checkpoint` |
//! | rules of one's own | [`Rule::custom`], [`custom`], [`testing::check_rule`] |
//! | the same arithmetic on the CPU | [`mod@reference`] |
//!
//! # Numerics
//!
//! The host computes all coefficients in f64 and rounds them once. With [`Control::Device`] the device computes them in f32, with relative
//! errors of 1e-6. Finite gradients of AdaMod and Adam are clamped to plus or minus 2^63, so that their squares stay finite in f32.
//! Non-finite gradients propagate only to their own elements. Stochastic rounding takes its random numbers from the seed, the label, the
//! element and the step, so that a run can be repeated bit for bit.
//!
//! # Features
//!
//! - `checkpoint` (default): checkpoints as safetensors files.
//! - `cli`: the tool `adamod` with the commands `info`, `bench` and `replay`.
//!
//! # Browsers
//!
//! The crate runs on wgpu's WebGPU backend with the default limits. Read-backs and checkpoints are futures there, which fail if
//! wgpu refuses them or the device is lost; nothing blocks. All other errors of wgpu arrive there after a call has returned, and go to the
//! device's own error handler.

pub use wgpu;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod custom;
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
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

#[cfg(feature = "checkpoint")]
mod checkpoint;

#[cfg(feature = "checkpoint")]
pub use checkpoint::error::CheckpointError;
#[cfg(feature = "checkpoint")]
pub use checkpoint::{Checkpoint, CheckpointParameter};
pub use diagnostics::{BINS, Progress, RateHistograms};
pub use error::{Error, ErrorKind, JointError, Role, ViewError};
pub use hyperparameters::{Group, Hyperparameters, Objective, WeightDecay};
pub use kernels::pipeline::Kernels;
pub use kernels::variant::{Access, GradientBinding};
pub use optimizer::joint::JointStep;
pub use optimizer::{
    GroupId, LaunchInfo, Optimizer, Parameter, ParameterId, Readback, Remap, Shard, State, Step, StepCounts,
    Update,
};
#[cfg(feature = "checkpoint")]
pub use optimizer::{Mismatch, Restore, Restored};
pub use options::{
    Control, DeviceControl, Diagnostics, FreshRows, LossScale, NonFinite, NormDispatch, Options, Workgroups,
};
pub use plan::views::{RowMask, View, Views};
pub use rules::range::OutOfRange;
pub use rules::types::*;
pub use rules::{Formula, Rule, RuleForm, RuleKind};
pub use storage::dtype::DType;
pub use storage::master::MasterWeights;
pub use storage::state::{Precision, Sign, StateFormat, StateTensor};

pub mod low_level {
    //! The kernels themselves: their WGSL, the structures of their tables, and the layout of state, for tools that analyse or benchmark
    //! them. Not needed to train. These items change without notice between minor versions.

    pub use crate::kernels::abi;
    pub use crate::kernels::bindings;
    pub use crate::kernels::rows::{GroupTable, coefficient_row};
    pub use crate::kernels::variant::{
        Buffers, Quantized, RowFeatures, Shadow, Variant, joint_source, norm_source, partials_source,
        prepare_source, remap_source, schedule_source,
    };
    pub use crate::options::Tuning;
    pub use crate::storage::block::{
        BlockLayout, CHUNK_ELEMENTS, QUANT_BLOCK_ELEMENTS, StateAccess, state_words,
    };
    pub use crate::storage::state::{Format, MAX_STATES};
}
