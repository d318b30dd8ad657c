//! Adam, Algorithm 1 of the AdaMod paper. `shaders/rules/adam.wgsl` has the pseudo-code.

use super::arithmetic::{
    Element, General, Stepped, apply_step, check_beta, check_epsilon, ema, ema_weight, eta_of, larger, limited_gradient,
    one_minus_power, set_option,
};
use super::real::Real;
use super::range::OutOfRange;
use super::update_rule::{CoefficientArray, MAX_DECAY_RATES, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of Adam. The defaults are PyTorch's.
///
/// With [`WeightDecay::Coupled`](crate::WeightDecay::Coupled) it is `torch.optim.Adam`, with
/// [`WeightDecay::Decoupled`](crate::WeightDecay::Decoupled) `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Adam {
    /// Decay rates of `exp_avg` and `exp_avg_sq`, each in [0, 1). Bias corrections use the rates of the moment, as in PyTorch.
    pub betas: [f64; 2],
    /// Added to the root of the second moment; PyTorch's `eps`. Above 0, and a normal number in f32.
    pub epsilon: f64,
    /// Divides by the root of the largest second moment so far (Reddi et al. 2018, arXiv:1904.09237), which is a third state.
    pub amsgrad: bool,
}

impl Default for Adam {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8, amsgrad: false }
    }
}

impl Adam {
    /// The defaults: betas 0.9 and 0.999, epsilon 1e-8, no `amsgrad`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Adam::betas`].
    pub fn with_betas(self, betas: [f64; 2]) -> Self {
        Self { betas, ..self }
    }

    /// Sets [`Adam::epsilon`].
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// Sets [`Adam::amsgrad`].
    pub fn with_amsgrad(self, amsgrad: bool) -> Self {
        Self { amsgrad, ..self }
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
    /// Factor from `exp_avg_sq` to its bias-corrected form.
    exp_avg_sq_correction,
    /// Added to the root of the second moment.
    epsilon,
}

impl UpdateRule for Adam {
    const NAME: &'static str = "adam";
    const STATES: &'static [StateTensor] =
        &[StateTensor::new("exp_avg", Sign::Signed), StateTensor::new("exp_avg_sq", Sign::NonNegative)];
    const FORMS: &'static [(&'static str, &'static [StateTensor])] = &[
        ("", Self::STATES),
        (
            "amsgrad",
            &[Self::STATES[0], Self::STATES[1], StateTensor::new("max_exp_avg_sq", Sign::NonNegative)],
        ),
    ];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = true;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        let [beta1, beta2] = self.betas;
        vec![
            ("betas[0]", beta1),
            ("betas[1]", beta2),
            ("epsilon", self.epsilon),
            ("amsgrad", f64::from(self.amsgrad)),
        ]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "betas[0]" => self.betas[0] = value,
            "betas[1]" => self.betas[1] = value,
            "epsilon" => self.epsilon = value,
            "amsgrad" => return set_option(&mut self.amsgrad, value),
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

    fn form(&self) -> usize {
        usize::from(self.amsgrad)
    }

    fn of_form(form: usize) -> Self {
        Self::default().with_amsgrad(form == 1)
    }

    fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
        let [beta1, beta2] = self.betas;
        [beta1, beta2, 0.0]
    }

    fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
        let [beta1, beta2] = self.betas;
        Coefficients {
            exp_avg_weight: ema_weight(beta1),
            exp_avg_sq_weight: ema_weight(beta2),
            step_size: learning_rate,
            exp_avg_correction: 1.0 / one_minus_power(beta1, t),
            exp_avg_sq_correction: 1.0 / one_minus_power(beta2, t),
            epsilon: self.epsilon,
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let c = Coefficients::of_array(c);
        let [m, v, largest] = element.state;
        let g = limited_gradient(general, &element);
        let m = ema(m, g, c.exp_avg_weight);
        let v = ema(v, g * g, c.exp_avg_sq_weight);
        let largest = if self.amsgrad { larger(largest, v) } else { largest };
        let second = if self.amsgrad { largest } else { v };
        let eta = eta_of(c.step_size, second, c.exp_avg_sq_correction, c.epsilon);
        let theta = apply_step(general, element.theta, g, eta, m * c.exp_avg_correction);
        Stepped { theta, state: [m, v, largest] }
    }
}
