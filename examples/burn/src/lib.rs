#![doc = include_str!("../README.md")]

#[cfg(feature = "fusion")]
#[path = "fused.rs"]
mod backend;
#[cfg(not(feature = "fusion"))]
#[path = "unfused.rs"]
mod backend;
mod error;
mod gpu;
pub mod operations;
mod optimizer;
mod parameters;
mod per_tensor;
mod shared;

pub use adamod;

pub use error::{Error, StepError};
pub use gpu::Gpu;
pub use optimizer::FusedOptimizer;
pub use per_tensor::{PerTensor, TensorState};
