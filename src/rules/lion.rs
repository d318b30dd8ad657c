//! Lion. `shaders/rules/lion.wgsl` has the pseudo-code.

use super::arithmetic::{Element, General, Stepped, apply_step, check_beta, ema, ema_weight, limited_gradient, signum};
use super::range::OutOfRange;
use super::real::Real;
use super::update_rule::{CoefficientArray, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of Lion (Chen et al. 2023, arXiv:2302.06675). The defaults are those of the authors' code, with a learning rate of 1e-4.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Lion {
    /// Weights of `exp_avg` in the direction of the step and in its own average, each in [0, 1).
    pub betas: [f64; 2],
}

impl Default for Lion {
    fn default() -> Self {
        Self { betas: [0.9, 0.99] }
    }
}

impl Lion {
    /// The defaults: betas 0.9 and 0.99.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Lion::betas`].
    pub fn with_betas(self, betas: [f64; 2]) -> Self {
        Self { betas }
    }
}

coefficients! {
    /// Weight of the average in the direction of the step.
    direction_weight,
    /// Weight of the average.
    exp_avg_weight,
    /// The learning rate.
    step_size,
}

impl UpdateRule for Lion {
    const NAME: &'static str = "lion";
    const STATES: &'static [StateTensor] = &[StateTensor::new("exp_avg", Sign::Signed)];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = false;
    const LEARNING_RATE: f64 = 1e-4;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        vec![("betas[0]", self.betas[0]), ("betas[1]", self.betas[1])]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "betas[0]" => self.betas[0] = value,
            "betas[1]" => self.betas[1] = value,
            _ => return false,
        }
        true
    }

    fn validate(&self, _learning_rate: f64) -> Result<(), OutOfRange> {
        check_beta("betas[0]", self.betas[0])?;
        check_beta("betas[1]", self.betas[1])
    }

    fn coefficients(&self, learning_rate: f64, _t: u64) -> CoefficientArray<f64> {
        Coefficients {
            direction_weight: ema_weight(self.betas[0]),
            exp_avg_weight: ema_weight(self.betas[1]),
            step_size: learning_rate,
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [m, unused1, unused2] = element.state;
        let g = limited_gradient(general, &element);
        let direction = signum(ema(m, g, c.direction_weight));
        let m = ema(m, g, c.exp_avg_weight);
        let theta = apply_step(general, element.theta, g, c.step_size, direction);
        Stepped { theta, state: [m, unused1, unused2] }
    }
}
