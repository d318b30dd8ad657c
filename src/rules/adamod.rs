//! AdaMod, Algorithm 2 of "An Adaptive and Momental Bound Method for Stochastic Learning". `shaders/rules/adamod.wgsl` has the
//! pseudo-code.

use super::arithmetic::{
    General, Element, Stepped, apply_step, check_beta, check_epsilon, debiased_weight, ema, ema_weight,
    eta_of, limited_gradient, one_minus_power,
};
use super::real::Real;
use super::range::OutOfRange;
use super::update_rule::{CoefficientArray, MAX_DECAY_RATES, UpdateRule, coefficients};
use crate::storage::state::{Sign, StateTensor};

/// Hyperparameters of AdaMod. The defaults are those of the authors' code.
///
/// ```
/// use adamod::{AdaMod, Formula};
///
/// let rule = AdaMod::new().with_betas([0.9, 0.98, 0.9999]).with_epsilon(1e-9);
/// assert_eq!(rule.formula, Formula::Paper);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdaMod {
    /// Decay rates of `exp_avg`, `exp_avg_sq` and `exp_avg_lr`, each in [0, 1). The paper recommends 0.999 or 0.9999 for the third;
    /// 0 makes AdaMod Adam.
    ///
    /// Bias corrections use the decay rates of the moment, `1 - beta^t` as in PyTorch. Changing a rate during a run changes what
    /// the corrections assume about earlier steps. With state below 32 bits this includes the third rate, because `exp_avg_lr` is
    /// then stored debiased: the bound jumps by the ratio of the two `1 - beta3^t`. With
    /// [`StateFormat::F32`](crate::StateFormat::F32) it does not.
    pub betas: [f64; 3],
    /// Added to the root of the second moment; PyTorch's `eps`. Above 0, and a normal number in f32.
    pub epsilon: f64,
    /// Which of the two published formulas is computed.
    pub formula: Formula,
}

/// The two published formulas of AdaMod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Formula {
    /// Algorithm 2 of the paper: `eta = alpha / (sqrt(v / (1 - beta2^t)) + epsilon)`, and the step
    /// `min(eta, s) * m / (1 - beta1^t)`.
    #[default]
    Paper,
    /// The authors' published PyTorch code (PyPI `adamod` 0.0.3) and its ports:
    /// `eta = alpha * sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + epsilon)`, and the step `min(eta, s) * m`.
    AuthorsCode,
}

impl Formula {
    /// Both formulas, in the order of their codes in WGSL.
    pub const ALL: [Self; 2] = [Formula::Paper, Formula::AuthorsCode];

    /// The formula's name: `paper` or `authors`.
    pub const fn name(self) -> &'static str {
        match self {
            Formula::Paper => "paper",
            Formula::AuthorsCode => "authors",
        }
    }
}

impl Default for AdaMod {
    fn default() -> Self {
        Self { betas: [0.9, 0.999, 0.999], epsilon: 1e-8, formula: Formula::Paper }
    }
}

impl AdaMod {
    /// The defaults: betas 0.9, 0.999 and 0.999, epsilon 1e-8, the paper's formula.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`AdaMod::betas`].
    pub fn with_betas(self, betas: [f64; 3]) -> Self {
        Self { betas, ..self }
    }

    /// Sets [`AdaMod::epsilon`].
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// Sets [`AdaMod::formula`].
    pub fn with_formula(self, formula: Formula) -> Self {
        Self { formula, ..self }
    }
}

coefficients! {
    /// Weight of the first moment's average.
    exp_avg_weight,
    /// Weight of the second moment's average.
    exp_avg_sq_weight,
    /// Weight of the average of the learning rates.
    exp_avg_lr_weight,
    /// Numerator of eta.
    step_size,
    /// Factor from `exp_avg` to its bias-corrected form.
    exp_avg_correction,
    /// Factor from `exp_avg_sq` to its bias-corrected form.
    exp_avg_sq_correction,
    /// Added to the root of the second moment.
    epsilon,
    /// Weight of the average of the learning rates where it is stored debiased.
    debiased_lr_weight,
    /// Factor from the debiased average to the average.
    debiased_lr_scale,
}

