//! Tests on a device: any adapter that wgpu finds, software ones included.

#[path = "../common/mod.rs"]
mod common;

mod control;
mod custom_rules;
mod diagnostics;
mod extremes;
mod joint;
mod kernels;
mod laws;
mod limits;
mod mixed_rules;
mod nan;
mod own_buffers;
mod precision;
mod recording;
mod registration;
mod removal;
mod schedule;
mod update;
mod views;
