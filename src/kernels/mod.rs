//! The contract with the WGSL in `shaders/`: shared structures, binding numbers, variants of the kernels, and their pipelines.

pub mod abi;
pub mod bindings;
pub mod lanes;
pub mod pipeline;
#[cfg(not(target_arch = "wasm32"))]
pub mod reach;
pub mod rows;
pub mod variant;
