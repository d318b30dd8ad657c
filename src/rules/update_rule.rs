//! What the file of a rule defines.

use std::fmt::Debug;

use super::arithmetic::{Element, General, Stepped};
use super::range::OutOfRange;
use super::real::Real;
use crate::storage::state::{StateFormat, StateTensor};

/// The most coefficients of its own that a rule can have.
pub const MAX_COEFFICIENTS: usize = 9;

/// The step count for which the function of coefficients gives what the device's function of the rule starts from.
pub const BASE: u64 = u64::MAX;

/// The most decay rates that a rule can have.
pub const MAX_DECAY_RATES: usize = 3;

/// Coefficients of one step, in the order of the rule's `Coefficients`; those that the rule does not have are 0.
pub type CoefficientArray<T> = [T; MAX_COEFFICIENTS];

/// What kernels, plans and files know of a rule, whether it is the library's or the caller's.
#[derive(Debug)]
pub(crate) struct Description {
    /// The rule's name in checkpoints, on the command line and in WGSL.
    pub name: &'static str,
    /// The prefix of its structure in WGSL.
    pub type_name: &'static str,
    /// Names and states of its forms.
    pub forms: &'static [(&'static str, &'static [StateTensor])],
    /// Names of its coefficients, in the order of the WGSL structure.
    pub coefficients: &'static [&'static str],
    /// Names of those that are proportional to the learning rate.
    pub rate_coefficients: &'static [&'static str],
    /// Whether every element has a learning rate of its own.
    pub has_element_rates: bool,
    /// The learning rate with default hyperparameters.
    pub learning_rate: f64,
    /// The step and the coefficients in WGSL.
    pub wgsl: &'static str,
}

impl Description {
    /// The description of a rule of the library.
    pub const fn of<R: UpdateRule>(type_name: &'static str, wgsl: &'static str) -> Self {
        Self {
            name: R::NAME,
            type_name,
            forms: R::FORMS,
            coefficients: R::COEFFICIENTS,
            rate_coefficients: R::RATE_COEFFICIENTS,
            has_element_rates: R::HAS_ELEMENT_RATES,
            learning_rate: R::LEARNING_RATE,
            wgsl,
        }
    }
}

/// What a rule's file defines.
pub(crate) trait UpdateRule: Copy + Debug + Default + PartialEq + Send + Sync + 'static {
    /// The rule's name in checkpoints, on the command line and in WGSL.
    const NAME: &'static str;
    /// Its states with the default options, in the order in which a block holds them.
    const STATES: &'static [StateTensor];
    /// Names and states of its forms, of which its options choose one. The first is that of the default options, without a name.
    const FORMS: &'static [(&'static str, &'static [StateTensor])] = &[("", Self::STATES)];
    /// Names of its coefficients, in the order of the WGSL structure.
    const COEFFICIENTS: &'static [&'static str];
    /// Names of the coefficients that are proportional to the learning rate. The others do not depend on it.
    const RATE_COEFFICIENTS: &'static [&'static str] = &["step_size"];
    /// Whether every element has a learning rate of its own, so that there is something to count in histograms.
    const HAS_ELEMENT_RATES: bool;
    /// The learning rate of [`Hyperparameters::from`](crate::Hyperparameters).
    const LEARNING_RATE: f64 = 1e-3;

    /// Names and values of the hyperparameters, as checkpoints store them.
    fn hyperparameters(&self) -> Vec<(&'static str, f64)>;

    /// Sets a hyperparameter by its name in a checkpoint. False if there is none of that name or the value is not one of its.
    fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool;

    /// Checks the hyperparameters, together with the learning rate.
    fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange>;

    /// Which of [`UpdateRule::FORMS`] the options choose. In WGSL it is the constant `FORM`.
    fn form(&self) -> usize {
        0
    }

    /// The defaults with the options that choose this form.
    fn of_form(_form: usize) -> Self {
        Self::default()
    }

    /// Why a form's states cannot be stored in a format; `None` if they can.
    fn refusal(_form: usize, _format: StateFormat) -> Option<&'static str> {
        None
    }

    /// Decay rates of moving averages, whose `1 - beta^t` the device computes itself with
    /// [`Control::Device`](crate::Control::Device); 0 for those that the rule does not have.
    fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
        [0.0; MAX_DECAY_RATES]
    }

    /// Which of several formulas is computed, for the WGSL function that computes coefficients.
    fn variant(&self) -> u32 {
        0
    }

    /// Coefficients of step `t`, from 1, in f64. With [`BASE`] those that the WGSL function starts from: all bias corrections are 1,
    /// and what it derives from the step count is given as it needs it.
    fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64>;

    /// The step of one element, in the same order of operations as the WGSL function. Only options that choose the form may be
    /// looked at: everything else is in the coefficients.
    fn step<T: Real>(
        &self,
        general: &General<T>,
        coefficients: &CoefficientArray<T>,
        element: Element<T>,
    ) -> Stepped<T>;
}

/// Defines a rule's `Coefficients<T>` once: as a structure for the step, and as an array for tables.
macro_rules! coefficients {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Coefficients of one step.
        #[derive(Clone, Copy, Debug, PartialEq)]
        struct Coefficients<T> {
            $($(#[$doc])* $name: T,)*
        }

        impl Coefficients<f64> {
            const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            fn to_array(self) -> $crate::rules::update_rule::CoefficientArray<f64> {
                let mut array = [0.0; $crate::rules::update_rule::MAX_COEFFICIENTS];
                for (place, value) in array.iter_mut().zip([$(self.$name),*]) {
                    *place = value;
                }
                array
            }
        }

        impl<T: Copy> Coefficients<T> {
            fn of_array(array: &$crate::rules::update_rule::CoefficientArray<T>) -> Self {
                let mut values = array.iter().copied();
                // An array has room for every rule's coefficients.
                Self { $($name: values.next().unwrap_or(array[0]),)* }
            }
        }
    };
}
pub(crate) use coefficients;