impl UpdateRule for AdaMod {
    const NAME: &'static str = "adamod";
    const STATES: &'static [StateTensor] = &[
        StateTensor::new("exp_avg", Sign::Signed),
        StateTensor::new("exp_avg_sq", Sign::NonNegative),
        StateTensor::new("exp_avg_lr", Sign::Positive).debiased_by(2),
    ];
    const COEFFICIENTS: &'static [&'static str] = Coefficients::NAMES;
    const HAS_ELEMENT_RATES: bool = true;

    fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        let [beta1, beta2, beta3] = self.betas;
        vec![
            ("betas[0]", beta1),
            ("betas[1]", beta2),
            ("betas[2]", beta3),
            ("epsilon", self.epsilon),
            ("formula", f64::from(self.formula as u32)),
        ]
    }

    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        match name {
            "betas[0]" => self.betas[0] = value,
            "betas[1]" => self.betas[1] = value,
            "betas[2]" => self.betas[2] = value,
            "epsilon" => self.epsilon = value,
            "formula" if value == 0.0 => self.formula = Formula::Paper,
            "formula" if value == 1.0 => self.formula = Formula::AuthorsCode,
            _ => return false,
        }
        true
    }

    fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
        for (name, beta) in ["betas[0]", "betas[1]", "betas[2]"].into_iter().zip(self.betas) {
            check_beta(name, beta)?;
        }
        // The authors' code divides by 1 - beta1^t, which is at least 1 - beta1.
        check_epsilon(self.epsilon, learning_rate / (1.0 - self.betas[0]))
    }

    fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
        self.betas
    }

    fn variant(&self) -> u32 {
        self.formula as u32
    }

    fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
        let [beta1, beta2, beta3] = self.betas;
        let (correction1, correction2) = (one_minus_power(beta1, t), one_minus_power(beta2, t));
        let (step_size, exp_avg_correction, exp_avg_sq_correction) = match self.formula {
            Formula::Paper => (learning_rate, 1.0 / correction1, 1.0 / correction2),
            Formula::AuthorsCode => (learning_rate * correction2.sqrt() / correction1, 1.0, 1.0),
        };
        Coefficients {
            exp_avg_weight: ema_weight(beta1),
            exp_avg_sq_weight: ema_weight(beta2),
            exp_avg_lr_weight: ema_weight(beta3),
            step_size,
            exp_avg_correction,
            exp_avg_sq_correction,
            epsilon: self.epsilon,
            debiased_lr_weight: debiased_weight(beta3, t),
            debiased_lr_scale: one_minus_power(beta3, t),
        }
        .to_array()
    }

    fn step<T: Real>(&self, general: &General<T>, c: &CoefficientArray<T>, element: Element<T>) -> Stepped<T> {
        let mut c = Coefficients::of_array(c);
        if general.is_debiased {
            c.exp_avg_lr_weight = c.debiased_lr_weight;
        } else {
            c.debiased_lr_scale = T::from_f64(1.0);
        }
        let [m, v, s] = element.state;
        let g = limited_gradient(general, &element);
        let m = ema(m, g, c.exp_avg_weight);
        let v = ema(v, g * g, c.exp_avg_sq_weight);
        let eta = eta_of(c.step_size, v, c.exp_avg_sq_correction, c.epsilon);
        let s = ema(s, eta, c.exp_avg_lr_weight);
        let bound = s * c.debiased_lr_scale;
        let bounded = if bound < eta { bound } else { eta };
        let theta = apply_step(general, element.theta, g, bounded, m * c.exp_avg_correction);
        Stepped { theta, state: [m, v, s] }
    }
}
