//! What a caller chooses, and the coefficients one step needs, computed in f64.
//!
//! Everything the kernels do with a hyperparameter is data: formula, kind of weight decay and objective all end as
//! numbers in [`StepCoefficients`], so groups that differ in them still share one dispatch. Coefficients are computed
//! in f64 and rounded once, because `1 - 0.9999` taken in f32 is already wrong by 1.7e-4 and `powf` on an f32
//! base makes `1 - beta^t` wrong by 1e-4.

use crate::error::HyperparameterError;

/// The update rule, which also decides how many states a parameter has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rule {
    /// AdaMod, the paper's Algorithm 2: states `exp_avg`, `exp_avg_sq`, `exp_avg_lr`. 36 bytes moved a parameter a step.
    #[default]
    AdaMod,
    /// Adam, the paper's Algorithm 1 (`torch.optim.Adam`, and `AdamW` with [`WeightDecay::Decoupled`]): states `exp_avg`,
    /// `exp_avg_sq`. 28 bytes moved a parameter a step.
    Adam,
    /// SGD with momentum as in `torch.optim.SGD` (dampening 0, no Nesterov): state `momentum_buffer`. 20 bytes moved a
    /// parameter a step.
    Sgd,
}

impl Rule {
    /// Names of the states, in the order in which a block holds them: PyTorch's names, and `exp_avg_lr` as in the
    /// AdaMod authors' code.
    pub const fn state_names(self) -> &'static [&'static str] {
        match self {
            Rule::AdaMod => &["exp_avg", "exp_avg_sq", "exp_avg_lr"],
            Rule::Adam => &["exp_avg", "exp_avg_sq"],
            Rule::Sgd => &["momentum_buffer"],
        }
    }

    /// Number of f32 states a parameter has.
    pub const fn states(self) -> u32 {
        self.state_names().len() as u32
    }

    /// Bytes an f32 step reads and writes a parameter: value and states twice, the gradient once.
    pub const fn bytes_per_parameter(self) -> u32 {
        4 * (2 + 1 + 2 * self.states())
    }
}

/// Which of the two published formulas of AdaMod is computed. Adam and SGD ignore it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Formula {
    /// Algorithm 2 of the paper: `eta = alpha / (sqrt(v / (1 - beta2^t)) + epsilon)`, step `min(eta, s) * m / (1 - beta1^t)`.
    #[default]
    Paper,
    /// The authors' published PyTorch code (PyPI `adamod` 0.0.3) and the ports of it:
    /// `eta = alpha * sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + epsilon)`, step `min(eta, s) * m`.
    AuthorsCode,
}

/// Weight decay. A value is the lambda of the paper, PyTorch's `weight_decay`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum WeightDecay {
    /// No decay.
    #[default]
    None,
    /// `theta -= alpha * lambda * theta` on the old theta, before the step: AdamW, the paper's experiments, the authors' code.
    Decoupled(f64),
    /// L2 regularisation: `g += lambda * theta` before the moments (`torch.optim.Adam`, `torch.optim.SGD`).
    Coupled(f64),
}

/// Direction of the step; PyTorch's `maximize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// Go down the gradient.
    #[default]
    Minimize,
    /// Go up the gradient: its sign is flipped before anything else, coupled decay included.
    Maximize,
}

/// Hyperparameters of a group. The defaults are those of the authors' code.
///
/// [`Rule::Adam`] does not read `betas[2]`, [`Rule::Sgd`] reads neither `betas` nor `epsilon`, and only it reads `momentum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparameters {
    /// The paper's alpha; PyTorch's `lr`. At least 0.
    pub learning_rate: f64,
    /// Decay of `exp_avg`, `exp_avg_sq` and `exp_avg_lr`, each in [0, 1). The paper recommends 0.999 or 0.9999 for the third;
    /// 0 makes AdaMod Adam.
    ///
    /// Bias corrections are of the betas of the moment, `1 - beta^t` as in PyTorch: who changes one during a run changes what
    /// earlier steps are taken for. With state below 32 bits that goes for `betas[2]` too, since the average is then stored
    /// debiased: the bound jumps by the ratio of the two `1 - beta3^t`. With [`StateFormat::F32`](crate::StateFormat::F32) it
    /// does not.
    pub betas: [f64; 3],
    /// Added to the root of the second moment; PyTorch's `eps`. Above 0, and a normal number in f32.
    pub epsilon: f64,
    /// SGD's momentum, in [0, 1).
    pub momentum: f64,
    /// Kind and strength of weight decay.
    pub weight_decay: WeightDecay,
    /// Whether the step goes down or up the gradient.
    pub objective: Objective,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            betas: [0.9, 0.999, 0.999],
            epsilon: 1e-8,
            momentum: 0.9,
            weight_decay: WeightDecay::None,
            objective: Objective::Minimize,
        }
    }
}

