//! SGD with momentum, the paper's SGDM. `shaders/rules/sgd.wgsl` has the pseudo-code.

use super::arithmetic::{General, Element, Stepped, apply_step, check_beta, scaled_gradient};
use super::real::Real;
use super::range::OutOfRange;
use super::update_rule::{CoefficientArray, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of SGD with momentum, as in `torch.optim.SGD` without dampening and Nesterov momentum.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sgd {
    /// Momentum, in [0, 1). 0.9 by default, as in the paper's experiments.
    pub momentum: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { momentum: 0.9 }
    }
}

impl Sgd {
    /// Momentum 0.9.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Sgd::momentum`].
    pub fn with_momentum(self, momentum: f64) -> Self {
        Self { momentum }
    }
}

coefficients! {
    /// Factor of the momentum buffer.
    momentum,
    /// The learning rate.
    step_size,
}

impl UpdateRule for Sgd {
    const NAME: &'static str = "sgd";
    const STATES: &'static [StateTensor] = &[StateTensor::new("momentum_buffer", Sign::Signed)];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = false;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        vec![("momentum", self.momentum)]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        if name == "momentum" {
            self.momentum = value;
        }
        name == "momentum"
    }

    fn validate(&self, _learning_rate: f64) -> Result<(), OutOfRange> {
        check_beta("momentum", self.momentum)
    }

    fn coefficients(&self, learning_rate: f64, _t: u64) -> CoefficientArray<f64> {
        Coefficients { momentum: self.momentum, step_size: learning_rate }.to_array()
    }

    fn step<T: Real>(general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [buffer, unused1, unused2] = element.state;
        let buffer = c.momentum * buffer + scaled_gradient(general, &element);
        let theta = apply_step(general, element.theta, c.step_size, buffer);
        Stepped { theta, state: [buffer, unused1, unused2] }
    }
}
