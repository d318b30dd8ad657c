//! The hyperparameters of a group, and the coefficients of a step.
//!
//! Everything that a kernel does with a hyperparameter is data: kind of weight decay, objective and formula all end as numbers. Groups
//! that differ in them share one dispatch. The numbers are computed in f64 and rounded once, because `1 - 0.9999` in f32 is off by
//! 1.7e-4, and `powf` on an f32 base makes `1 - beta^t` wrong by 1e-4.

use crate::rules::Rule;
use crate::rules::arithmetic::General;
use crate::rules::range::{OutOfRange, in_range};
use crate::rules::real::Real;
use crate::rules::update_rule::CoefficientArray;
use crate::storage::block::{BlockLayout, WORD_BYTES, state_words};
use crate::storage::dtype::DType;
use crate::storage::state::Precision;

/// Weight decay. The value is the lambda of the paper and PyTorch's `weight_decay`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum WeightDecay {
    /// No decay.
    #[default]
    None,
    /// `theta -= alpha * lambda * theta` on the old theta, before the step: AdamW, the paper's experiments, the authors' code.
    Decoupled(f64),
    /// L2 regularisation: `g += lambda * theta` before the moments, as in `torch.optim.Adam` and `torch.optim.SGD`.
    Coupled(f64),
    /// `theta -= alpha / max_learning_rate * lambda * theta` on the old theta, before the step: decay that follows the schedule of the
    /// learning rate and not its size, as Loshchilov and Hutter (arXiv:1711.05101, Algorithm 2) define it. At
    /// `alpha = max_learning_rate` a step decays by lambda, so a learning rate that is tuned anew needs no new lambda.
    FullyDecoupled {
        /// What a step decays by at the largest learning rate. It is smaller than lambda of [`WeightDecay::Decoupled`] by that rate:
        /// 1e-4 is 0.1 at 1e-3.
        lambda: f64,
        /// The largest learning rate of the schedule, above 0.
        max_learning_rate: f64,
    },
}

impl WeightDecay {
    /// The kind's name: `none`, `decoupled`, `coupled` or `fully_decoupled`.
    pub const fn name(self) -> &'static str {
        match self {
            WeightDecay::None => "none",
            WeightDecay::Decoupled(_) => "decoupled",
            WeightDecay::Coupled(_) => "coupled",
            WeightDecay::FullyDecoupled { .. } => "fully_decoupled",
        }
    }

    /// The strength, whatever the kind; 0 without decay.
    pub const fn lambda(self) -> f64 {
        match self {
            WeightDecay::None => 0.0,
            WeightDecay::Decoupled(lambda)
            | WeightDecay::Coupled(lambda)
            | WeightDecay::FullyDecoupled { lambda, .. } => lambda,
        }
    }
}

/// Direction of the step; PyTorch's `maximize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// Descend along the gradient.
    #[default]
    Minimize,
    /// Ascend along the gradient. Its sign is flipped before anything else, coupled decay included.
    Maximize,
}

/// Hyperparameters of a group.
///
/// ```
/// use adamod::{Adam, Hyperparameters, WeightDecay};
///
/// let adamw = Hyperparameters::from(Adam::new().with_betas([0.9, 0.95]))
///     .with_learning_rate(3e-4)
///     .with_weight_decay(WeightDecay::Decoupled(0.1));
/// assert!(adamw.validate().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Hyperparameters {
    /// The update rule, with the hyperparameters that only it has.
    pub rule: Rule,
    /// The paper's alpha, PyTorch's `lr`. At least 0.
    pub learning_rate: f64,
    /// Kind and strength of weight decay.
    pub weight_decay: WeightDecay,
    /// Whether the step descends or ascends.
    pub objective: Objective,
    /// Cautious updates (Liang et al. 2024, arXiv:2411.16085): an element moves only if its step has the sign of its gradient, and otherwise
    /// its step is 0. The gradient is that which the rule sees, with its sign flipped to maximize and with coupled decay. States are
    /// as without it.
    ///
    /// The published code also multiplies all steps of a tensor by the inverse of the share that is left. That share is a sum over the
    /// tensor, which the step would have to wait for, so it is left to the learning rate.
    pub cautious: bool,
    /// Cautious weight decay (Chen et al. 2025, arXiv:2510.12402): decoupled decay of an element is left out where it would work against
    /// its step, that is where the step moves it away from 0. It looks at the step before [`Hyperparameters::cautious`].
    pub cautious_weight_decay: bool,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Rule::default().into()
    }
}