impl Hyperparameters {
    /// Checks every field, whether the rule reads it or not.
    ///
    /// # Errors
    /// The first field that is not finite or out of its range, or a learning rate so large, or so much larger than epsilon, that
    /// the first step's size or the rate of an element without gradients, `learning_rate / epsilon`, is past f32.
    pub fn validate(&self) -> Result<(), HyperparameterError> {
        let in_range = |name, value: f64, needed, holds: bool| {
            if value.is_finite() && holds {
                Ok(())
            } else {
                Err(HyperparameterError::OutOfRange { name, found: value, needed })
            }
        };
        let non_negative = "a finite number, at least 0 and representable in f32";
        let fits_f32 = |value: f64| value >= 0.0 && (value as f32).is_finite();
        in_range("learning_rate", self.learning_rate, non_negative, fits_f32(self.learning_rate))?;
        for (name, beta) in ["betas[0]", "betas[1]", "betas[2]"]
            .into_iter()
            .zip(self.betas)
            .chain([("momentum", self.momentum)])
        {
            in_range(name, beta, "a number in [0, 1)", (0.0..1.0).contains(&beta))?;
        }
        // A subnormal epsilon may be flushed to zero on the GPU, and a zero one makes 0 / 0.
        in_range(
            "epsilon",
            self.epsilon,
            "a number above 0 and normal in f32 (1.18e-38 to 3.4e38)",
            self.epsilon > 0.0 && (self.epsilon as f32).is_normal(),
        )?;
        if let WeightDecay::Decoupled(lambda) | WeightDecay::Coupled(lambda) = self.weight_decay {
            in_range("weight_decay", lambda, non_negative, fits_f32(lambda))?;
            in_range(
                "learning_rate * weight_decay",
                self.learning_rate * lambda,
                non_negative,
                fits_f32(self.learning_rate * lambda),
            )?;
        }
        // The authors' code divides by 1 - beta1^t, at least 1 - beta1.
        let largest_step_size = self.learning_rate / (1.0 - self.betas[0]);
        let at_most = "at most 1.7e38 (2^127), so that it is finite in f32";
        in_range(
            "learning_rate / (1 - betas[0])",
            largest_step_size,
            at_most,
            largest_step_size <= 2_f64.powi(127),
        )?;
        // The largest eta either formula can reach.
        let largest_rate = largest_step_size / self.epsilon;
        in_range(
            "learning_rate / (1 - betas[0]) / epsilon",
            largest_rate,
            "at most 1.7e38 (2^127), so that the rate of an element without gradients is finite however it is rounded",
            largest_rate <= 2_f64.powi(127),
        )
    }

    /// What a step that is prepared on the device needs, whatever its t.
    pub(crate) fn group_row(&self) -> crate::layout::Group {
        // Of the last step of all, in which corrections are 1: what does not depend on t.
        let c = self.coefficients(Formula::Paper, Rule::AdaMod, u64::MAX);
        crate::layout::Group {
            learning_rate: self.learning_rate as f32,
            epsilon: self.epsilon as f32,
            coupled_decay: c.coupled_decay as f32,
            decoupled_decay: c.decoupled_decay as f32,
            momentum: self.momentum as f32,
            sign: c.gradient_scale as f32,
            exp_avg_weight: c.exp_avg_weight as f32,
            exp_avg_sq_weight: c.exp_avg_sq_weight as f32,
            exp_avg_lr_weight: c.exp_avg_lr_weight as f32,
            one_minus_beta3: (1.0 - self.betas[2]) as f32,
            one_minus_powers: self
                .betas
                .map(|beta| std::array::from_fn(|k| one_minus_power(beta, 1 << k) as f32)),
        }
    }

