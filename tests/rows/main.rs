//! State that follows its rows, rates by column and masked rows, against gathers written by hand and against the CPU twin.

#[path = "../common/mod.rs"]
mod common;

mod features;
mod remap;
mod rows;
