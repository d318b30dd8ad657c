//! [`PerTensor`] is the core behind Burn's optimizer trait, which steps one tensor at a time.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use adamod::{Group, GroupId, Options, Parameter, ParameterId, Rule, State};
use burn::backend::wgpu::Wgpu;
use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{
    GradAdaptor, LearningRate, ModuleOptimizer, Optimizer, RecordState, StateSink, StateSource,
};
use burn::tensor::{DType, Device, Tensor};

use crate::backend::{self, Primitive};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::parameters::{Autodiff, primitive};
use crate::records;
use crate::shared::{Job, Shared, StepGroup};

/// The core as a [`burn::optim::Optimizer`]: for `ModuleOptimizer::from(per_tensor)`, and for Burn's `Learner`, groups, clipping and
/// records.
///
/// Each tensor costs a submission and, without fusion, a wait for Burn's device thread, unless the step is taken by
/// [`PerTensor::step_fused`], which steps all tensors together. Tensors are f32. The trait cannot return errors: a step that fails
/// leaves its tensor unchanged, and [`PerTensor::take_error`] returns the error. The state of dropped tensors is freed with the last clone
/// of this.
#[derive(Clone)]
pub struct PerTensor {
    shared: Arc<Shared>,
    id: GroupId,
    group: Group,
    count: Arc<AtomicU64>,
    /// Tensors that wait for the end of the step that a thread is taking with [`PerTensor::step_fused`].
    waiting: Arc<Mutex<Waiting>>,
}

type Waiting = HashMap<ThreadId, WaitingTensors>;

#[derive(Default)]
struct WaitingTensors {
    jobs: Vec<Job<Primitive>>,
    /// What stands for a tensor that waits, by its rank. Cloning one is cheap, while making one is an operation of Burn's.
    placeholders: HashMap<usize, Primitive>,
}

impl WaitingTensors {
    /// A tensor without elements.
    fn placeholder<const D: usize>(&mut self, device: &Device) -> Result<Tensor<D>, Error> {
        let placeholder = match self.placeholders.get(&D) {
            Some(placeholder) => placeholder.clone(),
            None => {
                let new = primitive(&Tensor::<D>::empty([0; D], device))?;
                self.placeholders.entry(D).or_insert(new).clone()
            }
        };
        Ok(Tensor::from_primitive::<Wgpu>(placeholder))
    }
}

impl fmt::Debug for PerTensor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PerTensor").field("group", &self.group).finish_non_exhaustive()
    }
}

impl PerTensor {
    /// An optimizer with one group: hyperparameters, a rule, or a [`Group`] with a precision. Each step gets its learning rate from Burn.
    ///
    /// # Errors
    /// As [`FusedOptimizer::new`](crate::FusedOptimizer::new), and if a hyperparameter is refused.
    pub fn new(gpu: &Gpu, options: Options, group: impl Into<Group>) -> Result<Self, Error> {
        let shared = Shared::new(gpu, options)?;
        let group = group.into();
        let id = shared.core().add_group(group)?;
        let shared = Arc::new(shared);
        Ok(Self { shared, id, group, count: Arc::default(), waiting: Arc::default() })
    }

    /// Takes a step with `optimizer`, which was made of this or has it in a group, and steps all of this one's tensors in one submission
    /// rather than one by one. State stays with `optimizer`, so its records and clones are complete.
    ///
    /// Burn's `Learner` takes its steps in `TrainStep::optimize` and, on several devices, in `TrainStep::optimize_multi`. A model that
    /// overrides them with a call of this trains fused.
    ///
    /// Errors are returned by [`PerTensor::take_error`], as those of single tensors are.
    pub fn step_fused<M: Module>(
        &self,
        optimizer: &mut ModuleOptimizer,
        learning_rate: impl Into<ModuleLearningRate>,
        module: M,
        gradients: impl Into<GradAdaptor>,
    ) -> M {
        let mut empty = Empty::default();
        module.visit(&mut empty);
        let step = WaitingStep::begin(self);
        let module = match gradients.into() {
            GradAdaptor::Single(gradients) => optimizer.step(learning_rate, module, gradients),
            GradAdaptor::Multi(gradients) => optimizer.step_multi(learning_rate, module, gradients),
        };
        let jobs = step.end();
        let (values, outcome) = backend::run(&self.shared, vec![self.at_step()], jobs);
        if let Err(error) = outcome {
            self.shared.fail(error);
        }
        module.map(&mut Fill { values: values.into_iter(), empty: empty.0 })
    }

