//! What a caller passes to an optimizer and gets from it.

use super::slots::Key;
use crate::kernels::variant::{Access, GradientBinding};
use crate::plan::cohorts::Cohorts;
use crate::plan::views::Views;
use crate::rules::RuleForm;
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
    /// Which part of a tensor it is, if it is not a whole one.
    pub shard: Option<Shard>,
    /// Where values and gradients lie at every step. `None` if each step gives them ([`Step::at`](crate::Step::at)).
    pub views: Option<Views<'a>>,
}

impl<'a> Parameter<'a> {
    /// A parameter of `len` elements in f32, with its group's state format and without registered views.
    pub const fn new(label: &'a str, len: u64) -> Self {
        Self { label, len, dtype: DType::F32, state: None, shard: None, views: None }
    }

    /// Sets [`Parameter::dtype`], which is also the data type of its views.
    pub const fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// Sets [`Parameter::state`].
    pub const fn with_state(self, state: StateFormat) -> Self {
        Self { state: Some(state), ..self }
    }

    /// Sets [`Parameter::shard`].
    pub const fn with_shard(self, shard: Shard) -> Self {
        Self { shard: Some(shard), ..self }
    }

    /// Sets [`Parameter::views`].
    pub const fn with_views(self, views: Views<'a>) -> Self {
        Self { views: Some(views), ..self }
    }
}

/// The part of a tensor that a parameter is, for engines that shard tensors over devices.
///
/// A parameter of `len` elements is then elements `first..first + len` of a tensor of `whole` elements. The parameters that shard a tensor
/// have its label, and optimizers with the same seed and options. Together they take the same steps as the whole tensor would, bit for bit:
/// [`Precision::f32_state_below`](crate::Precision::f32_state_below) applies to the whole tensor, and random numbers and the quant blocks of
/// 8-bit state are the whole tensor's.
///
/// ```
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// use adamod::{AdaMod, Optimizer, Options, Parameter, Shard};
///
/// # let (device, queue) = doc::gpu();
/// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
/// # let group = optimizer.add_group(AdaMod::new())?;
/// // The second of two ranks.
/// let parameter = Parameter::new("wte.weight", 3072).with_shard(Shard::new(3072, 6144));
/// optimizer.add_parameter(group, parameter)?;
/// # Ok::<(), adamod::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shard {
    /// The first element. A multiple of 32 with 8-bit state, and of 4 where anything is rounded stochastically (16-bit state, or bf16
    /// parameters without master weights).
    pub first: u64,
    /// Number of elements of the whole tensor.
    pub whole: u64,
}

impl Shard {
    /// The part that starts at element `first` of a tensor of `whole` elements.
    pub const fn new(first: u64, whole: u64) -> Self {
        Self { first, whole }
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
    /// The update rule of its parameters, and their states.
    pub form: RuleForm,
    /// Workgroups, one per chunk of 1,024 elements.
    pub workgroups: u32,
    /// Tensors, or parts of tensors that were cut, that it updates.
    pub segments: u32,
    /// How its tensors are read and written.
    pub access: Access,
    /// How its gradients are bound.
    pub gradients: GradientBinding,
}
