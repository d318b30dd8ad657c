//! Rules of the caller's: what the library keeps of their definitions. `src/custom` makes and validates them.

use std::any::{Any, TypeId};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use super::arithmetic::{Element, General, Stepped, check_beta};
use super::range::{OutOfRange, in_range};
use super::real::Real;
use super::update_rule::{BASE, CoefficientArray, Description, MAX_DECAY_RATES};
use crate::storage::state::StateFormat;

/// The most hyperparameters that a rule of one's own can have.
pub const MAX_HYPERPARAMETERS: usize = 8;

/// The step of one element on the CPU.
pub(crate) type CpuStepFn<T> = fn(&General<T>, &CoefficientArray<T>, Element<T>) -> Stepped<T>;

/// The same step in both precisions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuSteps {
    pub f32: CpuStepFn<f32>,
    pub f64: CpuStepFn<f64>,
}

/// Coefficients of hyperparameters, learning rate and step count.
pub(crate) type CoefficientFn = Box<dyn Fn(&[f64], f64, u64) -> CoefficientArray<f64> + Send + Sync>;
/// A check of hyperparameters, together with the learning rate.
pub(crate) type CheckFn = Box<dyn Fn(&[f64], f64) -> Result<(), OutOfRange> + Send + Sync>;

/// A definition that has been validated.
pub(crate) struct Definition {
    pub description: Description,
    /// Names and default values.
    pub hyperparameters: Vec<(&'static str, f64)>,
    /// Which of them are decay rates of moving averages.
    pub decay_rates: Vec<usize>,
    /// Why states are kept in f32 only, if they are.
    pub f32_state_only: Option<&'static str>,
    pub coefficients: CoefficientFn,
    pub check: Option<CheckFn>,
    pub cpu_steps: Option<CpuSteps>,
    /// Names that its WGSL declares.
    pub declarations: Vec<String>,
    pub identity: Identity,
}

/// All definitions of the process. They are never dropped, so that rules can be copied like those of the library.
static DEFINITIONS: Mutex<Vec<&'static Definition>> = Mutex::new(Vec::new());

/// What tells definitions apart: fingerprint, functions and defaults.
#[derive(PartialEq)]
pub(crate) struct Identity {
    /// Hash of everything that kernels and stored states depend on.
    pub fingerprint: u64,
    /// The types of the functions, if they capture nothing. Equal ones compute the same.
    pub functions: Option<Vec<TypeId>>,
    /// Default hyperparameters, and the default learning rate.
    pub defaults: Vec<f64>,
}

fn find(all: &[&'static Definition], identity: &Identity) -> Option<CustomRule> {
    let found = all.iter().find(|known| identity.functions.is_some() && known.identity == *identity);
    found.map(|known| CustomKind(known).with_defaults())
}

/// The registered rule of this identity.
pub(crate) fn known(identity: &Identity) -> Option<CustomRule> {
    find(&DEFINITIONS.lock().unwrap_or_else(PoisonError::into_inner), identity)
}

/// Makes a rule of a definition, which is kept for the life of the process. It is not registered.
pub(crate) fn keep(definition: Definition) -> CustomRule {
    CustomKind(Box::leak(Box::new(definition))).with_defaults()
}

/// Registers a rule that has been validated, or gives the one that another thread has registered meanwhile.
pub(crate) fn register(rule: CustomRule) -> CustomRule {
    let mut all = DEFINITIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = find(&all, &rule.definition.identity) {
        return known;
    }
    all.push(rule.definition);
    rule
}

/// The rules of that name that have been made, the latest first.
#[cfg(feature = "checkpoint")]
pub(crate) fn named(name: &str) -> Vec<CustomKind> {
    let all = DEFINITIONS.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().rev().copied().filter(|known| known.description.name == name).map(CustomKind).collect()
}

/// A rule of one's own without its hyperparameters. Two are equal if their names, states, coefficients, hyperparameters and WGSL are.
#[derive(Clone, Copy)]
pub struct CustomKind(&'static Definition);

impl CustomKind {
    /// Hash (FNV-1a) of the name, the WGSL, the states, and the names of hyperparameters and coefficients. Checkpoints store it, and
    /// [`Display`](fmt::Display) shows it.
    pub const fn fingerprint(self) -> u64 {
        self.0.identity.fingerprint
    }

    pub(crate) const fn description(self) -> &'static Description {
        &self.0.description
    }

    /// Position of the first equal rule of the process, or behind the last one while it is not registered.
    pub(crate) fn index(self) -> u32 {
        let all = DEFINITIONS.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().take_while(|known| CustomKind(known) != self).count() as u32
    }

    pub(crate) fn with_defaults(self) -> CustomRule {
        let mut values = [0.0; MAX_HYPERPARAMETERS];
        for (value, (_, default)) in values.iter_mut().zip(&self.0.hyperparameters) {
            *value = *default;
        }
        CustomRule { definition: self.0, values }
    }

    pub(crate) fn refusal(self, format: StateFormat) -> Option<&'static str> {
        self.0.f32_state_only.filter(|_| format != StateFormat::F32)
    }

    /// A name that the WGSL of both declares.
    pub(crate) fn common_declaration(self, other: Self) -> Option<&'static str> {
        self.0.declarations.iter().find(|name| other.0.declarations.contains(name)).map(String::as_str)
    }
}

