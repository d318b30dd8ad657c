//! [`PerTensor`]: the core behind Burn's own optimizer trait, a tensor at a time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use adamod::{GroupId, Hyperparameters, Options, Parameter, ParameterId, Precision, Rule, State};
use burn::backend::wgpu::Wgpu;
use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::backend;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::parameters::primitive;
use crate::shared::{Job, Shared};

/// The step of one tensor, for what wants a [`burn::optim::Optimizer`]: `ModuleOptimizer::from(per_tensor)`, Burn's `Learner`, its
/// groups, clipping and records.
///
/// It costs one submission a tensor, and, without fusion, a wait for Burn's device thread with each: for many small tensors
/// [`FusedOptimizer`](crate::FusedOptimizer) is several times as fast. Tensors are f32. The trait has no way to return an error:
/// a step that fails leaves its tensor unchanged and the error in [`PerTensor::take_error`]. State of tensors that are gone is freed
/// with the last clone of this.
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
    /// A step with these hyperparameters; their learning rate is replaced by the one of each step.
    ///
    /// # Errors
    /// As [`FusedOptimizer::new`](crate::FusedOptimizer::new), and if a hyperparameter is refused.
    pub fn new(
        gpu: &Gpu,
        options: Options,
        hyperparameters: Hyperparameters,
        precision: Precision,
    ) -> Result<Self, Error> {
        let shared = Shared::new(gpu, options)?;
        let group = shared.core().add_group_with(hyperparameters, precision)?;
        Ok(Self { shared: Arc::new(shared), group, hyperparameters, count: Arc::default() })
    }

    /// The first error of a step since the last call, all steps so far submitted.
    pub fn take_error(&self) -> Option<Error> {
        self.shared.drain().err()
    }

    /// The core's parameter behind a state; a new one for none, or for one that a record brought.
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

    /// Checks a step and makes its job.
    fn job<const D: usize>(
        &self,
        learning_rate: f64,
        tensor: &Tensor<D>,
        gradient: Tensor<D>,
        state: Option<&TensorState>,
    ) -> Result<Job<backend::Primitive>, Error> {
        let label = || "of the per-tensor route".to_owned();
        for tensor in [tensor, &gradient] {
            if tensor.dtype() != DType::F32 {
                return Err(Error::PerTensorDType { found: tensor.dtype() });
            }
        }
        let (found, needed) = (gradient.shape(), tensor.shape());
        if found != needed {
            return Err(Error::Shape { label: label(), found, needed });
        }
        let device = self.shared.gpu.device();
        if tensor.device() != device {
            let [found, needed] = [tensor.device(), device].map(|device| format!("{device:?}"));
            return Err(Error::Device { label: label(), found, needed });
        }
        Hyperparameters { learning_rate, ..self.hyperparameters }.validate()?;
        let (value, gradient) = (primitive(tensor)?, primitive(&gradient)?);
        let parameter = self.parameter(needed.num_elements(), state)?;
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
        // Before the step: a tensor that nothing else refers to is updated in place.
        drop(tensor);
        let state = TensorState(Kept::OnDevice { shared: self.shared.clone(), parameter: job.parameter });
        let groups = vec![(self.group, Hyperparameters { learning_rate: lr, ..self.hyperparameters })];
        let (mut values, outcome) = backend::run(&self.shared, groups, vec![job]);
        if let Err(error) = outcome {
            self.shared.fail(error);
        }
        let value = values.pop().expect("a step returns as many values as it took");
        (Tensor::from_primitive::<Wgpu>(value), Some(state))
    }

    fn to_device<const D: usize>(state: TensorState, _: &Device) -> TensorState {
        // State does not move: a step on another device is refused.
        state
    }
}

/// State of one tensor of [`PerTensor`]. A clone is a copy on the host, read when it is made.
pub struct TensorState(Kept);

enum Kept {
    /// In the core's arena.
    OnDevice { shared: Arc<Shared>, parameter: ParameterId },
    /// Of a record or a clone.
    OnHost(State),
    /// It could not be read; why.
    Lost(String),
}

impl Kept {
    fn read(&self) -> Result<State, Error> {
        match self {
            Kept::OnDevice { shared, parameter } => {
                shared.drain()?;
                Ok(shared.core().read_state_blocking(*parameter)?)
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

// By hand: the derive names crates that only Burn's own crates have.
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
        for rule in [Rule::AdaMod, Rule::Sgd] {
            for &name in rule.state_names() {
                if let Some(data) = source.take_tensor(prefix, name) {
                    tensors.push((name, data.try_into_vec().ok()?));
                }
            }
        }
        Some(Self(Kept::OnHost(State { step, tensors })))
    }
}

/// Name of the step count in a record.
const STEP: &str = "step";
