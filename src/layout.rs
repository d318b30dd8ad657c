//! Structures shared with WGSL, byte for byte. `tests/shaders.rs` asserts sizes and offsets against naga's reflection of
//! `shaders/tables.wgsl`.

use bytemuck::{Pod, Zeroable};

use crate::hyperparameters::StepCoefficients;

/// Elements of a chunk: what one workgroup updates.
pub const CHUNK_ELEMENTS: u32 = 1024;

/// Threads of a workgroup on a GPU: each has one word of four elements of a whole chunk.
pub const GPU_LANES: u32 = CHUNK_ELEMENTS / 4;

/// Threads of a workgroup on a CPU: what a vector register holds. Software adapters run a workgroup's threads a vector at a
/// time and set up each of them anew, which costs more than going around a loop (llvmpipe: the step is 1.8 times as fast).
pub const CPU_LANES: u32 = 8;

/// One step's coefficients of one cohort (parameters of one group with one step count); WGSL `Coefficients`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Coefficients {
    /// 1 or -1 (maximize).
    pub gradient_scale: f32,
    /// L2: added to the gradient, times the parameter.
    pub coupled_decay: f32,
    /// alpha * lambda: taken from the parameter, times itself.
    pub decoupled_decay: f32,
    /// SGD's momentum.
    pub momentum: f32,
    /// Weight of the first moment's average, see `ema` in `shaders/arithmetic.wgsl`.
    pub exp_avg_weight: f32,
    /// Weight of the second moment's average.
    pub exp_avg_sq_weight: f32,
    /// Weight of the learning rates' average.
    pub exp_avg_lr_weight: f32,
    /// Numerator of eta.
    pub step_size: f32,
    /// Factor from `exp_avg` to its bias-corrected form.
    pub exp_avg_correction: f32,
    /// Factor from `exp_avg_sq` to its bias-corrected form.
    pub exp_avg_sq_correction: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// 1 where the cohort steps, 0 where it has no gradient and is left alone.
    pub enabled: u32,
}

impl Coefficients {
    /// A cohort that is left alone.
    pub(crate) fn inactive() -> Self {
        Self::zeroed()
    }
}

impl From<StepCoefficients> for Coefficients {
    fn from(c: StepCoefficients) -> Self {
        Self {
            gradient_scale: c.gradient_scale as f32,
            coupled_decay: c.coupled_decay as f32,
            decoupled_decay: c.decoupled_decay as f32,
            momentum: c.momentum as f32,
            exp_avg_weight: c.exp_avg_weight as f32,
            exp_avg_sq_weight: c.exp_avg_sq_weight as f32,
            exp_avg_lr_weight: c.exp_avg_lr_weight as f32,
            step_size: c.step_size as f32,
            exp_avg_correction: c.exp_avg_correction as f32,
            exp_avg_sq_correction: c.exp_avg_sq_correction as f32,
            epsilon: c.epsilon as f32,
            enabled: 1,
        }
    }
}

/// A run of a tensor's chunks that one launch updates; WGSL `Segment`. Rewritten when a tensor moves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Segment {
    /// Element in the bound window of parameters where the segment starts.
    pub parameters: u32,
    /// Element in the bound window of gradients where the segment starts.
    pub gradients: u32,
    /// Index into the coefficients.
    pub coefficients: u32,
    /// WGSL's array stride would be 12 without it; 16 keeps entries within a cache line.
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
    /// Elements: [`CHUNK_ELEMENTS`], or fewer at a tensor's end.
    pub elements: u32,
    /// Element in the bound page of state where the chunk's block starts.
    pub state: u32,
}