impl PartialEq for CustomKind {
    fn eq(&self, other: &Self) -> bool {
        self.0.identity.fingerprint == other.0.identity.fingerprint
    }
}

impl Eq for CustomKind {}

impl PartialOrd for CustomKind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for CustomKind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.identity.fingerprint.cmp(&other.0.identity.fingerprint)
    }
}

impl Hash for CustomKind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.identity.fingerprint.hash(state);
    }
}

impl fmt::Debug for CustomKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CustomKind {
    /// Name and fingerprint: `adopt@0123456789abcdef`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:016x}", self.0.description.name, self.0.identity.fingerprint)
    }
}

/// A rule of one's own with its hyperparameters: [`Rule::custom`](crate::Rule::custom).
#[derive(Clone, Copy)]
pub struct CustomRule {
    definition: &'static Definition,
    values: [f64; MAX_HYPERPARAMETERS],
}

impl PartialEq for CustomRule {
    /// The same definition, with its functions, and the same hyperparameters.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.definition, other.definition) && self.values == other.values
    }
}

impl fmt::Debug for CustomRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind())?;
        f.debug_map().entries(self.hyperparameters()).finish()
    }
}

impl CustomRule {
    /// The rule without its hyperparameters.
    pub const fn kind(&self) -> CustomKind {
        CustomKind(self.definition)
    }

    pub(crate) fn hyperparameters(&self) -> Vec<(&'static str, f64)> {
        let names = self.definition.hyperparameters.iter().map(|(name, _)| *name);
        names.zip(self.values).collect()
    }

    pub(crate) fn set_hyperparameter(&mut self, name: &str, value: f64) -> bool {
        let found = self.definition.hyperparameters.iter().position(|(of, _)| *of == name);
        if let Some(index) = found {
            self.values[index] = value;
        }
        found.is_some()
    }

    pub(crate) fn validate(&self, learning_rate: f64) -> Result<(), OutOfRange> {
        for (index, (name, value)) in self.hyperparameters().into_iter().enumerate() {
            in_range(name, value, "a finite number", true)?;
            if self.definition.decay_rates.contains(&index) {
                check_beta(name, value)?;
            }
        }
        if let Some(check) = &self.definition.check {
            check(&self.values, learning_rate)?;
        }
        for t in [1, 2, BASE] {
            let coefficients = self.coefficients(learning_rate, t);
            for (name, value) in self.definition.description.coefficients.iter().zip(coefficients) {
                in_range(name, value, "a coefficient that is finite in f32", (value as f32).is_finite())?;
            }
        }
        Ok(())
    }

    pub(crate) fn decay_rates(&self) -> [f64; MAX_DECAY_RATES] {
        let mut rates = [0.0; MAX_DECAY_RATES];
        for (rate, &index) in rates.iter_mut().zip(&self.definition.decay_rates) {
            *rate = self.values[index];
        }
        rates
    }

    pub(crate) fn coefficients(&self, learning_rate: f64, t: u64) -> CoefficientArray<f64> {
        (self.definition.coefficients)(&self.values, learning_rate, t)
    }

    /// Whether the definition has a step on the CPU.
    pub fn has_cpu_step(&self) -> bool {
        self.definition.cpu_steps.is_some()
    }

    /// The step on the CPU.
    ///
    /// # Panics
    /// If the definition has none.
    pub(crate) fn cpu_step<T: Real>(&self) -> CpuStepFn<T> {
        let steps = self.definition.cpu_steps.as_ref();
        let of = |step: &dyn Any| step.downcast_ref::<CpuStepFn<T>>().copied();
        let step = steps.and_then(|steps| of(&steps.f32).or_else(|| of(&steps.f64)));
        step.unwrap_or_else(|| panic!("the rule {} has no step on the CPU: with_cpu_step", self.kind()))
    }
}
