//! NosAdam, Adam whose second moment weighs early gradients more. `shaders/rules/nosadam.wgsl` has the pseudo-code.

use super::arithmetic::{
    Element, General, Stepped, apply_step, check_beta, check_epsilon, ema, ema_weight, eta_of, limited_gradient, one_minus_power,
};
use super::range::{OutOfRange, in_range};
use super::real::Real;
use super::update_rule::{CoefficientArray, MAX_DECAY_RATES, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of NosAdam (Huang et al. 2019, arXiv:1805.07557). The defaults are those of the authors' code.
///
/// The second moment is the average of all squares in which the square of step k has the weight `k^-gamma`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct NosAdam {
    /// Decay rate of `exp_avg`, in [0, 1); the first of the `betas` of the authors' code, which does not use the second.
    pub beta1: f64,
    /// Added to the root of the second moment; `eps` of the authors' code. Above 0, and a normal number in f32.
    pub epsilon: f64,
    /// From 0 to 2. 0, the default of the authors' code, weighs all squares alike. The paper's experiments have 0.1.
    pub gamma: f64,
}

impl Default for NosAdam {
    fn default() -> Self {
        Self { beta1: 0.9, epsilon: 1e-8, gamma: 0.0 }
    }
}

impl NosAdam {
    /// The defaults: beta1 0.9, epsilon 1e-8, gamma 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`NosAdam::beta1`].
    pub fn with_beta1(self, beta1: f64) -> Self {
        Self { beta1, ..self }
    }

    /// Sets [`NosAdam::epsilon`].
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// Sets [`NosAdam::gamma`].
    pub fn with_gamma(self, gamma: f64) -> Self {
        Self { gamma, ..self }
    }

    /// The sum of `k^-gamma` for k from 1 to t: term by term up to 16, and by the formula of Euler and Maclaurin beyond.
    fn sum_of_weights(&self, t: u64) -> f64 {
        const FIRST: u64 = 16;
        let gamma = self.gamma;
        let sum: f64 = (1..=t.min(FIRST)).map(|k| (k as f64).powf(-gamma)).sum();
        if t <= FIRST {
            return sum;
        }
        let (first, last) = (FIRST as f64, t as f64);
        let log = (last / first).ln();
        let rise = (1.0 - gamma) * log;
        let integral = first.powf(1.0 - gamma) * log * if rise == 0.0 { 1.0 } else { rise.exp_m1() / rise };
        let difference = |power: f64| last.powf(-gamma - power) - first.powf(-gamma - power);
        sum + integral + difference(0.0) / 2.0 - gamma * difference(1.0) / 12.0
            + gamma * (gamma + 1.0) * (gamma + 2.0) * difference(3.0) / 720.0
    }
}

coefficients! {
    /// Weight of the first moment's average.
    exp_avg_weight,
    /// Weight of the second moment's average.
    exp_avg_sq_weight,
    /// The learning rate.
    step_size,
    /// Factor from `exp_avg` to its bias-corrected form.
    exp_avg_correction,
    /// Added to the root of the second moment.
    epsilon,
    /// The power of the weights, negated.
    gamma,
}

impl UpdateRule for NosAdam {
    const NAME: &'static str = "nosadam";
    const STATES: &'static [StateTensor] =
        &[StateTensor::new("exp_avg", Sign::Signed), StateTensor::new("exp_avg_sq", Sign::NonNegative)];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = true;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        vec![("betas[0]", self.beta1), ("epsilon", self.epsilon), ("gamma", self.gamma)]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "betas[0]" => self.beta1 = value,
            "epsilon" => self.epsilon = value,
            "gamma" => self.gamma = value,
            _ => return false,
        }
        true
    }

    fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
        check_beta("betas[0]", self.beta1)?;
        in_range("gamma", self.gamma, "a number from 0 to 2", (0.0..=2.0).contains(&self.gamma))?;
        check_epsilon(self.epsilon, learning_rate / (1.0 - self.beta1))
    }

    fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
        [self.beta1, 0.0, 0.0]
    }

    fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
        // beta2 of step t is the weight of all squares before it.
        let beta2 = self.sum_of_weights(t - 1) / self.sum_of_weights(t);
        Coefficients {
            exp_avg_weight: ema_weight(self.beta1),
            exp_avg_sq_weight: if beta2 >= 0.5 {
                (t as f64).powf(-self.gamma) / self.sum_of_weights(t)
            } else {
                -beta2
            },
            step_size: learning_rate,
            exp_avg_correction: 1.0 / one_minus_power(self.beta1, t),
            epsilon: self.epsilon,
            gamma: self.gamma,
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [m, v, unused] = element.state;
        let g = limited_gradient(general, &element);
        let m = ema(m, g, c.exp_avg_weight);
        let v = ema(v, g * g, c.exp_avg_sq_weight);
        let eta = eta_of(c.step_size, v, T::from_f64(1.0), c.epsilon);
        let theta = apply_step(general, element.theta, g, eta, m * c.exp_avg_correction);
        Stepped { theta, state: [m, v, unused] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum as it is, for each gamma around those where the formula changes. Measured: off by at most 2e-11.
    #[test]
    fn the_sum_of_weights_is_that_of_its_terms() {
        for gamma in [0.0, 0.1, 0.5, 1.0 - 1e-12, 1.0, 1.5, 2.0] {
            let rule = NosAdam::new().with_gamma(gamma);
            let mut sum = 0.0;
            for t in 1..=20_000_u64 {
                sum += (t as f64).powf(-gamma);
                let relative = rule.sum_of_weights(t) / sum - 1.0;
                assert!(relative.abs() < 1e-10, "gamma {gamma}, t {t}: {relative:e}");
            }
        }
    }
}
