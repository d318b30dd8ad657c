//! SGD with momentum, the paper's SGDM: `torch.optim.SGD`. `shaders/rules/sgd.wgsl` has the pseudo-code.

use super::arithmetic::{Element, General, Stepped, apply_step, check_beta, scaled_gradient, set_option};
use super::range::{OutOfRange, in_range};
use super::real::Real;
use super::update_rule::{CoefficientArray, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of SGD, as in `torch.optim.SGD`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sgd {
    /// Momentum, in [0, 1). 0.9 by default, as in the paper's experiments. With 0 there is no momentum buffer.
    pub momentum: f64,
    /// The share of the gradient that does not enter the momentum buffer, in [0, 1]; 0 by default. The first gradient of a parameter enters
    /// whole, and without momentum all do.
    pub dampening: f64,
    /// Nesterov momentum: the step looks ahead by one more step of the buffer. Needs momentum, and no dampening.
    pub nesterov: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { momentum: 0.9, dampening: 0.0, nesterov: false }
    }
}

impl Sgd {
    /// Momentum 0.9.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Sgd::momentum`].
    pub fn with_momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }
    }

    /// Sets [`Sgd::dampening`].
    pub fn with_dampening(self, dampening: f64) -> Self {
        Self { dampening, ..self }
    }

    /// Sets [`Sgd::nesterov`].
    pub fn with_nesterov(self, nesterov: bool) -> Self {
        Self { nesterov, ..self }
    }
}

coefficients! {
    /// Factor of the momentum buffer.
    momentum,
    /// Factor of the gradient in the momentum buffer.
    gradient_weight,
    /// 1 with Nesterov momentum, else 0.
    nesterov,
    /// The learning rate.
    step_size,
}

impl UpdateRule for Sgd {
    const NAME: &'static str = "sgd";
    const STATES: &'static [StateTensor] = &[StateTensor::new("momentum_buffer", Sign::Signed)];
    const FORMS: &'static [(&'static str, &'static [StateTensor])] = &[("", Self::STATES), ("plain", &[])];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = false;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("momentum", self.momentum),
            ("dampening", self.dampening),
            ("nesterov", f64::from(self.nesterov)),
        ]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "momentum" => self.momentum = value,
            "dampening" => self.dampening = value,
            "nesterov" => return set_option(&mut self.nesterov, value),
            _ => return false,
        }
        true
    }

    fn validate(&self, _learning_rate: f64) -> Result<(), OutOfRange> {
        check_beta("momentum", self.momentum)?;
        in_range("dampening", self.dampening, "a number in [0, 1]", (0.0..=1.0).contains(&self.dampening))?;
        let has_lookahead = self.momentum > 0.0 && self.dampening == 0.0;
        in_range(
            "nesterov",
            f64::from(self.nesterov),
            "0 (false) without momentum or with dampening",
            has_lookahead || !self.nesterov,
        )
    }

    fn form(&self) -> usize {
        usize::from(self.momentum == 0.0)
    }

    fn of_form(form: usize) -> Self {
        if form == 1 { Self::default().with_momentum(0.0) } else { Self::default() }
    }

    fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
        Coefficients {
            momentum: self.momentum,
            gradient_weight: if t == 1 { 1.0 } else { 1.0 - self.dampening },
            nesterov: f64::from(self.nesterov),
            step_size: learning_rate,
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [mut buffer, unused1, unused2] = element.state;
        let g = scaled_gradient(general, &element);
        let mut direction = g;
        if self.momentum != 0.0 {
            buffer = c.momentum * buffer + c.gradient_weight * g;
            direction = if c.nesterov != T::from_f64(0.0) { g + c.momentum * buffer } else { buffer };
        }
        let theta = apply_step(general, element.theta, g, c.step_size, direction);
        Stepped { theta, state: [buffer, unused1, unused2] }
    }
}