impl<R: Into<Rule>> From<R> for Hyperparameters {
    /// The rule with its [default learning rate](crate::RuleKind::default_learning_rate), 1e-3 for most, and without weight decay.
    fn from(rule: R) -> Self {
        let rule = rule.into();
        Self {
            rule,
            learning_rate: rule.kind().default_learning_rate(),
            weight_decay: WeightDecay::None,
            objective: Objective::Minimize,
            cautious: false,
            cautious_weight_decay: false,
        }
    }
}

impl Hyperparameters {
    /// AdaMod with its defaults, learning rate 1e-3, no weight decay. For another rule use `Hyperparameters::from(rule)`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Hyperparameters::rule`].
    pub fn with_rule(self, rule: impl Into<Rule>) -> Self {
        Self { rule: rule.into(), ..self }
    }

    /// Sets [`Hyperparameters::learning_rate`].
    pub fn with_learning_rate(self, learning_rate: f64) -> Self {
        Self { learning_rate, ..self }
    }

    /// Sets [`Hyperparameters::weight_decay`].
    pub fn with_weight_decay(self, weight_decay: WeightDecay) -> Self {
        Self { weight_decay, ..self }
    }

    /// Sets [`Hyperparameters::objective`].
    pub fn with_objective(self, objective: Objective) -> Self {
        Self { objective, ..self }
    }

    /// Sets [`Hyperparameters::cautious`].
    pub fn with_cautious(self, cautious: bool) -> Self {
        Self { cautious, ..self }
    }

    /// Whether steps or weight decay are cautious.
    pub(crate) const fn has_caution(&self) -> bool {
        self.cautious || self.cautious_weight_decay
    }

    /// Sets [`Hyperparameters::cautious_weight_decay`].
    pub fn with_cautious_weight_decay(self, cautious_weight_decay: bool) -> Self {
        Self { cautious_weight_decay, ..self }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is not finite or not in its range. Also a learning rate so large, or so much larger than epsilon, that the
    /// size of the first step, or the step of an element whose second moment is zero, could overflow f32.
    pub fn validate(&self) -> Result<(), OutOfRange> {
        let non_negative = "a finite number, at least 0 and representable in f32";
        let fits_f32 = |value: f64| value >= 0.0 && (value as f32).is_finite();
        in_range("learning_rate", self.learning_rate, non_negative, fits_f32(self.learning_rate))?;
        let lambda = self.weight_decay.lambda();
        in_range("weight_decay", lambda, non_negative, fits_f32(lambda))?;
        if let WeightDecay::FullyDecoupled { max_learning_rate, .. } = self.weight_decay {
            let is_in_range = max_learning_rate > 0.0 && fits_f32(max_learning_rate);
            let expected = "a finite number above 0 and representable in f32";
            in_range("max_learning_rate", max_learning_rate, expected, is_in_range)?;
            let product = self.learning_rate / max_learning_rate * lambda;
            let name = "learning_rate / max_learning_rate * weight_decay";
            in_range(name, product, non_negative, fits_f32(product))?;
        } else {
            let product = self.learning_rate * lambda;
            in_range("learning_rate * weight_decay", product, non_negative, fits_f32(product))?;
        }
        let is_coupled = matches!(self.weight_decay, WeightDecay::Coupled(_));
        in_range(
            "cautious_weight_decay",
            f64::from(self.cautious_weight_decay),
            "0 (false) with coupled weight decay, which is a part of the gradient",
            !(self.cautious_weight_decay && is_coupled),
        )?;
        self.rule.validate(self.learning_rate)
    }

    /// The coefficients that do not depend on the rule.
    pub(crate) fn general<T: Real>(&self, is_debiased: bool) -> General<T> {
        let gradient_scale = match self.objective {
            Objective::Minimize => 1.0,
            Objective::Maximize => -1.0,
        };
        let (coupled, decoupled) = match self.weight_decay {
            WeightDecay::None => (0.0, 0.0),
            WeightDecay::Coupled(lambda) => (lambda, 0.0),
            WeightDecay::Decoupled(lambda) => (0.0, self.learning_rate * lambda),
            WeightDecay::FullyDecoupled { lambda, max_learning_rate } => {
                (0.0, self.learning_rate / max_learning_rate * lambda)
            }
        };
        General {
            gradient_scale: T::from_f64(gradient_scale),
            coupled_decay: T::from_f64(coupled),
            decoupled_decay: T::from_f64(decoupled),
            is_cautious: self.cautious,
            has_cautious_decay: self.cautious_weight_decay,
            is_debiased,
        }
    }

    /// The coefficients of step `t` on the CPU, rounded once to `T`.
    pub(crate) fn coefficients<T: Real>(
        &self,
        t: u64,
        is_debiased: bool,
    ) -> (General<T>, CoefficientArray<T>) {
        (self.general(is_debiased), self.rule.coefficients(self.learning_rate, t).map(T::from_f64))
    }
}

/// A parameter group to be added to an optimizer: PyTorch's `param_group`.
///
/// `Hyperparameters` and rules convert into groups with f32 state and no master weights.
///
/// ```
/// use adamod::{AdaMod, Group, MasterWeights, Precision, StateFormat};
///
/// let group = Group::from(AdaMod::new())
///     .with_precision(Precision::new(StateFormat::Q8).with_master_weights(MasterWeights::Split24));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Group {
    /// Its hyperparameters, which may change between steps.
    pub hyperparameters: Hyperparameters,
    /// How its tensors are stored. Fixed for the life of the group.
    pub precision: Precision,
}

