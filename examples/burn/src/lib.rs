#![doc = include_str!("../README.md")]

mod backend;
mod config;
mod error;
mod gpu;
pub mod operations;
mod optimizer;
mod parameters;
mod per_tensor;
mod records;
mod shared;

pub use adamod;

pub use config::{FusedConfig, FusedGroup};
pub use error::{Error, StepError};
pub use gpu::Gpu;
pub use optimizer::FusedOptimizer;
pub use per_tensor::{PerTensor, TensorState};
