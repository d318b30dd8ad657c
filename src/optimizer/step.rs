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
    /// Step counts advance with the second half.
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
