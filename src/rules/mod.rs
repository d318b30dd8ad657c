//! The update rules: what is computed for each element.
//!
//! A rule is a file here and a file of the same name in `shaders/rules/`. The Rust file has the rule's name, its states, its
//! hyperparameters, the coefficients of a step in f64, and the step of one element on the CPU. The WGSL file has the step of four
//! elements and the coefficients that depend on the step count. The list at the end of this file names all rules; everything else
//! follows from it.

pub mod arithmetic;
pub mod custom;
pub mod range;
pub mod real;
pub mod update_rule;

use crate::storage::state::{MAX_STATES, StateFormat, StateTensor};
use arithmetic::{Element, General, Stepped};
use custom::{CustomKind, CustomRule};
use range::OutOfRange;
use real::Real;
use update_rule::{CoefficientArray, Description, MAX_DECAY_RATES, UpdateRule};

/// Defines [`Rule`] from the list of rules.
macro_rules! rules {
    ($($(#[$doc:meta])* $rule:ident in $module:ident),* $(,)?) => {
        $(mod $module;)*
        $(use $module::$rule;)*

        /// The types of all rules.
        pub mod types {
            $(pub use super::$module::$rule;)*
        }

        /// An update rule with its hyperparameters.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* $rule($rule),)*
            /// A rule of one's own: [`Rule::custom`].
            Custom(CustomRule),
        }

        $(impl From<$rule> for Rule {
            fn from(rule: $rule) -> Self {
                Self::$rule(rule)
            }
        })*

        /// An update rule without its hyperparameters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum RuleKind {
            $($(#[$doc])* $rule,)*
            /// A rule of one's own: [`Rule::custom`].
            Custom(CustomKind),
        }

        impl RuleKind {
            /// All rules of the library, in the order of their codes in WGSL.
            pub const ALL: &'static [Self] = &[$(Self::$rule),*];

            pub(crate) const fn description(self) -> &'static Description {
                match self {
                    $(Self::$rule => const {
                        &Description::of::<$rule>(
                            stringify!($rule),
                            include_str!(concat!("../../shaders/rules/", stringify!($module), ".wgsl")),
                        )
                    },)*
                    Self::Custom(kind) => kind.description(),
                }
            }

            /// The rule with its default hyperparameters.
            pub fn with_defaults(self) -> Rule {
                match self {
                    $(Self::$rule => Rule::$rule($rule::default()),)*
                    Self::Custom(kind) => Rule::Custom(kind.with_defaults()),
                }
            }
        }

        impl RuleForm {
            /// The rule with default hyperparameters, apart from the options that choose the form.
            pub fn with_defaults(self) -> Rule {
                match self.rule {
                    $(RuleKind::$rule => Rule::$rule($rule::of_form(self.number())),)*
                    RuleKind::Custom(kind) => Rule::Custom(kind.with_defaults()),
                }
            }

            /// Why its states cannot be stored in a format; `None` if they can.
            pub fn refusal(self, format: StateFormat) -> Option<&'static str> {
                match self.rule {
                    $(RuleKind::$rule => $rule::refusal(self.number(), format),)*
                    RuleKind::Custom(kind) => kind.refusal(format),
                }
            }
        }

        impl Rule {
            /// The rule without its hyperparameters.
            pub const fn kind(&self) -> RuleKind {
                match self {
                    $(Self::$rule(_) => RuleKind::$rule,)*
                    Self::Custom(rule) => RuleKind::Custom(rule.kind()),
                }
            }

            /// The rule with the states that its options choose.
            pub fn form(&self) -> RuleForm {
                let number = match self {
                    $(Self::$rule(rule) => rule.form(),)*
                    Self::Custom(_) => 0,
                };
                RuleForm { rule: self.kind(), number: number as u8 }
            }

            /// Names and values of the hyperparameters, as checkpoints store them: `betas[0]`, `epsilon`. A formula is its number; an
            /// option is 0 or 1.
            pub fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
                match self {
                    $(Self::$rule(rule) => rule.hyperparameters(),)*
                    Self::Custom(rule) => rule.hyperparameters(),
                }
            }

            /// Sets a hyperparameter by its [name](Rule::hyperparameters), without checking its range. Returns false if the rule has none
            /// of this name, or its formula has not this number.
            pub fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
                match self {
                    $(Self::$rule(rule) => rule.set_hyperparameter(name, value),)*
                    Self::Custom(rule) => rule.set_hyperparameter(name, value),
                }
            }

            pub(crate) fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
                match self {
                    $(Self::$rule(rule) => rule.validate(learning_rate),)*
                    Self::Custom(rule) => rule.validate(learning_rate),
                }
            }

            pub(crate) fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
                match self {
                    $(Self::$rule(rule) => rule.decay_rates(),)*
                    Self::Custom(rule) => rule.decay_rates(),
                }
            }

            pub(crate) fn variant(&self) -> u32 {
                match self {
                    $(Self::$rule(rule) => rule.variant(),)*
                    Self::Custom(_) => 0,
                }
            }

            pub(crate) fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
                match self {
                    $(Self::$rule(rule) => rule.coefficients(learning_rate, t),)*
                    Self::Custom(rule) => rule.coefficients(learning_rate, t),
                }
            }

            /// Steps all elements of a tensor on the CPU.
            pub(crate) fn step_elements<T: Real>(
                &self,
                general: &General<T>,
                coefficients: &CoefficientArray<T>,
                values: &mut [T],
                gradient: &[T],
                states: &mut [Vec<T>],
            ) {
                match self {
                    $(Self::$rule(rule) => {
                        step_elements(|element| rule.step(general, coefficients, element), values, gradient, states);
                    })*
                    Self::Custom(rule) => {
                        let step = rule.cpu_step();
                        step_elements(|element| step(general, coefficients, element), values, gradient, states);
                    }
                }
            }
        }
    };
}

