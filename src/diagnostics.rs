//! What the device counts, read back: histograms of the learning rates (the paper's Figures 1 and 3), and the progress of steps that
//! the device controls.

pub use crate::kernels::abi::BINS;
use crate::kernels::abi::{self, CLIPPED, NOT_FINITE_UPDATES, SQUARES};

/// How often each learning rate occurred, over elements and steps.
///
/// Bin `i` counts rates from `2^(i - 40)` up to `2^(i - 39)`. The first and the last bin include what lies beyond.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RateHistograms {
    /// Rates as Adam computes them: `eta`, line 8 of both algorithms.
    pub eta: [u64; BINS],
    /// Rates that were used: `min(eta, s)` for AdaMod, `eta` for Adam.
    pub bounded: [u64; BINS],
    /// How many rates the bound made smaller.
    pub clipped: u64,
    /// Root of the sum of the squares of everything that was added to parameters, weight decay included. If one step was counted, this is
    /// the norm of its update, with a relative error of 1e-6. Updates of an element below 1e-19 do not count. It is infinite if an update
    /// was not finite.
    pub update_norm: f64,
}

impl RateHistograms {
    /// The smallest rate of a bin, which is the largest of the bin below.
    pub fn lower_edge(bin: usize) -> f64 {
        f64::from(abi::LOWEST_EXPONENT + bin as i32).exp2()
    }

    pub(crate) fn from_counters(bytes: &[u8]) -> Self {
        let counters: &[[u32; 2]] = bytemuck::cast_slice(bytes);
        let count = |index: usize| u64::from(counters[index][1]) << 32 | u64::from(counters[index][0]);
        Self {
            eta: std::array::from_fn(count),
            bounded: std::array::from_fn(|bin| count(BINS + bin)),
            clipped: count(CLIPPED),
            update_norm: if count(NOT_FINITE_UPDATES) > 0 {
                f64::INFINITY
            } else {
                let unit = |bin: usize| f64::from(4 * bin as i32 - 146).exp2();
                (0..BINS).map(|bin| count(SQUARES + bin) as f64 * unit(bin)).sum::<f64>().sqrt()
            },
        }
    }
}

/// What the device has counted, as of the latest step that has finished.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Steps taken.
    pub taken: u32,
    /// Steps skipped.
    pub skipped: u32,
    /// Steps skipped since the last step that was taken.
    pub skipped_in_a_row: u32,
    /// The loss scale.
    pub loss_scale: f32,
    /// L2 norm of the latest step's gradients, without the loss scale and the engine's multiplier. The same gradients give the same bits
    /// wherever they lie and whatever the order of registration. Infinite if an element is not finite, and 0 where no norm is computed.
    pub norm: f32,
}

impl Progress {
    pub(crate) const BYTES: u64 = size_of::<abi::Control>() as u64;

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let control: abi::Control = bytemuck::pod_read_unaligned(bytes);
        let abi::Control { taken, skipped, skipped_in_a_row, loss_scale, norm, .. } = control;
        Self { taken, skipped, skipped_in_a_row, loss_scale, norm }
    }
}
