//! Helpers on top of wgpu that know nothing of optimizers.

pub mod error_scope;
pub mod gpu;
pub mod late_error;
pub mod readback;
pub mod ring;
pub mod staged_write;
