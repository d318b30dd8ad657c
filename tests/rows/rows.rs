//! What the tests of this binary share.

use adamod::{AdaMod, DType, Rule};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::common::{bytes_of, gpu};

/// A buffer for numbers of a type, in whole words.
pub fn numbers(dtype: DType, len: usize) -> wgpu::Buffer {
    gpu().buffer((len as u64 * dtype.bytes()).next_multiple_of(4).max(4))
}

pub fn write(buffer: &wgpu::Buffer, dtype: DType, numbers: &[f32]) {
    let mut bytes = bytes_of(dtype, numbers);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    gpu().queue.write_buffer(buffer, 0, &bytes);
}

pub fn words(words: &[u32]) -> wgpu::Buffer {
    let buffer = gpu().buffer(4 * words.len() as u64);
    gpu().queue.write_buffer(&buffer, 0, bytemuck::cast_slice(words));
    buffer
}

pub fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// Numbers of a type.
pub fn rounded(dtype: DType, numbers: Vec<f32>) -> Vec<f32> {
    adamod::reference::rounded(dtype, &numbers)
}

/// A rule whose coefficients the device computes as the host does: exact powers.
pub fn adamod() -> Rule {
    AdaMod::new().with_betas([0.5, 0.75, 0.5]).into()
}