fn step_elements<T: Real>(
    step: impl Fn(Element<T>) -> Stepped<T>,
    values: &mut [T],
    gradient: &[T],
    states: &mut [Vec<T>],
) {
    for (i, (theta, &gradient)) in values.iter_mut().zip(gradient).enumerate() {
        let mut state = [T::from_f64(0.0); MAX_STATES];
        for (of, states) in state.iter_mut().zip(&*states) {
            *of = states[i];
        }
        let stepped = step(Element { theta: *theta, gradient, state });
        *theta = stepped.theta;
        for (states, of) in states.iter_mut().zip(stepped.state) {
            states[i] = of;
        }
    }
}

impl RuleKind {
    /// The rule's name in checkpoints and on the command line: `adamod`.
    pub const fn name(self) -> &'static str {
        self.description().name
    }

    const fn form_table(self) -> &'static [(&'static str, &'static [StateTensor])] {
        self.description().forms
    }

    /// The learning rate that [`Hyperparameters::from`](crate::Hyperparameters) gives the rule: PyTorch's default, or that of
    /// the authors' code.
    pub const fn default_learning_rate(self) -> f64 {
        self.description().learning_rate
    }

    /// The name of the rule's type, which is also the prefix of its structure in WGSL: `AdaMod`.
    pub(crate) const fn type_name(self) -> &'static str {
        self.description().type_name
    }

    pub(crate) const fn coefficients(self) -> &'static [&'static str] {
        self.description().coefficients
    }

    /// Whether every element has a learning rate of its own.
    pub const fn has_element_rates(self) -> bool {
        self.description().has_element_rates
    }

    /// The rule's WGSL.
    pub(crate) const fn wgsl(self) -> &'static str {
        self.description().wgsl
    }

    /// The rule of the library of that [name](RuleKind::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// The rule's forms. The first has the default options.
    pub fn forms(self) -> impl ExactSizeIterator<Item = RuleForm> + Clone {
        (0..self.form_table().len() as u8).map(move |number| RuleForm { rule: self, number })
    }

    /// The form with the default options.
    pub const fn default_form(self) -> RuleForm {
        RuleForm { rule: self, number: 0 }
    }

    /// The states of a parameter with the default options, in the order in which they are stored.
    pub const fn states(self) -> &'static [StateTensor] {
        self.default_form().states()
    }

    /// Names of the states with the default options: `exp_avg`, `exp_avg_sq`, `exp_avg_lr`.
    pub fn state_names(self) -> impl ExactSizeIterator<Item = &'static str> + Clone {
        self.states().iter().map(|state| state.name)
    }

    /// Bytes that a step in f32 with the default options reads and writes per element.
    pub const fn bytes_per_parameter(self) -> u32 {
        self.default_form().bytes_per_parameter()
    }

    /// The coefficients that are proportional to the learning rate, as bits.
    pub(crate) fn rate_coefficients(self) -> u32 {
        let is_rate = |name| self.description().rate_coefficients.contains(name);
        let bits =
            self.coefficients().iter().enumerate().map(|(index, name)| u32::from(is_rate(name)) << index);
        bits.sum()
    }

    /// The rule's code in WGSL.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Custom(kind) => Self::ALL.len() as u32 + kind.index(),
            _ => Self::ALL.iter().take_while(|of| **of != self).count() as u32,
        }
    }
}

