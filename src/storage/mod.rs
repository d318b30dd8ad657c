//! How numbers are stored: data types, state formats, master weights, random numbers for rounding, and the blocks that hold a
//! tensor's state. Knows nothing of wgpu.

pub mod block;
pub mod contents;
pub mod dtype;
pub mod master;
pub mod q8;
pub mod random;
pub mod rows;
pub mod state;
