//! Structures shared with WGSL, byte for byte. `tests/shaders.rs` compares sizes and offsets with naga's reflection of
//! `shaders/lib/abi.wgsl` and `shaders/lib/control.wgsl`.

use bytemuck::{Pod, Zeroable};

use crate::rules::update_rule::{MAX_COEFFICIENTS, MAX_DECAY_RATES};
pub use crate::storage::block::CHUNK_ELEMENTS;

/// Elements of a quad.
pub const QUAD_ELEMENTS: u32 = 4;

/// The most threads of a workgroup on a GPU: each has one quad of a whole chunk, or two with 8-bit state.
pub const GPU_LANES: u32 = CHUNK_ELEMENTS / QUAD_ELEMENTS;

/// Threads of a workgroup on a CPU: as many as a vector register holds. Software adapters run a workgroup's threads one vector at a
/// time and set each of them up anew, which costs more than a loop (on llvmpipe the step is 1.8 times as fast).
pub const CPU_LANES: u32 = 8;

/// Coefficients of one step, for parameters that share a group and a step count; WGSL `Coefficients`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Coefficients {
    /// Factor of the gradient: 1 or -1 (maximize), times what a clip and a loss scale make of it.
    pub gradient_scale: f32,
    /// A second factor of the gradient: 1, unless the product of both would leave f32's normal range.
    pub gradient_prescale: f32,
    /// L2 regularisation: added to the gradient, times the parameter.
    pub coupled_decay: f32,
    /// alpha * lambda: subtracted from the parameter, times the parameter.
    pub decoupled_decay: f32,
    /// [`CAUTIOUS`] and [`CAUTIOUS_DECAY`], or 0.
    pub options: u32,
    /// One of [`INACTIVE`], [`ACTIVE`] and [`SKIPPED`].
    pub activity: u32,
    /// t modulo 2^32, for random numbers.
    pub step: u32,
    /// The rule's own coefficients.
    pub of_rule: [f32; MAX_COEFFICIENTS],
}

/// An element moves only if its step has the sign of its gradient.
pub const CAUTIOUS: u32 = 1;
/// An element decays only where its step does not move it away from 0.
pub const CAUTIOUS_DECAY: u32 = 2;

/// The parameter has no gradient in this step and stays as it is.
pub const INACTIVE: u32 = 0;
/// The parameter steps.
pub const ACTIVE: u32 = 1;
/// The device skipped the step.
pub const SKIPPED: u32 = 2;

impl Coefficients {
    /// The coefficients of parameters without a gradient.
    pub fn inactive() -> Self {
        Self::zeroed()
    }
}

/// A run of a tensor's chunks that one launch updates; WGSL `Segment`. Rewritten when a tensor moves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Segment {
    /// Word of 32 bits in the bound window of parameters where the segment starts.
    pub parameters: u32,
    /// Word in the bound window of gradients where it starts.
    pub gradients: u32,
    /// Index into the coefficients.
    pub coefficients: u32,
    /// [`Format::bits`](crate::storage::state::Format::bits).
    pub format: u32,
    /// Key of the tensor's random numbers.
    pub key: [u32; 2],
    /// The first quad, counted from the start of the tensor, modulo 2^32; for random numbers.
    pub first_quad: u32,
    /// Word in the bound window of shadow copies where it starts.
    pub shadow: u32,
}

/// What a segment has for each column and row, in a table of its own; WGSL `SegmentRows`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SegmentRows {
    /// Word of the table where the factors of its columns start.
    pub factors: u32,
    /// The number of factors; 0 for none.
    pub period: u32,
    /// The factor of its first element.
    pub phase: u32,
    /// Word of the bound masks that has the row of its first element.
    pub mask: u32,
    /// Elements of a row; 0 without a mask.
    pub row_len: u32,
    /// The bit there of the row of its first element.
    pub row: u32,
    /// The column of its first element.
    pub column: u32,
    /// Zero.
    pub padding: u32,
}

/// What one workgroup updates; WGSL `Chunk`. Written when tensors are registered or regrouped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Chunk {
    /// Index into the segments.
    pub segment: u32,
    /// First element, counted from the start of the segment.
    pub first: u32,
    /// Number of elements: [`CHUNK_ELEMENTS`], or fewer at the end of a tensor.
    pub elements: u32,
    /// Word of 32 bits in the bound state buffer where the chunk's block starts.
    pub state: u32,
}

