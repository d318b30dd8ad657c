//! RMSprop: `torch.optim.RMSprop`. `shaders/rules/rmsprop.wgsl` has the pseudo-code.

use super::arithmetic::{
    Element, General, Stepped, apply_step, check_beta, check_largest_rate, check_normal, ema, ema_weight, eta_of, limited_gradient,
    set_option,
};
use super::range::OutOfRange;
use super::real::Real;
use super::update_rule::{CoefficientArray, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateFormat, StateTensor};

/// Hyperparameters of RMSprop (Tieleman and Hinton 2012; centered: Graves 2013, arXiv:1308.0850). The defaults are PyTorch's, with a
/// learning rate of 1e-2.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RmsProp {
    /// Decay rate of the averages, in [0, 1).
    pub alpha: f64,
    /// Added to the root of the second moment; PyTorch's `eps`. Above 0, and a normal number in f32.
    pub epsilon: f64,
    /// Momentum, in [0, 1). With 0, the default, there is no momentum buffer.
    pub momentum: f64,
    /// Divides by the root of the gradient's variance instead of its second moment. The average gradient is one more state.
    pub centered: bool,
}

impl Default for RmsProp {
    fn default() -> Self {
        Self { alpha: 0.99, epsilon: 1e-8, momentum: 0.0, centered: false }
    }
}

impl RmsProp {
    /// The defaults: alpha 0.99, epsilon 1e-8, no momentum, not centered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`RmsProp::alpha`].
    pub fn with_alpha(self, alpha: f64) -> Self {
        Self { alpha, ..self }
    }

    /// Sets [`RmsProp::epsilon`].
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// Sets [`RmsProp::momentum`].
    pub fn with_momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }
    }

    /// Sets [`RmsProp::centered`].
    pub fn with_centered(self, centered: bool) -> Self {
        Self { centered, ..self }
    }
}

coefficients! {
    /// Weight of the averages.
    square_avg_weight,
    /// Factor of the momentum buffer.
    momentum,
    /// The learning rate.
    step_size,
    /// Added to the root of the second moment.
    epsilon,
}

const SQUARE_AVG: StateTensor = StateTensor::new("square_avg", Sign::NonNegative);
const MOMENTUM_BUFFER: StateTensor = StateTensor::new("momentum_buffer", Sign::Signed);
const GRAD_AVG: StateTensor = StateTensor::new("grad_avg", Sign::Signed);

impl UpdateRule for RmsProp {
    const NAME: &'static str = "rmsprop";
    const STATES: &'static [StateTensor] = &[SQUARE_AVG];
    const FORMS: &'static [(&'static str, &'static [StateTensor])] = &[
        ("", Self::STATES),
        ("momentum", &[SQUARE_AVG, MOMENTUM_BUFFER]),
        ("centered", &[SQUARE_AVG, GRAD_AVG]),
        ("centered-momentum", &[SQUARE_AVG, MOMENTUM_BUFFER, GRAD_AVG]),
    ];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = true;
    const LEARNING_RATE: f64 = 1e-2;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("alpha", self.alpha),
            ("epsilon", self.epsilon),
            ("momentum", self.momentum),
            ("centered", f64::from(self.centered)),
        ]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "alpha" => self.alpha = value,
            "epsilon" => self.epsilon = value,
            "momentum" => self.momentum = value,
            "centered" => return set_option(&mut self.centered, value),
            _ => return false,
        }
        true
    }

    fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
        check_beta("alpha", self.alpha)?;
        check_beta("momentum", self.momentum)?;
        check_normal("epsilon", self.epsilon)?;
        // The momentum buffer, and the step.
        let largest = 1.0 / (1.0 - self.momentum) / self.epsilon;
        if self.momentum > 0.0 {
            check_largest_rate("1 / (1 - momentum) / epsilon", largest)?;
        }
        check_largest_rate("learning_rate / (1 - momentum) / epsilon", learning_rate * largest)
    }

    fn form(&self) -> usize {
        usize::from(self.momentum != 0.0) + 2 * usize::from(self.centered)
    }

    fn of_form(form: usize) -> Self {
        let momentum = if form % 2 == 1 { 0.9 } else { 0.0 };
        Self::default().with_momentum(momentum).with_centered(form >= 2)
    }

    fn refusal(form: usize, format: StateFormat) -> Option<&'static str> {
        let is_low = format != StateFormat::F32;
        (form >= 2 && is_low).then_some(
            "centered RMSprop subtracts the square of grad_avg from square_avg, which leaves only rounding errors of fewer than 32 bits",
        )
    }

    fn coefficients(&self, learning_rate: f64, _t: u64) -> CoefficientArray<f64> {
        Coefficients {
            square_avg_weight: ema_weight(self.alpha),
            momentum: self.momentum,
            step_size: learning_rate,
            epsilon: self.epsilon,
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let (has_momentum, zero, one) = (self.momentum != 0.0, T::from_f64(0.0), T::from_f64(1.0));
        let mut state = element.state;
        let g = limited_gradient(general, &element);
        state[0] = ema(state[0], g * g, c.square_avg_weight);
        let mut second = state[0];
        if self.centered {
            let mean = if has_momentum { 2 } else { 1 };
            state[mean] = ema(state[mean], g, c.square_avg_weight);
            let variance = second - state[mean] * state[mean];
            second = if variance < zero { zero } else { variance };
        }
        let mut rate = eta_of(c.step_size, second, one, c.epsilon);
        let mut direction = g;
        if has_momentum {
            state[1] = c.momentum * state[1] + eta_of(one, second, one, c.epsilon) * g;
            rate = c.step_size;
            direction = state[1];
        }
        Stepped { theta: apply_step(general, element.theta, g, rate, direction), state }
    }
}
