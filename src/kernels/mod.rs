//! The contract with the WGSL in `shaders/`: shared structures, binding numbers, variants of the kernels, and their pipelines.

pub mod abi;
pub mod bindings;
pub mod lanes;
pub mod pipeline;
pub mod rows;
pub mod variant;