    fn at_step(&self) -> StepGroup {
        StepGroup { id: self.id, group: self.group, rounds_decay: false }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits all steps so far. Returns the first error of a step since the last call.
    pub fn take_error(&self) -> Option<Error> {
        self.shared.drain().err()
    }

    /// The core's parameter of a state. Registers a new parameter if there is no state, or if the state came from a record or a clone.
    fn parameter(&self, elements: usize, state: Option<&TensorState>) -> Result<ParameterId, Error> {
        let saved = match state.map(|state| &state.0) {
            None => None,
            // There is nothing to continue.
            Some(Kept::Refused(_)) if matches!(self.group.hyperparameters.rule, Rule::Sgd(sgd) if sgd.momentum == 0.0) => {
                None
            }
            Some(Kept::OnDevice { shared, parameter }) if Arc::ptr_eq(shared, &self.shared) => {
                return Ok(*parameter);
            }
            Some(kept) => Some(kept.read()?),
        };
        let label = format!("tensor.{}", self.count.fetch_add(1, Ordering::Relaxed));
        let mut core = self.shared.core();
        let parameter = core.add_parameter(self.id, Parameter::new(&label, elements as u64))?;
        if let Some(saved) = saved
            && let Err(error) = core.write_state(parameter, &saved)
        {
            core.remove_parameter(parameter)?;
            return Err(error.into());
        }
        Ok(parameter)
    }

    /// Checks a step and creates its job.
    fn job<const D: usize>(
        &self,
        learning_rate: f64,
        tensor: &Tensor<D>,
        gradient: Tensor<D>,
        state: Option<&TensorState>,
    ) -> Result<Job<Primitive>, Error> {
        let label = || "of PerTensor".to_owned();
        for tensor in [tensor, &gradient] {
            if tensor.dtype() != DType::F32 {
                return Err(Error::PerTensorDType { found: tensor.dtype() });
            }
        }
        let (found, expected) = (gradient.shape(), tensor.shape());
        if found != expected {
            return Err(Error::Shape { label: label(), found, expected });
        }
        let elements = expected.num_elements();
        let device = self.shared.gpu.device();
        if tensor.device() != device {
            let [found, expected] = [tensor.device(), device].map(|device| format!("{device:?}"));
            return Err(Error::Device { label: label(), found, expected });
        }
        let hyperparameters = self.group.hyperparameters.with_learning_rate(learning_rate);
        hyperparameters.validate().map_err(adamod::Error::from)?;
        let (value, gradient) = (primitive(tensor)?, primitive(&gradient)?);
        let parameter = self.parameter(elements, state)?;
        Ok(Job { parameter, group: self.id, learning_rate, value, gradient })
    }
}

/// A step of [`PerTensor::step_fused`], in which tensors wait.
struct WaitingStep<'a>(&'a PerTensor);

impl<'a> WaitingStep<'a> {
    fn begin(of: &'a PerTensor) -> Self {
        of.waiting().insert(thread::current().id(), WaitingTensors::default());
        Self(of)
    }

    fn end(self) -> Vec<Job<Primitive>> {
        self.0.waiting().remove(&thread::current().id()).unwrap_or_default().jobs
    }
}

/// Also if Burn's step panics.
impl Drop for WaitingStep<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&thread::current().id());
    }
}

/// Parameters without elements.
#[derive(Default)]
struct Empty(HashSet<ParamId>);

impl ModuleVisitor for Empty {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.base().shape().num_elements() == 0 {
            self.0.insert(param.id);
        }
    }
}

/// Puts values in the places of tensors that waited, which have no elements meanwhile. Burn walks through a module in the same order.
struct Fill {
    values: std::vec::IntoIter<Primitive>,
    empty: HashSet<ParamId>,
}