    /// The numbers that step `t` (from 1) needs, in f64.
    pub(crate) fn coefficients(&self, formula: Formula, rule: Rule, t: u64) -> StepCoefficients {
        let [beta1, beta2, beta3] = self.betas;
        let alpha = self.learning_rate;
        let correction1 = one_minus_power(beta1, t);
        let correction2 = one_minus_power(beta2, t);
        let (step_size, exp_avg_correction, exp_avg_sq_correction) = match (rule, formula) {
            (Rule::Sgd, _) => (alpha, 1.0, 1.0),
            (Rule::AdaMod, Formula::AuthorsCode) => (alpha * correction2.sqrt() / correction1, 1.0, 1.0),
            (Rule::Adam, _) | (Rule::AdaMod, Formula::Paper) => (alpha, 1.0 / correction1, 1.0 / correction2),
        };
        StepCoefficients {
            gradient_scale: match self.objective {
                Objective::Minimize => 1.0,
                Objective::Maximize => -1.0,
            },
            coupled_decay: match self.weight_decay {
                WeightDecay::Coupled(lambda) => lambda,
                _ => 0.0,
            },
            decoupled_decay: match self.weight_decay {
                WeightDecay::Decoupled(lambda) => alpha * lambda,
                _ => 0.0,
            },
            momentum: self.momentum,
            exp_avg_weight: ema_weight(beta1),
            exp_avg_sq_weight: ema_weight(beta2),
            exp_avg_lr_weight: ema_weight(beta3),
            debiased_lr_weight: debiased_weight(beta3, t),
            debiased_lr_scale: one_minus_power(beta3, t),
            step_size,
            exp_avg_correction,
            exp_avg_sq_correction,
            epsilon: self.epsilon,
        }
    }
}

/// `1 - beta^t` without cancellation for betas close to 1.
fn one_minus_power(beta: f64, t: u64) -> f64 {
    if beta == 0.0 { 1.0 } else { -(beta.ln() * t as f64).exp_m1() }
}

/// The same for an average that is kept debiased: `(1 - beta) / (1 - beta^t)`, or what is left to 1, negated. At t = 1 and where
/// beta is 0 nothing is left.
fn debiased_weight(beta: f64, t: u64) -> f64 {
    let scale = one_minus_power(beta, t);
    let weight = (1.0 - beta) / scale;
    if weight > 0.5 { -(scale - (1.0 - beta)).max(0.0) / scale } else { weight }
}

/// The weight of an exponential moving average as the kernel's `ema` wants it: `1 - beta`, taken from the old value, or
/// `-beta`, taken from the new one. Each is the form whose f32 rounding does less harm, and `beta = 0` is exact.
fn ema_weight(beta: f64) -> f64 {
    if beta >= 0.5 { 1.0 - beta } else { -beta }
}

