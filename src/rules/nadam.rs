//! NAdam, Adam with Nesterov momentum: `torch.optim.NAdam`. `shaders/rules/nadam.wgsl` has the pseudo-code.

use super::arithmetic::{
    Element, General, Stepped, apply_step, check_beta, check_epsilon, ema, ema_weight, eta_of, limited_gradient, one_minus_power,
};
use super::range::{OutOfRange, in_range};
use super::real::Real;
use super::update_rule::{BASE, CoefficientArray, MAX_DECAY_RATES, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of NAdam (Dozat 2016). The defaults are PyTorch's, with a learning rate of 2e-3.
///
/// PyTorch's `mu_product` is computed from the step count. It assumes that the rate and `momentum_decay` have been the same in all steps.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct NAdam {
    /// Decay rates of `exp_avg` and `exp_avg_sq`, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the root of the second moment; PyTorch's `eps`. Above 0, and a normal number in f32.
    pub epsilon: f64,
    /// How fast the momentum of step t, `beta1 (1 - 0.96^(t momentum_decay) / 2)`, grows to beta1. At least 0.
    pub momentum_decay: f64,
}

impl Default for NAdam {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8, momentum_decay: 4e-3 }
    }
}

impl NAdam {
    /// The defaults: betas 0.9 and 0.999, epsilon 1e-8, momentum decay 0.004.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`NAdam::betas`].
    pub fn with_betas(self, betas: [f64; 2]) -> Self {
        Self { betas, ..self }
    }

    /// Sets [`NAdam::epsilon`].
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// Sets [`NAdam::momentum_decay`].
    pub fn with_momentum_decay(self, momentum_decay: f64) -> Self {
        Self { momentum_decay, ..self }
    }

    /// The logarithm of q, the factor from step to step of what the momentum lacks of beta1.
    fn log_q(&self) -> f64 {
        self.momentum_decay * 0.96_f64.ln()
    }

    /// The momentum of step t.
    fn mu(&self, t: f64) -> f64 {
        self.betas[0] * (1.0 - 0.5 * 0.96_f64.powf(t * self.momentum_decay))
    }

    /// 1 - the product of the momenta of steps 1 to t.
    ///
    /// The logarithm of the product of `1 - q^i / 2` is a sum over i of a series in `q^i / 2`. Summed over i first, each term of the
    /// series is a geometric sum.
    fn one_minus_product(&self, t: f64) -> f64 {
        let mut half_power = 1.0;
        let series: f64 = (1..60)
            .map(|k| {
                half_power *= 0.5;
                let k = f64::from(k);
                let log = k * self.log_q();
                // The sum of q^(i k) over i from 1 to t.
                let sum = if log == 0.0 { t } else { log.exp() * (log * t).exp_m1() / log.exp_m1() };
                half_power / k * sum
            })
            .sum();
        if self.betas[0] == 0.0 { 1.0 } else { -(t * self.betas[0].ln() - series).exp_m1() }
    }
}

coefficients! {
    /// Weight of the first moment's average.
    exp_avg_weight,
    /// Weight of the second moment's average.
    exp_avg_sq_weight,
    /// The learning rate.
    step_size,
    /// Factor of `exp_avg` in the direction of the step.
    exp_avg_factor,
    /// Factor of the gradient in the direction of the step.
    gradient_factor,
    /// Factor from `exp_avg_sq` to its bias-corrected form.
    exp_avg_sq_correction,
    /// Added to the root of the second moment.
    epsilon,
    /// Of the factor from step to step of what the momentum lacks of beta1.
    log_q,
}

impl UpdateRule for NAdam {
    const NAME: &'static str = "nadam";
    const STATES: &'static [StateTensor] =
        &[StateTensor::new("exp_avg", Sign::Signed), StateTensor::new("exp_avg_sq", Sign::NonNegative)];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = true;
    const LEARNING_RATE: f64 = 2e-3;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        let [beta1, beta2] = self.betas;
        vec![
            ("betas[0]", beta1),
            ("betas[1]", beta2),
            ("epsilon", self.epsilon),
            ("momentum_decay", self.momentum_decay),
        ]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "betas[0]" => self.betas[0] = value,
            "betas[1]" => self.betas[1] = value,
            "epsilon" => self.epsilon = value,
            "momentum_decay" => self.momentum_decay = value,
            _ => return false,
        }
        true
    }

    fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
        for (name, beta) in ["betas[0]", "betas[1]"].into_iter().zip(self.betas) {
            check_beta(name, beta)?;
        }
        let is_in_range = (0.0..=1e6).contains(&self.momentum_decay);
        in_range("momentum_decay", self.momentum_decay, "a number from 0 to 1e6", is_in_range)?;
        check_epsilon(self.epsilon, learning_rate / (1.0 - self.betas[0]))
    }

    fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
        let [beta1, beta2] = self.betas;
        [beta1, beta2, 0.0]
    }

    fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
        let [beta1, beta2] = self.betas;
        let time = t as f64;
        let (exp_avg_factor, gradient_factor) = if t == BASE {
            (1.0, 1.0)
        } else {
            let (product, next_product) = (self.one_minus_product(time), self.one_minus_product(time + 1.0));
            (self.mu(time + 1.0) / next_product, (1.0 - self.mu(time)) / product)
        };
        Coefficients {
            exp_avg_weight: ema_weight(beta1),
            exp_avg_sq_weight: ema_weight(beta2),
            step_size: learning_rate,
            exp_avg_factor,
            gradient_factor,
            exp_avg_sq_correction: 1.0 / one_minus_power(beta2, t),
            epsilon: self.epsilon,
            log_q: self.log_q(),
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [m, v, unused] = element.state;
        let g = limited_gradient(general, &element);
        let m = ema(m, g, c.exp_avg_weight);
        let v = ema(v, g * g, c.exp_avg_sq_weight);
        let eta = eta_of(c.step_size, v, c.exp_avg_sq_correction, c.epsilon);
        let direction = c.exp_avg_factor * m + c.gradient_factor * g;
        let theta = apply_step(general, element.theta, g, eta, direction);
        Stepped { theta, state: [m, v, unused] }
    }
}