impl ModuleMapper for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.base().shape().num_elements() > 0 || self.empty.contains(&param.id) {
            return param;
        }
        let (id, placeholder, mapper) = param.consume();
        let value = self.values.next().expect("a step returns as many values as it took");
        let value = Autodiff::of(&placeholder).restore(Tensor::from_primitive::<Wgpu>(value), id);
        Param::from_mapped_value(id, value, mapper)
    }
}

impl Optimizer for PerTensor {
    type State<const D: usize> = TensorState;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<TensorState>,
    ) -> (Tensor<D>, Option<TensorState>) {
        if tensor.shape().num_elements() == 0 {
            return (tensor, state);
        }
        let job = match self.job(lr, &tensor, grad, state.as_ref()) {
            Ok(job) => job,
            Err(error) => {
                self.shared.fail(error);
                return (tensor, state);
            }
        };
        let state = TensorState(Kept::OnDevice { shared: self.shared.clone(), parameter: job.parameter });
        // A tensor without dimensions has an element, so it cannot stand for one that waits.
        if D > 0
            && let Some(waiting) = self.waiting().get_mut(&thread::current().id())
        {
            return match waiting.placeholder(&self.shared.gpu.device()) {
                Ok(placeholder) => {
                    waiting.jobs.push(job);
                    (placeholder, Some(state))
                }
                Err(error) => {
                    self.shared.fail(error);
                    (tensor, Some(state))
                }
            };
        }
        // Dropped before the step, so that a tensor to which nothing else refers is updated in place.
        drop(tensor);
        let (mut values, outcome) = backend::run(&self.shared, vec![self.at_step()], vec![job]);
        if let Err(error) = outcome {
            self.shared.fail(error);
        }
        let value = values.pop().expect("a step returns as many values as it took");
        (Tensor::from_primitive::<Wgpu>(value), Some(state))
    }

    fn to_device<const D: usize>(state: TensorState, _: &Device) -> TensorState {
        // The state stays, because a step on another device is refused.
        state
    }
}

/// State of one tensor of [`PerTensor`]. A clone is a copy on the host, read when it is made.
pub struct TensorState(Kept);

enum Kept {
    /// In the core.
    OnDevice { shared: Arc<Shared>, parameter: ParameterId },
    /// From a record or a clone.
    OnHost(State),
    /// It could not be read, with the reason.
    Lost(String),
    /// It is of another optimizer, with the reason.
    Refused(String),
}

impl Kept {
    fn read(&self) -> Result<State, Error> {
        match self {
            Kept::OnDevice { shared, parameter } => {
                shared.drain()?;
                Ok(shared.core().read_state(*parameter).wait()?)
            }
            Kept::OnHost(state) => Ok(state.clone()),
            Kept::Lost(what) => Err(Error::Burn { what: what.clone() }),
            Kept::Refused(what) => {
                Err(Error::Record { label: "of PerTensor".to_owned(), what: what.clone() })
            }
        }
    }
}

impl Clone for TensorState {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Kept::Refused(what) => Kept::Refused(what.clone()),
            kept => kept.read().map_or_else(|error| Kept::Lost(error.to_string()), Kept::OnHost),
        })
    }
}

impl fmt::Debug for TensorState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.0 {
            Kept::OnDevice { .. } => "OnDevice",
            Kept::OnHost(_) => "OnHost",
            Kept::Lost(_) => "Lost",
            Kept::Refused(_) => "Refused",
        };
        formatter.debug_tuple("TensorState").field(&name).finish()
    }
}

// Written by hand, because the derive names crates on which only Burn's own crates depend.
impl RecordState for TensorState {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        match self.0.read() {
            Ok(state) => records::write(state, prefix, out),
            // Without a step count the record has no state of this tensor.
            Err(error) => {
                if let Kept::OnDevice { shared, .. } = &self.0 {
                    shared.fail(error);
                }
            }
        }
    }

    fn state_unflatten(prefix: &str, source: &mut StateSource, _: &Device) -> Option<Self> {
        // A state that is refused is kept, so that its first step can return the error.
        Some(Self(records::read(prefix, source).map_or_else(Kept::Refused, Kept::OnHost)))
    }
}
