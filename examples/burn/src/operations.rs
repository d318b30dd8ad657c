//! AdaMod in Burn's tensor operations: the twin that tests and benches compare with. It runs on every backend of Burn.

use adamod::{Hyperparameters, Objective, WeightDecay};
use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor, activation};

/// The paper's Algorithm 2 as a [`burn::optim::Optimizer`], one tensor operation a term.
#[derive(Clone, Debug)]
pub struct AdaMod {
    hyperparameters: Hyperparameters,
    minimum: Minimum,
}

/// How the smaller of two tensors is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Minimum {
    /// `min_pair`. It has a mask, at which Burn 0.22 stops fusing.
    #[default]
    Exact,
    /// `s - max(s - eta, 0)`, which Burn fuses: a rate far below its moving average is off by that average's rounding.
    Fusing,
}

impl AdaMod {
    /// With these hyperparameters; their learning rate is replaced by the one of each step.
    pub fn new(hyperparameters: Hyperparameters) -> Self {
        Self { hyperparameters, minimum: Minimum::default() }
    }

    /// The same with another minimum.
    #[must_use]
    pub fn with_minimum(self, minimum: Minimum) -> Self {
        Self { minimum, ..self }
    }
}

/// State of one tensor of [`AdaMod`].
#[derive(Clone, Debug)]
pub struct AdaModState<const D: usize> {
    step: u64,
    exp_avg: Tensor<D>,
    exp_avg_sq: Tensor<D>,
    exp_avg_lr: Tensor<D>,
}

impl Optimizer for AdaMod {
    type State<const D: usize> = AdaModState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdaModState<D>>,
    ) -> (Tensor<D>, Option<AdaModState<D>>) {
        let Hyperparameters { betas: [beta1, beta2, beta3], epsilon, weight_decay, objective, .. } =
            self.hyperparameters;
        let grad = match objective {
            Objective::Minimize => grad,
            Objective::Maximize => grad.neg(),
        };
        let (tensor, grad) = match weight_decay {
            WeightDecay::None => (tensor, grad),
            WeightDecay::Decoupled(lambda) => (tensor.mul_scalar(1.0 - lr * lambda), grad),
            WeightDecay::Coupled(lambda) => (tensor.clone(), grad + tensor.mul_scalar(lambda)),
        };
        let state = state.unwrap_or_else(|| {
            let zeros = grad.zeros_like();
            AdaModState { step: 0, exp_avg: zeros.clone(), exp_avg_sq: zeros.clone(), exp_avg_lr: zeros }
        });
        let step = state.step + 1;
        let corrected = |beta: f64| 1.0 - beta.powf(step as f64);
        let exp_avg = state.exp_avg.mul_scalar(beta1) + grad.clone().mul_scalar(1.0 - beta1);
        let exp_avg_sq = state.exp_avg_sq.mul_scalar(beta2) + grad.square().mul_scalar(1.0 - beta2);
        let root = exp_avg_sq.clone().div_scalar(corrected(beta2)).sqrt();
        let eta = root.add_scalar(epsilon).recip().mul_scalar(lr);
        let exp_avg_lr = state.exp_avg_lr.mul_scalar(beta3) + eta.clone().mul_scalar(1.0 - beta3);
        let bounded = match self.minimum {
            Minimum::Exact => eta.min_pair(exp_avg_lr.clone()),
            Minimum::Fusing => exp_avg_lr.clone() - activation::relu(exp_avg_lr.clone() - eta),
        };
        let tensor = tensor - bounded * exp_avg.clone().div_scalar(corrected(beta1));
        (tensor, Some(AdaModState { step, exp_avg, exp_avg_sq, exp_avg_lr }))
    }

    fn to_device<const D: usize>(state: AdaModState<D>, device: &Device) -> AdaModState<D> {
        AdaModState {
            step: state.step,
            exp_avg: state.exp_avg.to_device(device),
            exp_avg_sq: state.exp_avg_sq.to_device(device),
            exp_avg_lr: state.exp_avg_lr.to_device(device),
        }
    }
}

// By hand: the derive names crates that only Burn's own crates have.
impl<const D: usize> RecordState for AdaModState<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_scalar(prefix, "step", self.step.into());
        for (name, tensor) in
            [("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq), ("exp_avg_lr", &self.exp_avg_lr)]
        {
            out.push_tensor(prefix, name, tensor.to_data());
        }
    }

    fn state_unflatten(prefix: &str, source: &mut StateSource, device: &Device) -> Option<Self> {
        let step = u64::try_from(source.take_scalar(prefix, "step")?).ok()?;
        let mut tensor = |name| Some(Tensor::from_data(source.take_tensor(prefix, name)?, device));
        Some(Self {
            step,
            exp_avg: tensor("exp_avg")?,
            exp_avg_sq: tensor("exp_avg_sq")?,
            exp_avg_lr: tensor("exp_avg_lr")?,
        })
    }
}
