//! What a caller passes to an optimizer and gets from it.

use super::slots::Key;
use crate::kernels::variant::{Access, GradientBinding};
use crate::plan::cohorts::Cohorts;
use crate::plan::views::Views;
use crate::rules::RuleKind;
use crate::storage::dtype::DType;
use crate::storage::state::StateFormat;

/// A group of one optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId {
    pub(super) optimizer: u64,
    pub(super) key: Key,
}

/// A parameter of one optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId {
    pub(super) optimizer: u64,
    pub(super) key: Key,
}

/// A parameter to be registered.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Parameter<'a> {
    /// Its name, which no other parameter of the optimizer has: `transformer.wte.weight`.
    pub label: &'a str,
    /// Its number of elements. Its shape does not matter to the step.
    pub len: u64,
    /// Data type of its elements.
    pub dtype: DType,
    /// Format of its state, if not that of its group's [`Precision`](crate::Precision).
    pub state: Option<StateFormat>,
    /// Where values and gradients lie at every step. `None` if each step gives them ([`Step::at`](crate::Step::at)).
    pub views: Option<Views<'a>>,
}

impl<'a> Parameter<'a> {
    /// A parameter of `len` elements in f32, with its group's state format and without registered views.
    pub const fn new(label: &'a str, len: u64) -> Self {
        Self { label, len, dtype: DType::F32, state: None, views: None }
    }

    /// Sets [`Parameter::dtype`], which is also the data type of its views.
    pub const fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// Sets [`Parameter::state`].
    pub const fn with_state(self, state: StateFormat) -> Self {
        Self { state: Some(state), ..self }
    }

    /// Sets [`Parameter::views`].
    pub const fn with_views(self, views: Views<'a>) -> Self {
        Self { views: Some(views), ..self }
    }
}

/// The state of one parameter on the host.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct State {
    /// Steps taken.
    pub step: u64,
    /// Name and elements of each state, in the order of [`Rule::state_names`](crate::Rule::state_names).
    pub tensors: Vec<(&'static str, Vec<f32>)>,
}

impl State {
    /// State after `step` steps: the name and elements of each state.
    pub fn new(step: u64, tensors: Vec<(&'static str, Vec<f32>)>) -> Self {
        Self { step, tensors }
    }

    /// The state with this name: `exp_avg`, `exp_avg_sq`, `exp_avg_lr` or `momentum_buffer`.
    pub fn tensor(&self, name: &str) -> Option<&[f32]> {
        self.tensors.iter().find(|(of, _)| *of == name).map(|(_, elements)| elements.as_slice())
    }
}

/// The step counts of all parameters at one moment: [`Optimizer::step_counts`](crate::Optimizer::step_counts).
#[derive(Clone, Debug)]
pub struct StepCounts {
    pub(super) optimizer: u64,
    pub(super) revision: u64,
    pub(super) cohorts: Cohorts,
}

/// One dispatch of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchInfo {
    /// The update rule of its parameters.
    pub rule: RuleKind,
    /// Workgroups, one per chunk of 1,024 elements.
    pub workgroups: u32,
    /// Tensors, or parts of tensors that were cut, that it updates.
    pub segments: u32,
    /// How its tensors are read and written.
    pub access: Access,
    /// How its gradients are bound.
    pub gradients: GradientBinding,
}
