//! What a step covers: which parameters, where they lie, and which half of it.

use super::handles::ParameterId;
use crate::plan::views::Views;

/// A step to be recorded or submitted.
///
/// A step says which parameters have a gradient and where they lie, and may be limited to one of its halves:
///
/// | parameters | |
/// | --- | --- |
/// | [`Step::all`] | every parameter at its registered views |
/// | [`Step::of`] | some parameters at their registered views |
/// | [`Step::at`] | some parameters at views of this step, for engines whose tensors move |
///
/// Parameters without a gradient stay as they are: no weight decay, and their step counts do not advance.
///
/// A subset, and a step of parameters whose tensors have moved within a pool:
///
/// ```
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// use adamod::{AdaMod, Optimizer, Options, Parameter, Step, Update, View, Views};
///
/// # let (device, queue) = doc::gpu();
/// # let pool = doc::buffer(&device, 1 << 16);
/// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
/// # let group = optimizer.add_group(AdaMod::new())?;
/// let views = Views::new(View::new(&pool, 0), View::new(&pool, 4096));
/// let router = optimizer.add_parameter(group, Parameter::new("router", 1024).with_views(views))?;
/// let expert = optimizer.add_parameter(group, Parameter::new("expert", 512))?;
///
/// // Only the router has a gradient.
/// optimizer.submit(&Step::of(&[router]))?;
/// // Both have one, at places that hold for this step only.
/// let updates = [
///     Update::new(router, Views::new(View::new(&pool, 8192), View::new(&pool, 12288))),
///     Update::new(expert, Views::new(View::new(&pool, 16384), View::new(&pool, 18432))),
/// ];
/// optimizer.submit(&Step::at(&updates))?;
/// assert_eq!((optimizer.step_count(router), optimizer.step_count(expert)), (Some(2), Some(1)));
/// # Ok::<(), adamod::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    pub(crate) targets: Targets<'a>,
    pub(crate) part: Part,
}

/// The parameters of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Targets<'a> {
    All,
    Of(&'a [ParameterId]),
    At(&'a [Update<'a>]),
}

/// The part of a step that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Whole,
    /// The norm of its gradients.
    Norm,
    /// Everything after the norm.
    AfterNorm,
    /// Everything after the norm of a joint step.
    AfterJointNorm,
}

impl Part {
    /// The number of parts.
    pub const COUNT: usize = 4;
}

impl<'a> Step<'a> {
    /// A step of every parameter at its registered views.
    pub const fn all() -> Self {
        Self { targets: Targets::All, part: Part::Whole }
    }

    /// A step of these parameters at their registered views.
    pub const fn of(parameters: &'a [ParameterId]) -> Self {
        Self { targets: Targets::Of(parameters), part: Part::Whole }
    }

    /// A step of these parameters at views of this step. Registered views are not used, and no buffer is kept once the step is recorded.
    ///
    /// Gradients may share bytes with each other, unless the optimizer zeroes gradients. No other two views may overlap.
    pub const fn at(updates: &'a [Update<'a>]) -> Self {
        Self { targets: Targets::At(updates), part: Part::Whole }
    }

    /// Only the first half: the norm of this device's gradients, for engines that train on several devices.
    ///
    /// The norm is then in [`Optimizer::control_buffer`](crate::Optimizer::control_buffer) at
    /// [`Optimizer::NORM_OFFSET`](crate::Optimizer::NORM_OFFSET), without the loss scale, and is infinite if a gradient is not finite.
    /// The engine sums the squares of all devices' norms, writes the root back, and records [`Step::after_norm`] of the same parameters.
    /// Squares of norms may overflow f32, so the engine sums them in f64. It writes at most [`f32::MAX`], unless one of the norms is
    /// infinite: an infinite norm skips the step.
    /// Step counts advance with the second half.
    ///
    /// ```
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// use adamod::{AdaMod, Control, DeviceControl, Optimizer, Options, Parameter, Step, View, Views};
    ///
    /// # let (device, queue) = doc::gpu();
    /// # let buffer = doc::buffer(&device, 8192);
    /// let control = Control::Device(DeviceControl::new().with_max_norm(1.0));
    /// let mut optimizer = Optimizer::new(&device, &queue, Options::new().with_control(control))?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// # let views = Views::new(View::new(&buffer, 0), View::new(&buffer, 4096));
    /// # let weight = optimizer.add_parameter(group, Parameter::new("weight", 1024).with_views(views))?;
    /// // This rank's norm of its own shard.
    /// optimizer.submit(&Step::all().norm())?;
    /// let norm = optimizer.read_progress().wait()?.norm;
    /// // ... the ranks sum the squares of their norms ...
    /// let norm_of_all_ranks = (norm * norm).sqrt();
    /// if let Some(control) = optimizer.control_buffer() {
    ///     queue.write_buffer(control, Optimizer::NORM_OFFSET, &norm_of_all_ranks.to_le_bytes());
    /// }
    /// optimizer.submit(&Step::all().after_norm())?;
    /// # assert_eq!(optimizer.step_count(weight), Some(1));
    /// # Ok::<(), adamod::Error>(())
    /// ```
    pub const fn norm(self) -> Self {
        Self { part: Part::Norm, ..self }
    }

    /// Only the second half, which takes the norm from the control buffer.
    pub const fn after_norm(self) -> Self {
        Self { part: Part::AfterNorm, ..self }
    }
}

/// A parameter with a gradient, and where the two lie in this step.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Update<'a> {
    /// The parameter.
    pub parameter: ParameterId,
    /// Its views in this step.
    pub views: Views<'a>,
}

impl<'a> Update<'a> {
    /// A parameter at these views.
    pub const fn new(parameter: ParameterId, views: Views<'a>) -> Self {
        Self { parameter, views }
    }
}
