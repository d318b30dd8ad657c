//! AdaMod in Burn's tensor operations, with which tests and benches compare. It runs on every backend of Burn.

use adamod::{Formula, Objective, WeightDecay};
use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor, activation};

/// AdaMod as a [`burn::optim::Optimizer`], with one tensor operation for each term. Each step gets its learning rate from Burn.
#[derive(Clone, Debug)]
pub struct AdaMod {
    rule: adamod::AdaMod,
    weight_decay: WeightDecay,
    objective: Objective,
    minimum: Minimum,
}

/// How the smaller of two tensors is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Minimum {
    /// `min_pair`. It uses a mask, at which Burn 0.22 stops fusing.
    #[default]
    Exact,
    /// `s - max(s - eta, 0)`, which Burn fuses. A rate far below its moving average has the rounding error of that average.
    Fusing,
}

impl AdaMod {
    /// The rule without weight decay.
    pub fn new(rule: adamod::AdaMod) -> Self {
        let (weight_decay, objective) = (WeightDecay::default(), Objective::default());
        Self { rule, weight_decay, objective, minimum: Minimum::default() }
    }

    /// Sets the weight decay.
    #[must_use]
    pub fn with_weight_decay(self, weight_decay: WeightDecay) -> Self {
        Self { weight_decay, ..self }
    }

    /// Sets the direction of the step.
    #[must_use]
    pub fn with_objective(self, objective: Objective) -> Self {
        Self { objective, ..self }
    }

    /// Sets how the bound is applied.
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
        let adamod::AdaMod { betas: [beta1, beta2, beta3], epsilon, formula, .. } = self.rule;
        let grad = match self.objective {
            Objective::Minimize => grad,
            Objective::Maximize => grad.neg(),
        };
        let (tensor, grad) = match self.weight_decay {
            WeightDecay::Decoupled(lambda) => (tensor.mul_scalar(1.0 - lr * lambda), grad),
            WeightDecay::Coupled(lambda) => (tensor.clone(), grad + tensor.mul_scalar(lambda)),
            _ => (tensor, grad),
        };
        let state = state.unwrap_or_else(|| {
            let zeros = grad.zeros_like();
            AdaModState { step: 0, exp_avg: zeros.clone(), exp_avg_sq: zeros.clone(), exp_avg_lr: zeros }
        });
        let step = state.step + 1;
        let [correction1, correction2] = [beta1, beta2].map(|beta| 1.0 - beta.powf(step as f64));
        let (step_size, correction1, correction2) = match formula {
            Formula::Paper => (lr, correction1, correction2),
            Formula::AuthorsCode => (lr * correction2.sqrt() / correction1, 1.0, 1.0),
        };
        let exp_avg = state.exp_avg.mul_scalar(beta1) + grad.clone().mul_scalar(1.0 - beta1);
        let exp_avg_sq = state.exp_avg_sq.mul_scalar(beta2) + grad.square().mul_scalar(1.0 - beta2);
        let root = exp_avg_sq.clone().div_scalar(correction2).sqrt();
        let eta = root.add_scalar(epsilon).recip().mul_scalar(step_size);
        let exp_avg_lr = state.exp_avg_lr.mul_scalar(beta3) + eta.clone().mul_scalar(1.0 - beta3);
        let bounded = match self.minimum {
            Minimum::Exact => eta.min_pair(exp_avg_lr.clone()),
            Minimum::Fusing => exp_avg_lr.clone() - activation::relu(exp_avg_lr.clone() - eta),
        };
        let tensor = tensor - bounded * exp_avg.clone().div_scalar(correction1);
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

// Written by hand, because the derive names crates on which only Burn's own crates depend.
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
