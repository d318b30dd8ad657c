//! [`PerTensor`]: the core behind Burn's own optimizer trait, one tensor at a time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use adamod::{Group, GroupId, Hyperparameters, Options, Parameter, ParameterId, RuleForm, State};
use burn::backend::wgpu::Wgpu;
use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::backend;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::parameters::primitive;
use crate::shared::{Job, Shared};

/// The core as a [`burn::optim::Optimizer`]: for `ModuleOptimizer::from(per_tensor)`, and for Burn's `Learner`, groups, clipping and
/// records.
///
/// Each tensor costs a submission and, without fusion, a wait for Burn's device thread. For many small tensors
/// [`FusedOptimizer`](crate::FusedOptimizer) is several times as fast. Tensors are f32. The trait cannot return errors: a step that fails
/// leaves its tensor unchanged, and [`PerTensor::take_error`] returns the error. The state of dropped tensors is freed with the last clone
/// of this.
#[derive(Clone)]
pub struct PerTensor {
    shared: Arc<Shared>,
    group: GroupId,
    hyperparameters: Hyperparameters,
    count: Arc<AtomicU64>,
}

impl fmt::Debug for PerTensor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PerTensor")
            .field("hyperparameters", &self.hyperparameters)
            .finish_non_exhaustive()
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
        let hyperparameters = group.hyperparameters;
        Ok(Self { shared: Arc::new(shared), group: id, hyperparameters, count: Arc::default() })
    }

    /// Submits all steps so far. Returns the first error of a step since the last call.
    pub fn take_error(&self) -> Option<Error> {
        self.shared.drain().err()
    }

    /// The core's parameter of a state. Registers a new parameter if there is no state, or if the state came from a record or a clone.
    fn parameter(&self, elements: usize, state: Option<&TensorState>) -> Result<ParameterId, Error> {
        let saved = match state.map(|state| &state.0) {
            None => None,
            Some(Kept::OnDevice { shared, parameter }) if Arc::ptr_eq(shared, &self.shared) => {
                return Ok(*parameter);
            }
            Some(kept) => Some(kept.read()?),
        };
        let label = format!("tensor.{}", self.count.fetch_add(1, Ordering::Relaxed));
        let mut core = self.shared.core();
        let parameter = core.add_parameter(self.group, Parameter::new(&label, elements as u64))?;
        if let Some(saved) = saved {
            core.write_state(parameter, &saved)?;
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
    ) -> Result<Job<backend::Primitive>, Error> {
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
        let hyperparameters = self.hyperparameters.with_learning_rate(learning_rate);
        hyperparameters.validate().map_err(adamod::Error::from)?;
        let (value, gradient) = (primitive(tensor)?, primitive(&gradient)?);
        let parameter = self.parameter(elements, state)?;
        Ok(Job { parameter, value, gradient })
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
        // Dropped before the step, so that a tensor to which nothing else refers is updated in place.
        drop(tensor);
        let state = TensorState(Kept::OnDevice { shared: self.shared.clone(), parameter: job.parameter });
        let groups = vec![(self.group, self.hyperparameters.with_learning_rate(lr))];
        let (mut values, outcome) = backend::run(&self.shared, groups, vec![job]);
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
        }
    }
}

impl Clone for TensorState {
    fn clone(&self) -> Self {
        Self(self.0.read().map_or_else(|error| Kept::Lost(error.to_string()), Kept::OnHost))
    }
}

impl fmt::Debug for TensorState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.0 {
            Kept::OnDevice { .. } => "OnDevice",
            Kept::OnHost(_) => "OnHost",
            Kept::Lost(_) => "Lost",
        };
        formatter.debug_tuple("TensorState").field(&name).finish()
    }
}

// Written by hand, because the derive names crates on which only Burn's own crates depend.
impl RecordState for TensorState {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        match self.0.read() {
            Ok(state) => {
                out.push_scalar(prefix, STEP, state.step.into());
                for (name, elements) in state.tensors {
                    let shape = [elements.len()];
                    out.push_tensor(prefix, name, TensorData::new(elements, shape));
                }
            }
            // Without a step count the record has no state of this tensor.
            Err(error) => {
                if let Kept::OnDevice { shared, .. } = &self.0 {
                    shared.fail(error);
                }
            }
        }
    }

    fn state_unflatten(prefix: &str, source: &mut StateSource, _: &Device) -> Option<Self> {
        let step = u64::try_from(source.take_scalar(prefix, STEP)?).ok()?;
        let mut tensors = Vec::new();
        // Rules share names. Whichever rule comes first takes the tensor out of the source.
        for name in RuleForm::all().flat_map(RuleForm::state_names) {
            if let Some(data) = source.take_tensor(prefix, name) {
                tensors.push((name, data.try_into_vec().ok()?));
            }
        }
        Some(Self(Kept::OnHost(State::new(step, tensors))))
    }
}

/// Name of the step count in a record.
const STEP: &str = "step";
