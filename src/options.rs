//! What holds for all groups of an optimizer.

use std::time::Duration;

use crate::rules::range::{OutOfRange, in_range};

/// Settings of an [`Optimizer`](crate::Optimizer).
///
/// ```
/// use adamod::{Control, DeviceControl, Options};
///
/// let options = Options::new()
///     .with_label("generator")
///     .with_seed(7)
///     .with_control(Control::Device(DeviceControl::new().with_max_norm(1.0)));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// A name that stands in front of the labels of all wgpu objects of the optimizer. `adamod` by default.
    pub label: String,
    /// What a step counts besides its update.
    pub diagnostics: Diagnostics,
    /// Whether a step sets gradients to zero once it has read them, which saves the engine a pass over them. PyTorch's `zero_grad`.
    pub zero_gradients: bool,
    /// Whether the host or the device counts steps, and what happens to gradients before a step.
    pub control: Control,
    /// Seed of stochastic rounding. The same seed, labels and gradients give the same bits, whatever the order of registration.
    pub seed: u64,
    /// How long methods that block wait for the device.
    pub device_timeout: Duration,
    /// How a step is divided among the device's threads.
    pub workgroups: Workgroups,
    /// Which dispatch computes the norm of the gradients, where steps need it.
    pub norm_dispatch: NormDispatch,
    /// A cache of compiled pipelines, for devices with [`wgpu::Features::PIPELINE_CACHE`].
    pub pipeline_cache: Option<wgpu::PipelineCache>,
    #[doc(hidden)]
    pub tuning: Tuning,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            label: "adamod".to_owned(),
            diagnostics: Diagnostics::default(),
            zero_gradients: false,
            control: Control::default(),
            seed: 0,
            device_timeout: Duration::from_secs(60),
            workgroups: Workgroups::default(),
            norm_dispatch: NormDispatch::default(),
            pipeline_cache: None,
            tuning: Tuning::default(),
        }
    }
}

impl Options {
    /// The defaults: steps counted on the host, no diagnostics, gradients kept, seed 0, one minute.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Options::label`].
    pub fn with_label(self, label: impl Into<String>) -> Self {
        Self { label: label.into(), ..self }
    }

    /// Sets [`Options::diagnostics`].
    pub fn with_diagnostics(self, diagnostics: Diagnostics) -> Self {
        Self { diagnostics, ..self }
    }

    /// Sets [`Options::zero_gradients`].
    pub fn with_zero_gradients(self, zero_gradients: bool) -> Self {
        Self { zero_gradients, ..self }
    }

    /// Sets [`Options::control`].
    pub fn with_control(self, control: Control) -> Self {
        Self { control, ..self }
    }

    /// Sets [`Options::seed`].
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets [`Options::device_timeout`].
    pub fn with_device_timeout(self, device_timeout: Duration) -> Self {
        Self { device_timeout, ..self }
    }

    /// Sets [`Options::workgroups`].
    pub fn with_workgroups(self, workgroups: Workgroups) -> Self {
        Self { workgroups, ..self }
    }

    /// Sets [`Options::norm_dispatch`].
    pub fn with_norm_dispatch(self, norm_dispatch: NormDispatch) -> Self {
        Self { norm_dispatch, ..self }
    }

    /// Sets [`Options::pipeline_cache`].
    pub fn with_pipeline_cache(self, pipeline_cache: wgpu::PipelineCache) -> Self {
        Self { pipeline_cache: Some(pipeline_cache), ..self }
    }

    #[doc(hidden)]
    pub fn with_tuning(self, tuning: Tuning) -> Self {
        Self { tuning, ..self }
    }
}

