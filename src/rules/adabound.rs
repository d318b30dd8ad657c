//! AdaBound, Adam between bounds that close in on a learning rate of SGD. `shaders/rules/adabound.wgsl` has the pseudo-code.

use super::arithmetic::{
    Element, General, Stepped, apply_step, check_beta, check_epsilon, check_largest_rate, check_normal, ema, ema_weight, eta_of, larger,
    limited_gradient, one_minus_power, set_option,
};
use super::range::{OutOfRange, in_range};
use super::real::Real;
use super::update_rule::{BASE, CoefficientArray, MAX_DECAY_RATES, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of AdaBound (Luo et al. 2019, arXiv:1902.09843). The defaults are those of the authors' code (PyPI `adabound` 0.0.5).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdaBound {
    /// Decay rates of `exp_avg` and `exp_avg_sq`, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the root of the second moment; `eps` of the authors' code. Above 0, and a normal number in f32.
    pub epsilon: f64,
    /// The learning rate to which both bounds converge, at `learning_rate = base_lr`. 0.1 by default.
    pub final_lr: f64,
    /// The learning rate that `final_lr` belongs to, above 0. The bounds follow a schedule: they are multiplied by `learning_rate / base_lr`. The
    /// authors' code takes the learning rate that the optimizer was made with. 1e-3 by default.
    pub base_lr: f64,
    /// How fast the bounds converge, above 0. 1e-3 by default.
    pub gamma: f64,
    /// AMSBound: divides by the root of the largest second moment so far, which is a third state.
    pub amsbound: bool,
}

impl Default for AdaBound {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8, final_lr: 0.1, base_lr: 1e-3, gamma: 1e-3, amsbound: false }
    }
}

impl AdaBound {
    /// The defaults: betas 0.9 and 0.999, epsilon 1e-8, final learning rate 0.1 for a base of 1e-3, gamma 1e-3, no `amsbound`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`AdaBound::betas`].
    pub fn with_betas(self, betas: [f64; 2]) -> Self {
        Self { betas, ..self }
    }

    /// Sets [`AdaBound::epsilon`].
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// Sets [`AdaBound::final_lr`].
    pub fn with_final_lr(self, final_lr: f64) -> Self {
        Self { final_lr, ..self }
    }

    /// Sets [`AdaBound::base_lr`].
    pub fn with_base_lr(self, base_lr: f64) -> Self {
        Self { base_lr, ..self }
    }

    /// Sets [`AdaBound::gamma`].
    pub fn with_gamma(self, gamma: f64) -> Self {
        Self { gamma, ..self }
    }

    /// Sets [`AdaBound::amsbound`].
    pub fn with_amsbound(self, amsbound: bool) -> Self {
        Self { amsbound, ..self }
    }
}

coefficients! {
    /// Weight of the first moment's average.
    exp_avg_weight,
    /// Weight of the second moment's average.
    exp_avg_sq_weight,
    /// Numerator of eta, with both bias corrections.
    step_size,
    /// Added to the root of the second moment.
    epsilon,
    /// The smallest learning rate.
    lower_bound,
    /// The largest learning rate.
    upper_bound,
    /// How fast the bounds converge.
    gamma,
}

impl UpdateRule for AdaBound {
    const NAME: &'static str = "adabound";
    const STATES: &'static [StateTensor] =
        &[StateTensor::new("exp_avg", Sign::Signed), StateTensor::new("exp_avg_sq", Sign::NonNegative)];
    const FORMS: &'static [(&'static str, &'static [StateTensor])] = &[
        ("", Self::STATES),
        (
            "amsbound",
            &[Self::STATES[0], Self::STATES[1], StateTensor::new("max_exp_avg_sq", Sign::NonNegative)],
        ),
    ];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const RATE_COEFFICIENTS: &'static [&'static str] = &["step_size", "lower_bound", "upper_bound"];
    const HAS_ELEMENT_RATES: bool = true;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        let [beta1, beta2] = self.betas;
        vec![
            ("betas[0]", beta1),
            ("betas[1]", beta2),
            ("epsilon", self.epsilon),
            ("final_lr", self.final_lr),
            ("base_lr", self.base_lr),
            ("gamma", self.gamma),
            ("amsbound", f64::from(self.amsbound)),
        ]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "betas[0]" => self.betas[0] = value,
            "betas[1]" => self.betas[1] = value,
            "epsilon" => self.epsilon = value,
            "final_lr" => self.final_lr = value,
            "base_lr" => self.base_lr = value,
            "gamma" => self.gamma = value,
            "amsbound" => return set_option(&mut self.amsbound, value),
            _ => return false,
        }
        true
    }

    fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
        for (name, beta) in ["betas[0]", "betas[1]"].into_iter().zip(self.betas) {
            check_beta(name, beta)?;
        }
        in_range("final_lr", self.final_lr, "a finite number, at least 0", self.final_lr >= 0.0)?;
        check_normal("base_lr", self.base_lr)?;
        check_normal("gamma", self.gamma)?;
        let first_bound = self.final_lr * learning_rate / self.base_lr * (1.0 + 1.0 / self.gamma);
        check_largest_rate("final_lr * learning_rate / base_lr * (1 + 1 / gamma)", first_bound)?;
        check_epsilon(self.epsilon, learning_rate / (1.0 - self.betas[0]))
    }

    fn form(&self) -> usize {
        usize::from(self.amsbound)
    }

    fn of_form(form: usize) -> Self {
        Self::default().with_amsbound(form == 1)
    }

    fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
        let [beta1, beta2] = self.betas;
        [beta1, beta2, 0.0]
    }

    fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
        let [beta1, beta2] = self.betas;
        let final_lr = self.final_lr * learning_rate / self.base_lr;
        let closeness = self.gamma * t as f64;
        let (below, above) =
            if t == BASE { (1.0, 1.0) } else { (closeness / (closeness + 1.0), 1.0 + 1.0 / closeness) };
        Coefficients {
            exp_avg_weight: ema_weight(beta1),
            exp_avg_sq_weight: ema_weight(beta2),
            step_size: learning_rate * one_minus_power(beta2, t).sqrt() / one_minus_power(beta1, t),
            epsilon: self.epsilon,
            lower_bound: final_lr * below,
            upper_bound: final_lr * above,
            gamma: self.gamma,
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [m, v, largest] = element.state;
        let g = limited_gradient(general, &element);
        let m = ema(m, g, c.exp_avg_weight);
        let v = ema(v, g * g, c.exp_avg_sq_weight);
        let largest = if self.amsbound { larger(largest, v) } else { largest };
        let second = if self.amsbound { largest } else { v };
        let eta = eta_of(c.step_size, second, T::from_f64(1.0), c.epsilon);
        let below = if eta > c.upper_bound { c.upper_bound } else { eta };
        let bounded = if below < c.lower_bound { c.lower_bound } else { below };
        let theta = apply_step(general, element.theta, g, bounded, m);
        Stepped { theta, state: [m, v, largest] }
    }
}
