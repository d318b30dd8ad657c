//! AdaDelta: `torch.optim.Adadelta`. `shaders/rules/adadelta.wgsl` has the pseudo-code.

use super::arithmetic::{
    Element, General, Stepped, apply_step, check_beta, check_largest_rate, check_normal, ema, ema_weight, limited_gradient,
};
use super::range::OutOfRange;
use super::real::Real;
use super::update_rule::{CoefficientArray, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of AdaDelta (Zeiler 2012, arXiv:1212.5701). The defaults are PyTorch's, with a learning rate of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdaDelta {
    /// Decay rate of both averages, in [0, 1).
    pub rho: f64,
    /// Added to both averages under the roots; PyTorch's `eps`. Above 0, and a normal number in f32.
    pub epsilon: f64,
}

impl Default for AdaDelta {
    fn default() -> Self {
        Self { rho: 0.9, epsilon: 1e-6 }
    }
}

impl AdaDelta {
    /// The defaults: rho 0.9, epsilon 1e-6.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`AdaDelta::rho`].
    pub fn with_rho(self, rho: f64) -> Self {
        Self { rho, ..self }
    }

    /// Sets [`AdaDelta::epsilon`].
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }
}

coefficients! {
    /// Weight of the averages.
    weight,
    /// The learning rate.
    step_size,
    /// Added to the averages.
    epsilon,
}

impl UpdateRule for AdaDelta {
    const NAME: &'static str = "adadelta";
    const STATES: &'static [StateTensor] =
        &[StateTensor::new("square_avg", Sign::NonNegative), StateTensor::new("acc_delta", Sign::NonNegative)];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = true;
    const LEARNING_RATE: f64 = 1.0;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        vec![("rho", self.rho), ("epsilon", self.epsilon)]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "rho" => self.rho = value,
            "epsilon" => self.epsilon = value,
            _ => return false,
        }
        true
    }

    fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
        check_beta("rho", self.rho)?;
        check_normal("epsilon", self.epsilon)?;
        check_largest_rate("learning_rate", learning_rate)
    }

    fn coefficients(&self, learning_rate: f64, _t: u64) -> CoefficientArray<f64> {
        Coefficients { weight: ema_weight(self.rho), step_size: learning_rate, epsilon: self.epsilon }.to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [square_avg, acc_delta, unused] = element.state;
        let g = limited_gradient(general, &element);
        let square_avg = ema(square_avg, g * g, c.weight);
        let ratio = (acc_delta + c.epsilon).sqrt() / (square_avg + c.epsilon).sqrt();
        let delta = ratio * g;
        let acc_delta = ema(acc_delta, delta * delta, c.weight);
        let theta = apply_step(general, element.theta, g, c.step_size, delta);
        Stepped { theta, state: [square_avg, acc_delta, unused] }
    }
}