/// Choices inside the kernels that only measurements on a device can decide, for `adamod bench`. The defaults are what users get. With all
/// of them the results have the same bits, apart from the last digits of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Tuning {
    /// Threads per workgroup of the step, a power of two from 8 to 256. With fewer than a chunk has work for, they loop. By default as
    /// [`Options::workgroups`] says.
    pub lanes: Option<u32>,
    /// A thread works on two quads at a time, where workgroups have threads for all pairs of quads of a chunk. 8-bit state always does so.
    pub two_quads: bool,
    /// Masks of elements are constants in launches in which no tensor ends within the elements of a thread.
    pub constant_masks: bool,
    /// Whether a branch skips what only infinities, NaN and zeros need.
    pub rare_paths_apart: bool,
    /// The most bytes of a word in which tensors and state are read and written: 16, 8 or 4.
    pub most_word_bytes: u64,
    /// The most partial sums of the norm. By default as suits the device.
    pub most_partials: Option<u32>,
    /// Tensors with buffers of their own share dispatches where the device has [`Optimizer::BINDING_ARRAYS`](crate::Optimizer::BINDING_ARRAYS).
    pub binding_arrays: bool,
}

impl Tuning {
    const DEFAULT: Self = Self {
        lanes: None,
        two_quads: false,
        constant_masks: true,
        rare_paths_apart: true,
        most_word_bytes: 16,
        most_partials: None,
        binding_arrays: true,
    };

    /// Without binding arrays.
    pub const SINGLE_BINDINGS: Self = Self { binding_arrays: false, ..Self::DEFAULT };

    /// Every other choice that makes other kernels, by itself and with a name.
    pub const CHOICES: [(&'static str, Self); 10] = [
        ("rare-paths-inline", Self { rare_paths_apart: false, ..Self::DEFAULT }),
        ("computed-masks", Self { constant_masks: false, ..Self::DEFAULT }),
        ("two-quads", Self { two_quads: true, ..Self::DEFAULT }),
        ("128-lanes", Self { lanes: Some(128), ..Self::DEFAULT }),
        ("64-lanes", Self { lanes: Some(64), ..Self::DEFAULT }),
        ("32-lanes", Self { lanes: Some(32), ..Self::DEFAULT }),
        ("8-byte-words", Self { most_word_bytes: 8, ..Self::DEFAULT }),
        ("4-byte-words", Self { most_word_bytes: 4, ..Self::DEFAULT }),
        ("512-partials", Self { most_partials: Some(512), ..Self::DEFAULT }),
        ("8192-partials", Self { most_partials: Some(8192), ..Self::DEFAULT }),
    ];
}

impl Default for Tuning {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a step counts besides its update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Diagnostics {
    /// Nothing. The kernel has no code for it.
    #[default]
    Off,
    /// Histograms of the learning rates and the norm of the updates, in the same pass, for groups whose rule has a learning rate for
    /// each element (AdaMod and Adam; SGD has one for all). [`Optimizer::take_rate_histograms`](crate::Optimizer::take_rate_histograms)
    /// reads them.
    RateHistograms,
}

/// How a step is divided among the device's threads. The results have the same bits, apart from the last digits of a norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Workgroups {
    /// As suits the device.
    #[default]
    Auto,
    /// As on a GPU: 256 threads, one for each four elements of a chunk. On a software adapter this tests what a GPU runs.
    Gpu,
    /// As on a software adapter: 8 threads, as many as a vector register holds.
    Cpu,
}

/// Which dispatch computes the norm of the gradients and prepares the step. The results have the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NormDispatch {
    /// [`NormDispatch::Separate`] on Metal and Direct3D 12, [`NormDispatch::Fused`] elsewhere.
    #[default]
    Auto,
    /// The pass over the gradients: the workgroup that finishes last does it. A step is two dispatches.
    Fused,
    /// A dispatch of its own, so that a step is three. It needs no barrier in a branch, which the compilers of Metal and of Direct3D 12
    /// (FXC) are reported to lose or to refuse.
    Separate,
}

/// Whether the host or the device counts steps and computes their coefficients.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Control {
    /// The host, in f64. It uploads one small table per step. Gradients are used as they are, so infinity and NaN propagate.
    #[default]
    Host,
    /// The device, in f32 with relative errors of 1e-6: PyTorch's `capturable`. Any number of steps can be recorded ahead, and only
    /// what the caller changes is uploaded. The device can skip steps and rescale gradients without a read-back.
    Device(DeviceControl),
}

