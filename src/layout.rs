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

/// How a step is divided among a device's threads. The results are the same bits, but for the last digits of a norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Workgroups {
    /// As suits the device.
    #[default]
    Auto,
    /// As on a GPU: 256 threads, one for each four elements of a chunk. On a software adapter, to test what a GPU will run.
    Gpu,
    /// As on a software adapter: 8 threads, as many as a vector register holds.
    Cpu,
}

impl Workgroups {
    fn is_cpu(self, device: &wgpu::Device) -> bool {
        match self {
            Self::Auto => device.adapter_info().device_type == wgpu::DeviceType::Cpu,
            Self::Gpu => false,
            Self::Cpu => true,
        }
    }

    /// Threads of a workgroup.
    pub fn lanes(self, device: &wgpu::Device) -> u32 {
        if self.is_cpu(device) { CPU_LANES } else { GPU_LANES }
    }

    /// Partial sums of the gradients' norm, one a workgroup. On a GPU enough to fill it, and few waits for memory by the workgroup
    /// that adds them up. On a CPU every workgroup costs as much as a chunk (llvmpipe: the norm takes half the time with 256).
    pub(crate) fn most_partials(self, device: &wgpu::Device) -> u32 {
        let most = if self.is_cpu(device) { 256 } else { 2048 };
        device.limits().max_compute_workgroups_per_dimension.min(most)
    }
}

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
    /// One of [`INACTIVE`], [`ACTIVE`] and [`SKIPPED`].
    pub activity: u32,
    /// Weight of the learning rates' average where it is kept debiased.
    pub debiased_lr_weight: f32,
    /// Factor from the debiased average to the average.
    pub debiased_lr_scale: f32,
    /// t, modulo 2^32, for random numbers.
    pub step: u32,
    /// Makes it four words of 16 bytes.
    pub padding: u32,
}

/// The cohort has no gradient in this step and is left alone.
pub const INACTIVE: u32 = 0;
/// The cohort steps.
pub const ACTIVE: u32 = 1;
/// The step was called off on the GPU.
pub const SKIPPED: u32 = 2;

impl Coefficients {
    /// A cohort that is left alone.
    pub(crate) fn inactive() -> Self {
        Self::zeroed()
    }

    /// A cohort's step `t`.
    pub(crate) fn active(c: StepCoefficients, t: u64) -> Self {
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
            activity: ACTIVE,
            debiased_lr_weight: c.debiased_lr_weight as f32,
            debiased_lr_scale: c.debiased_lr_scale as f32,
            step: t as u32,
            padding: 0,
        }
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
    /// [`Format::bits`](crate::format::Format::bits).
    pub format: u32,
    /// Key of the tensor's random numbers.
    pub key: [u32; 2],
    /// Elements of the tensor before the segment, in fours; modulo 2^32, for random numbers.
    pub first_word: u32,
    /// Word in the bound window of copies where it starts.
    pub copies: u32,
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
    /// Word of 32 bits in the bound page of state where the chunk's block starts.
    pub state: u32,
}

/// A workgroup's sum of squared gradients, `sum * 2^(2 exponent)`; WGSL `Partial`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Partial {
    /// The sum.
    pub sum: f32,
    /// Its exponent, or `i32::MAX` where an element is not finite.
    pub exponent: i32,
}

/// What the host says of a parameter in a step that is prepared on the device; WGSL `Row`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Row {
    /// Index into the groups.
    pub group: u32,
    /// [`INACTIVE`] or [`ACTIVE`].
    pub activity: u32,
}

/// A group's hyperparameters for steps that are prepared on the device; WGSL `Group`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Group {
    /// The paper's alpha.
    pub learning_rate: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// L2: added to the gradient, times the parameter.
    pub coupled_decay: f32,
    /// alpha * lambda: taken from the parameter, times itself.
    pub decoupled_decay: f32,
    /// SGD's momentum.
    pub momentum: f32,
    /// 1 or -1 (maximize).
    pub sign: f32,
    /// Weight of the first moment's average.
    pub exp_avg_weight: f32,
    /// Weight of the second moment's average.
    pub exp_avg_sq_weight: f32,
    /// Weight of the learning rates' average.
    pub exp_avg_lr_weight: f32,
    /// 1 - beta3.
    pub one_minus_beta3: f32,
    /// 1 - beta^(2^k) of each beta.
    pub one_minus_powers: [[f32; 32]; 3],
}

/// What steps that are prepared on the device keep; WGSL `Control`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Control {
    /// By which the engine has multiplied its loss.
    pub loss_scale: f32,
    /// By which gradients are multiplied besides.
    pub multiplier: f32,
    /// Norm of the last step's gradients, without the loss scale.
    pub norm: f32,
    /// Steps since the loss scale last changed.
    pub growth_tracker: u32,
    /// Steps taken.
    pub taken: u32,
    /// Steps called off.
    pub skipped: u32,
}
