//! RAdam, Adam with a rectified learning rate: `torch.optim.RAdam`. `shaders/rules/radam.wgsl` has the pseudo-code.

use super::arithmetic::{
    Element, General, Stepped, apply_step, check_beta, check_epsilon, ema, ema_weight, eta_of, limited_gradient, one_minus_power,
};
use super::range::OutOfRange;
use super::real::Real;
use super::update_rule::{BASE, CoefficientArray, MAX_DECAY_RATES, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of RAdam (Liu et al. 2020, arXiv:1908.03265). The defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RAdam {
    /// Decay rates of `exp_avg` and `exp_avg_sq`, each in [0, 1). With a second rate up to 2/3 no step is rectified.
    pub betas: [f64; 2],
    /// Added to the root of `exp_avg_sq` before its bias correction; PyTorch's `eps`. Above 0, and a normal number in f32.
    pub epsilon: f64,
}

impl Default for RAdam {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8 }
    }
}

impl RAdam {
    /// The defaults: betas 0.9 and 0.999, epsilon 1e-8.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`RAdam::betas`].
    pub fn with_betas(self, betas: [f64; 2]) -> Self {
        Self { betas, ..self }
    }

    /// Sets [`RAdam::epsilon`].
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// The paper's rho of step t, `rho_inf - 2 t beta2^t / (1 - beta2^t)`, as `2 a - 1`: a is the mean of 1 to t in which i has the
    /// weight `beta2^(i - 1)`. Sums over runs of steps are put together by the binary digits of t, and all terms are positive.
    fn rho(&self, t: u64) -> f64 {
        let beta2 = self.betas[1];
        // Of the steps so far: their number, sum of weights, sum of weighted steps, and beta2^number.
        let (mut steps, mut sum, mut weighted, mut power) = (0.0, 0.0, 0.0, 1.0);
        // Of a run of 1, 2, 4, ... steps.
        let (mut run, mut run_sum, mut run_weighted, mut run_power) = (1.0, 1.0, 1.0, beta2);
        let mut digits = t;
        while digits != 0 {
            if digits & 1 == 1 {
                weighted += power * (run_weighted + steps * run_sum);
                sum += power * run_sum;
                power *= run_power;
                steps += run;
            }
            run_weighted += run_power * (run_weighted + run * run_sum);
            run_sum += run_power * run_sum;
            run_power *= run_power;
            run += run;
            digits >>= 1;
        }
        2.0 * weighted / sum - 1.0
    }

    /// The factor of the learning rate in step t; `None` if the step is not rectified.
    fn rectification(&self, t: u64) -> Option<f64> {
        let most = 2.0 / (1.0 - self.betas[1]) - 1.0;
        let rho = if t == BASE { most } else { self.rho(t).min(most) };
        let ratio = (rho - 4.0) / (most - 4.0) * ((rho - 2.0) / (most - 2.0)) * (most / rho);
        (rho > 5.0).then(|| ratio.sqrt())
    }
}

coefficients! {
    /// Weight of the first moment's average.
    exp_avg_weight,
    /// Weight of the second moment's average.
    exp_avg_sq_weight,
    /// Numerator of eta.
    step_size,
    /// Factor from `exp_avg` to its bias-corrected form.
    exp_avg_correction,
    /// Factor of the second moment: 1, or 0 if the step is not rectified.
    exp_avg_sq_factor,
    /// Added to the root of the second moment: epsilon, or 1 if the step is not rectified.
    epsilon,
}

impl UpdateRule for RAdam {
    const NAME: &'static str = "radam";
    const STATES: &'static [StateTensor] =
        &[StateTensor::new("exp_avg", Sign::Signed), StateTensor::new("exp_avg_sq", Sign::NonNegative)];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = true;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        let [beta1, beta2] = self.betas;
        vec![("betas[0]", beta1), ("betas[1]", beta2), ("epsilon", self.epsilon)]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "betas[0]" => self.betas[0] = value,
            "betas[1]" => self.betas[1] = value,
            "epsilon" => self.epsilon = value,
            _ => return false,
        }
        true
    }

    fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
        for (name, beta) in ["betas[0]", "betas[1]"].into_iter().zip(self.betas) {
            check_beta(name, beta)?;
        }
        check_epsilon(self.epsilon, learning_rate / (1.0 - self.betas[0]))
    }

    fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
        let [beta1, beta2] = self.betas;
        [beta1, beta2, 0.0]
    }

    fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
        let [beta1, beta2] = self.betas;
        let (step_size, exp_avg_sq_factor, epsilon) = match self.rectification(t) {
            Some(factor) => (learning_rate * factor * one_minus_power(beta2, t).sqrt(), 1.0, self.epsilon),
            None => (learning_rate, 0.0, 1.0),
        };
        Coefficients {
            exp_avg_weight: ema_weight(beta1),
            exp_avg_sq_weight: ema_weight(beta2),
            step_size,
            exp_avg_correction: 1.0 / one_minus_power(beta1, t),
            exp_avg_sq_factor,
            epsilon,
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [m, v, unused] = element.state;
        let g = limited_gradient(general, &element);
        let m = ema(m, g, c.exp_avg_weight);
        let v = ema(v, g * g, c.exp_avg_sq_weight);
        let eta = eta_of(c.step_size, v, c.exp_avg_sq_factor, c.epsilon);
        let theta = apply_step(general, element.theta, g, eta, m * c.exp_avg_correction);
        Stepped { theta, state: [m, v, unused] }
    }
}