/// What the device does with gradients before a step.
///
/// ```
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// use adamod::{AdaMod, Control, DeviceControl, LossScale, Optimizer, Options, Parameter, Step, View, Views};
///
/// # let (device, queue) = doc::gpu();
/// # let buffer = doc::buffer(&device, 8192);
/// let control = DeviceControl::new().with_max_norm(1.0).with_loss_scale(LossScale::DYNAMIC);
/// let mut optimizer =
///     Optimizer::new(&device, &queue, Options::new().with_control(Control::Device(control)))?;
/// # let group = optimizer.add_group(AdaMod::new())?;
/// # let views = Views::new(View::new(&buffer, 0), View::new(&buffer, 4096));
/// # optimizer.add_parameter(group, Parameter::new("weight", 1024).with_views(views))?;
/// // A gradient of infinity: the step is skipped, and the loss scale is halved.
/// queue.write_buffer(&buffer, 4096, &f32::INFINITY.to_le_bytes());
/// optimizer.submit(&Step::all())?;
/// let progress = optimizer.read_progress().wait()?;
/// assert_eq!((progress.taken, progress.skipped, progress.loss_scale), (0, 1, 32_768.0));
/// # Ok::<(), adamod::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeviceControl {
    /// The factor by which the engine multiplies its loss. Gradients are divided by it.
    pub loss_scale: LossScale,
    /// The largest norm (L2, over all gradients of a step together), without the loss scale and times the engine's multiplier
    /// ([`Optimizer::MULTIPLIER_OFFSET`](crate::Optimizer::MULTIPLIER_OFFSET)). Gradients with a larger norm are scaled down to it.
    /// PyTorch's `clip_grad_norm_`, but without its 1e-6 in the denominator. Above 0; `None` means no clip.
    pub max_norm: Option<f64>,
    /// What happens to a step with infinite or NaN gradients.
    pub non_finite: NonFinite,
    /// The smallest loss scale that [`LossScale::Dynamic`] falls to, from 2^-126 (the default) to 2^126.
    pub least_loss_scale: f64,
}

impl Default for DeviceControl {
    fn default() -> Self {
        Self {
            loss_scale: LossScale::Constant(1.0),
            max_norm: None,
            non_finite: NonFinite::Skip,
            least_loss_scale: LEAST_LOSS_SCALE.into(),
        }
    }
}

/// The factor by which the engine multiplies its loss, so that small gradients survive in 16 bits. The engine reads it from
/// [`Optimizer::control_buffer`](crate::Optimizer::control_buffer).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum LossScale {
    /// A constant, from 2^-126 to 2^126. It stays after a checkpoint with another one was restored.
    Constant(f64),
    /// As `torch.amp.GradScaler`. A step with non-finite gradients is skipped, whatever [`DeviceControl::non_finite`] says, and the
    /// scale is multiplied by `backoff_factor`, down to [`DeviceControl::least_loss_scale`]. After `growth_interval` steps in a row without one, it is multiplied by
    /// `growth_factor`, up to 2^126. A restored checkpoint sets the scale.
    Dynamic {
        /// The first scale, from 2^-126 to 2^126. 65,536 in PyTorch.
        initial: f64,
        /// At least 1. 2 in PyTorch.
        growth_factor: f64,
        /// In (0, 1). 0.5 in PyTorch.
        backoff_factor: f64,
        /// In steps, at least 1. 2,000 in PyTorch.
        growth_interval: u32,
    },
}

/// The smallest loss scale, 2^-126.
pub(crate) const LEAST_LOSS_SCALE: f32 = f32::MIN_POSITIVE;
/// The largest loss scale, 2^126: the reciprocal of a larger one is subnormal, and some devices flush it to zero.
pub(crate) const MOST_LOSS_SCALE: f32 = 1.0 / f32::MIN_POSITIVE;

impl LossScale {
    /// PyTorch's defaults.
    pub const DYNAMIC: Self =
        Self::Dynamic { initial: 65_536.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2000 };

    pub(crate) fn initial(self) -> f64 {
        match self {
            Self::Constant(scale) | Self::Dynamic { initial: scale, .. } => scale,
        }
    }
}