/// Coefficients of one step of one group in f64; [`crate::layout::Coefficients`] is their f32 form on the GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepCoefficients {
    pub gradient_scale: f64,
    pub coupled_decay: f64,
    pub decoupled_decay: f64,
    pub momentum: f64,
    pub exp_avg_weight: f64,
    pub exp_avg_sq_weight: f64,
    pub exp_avg_lr_weight: f64,
    pub debiased_lr_weight: f64,
    pub debiased_lr_scale: f64,
    pub step_size: f64,
    pub exp_avg_correction: f64,
    pub exp_avg_sq_correction: f64,
    pub epsilon: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any f64: bit patterns at random, and the edges.
    fn any_f64() -> impl Strategy<Value = f64> {
        let edges = vec![
            0.0,
            -0.0,
            f64::MIN_POSITIVE,
            5e-324,
            f64::from(f32::MIN_POSITIVE),
            f64::from(f32::MAX),
            f64::MAX,
            f64::MIN,
            f64::EPSILON,
            1.0 - f64::EPSILON / 2.0,
            1.0,
            1.0 + f64::EPSILON,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ];
        prop_oneof![
            prop::sample::select(edges),
            any::<u64>().prop_map(f64::from_bits),
            0.0..1.0,
            -40.0..39.0_f64
        ]
        .prop_map(|x: f64| if x < -1.0 && x > -40.0 { 10_f64.powf(x) } else { x })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        /// Whatever f64 is given, it is refused by name, or every coefficient of every step is finite in f32.
        #[test]
        fn any_numbers_are_refused_or_give_finite_coefficients(
            learning_rate in any_f64(),
            betas in [any_f64(), any_f64(), any_f64()],
            epsilon in any_f64(),
            momentum in any_f64(),
            lambda in any_f64(),
            kind in 0..3,
            t in prop_oneof![Just(1), Just(2), Just(1000), Just(1 << 53), any::<u64>().prop_map(|t| t.max(1))],
        ) {
            let weight_decay = match kind {
                0 => WeightDecay::None,
                1 => WeightDecay::Decoupled(lambda),
                _ => WeightDecay::Coupled(lambda),
            };
            // One field at a time is at an edge, or all are.
            let sane = Hyperparameters::default();
            let wild = Hyperparameters { learning_rate, betas, epsilon, momentum, weight_decay, ..sane };
            for given in [
                wild,
                Hyperparameters { learning_rate, ..sane },
                Hyperparameters { betas, ..sane },
                Hyperparameters { epsilon, ..sane },
                Hyperparameters { momentum, ..sane },
                Hyperparameters { weight_decay, ..sane },
            ] {
                if let Err(HyperparameterError::OutOfRange { name, .. }) = given.validate() {
                    prop_assert!(!name.is_empty());
                    continue;
                }
                for (rule, formula) in [
                    (Rule::AdaMod, Formula::Paper),
                    (Rule::AdaMod, Formula::AuthorsCode),
                    (Rule::Adam, Formula::Paper),
                    (Rule::Sgd, Formula::Paper),
                ] {
                    let c = given.coefficients(formula, rule, t);
                    for coefficient in [
                        c.gradient_scale,
                        c.coupled_decay,
                        c.decoupled_decay,
                        c.momentum,
                        c.exp_avg_weight,
                        c.exp_avg_sq_weight,
                        c.exp_avg_lr_weight,
                        c.debiased_lr_weight,
                        c.debiased_lr_scale,
                        c.step_size,
                        c.exp_avg_correction,
                        c.exp_avg_sq_correction,
                        c.epsilon,
                    ] {
                        prop_assert!((coefficient as f32).is_finite(), "{given:?}, t {t}: {c:?}");
                    }
                    prop_assert!(c.epsilon as f32 > 0.0);
                }
            }
        }
    }

    #[test]
    fn corrections_keep_their_digits_for_betas_close_to_one() {
        // 1 - (1 - x)^1 = x; taken as 1.0 - beta.powi(1) it would lose four digits.
        let beta = 1.0 - 1e-12;
        let relative = (one_minus_power(beta, 1) - (1.0 - beta)) / 1e-12;
        assert!(relative.abs() < 1e-12, "{relative}");
        assert_eq!(one_minus_power(0.0, 7), 1.0);
        assert!((one_minus_power(0.5, 3) - 0.875).abs() < 1e-15);
        assert!((one_minus_power(0.9999, 10_000_000) - 1.0).abs() < 1e-15);
    }

    #[test]
    fn defaults_are_valid() {
        Hyperparameters::default().validate().unwrap();
    }

    #[test]
    fn each_field_is_refused_by_name() {
        type Change = fn(&mut Hyperparameters);
        let cases: &[(&str, Change)] = &[
            ("learning_rate", |h| h.learning_rate = -1e-9),
            ("learning_rate", |h| h.learning_rate = f64::NAN),
            ("learning_rate", |h| h.learning_rate = f64::INFINITY),
            ("learning_rate", |h| h.learning_rate = 1e39),
            ("betas[0]", |h| h.betas[0] = 1.0),
            ("betas[1]", |h| h.betas[1] = -0.1),
            ("betas[2]", |h| h.betas[2] = f64::NAN),
            ("momentum", |h| h.momentum = 1.0),
            ("epsilon", |h| h.epsilon = 0.0),
            ("epsilon", |h| h.epsilon = -1e-8),
            ("epsilon", |h| h.epsilon = 1e-40),
            ("epsilon", |h| h.epsilon = f64::NAN),
            ("weight_decay", |h| {
                h.weight_decay = WeightDecay::Decoupled(-1.0);
            }),
            ("weight_decay", |h| {
                h.weight_decay = WeightDecay::Coupled(f64::NAN);
            }),
            ("learning_rate * weight_decay", |h| {
                h.learning_rate = 1e30;
                h.weight_decay = WeightDecay::Decoupled(1e30);
            }),
            ("learning_rate / (1 - betas[0])", |h| {
                h.epsilon = 1e38;
                h.learning_rate = 1e38;
            }),
            ("learning_rate / (1 - betas[0]) / epsilon", |h| {
                h.epsilon = 1e-37;
                h.learning_rate = 1e3;
            }),
        ];
        for (expected, change) in cases {
            let mut hyperparameters = Hyperparameters::default();
            change(&mut hyperparameters);
            let HyperparameterError::OutOfRange { name, .. } = hyperparameters.validate().unwrap_err() else {
                panic!("{expected}: another error");
            };
            assert_eq!(&name, expected);
        }
    }
}