/// The start of the table of a remap; WGSL `Remap`. Its chunks follow, two words each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Remap {
    /// Key and format of the parameter.
    pub segment: Segment,
    /// Elements of a row.
    pub row_len: u32,
    /// Rows before.
    pub old_rows: u32,
    /// Elements after.
    pub elements: u32,
    /// The number of chunks before, which come first in the table.
    pub old_chunks: u32,
    /// One of [`FROM_BUFFER`], [`FROM_SAME`] and [`FROM_NOWHERE`].
    pub source: u32,
    /// Word of the bound sources where they start.
    pub first_source: u32,
    /// Word of the bound step counts.
    pub step: u32,
    /// The step count, where the host counts.
    pub host_step: u32,
    /// Index of the state that starts from means in fresh rows, or [`MAX_STATES`](crate::low_level::MAX_STATES).
    pub rates: u32,
    /// Bands of old rows.
    pub bands: u32,
}

/// New rows name their old ones in a buffer.
pub const FROM_BUFFER: u32 = 0;
/// New rows continue the old ones of the same index.
pub const FROM_SAME: u32 = 1;
/// All rows are fresh.
pub const FROM_NOWHERE: u32 = 2;

/// A workgroup's sum of squared gradients; WGSL `Partial`.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Partial {
    /// Low words of the counters of three bins.
    pub low: [u32; 3],
    /// The highest bin.
    pub top: u32,
    /// High words of the counters.
    pub high: [u32; 3],
}

/// A parameter in a step that the device prepares; WGSL `Row`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Row {
    /// Index into the groups.
    pub group: u32,
    /// [`INACTIVE`] or [`ACTIVE`].
    pub activity: u32,
}

/// The start of the table of groups; WGSL `GroupTable`. The [groups](Group) follow, and behind them the [decay rates](DecayRate).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct GroupTableHead {
    /// The largest norm; 0 for no clip.
    pub max_norm: f32,
    /// Word where the decay rates start, counted from the first group.
    pub decay_rates: u32,
}

/// A group's hyperparameters for steps that the device prepares; WGSL `Group`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Group {
    /// 1 or -1 (maximize).
    pub sign: f32,
    /// L2 regularisation: added to the gradient, times the parameter.
    pub coupled_decay: f32,
    /// alpha * lambda: subtracted from the parameter, times the parameter.
    pub decoupled_decay: f32,
    /// [`CAUTIOUS`] and [`CAUTIOUS_DECAY`], or 0.
    pub options: u32,
    /// Code of the rule.
    pub rule: u32,
    /// Which of the rule's formulas is computed.
    pub variant: u32,
    /// Bit i is set if coefficient i is proportional to the learning rate.
    pub rate_coefficients: u32,
    /// The rule's own coefficients with all bias corrections 1.
    pub coefficients: [f32; MAX_COEFFICIENTS],
    /// Its decay rates, as indices into those of the table.
    pub decay_rates: [u32; MAX_DECAY_RATES],
}

/// A decay rate beta of moving averages.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct DecayRate {
    /// 1 - beta.
    pub one_minus_beta: f32,
    /// 1 - beta^(2^k).
    pub one_minus_powers: [f32; 32],
}

/// The start of the control buffer; WGSL `Control`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Control {
    /// The factor by which the engine has multiplied its loss.
    pub loss_scale: f32,
    /// An additional factor of the gradients.
    pub multiplier: f32,
    /// Norm of the last step's gradients, without the loss scale.
    pub norm: f32,
    /// Steps since the loss scale last changed.
    pub growth_tracker: u32,
    /// Steps taken.
    pub taken: u32,
    /// Steps skipped.
    pub skipped: u32,
    /// Steps skipped since the last step that was taken.
    pub skipped_in_a_row: u32,
}

/// The control buffer up to the step counts; WGSL `ControlBuffer`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct ControlHead {
    /// What engines and checkpoints see.
    pub control: Control,
    /// The number of workgroups that have summed their gradients; zero between steps.
    pub arrived: u32,
    /// How many times the norm is larger than the largest finite number, if it is that in `control`.
    pub norm_excess: f32,
    /// Factor of all learning rates.
    pub rate_factor: f32,
    /// The exact sum of squares behind the norm.
    pub sum_of_squares: [u32; 7],
}

/// Number of bins of a histogram.
pub const BINS: usize = 64;
/// The first bin starts at two to this power.
pub const LOWEST_EXPONENT: i32 = -40;
/// Index of the counter of rates that the bound made smaller. Indices as in `shaders/diagnostics/rate_histograms.wgsl`.
pub const CLIPPED: usize = 2 * BINS;
/// Index of the counter of updates that are not finite.
pub const NOT_FINITE_UPDATES: usize = CLIPPED + 1;
/// Index of the first sum of squares.
pub const SQUARES: usize = CLIPPED + 2;
/// Number of counters.
pub const COUNTERS: usize = SQUARES + BINS;
/// Bytes of the counters, each of which has a low and a high word.
pub const HISTOGRAM_BYTES: u64 = 8 * COUNTERS as u64;