impl<H: Into<Hyperparameters>> From<H> for Group {
    fn from(hyperparameters: H) -> Self {
        Self { hyperparameters: hyperparameters.into(), precision: Precision::default() }
    }
}

impl Group {
    /// A group with f32 state and no master weights.
    pub fn new(hyperparameters: impl Into<Hyperparameters>) -> Self {
        Self { hyperparameters: hyperparameters.into(), precision: Precision::default() }
    }

    /// Sets [`Group::precision`].
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Bytes of state of a parameter of `len` elements in this group, including its master weights. Nothing is allocated.
    ///
    /// ```
    /// use adamod::{AdaMod, DType, Group, Precision, StateFormat};
    ///
    /// let group = Group::from(AdaMod::new()).with_precision(Precision::new(StateFormat::Q8));
    /// assert_eq!(group.state_bytes(DType::F32, 1 << 20), (1 << 20) * 25 / 8);
    /// // Biases stay in f32.
    /// assert_eq!(group.state_bytes(DType::F32, 1024), 1024 * 12);
    /// ```
    pub fn state_bytes(&self, dtype: DType, len: u64) -> u64 {
        let state = self.precision.state_format(len);
        let master_weights = self.precision.master_weights_of(dtype);
        let layout = BlockLayout::new(self.hyperparameters.rule.states(), state, master_weights);
        state_words(layout, len) * WORD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RuleKind;
    use crate::rules::types::{AdaMod, Adam, Sgd};
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
            of_rule in prop::collection::vec(any_f64(), 8),
            lambda in any_f64(),
            kind in 0..4,
            t in prop_oneof![Just(1), Just(2), Just(1000), Just(1 << 53), any::<u64>().prop_map(|t| t.max(1))],
        ) {
            let weight_decay = match kind {
                0 => WeightDecay::None,
                1 => WeightDecay::Decoupled(lambda),
                2 => WeightDecay::FullyDecoupled { lambda, max_learning_rate: of_rule[7] },
                _ => WeightDecay::Coupled(lambda),
            };
            for sane in RuleKind::ALL.iter().map(|kind| Hyperparameters::from(kind.with_defaults())) {
                // One field at a time is at an edge, or all are.
                let mut cases = vec![sane.with_learning_rate(learning_rate), sane.with_weight_decay(weight_decay)];
                let mut wild = sane;
                for ((name, _), &value) in sane.rule.hyperparameters().into_iter().zip(&of_rule) {
                    let mut one = sane;
                    if one.rule.set_hyperparameter(name, value) {
                        wild.rule.set_hyperparameter(name, value);
                        cases.push(one);
                    }
                }
                cases.extend([wild, wild.with_learning_rate(learning_rate).with_weight_decay(weight_decay)]);
                for given in cases {
                    if let Err(OutOfRange { name, .. }) = given.validate() {
                        prop_assert!(!name.is_empty());
                        continue;
                    }
                    let (general, of_rule) = given.coefficients::<f32>(t, false);
                    let general = [general.gradient_scale, general.coupled_decay, general.decoupled_decay];
                    for coefficient in of_rule.iter().chain(&general) {
                        prop_assert!(coefficient.is_finite(), "{given:?}, t {t}: {general:?} {of_rule:?}");
                    }
                    let names = given.rule.kind().coefficients();
                    if let Some(epsilon) = names.iter().position(|&name| name == "epsilon") {
                        prop_assert!(of_rule[epsilon] > 0.0);
                    }
                }
            }
        }
    }

    #[test]
    fn defaults_are_valid() {
        for kind in RuleKind::ALL {
            Hyperparameters::from(kind.with_defaults()).validate().unwrap();
        }
    }

    #[test]
    fn each_field_is_refused_by_name() {
        let new = Hyperparameters::new;
        let adamod = |rule: AdaMod| Hyperparameters::from(rule);
        let cases = [
            ("learning_rate", new().with_learning_rate(-1e-9)),
            ("learning_rate", new().with_learning_rate(f64::NAN)),
            ("learning_rate", new().with_learning_rate(f64::INFINITY)),
            ("learning_rate", new().with_learning_rate(1e39)),
            ("betas[0]", adamod(AdaMod::new().with_betas([1.0, 0.999, 0.999]))),
            ("betas[1]", adamod(AdaMod::new().with_betas([0.9, -0.1, 0.999]))),
            ("betas[2]", adamod(AdaMod::new().with_betas([0.9, 0.999, f64::NAN]))),
            ("betas[1]", Adam::new().with_betas([0.9, 1.0]).into()),
            ("momentum", Sgd::new().with_momentum(1.0).into()),
            ("epsilon", adamod(AdaMod::new().with_epsilon(0.0))),
            ("epsilon", adamod(AdaMod::new().with_epsilon(-1e-8))),
            ("epsilon", adamod(AdaMod::new().with_epsilon(1e-40))),
            ("epsilon", Adam::new().with_epsilon(f64::NAN).into()),
            ("weight_decay", new().with_weight_decay(WeightDecay::Decoupled(-1.0))),
            ("weight_decay", new().with_weight_decay(WeightDecay::Coupled(f64::NAN))),
            (
                "learning_rate * weight_decay",
                new().with_learning_rate(1e30).with_weight_decay(WeightDecay::Decoupled(1e30)),
            ),
            (
                "learning_rate / (1 - betas[0])",
                adamod(AdaMod::new().with_epsilon(1e38)).with_learning_rate(1e38),
            ),
            (
                "learning_rate / (1 - betas[0]) / epsilon",
                adamod(AdaMod::new().with_epsilon(1e-37)).with_learning_rate(1e3),
            ),
        ];
        for (expected, hyperparameters) in cases {
            assert_eq!(hyperparameters.validate().unwrap_err().name, expected);
        }
    }

    /// Checkpoints store hyperparameters by name: each comes back as it was.
    #[test]
    fn every_hyperparameter_is_set_by_its_name() {
        for kind in RuleKind::ALL {
            let mut rule = kind.with_defaults();
            for (name, value) in rule.hyperparameters() {
                // The formula is 0 or 1.
                let other = if value == 0.0 { 1.0 } else { 0.5 * value };
                assert!(rule.set_hyperparameter(name, other), "{kind} {name}");
            }
            let mut read = rule.kind().with_defaults();
            assert_ne!(read, rule);
            for (name, value) in rule.hyperparameters() {
                assert!(read.set_hyperparameter(name, value));
                assert!(!read.set_hyperparameter("no such name", value));
            }
            assert_eq!(read, rule);
        }
    }
}