/// A rule with one of its sets of states. Options choose the set: Adam has a third state with `amsgrad`, and SGD has none without
/// momentum. Each form has a kernel of its own, which moves no byte that it does not need, so tensors of one form share launches. The form
/// of a group stays as it is, like its rule.
///
/// ```
/// use adamod::{RuleKind, Sgd};
///
/// let form = adamod::Rule::from(Sgd::new().with_momentum(0.0)).form();
/// assert_eq!(form.to_string(), "sgd-plain");
/// assert_eq!((form.states().len(), form.bytes_per_parameter()), (0, 12));
/// assert_eq!(RuleKind::Sgd.bytes_per_parameter(), 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleForm {
    rule: RuleKind,
    number: u8,
}

impl RuleForm {
    /// The forms of all rules of the library.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        RuleKind::ALL.iter().flat_map(|rule| rule.forms())
    }

    /// The rule.
    pub const fn rule(self) -> RuleKind {
        self.rule
    }

    /// Its number among the rule's forms, from 0.
    pub(crate) const fn number(self) -> usize {
        self.number as usize
    }

    /// The name of the form: `amsgrad`. Empty for the default options.
    pub const fn name(self) -> &'static str {
        self.rule.form_table()[self.number as usize].0
    }

    /// The states of a parameter, in the order in which they are stored.
    pub const fn states(self) -> &'static [StateTensor] {
        self.rule.form_table()[self.number as usize].1
    }

    /// Names of the states.
    pub fn state_names(self) -> impl ExactSizeIterator<Item = &'static str> + Clone {
        self.states().iter().map(|state| state.name)
    }

    /// Bytes that a step in f32 reads and writes per element: value and states twice, the gradient once.
    pub const fn bytes_per_parameter(self) -> u32 {
        4 * (2 + 1 + 2 * self.states().len() as u32)
    }
}

impl std::fmt::Display for RuleForm {
    /// `adam`, `adam-amsgrad`; `adopt@0123456789abcdef` for a custom rule.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.rule.fmt(f)?;
        if self.name().is_empty() { Ok(()) } else { write!(f, "-{}", self.name()) }
    }
}

impl std::fmt::Display for RuleKind {
    /// The name; of a custom rule also the fingerprint of its definition, as `adopt@0123456789abcdef`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Custom(kind) => kind.fmt(f),
            _ => f.write_str(self.name()),
        }
    }
}

impl Default for Rule {
    /// AdaMod with its default hyperparameters.
    fn default() -> Self {
        AdaMod::default().into()
    }
}

