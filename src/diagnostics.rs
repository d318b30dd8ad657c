//! Histograms of the learning rates: the paper's Figures 1 and 3.

/// What a step counts besides its update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Diagnostics {
    /// Nothing; the kernel has no code for it.
    #[default]
    Off,
    /// Histograms of the learning rates, and the norm of the updates, in the same pass. To be read with
    /// [`Optimizer::read_learning_rates`](crate::Optimizer::read_learning_rates).
    LearningRates,
}

/// Bins of a histogram.
pub const BINS: usize = 64;
/// The first bin starts at two to this power.
const LOWEST_EXPONENT: i32 = -40;
// Places of the counters in the buffer, as in `shaders/diagnostics/learning_rates.wgsl`.
const CLIPPED: usize = 2 * BINS;
const NOT_FINITE_UPDATES: usize = CLIPPED + 1;
const SQUARES: usize = CLIPPED + 2;
const COUNTERS: usize = SQUARES + BINS;
/// Bytes of the counters, each a low and a high word.
pub const HISTOGRAM_BYTES: u64 = 8 * COUNTERS as u64;

/// How often each learning rate occurred, over elements and steps.
///
/// Bin `i` counts rates from `2^(i - 40)` up to `2^(i - 39)`; the first and the last bin take what lies beyond.
#[derive(Clone, Debug, PartialEq)]
pub struct LearningRates {
    /// `eta`, the rates as Adam computes them (line 8 of both algorithms).
    pub eta: [u64; BINS],
    /// The rates that were used: `min(eta, s)` for AdaMod, `eta` for Adam.
    pub bounded: [u64; BINS],
    /// In how many of them the bound was the smaller.
    pub clipped: u64,
    /// Root of the sum of the squares of everything that was added to parameters, weight decay included: the norm of the update
    /// if one step was counted. To 1e-6; steps below 1e-19 an element do not count, and it is infinite if one was not finite.
    pub update_norm: f64,
}

impl LearningRates {
    /// Least rate of a bin; its greatest is the next one's least.
    pub fn lower_edge(bin: usize) -> f64 {
        f64::from(LOWEST_EXPONENT + bin as i32).exp2()
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
