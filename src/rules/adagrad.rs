//! AdaGrad: `torch.optim.Adagrad`. `shaders/rules/adagrad.wgsl` has the pseudo-code.

use super::arithmetic::{
    Element, General, Stepped, apply_step, check_largest_rate, check_normal, eta_of, limited_gradient,
};
use super::range::{OutOfRange, in_range};
use super::real::Real;
use super::update_rule::{BASE, CoefficientArray, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of AdaGrad (Duchi et al. 2011). The defaults are PyTorch's, with a learning rate of 1e-2.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdaGrad {
    /// Divides the learning rate of step t by `1 + (t - 1) lr_decay`. At least 0, and 0 by default.
    pub lr_decay: f64,
    /// What `sum` starts from, at least 0. It is added in the first step; before it `sum` is 0.
    pub initial_accumulator_value: f64,
    /// Added to the root of `sum`; PyTorch's `eps`. Above 0, and a normal number in f32.
    pub epsilon: f64,
}

impl Default for AdaGrad {
    fn default() -> Self {
        Self { lr_decay: 0.0, initial_accumulator_value: 0.0, epsilon: 1e-10 }
    }
}

impl AdaGrad {
    /// The defaults: no decay of the learning rate, initial value 0, epsilon 1e-10.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`AdaGrad::lr_decay`].
    pub fn with_lr_decay(self, lr_decay: f64) -> Self {
        Self { lr_decay, ..self }
    }

    /// Sets [`AdaGrad::initial_accumulator_value`].
    pub fn with_initial_accumulator_value(self, initial_accumulator_value: f64) -> Self {
        Self { initial_accumulator_value, ..self }
    }

    /// Sets [`AdaGrad::epsilon`].
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }
}

coefficients! {
    /// Numerator of eta.
    step_size,
    /// Added to the sum: its initial value in the first step, else 0.
    initial,
    /// Added to the root of the sum.
    epsilon,
    /// How the learning rate decays.
    lr_decay,
}

/// `ADAGRAD_SUM_LIMIT` in WGSL.
const SUM_LIMIT: f64 = 1.7014118346046923e38;

impl UpdateRule for AdaGrad {
    const NAME: &'static str = "adagrad";
    const STATES: &'static [StateTensor] = &[StateTensor::new("sum", Sign::NonNegative)];
    // With an initial value the sum is never zero.
    const FORMS: &'static [(&'static str, &'static [StateTensor])] =
        &[("", Self::STATES), ("initial", &[StateTensor::new("sum", Sign::Positive)])];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = true;
    const LEARNING_RATE: f64 = 1e-2;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("lr_decay", self.lr_decay),
            ("initial_accumulator_value", self.initial_accumulator_value),
            ("epsilon", self.epsilon),
        ]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "lr_decay" => self.lr_decay = value,
            "initial_accumulator_value" => self.initial_accumulator_value = value,
            "epsilon" => self.epsilon = value,
            _ => return false,
        }
        true
    }

    fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
        let (expected, limit) = ("a number from 0 to 8.5e37 (2^126)", 2_f64.powi(126));
        in_range("lr_decay", self.lr_decay, expected, (0.0..=limit).contains(&self.lr_decay))?;
        let initial = self.initial_accumulator_value;
        in_range("initial_accumulator_value", initial, expected, (0.0..=limit).contains(&initial))?;
        check_normal("epsilon", self.epsilon)?;
        check_largest_rate("learning_rate / epsilon", learning_rate / self.epsilon)
    }

    fn form(&self) -> usize {
        usize::from(self.initial_accumulator_value > 0.0)
    }

    fn of_form(form: usize) -> Self {
        Self::default().with_initial_accumulator_value(if form == 1 { 0.1 } else { 0.0 })
    }

    fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
        let steps_before = if t == BASE { 0.0 } else { (t - 1) as f64 };
        Coefficients {
            step_size: learning_rate / (1.0 + steps_before * self.lr_decay),
            initial: if t == 1 || t == BASE { self.initial_accumulator_value } else { 0.0 },
            epsilon: self.epsilon,
            lr_decay: self.lr_decay,
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [sum, unused1, unused2] = element.state;
        let g = limited_gradient(general, &element);
        let sum = (sum + c.initial) + g * g;
        let limit = T::from_f64(SUM_LIMIT);
        let sum = if sum > limit && sum.is_finite() { limit } else { sum };
        let eta = eta_of(c.step_size, sum, T::from_f64(1.0), c.epsilon);
        let theta = apply_step(general, element.theta, g, eta, g);
        Stepped { theta, state: [sum, unused1, unused2] }
    }
}