/// What happens to a step with infinite or NaN gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// The whole step is skipped: no parameter, state or step count of any group changes. So is a step whose multiplier or norm, written by
    /// the engine, is not finite. Costs a pass over the gradients.
    #[default]
    Skip,
    /// Non-finite gradients propagate, only to their own elements. Nothing looks for them unless a norm is computed.
    Propagate,
}

impl DeviceControl {
    /// The defaults: loss scale 1, no clip, steps with non-finite gradients are skipped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`DeviceControl::loss_scale`].
    pub fn with_loss_scale(self, loss_scale: LossScale) -> Self {
        Self { loss_scale, ..self }
    }

    /// Sets [`DeviceControl::max_norm`].
    pub fn with_max_norm(self, max_norm: f64) -> Self {
        Self { max_norm: Some(max_norm), ..self }
    }

    /// Sets [`DeviceControl::non_finite`].
    pub fn with_non_finite(self, non_finite: NonFinite) -> Self {
        Self { non_finite, ..self }
    }

    /// Sets [`DeviceControl::least_loss_scale`].
    pub fn with_least_loss_scale(self, least_loss_scale: f64) -> Self {
        Self { least_loss_scale, ..self }
    }

    /// Whether a step computes the norm of all gradients first.
    pub fn uses_norm(&self) -> bool {
        self.max_norm.is_some() || self.skips()
    }

    pub(crate) fn skips(&self) -> bool {
        self.non_finite == NonFinite::Skip || matches!(self.loss_scale, LossScale::Dynamic { .. })
    }

    pub(crate) fn validate(&self) -> Result<(), OutOfRange> {
        let positive = |value: f64| (value as f32).is_normal() && value > 0.0;
        let initial = self.loss_scale.initial();
        let is_scale = |scale: f64| (LEAST_LOSS_SCALE..=MOST_LOSS_SCALE).contains(&(scale as f32));
        in_range("loss_scale", initial, "a number from 2^-126 to 2^126", is_scale(initial))?;
        let least = self.least_loss_scale;
        in_range("least_loss_scale", least, "a number from 2^-126 to 2^126", is_scale(least))?;
        if let LossScale::Dynamic { growth_factor, backoff_factor, growth_interval, .. } = self.loss_scale {
            let is_growth = growth_factor >= 1.0 && (growth_factor as f32).is_finite();
            in_range("growth_factor", growth_factor, "at least 1 and finite in f32", is_growth)?;
            let is_backoff = positive(backoff_factor) && (backoff_factor as f32) < 1.0;
            in_range("backoff_factor", backoff_factor, "a number in (0, 1), normal in f32", is_backoff)?;
            in_range("growth_interval", growth_interval.into(), "at least 1", growth_interval >= 1)?;
        }
        self.check_max_norm()
    }

    pub(crate) fn check_max_norm(&self) -> Result<(), OutOfRange> {
        let max_norm = self.max_norm.unwrap_or(1.0);
        let is_normal = (max_norm as f32).is_normal() && max_norm > 0.0;
        in_range("max_norm", max_norm, "a number above 0 and normal in f32", is_normal)
    }
}

/// What the state of fresh rows starts from ([`Remap`](crate::Remap)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FreshRows {
    /// All states are zero, as those of a new parameter.
    ///
    /// The step count is the parameter's, so nothing corrects the averages of a fresh row for their start at zero. AdaMod's bound holds the
    /// row back for about `1 / (1 - beta3)` steps. Without such a bound its first step is up to `(1 - beta1) / sqrt(1 - beta2)` learning rates.
    Zero,
    /// As [`FreshRows::Zero`], but `exp_avg_lr` starts from the mean of its column over the old rows, so that the bound of a fresh row is
    /// that of an old one from the start. Other states are zero. Rules without `exp_avg_lr` are as with [`FreshRows::Zero`].
    ///
    /// The mean is the harmonic one, of the elements whose average is above zero: the rate of an element whose root second moment is the
    /// mean one. Elements without a gradient so far, whose rates are as large as `alpha / epsilon`, hardly count in it.
    #[default]
    Mean,
}