impl Rule {
    /// The states of a parameter, in the order in which they are stored.
    pub fn states(&self) -> &'static [StateTensor] {
        self.form().states()
    }

    /// Names of the states: `exp_avg`, `exp_avg_sq`, `exp_avg_lr`.
    pub fn state_names(&self) -> impl ExactSizeIterator<Item = &'static str> + Clone + use<> {
        self.form().state_names()
    }

    /// Factors from the states as formats below 32 bits store them after step `t` to the averages themselves: `1 - beta^t` where a
    /// state is [stored debiased](StateTensor::debiased_by), 1 elsewhere.
    pub(crate) fn debiased_scales(&self, t: u64) -> [f64; MAX_STATES] {
        let decay_rates = self.decay_rates();
        let mut scales = [1.0; MAX_STATES];
        for (scale, state) in scales.iter_mut().zip(self.states()) {
            if let Some(rate) = state.debiased_by
                && t > 0
            {
                *scale = arithmetic::one_minus_power(decay_rates[rate], t);
            }
        }
        scales
    }
}

pub use self::adamod::Formula;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_are_proportional_to_the_learning_rate_as_declared() {
        for &kind in RuleKind::ALL {
            let rule = kind.with_defaults();
            for t in [1, 2, 1000, u64::MAX] {
                let (one, three) = (rule.coefficients(0.01, t), rule.coefficients(0.03, t));
                for (index, name) in kind.coefficients().iter().enumerate() {
                    let is_rate = (kind.rate_coefficients() >> index) & 1 == 1;
                    let expected = one[index] * if is_rate { 3.0 } else { 1.0 };
                    assert!(
                        (three[index] - expected).abs() <= 1e-12 * expected.abs(),
                        "{kind}, step {t}: {name}"
                    );
                }
            }
        }
    }
}

rules! {
    /// AdaMod, Algorithm 2 of the paper. States `exp_avg`, `exp_avg_sq` and `exp_avg_lr`; 36 bytes per element and step in f32.
    AdaMod in adamod,
    /// Adam, Algorithm 1 of the paper: `torch.optim.Adam`, and `AdamW` with decoupled weight decay. States `exp_avg` and
    /// `exp_avg_sq`, with `amsgrad` also `max_exp_avg_sq`; 28 bytes per element and step in f32, and 36 with `amsgrad`.
    Adam in adam,
    /// SGD with momentum, dampening and Nesterov momentum: `torch.optim.SGD`. State `momentum_buffer`; 20 bytes per element and step in
    /// f32, and 12 without momentum.
    Sgd in sgd,
    /// NAdam: `torch.optim.NAdam`. States `exp_avg` and `exp_avg_sq`; 28 bytes per element and step in f32.
    NAdam in nadam,
    /// RAdam: `torch.optim.RAdam`. States `exp_avg` and `exp_avg_sq`; 28 bytes per element and step in f32.
    RAdam in radam,
    /// AdaBound and AMSBound. States `exp_avg`, `exp_avg_sq` and with `amsbound` `max_exp_avg_sq`; 28 bytes per element and step in f32, and
    /// 36 with `amsbound`.
    AdaBound in adabound,
    /// NosAdam. States `exp_avg` and `exp_avg_sq`; 28 bytes per element and step in f32.
    NosAdam in nosadam,
    /// RMSprop: `torch.optim.RMSprop`. States `square_avg`, with momentum `momentum_buffer`, centered `grad_avg`; 20 to 36 bytes per
    /// element and step in f32.
    RmsProp in rmsprop,
    /// AdaGrad: `torch.optim.Adagrad`. State `sum`; 20 bytes per element and step in f32.
    AdaGrad in adagrad,
    /// AdaDelta: `torch.optim.Adadelta`. States `square_avg` and `acc_delta`; 28 bytes per element and step in f32.
    AdaDelta in adadelta,
    /// Lion. State `exp_avg`; 20 bytes per element and step in f32.
    Lion in lion,
}
