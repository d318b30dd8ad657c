//! The update rules: what is computed for each element.
//!
//! A rule is a file here and a file of the same name in `shaders/rules/`. The Rust file has the rule's name, its states, its
//! hyperparameters, the coefficients of a step in f64, and the step of one element on the CPU. The WGSL file has the step of four
//! elements and the coefficients that depend on the step count. The list at the end of this file names all rules; everything else
//! follows from it.

pub mod arithmetic;
pub mod range;
pub mod real;
pub mod update_rule;

use crate::storage::state::{MAX_STATES, StateTensor};
use arithmetic::{Element, General};
use range::OutOfRange;
use real::Real;
use update_rule::{CoefficientArray, MAX_DECAY_RATES, UpdateRule};

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
        }

        impl RuleKind {
            /// All rules, in the order of their codes in WGSL.
            pub const ALL: &'static [Self] = &[$(Self::$rule),*];

            /// The rule's name in checkpoints and on the command line: `adamod`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$rule => $rule::NAME,)*
                }
            }

            /// The states of a parameter, in the order in which they are stored.
            pub const fn states(self) -> &'static [StateTensor] {
                match self {
                    $(Self::$rule => $rule::STATES,)*
                }
            }

            /// The name of the rule's type, which is also the prefix of its structure in WGSL: `AdaMod`.
            pub(crate) const fn type_name(self) -> &'static str {
                match self {
                    $(Self::$rule => stringify!($rule),)*
                }
            }

            pub(crate) const fn coefficients(self) -> &'static [&'static str] {
                match self {
                    $(Self::$rule => $rule::COEFFICIENTS,)*
                }
            }

            const fn rate_coefficient_names(self) -> &'static [&'static str] {
                match self {
                    $(Self::$rule => $rule::RATE_COEFFICIENTS,)*
                }
            }

            /// Whether every element has a learning rate of its own.
            pub const fn has_element_rates(self) -> bool {
                match self {
                    $(Self::$rule => $rule::HAS_ELEMENT_RATES,)*
                }
            }

            /// The rule's file of WGSL.
            pub(crate) const fn wgsl(self) -> &'static str {
                match self {
                    $(Self::$rule => include_str!(concat!("../../shaders/rules/", stringify!($module), ".wgsl")),)*
                }
            }

            /// The rule with its default hyperparameters.
            pub fn with_defaults(self) -> Rule {
                match self {
                    $(Self::$rule => Rule::$rule($rule::default()),)*
                }
            }
        }

        impl Rule {
            /// The rule without its hyperparameters.
            pub const fn kind(&self) -> RuleKind {
                match self {
                    $(Self::$rule(_) => RuleKind::$rule,)*
                }
            }

            /// Names and values of the hyperparameters, as checkpoints store them: `betas[0]`, `epsilon`. A formula is its number.
            pub fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
                match self {
                    $(Self::$rule(rule) => rule.hyperparameters(),)*
                }
            }

            /// Sets a hyperparameter by its [name](Rule::hyperparameters), without checking its range. Returns false if the rule has none
            /// of this name, or its formula has not this number.
            pub fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
                match self {
                    $(Self::$rule(rule) => rule.set_hyperparameter(name, value),)*
                }
            }

            pub(crate) fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
                match self {
                    $(Self::$rule(rule) => rule.validate(learning_rate),)*
                }
            }

            pub(crate) fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
                match self {
                    $(Self::$rule(rule) => rule.decay_rates(),)*
                }
            }

            pub(crate) fn variant(&self) -> u32 {
                match self {
                    $(Self::$rule(rule) => rule.variant(),)*
                }
            }

            pub(crate) fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
                match self {
                    $(Self::$rule(rule) => rule.coefficients(learning_rate, t),)*
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
                    $(Self::$rule(_) => step_elements::<$rule, T>(general, coefficients, values, gradient, states),)*
                }
            }
        }
    };
}

fn step_elements<R: UpdateRule, T: Real>(
    general: &General<T>,
    coefficients: &CoefficientArray<T>,
    values: &mut [T],
    gradient: &[T],
    states: &mut [Vec<T>],
) {
    for (i, (theta, &gradient)) in values.iter_mut().zip(gradient).enumerate() {
        let mut state = [T::from_f64(0.0); MAX_STATES];
        for (of, states) in state.iter_mut().zip(&*states) {
            *of = states[i];
        }
        let stepped = R::step(general, coefficients, Element { theta: *theta, gradient, state });
        *theta = stepped.theta;
        for (states, of) in states.iter_mut().zip(stepped.state) {
            states[i] = of;
        }
    }
}

impl RuleKind {
    /// The rule of that [name](RuleKind::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Names of the states: `exp_avg`, `exp_avg_sq`, `exp_avg_lr`.
    pub fn state_names(self) -> impl ExactSizeIterator<Item = &'static str> + Clone {
        self.states().iter().map(|state| state.name)
    }

    /// Bytes that a step in f32 reads and writes per element: value and states twice, the gradient once.
    pub const fn bytes_per_parameter(self) -> u32 {
        4 * (2 + 1 + 2 * self.states().len() as u32)
    }

    /// The coefficients that are proportional to the learning rate, as bits.
    pub(crate) fn rate_coefficients(self) -> u32 {
        let is_rate = |name| self.rate_coefficient_names().contains(name);
        let bits =
            self.coefficients().iter().enumerate().map(|(index, name)| u32::from(is_rate(name)) << index);
        bits.sum()
    }

    /// The rule's code in WGSL.
    pub(crate) const fn code(self) -> u32 {
        self as u32
    }
}

impl std::fmt::Display for RuleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Default for Rule {
    /// AdaMod with its default hyperparameters.
    fn default() -> Self {
        AdaMod::default().into()
    }
}

impl Rule {
    /// Names of the states: [`RuleKind::state_names`].
    pub fn state_names(&self) -> impl ExactSizeIterator<Item = &'static str> + Clone + use<> {
        self.kind().state_names()
    }

    /// Factors from the states as formats below 32 bits store them after step `t` to the averages themselves: `1 - beta^t` where a
    /// state is [stored debiased](StateTensor::debiased_by), 1 elsewhere.
    pub(crate) fn debiased_scales(&self, t: u64) -> [f64; MAX_STATES] {
        let decay_rates = self.decay_rates();
        let mut scales = [1.0; MAX_STATES];
        for (scale, state) in scales.iter_mut().zip(self.kind().states()) {
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
    /// `exp_avg_sq`; 28 bytes per element and step in f32.
    Adam in adam,
    /// SGD with momentum: `torch.optim.SGD` without dampening and Nesterov momentum. State `momentum_buffer`; 20 bytes per element
    /// and step in f32.
    Sgd in sgd,
}
