//! Rules of one's own.
//!
//! [`Rule::custom`] makes an update rule of a [`RuleDefinition`]: WGSL of the same shape as that of the library's rules, states with their
//! signs, hyperparameters, and a function to the coefficients of a step. Such a rule runs in every data type, state format and kind of
//! master weights, with both controls, weight decay of all kinds, caution, rows and checkpoints.
//!
//! # The WGSL
//!
//! For a rule named `signum` with the coefficients `exp_avg_weight` and `step_size` it declares
//!
//! ```wgsl
//! struct SignumCoefficients {
//!     exp_avg_weight: f32,
//!     step_size: f32,
//! }
//!
//! // The coefficients of step t, for steps that the device prepares. `base` are those of the host for t = BASE; `variant` is 0.
//! fn signum_coefficients(base: SignumCoefficients, variant: u32, decay: Decay) -> SignumCoefficients {
//!     return base;
//! }
//!
//! // The step of four elements.
//! fn signum_step(general: General, c: SignumCoefficients, e: Elements) -> Stepped {
//!     let g = limited_gradient(general, e);
//!     let m = ema(e.state[0], g, c.exp_avg_weight);
//!     let rate = vec4(c.step_size);
//!     let theta = apply_step(general, e.theta, g, rate, signum(m));
//!     return Stepped(theta, State(m, e.state[1], e.state[2]), rate, rate);
//! }
//! ```
//!
//! and whatever else it needs, in names that start with `signum_`, `SIGNUM_` or `Signum`: all files of a kernel share one namespace. It has
//! no variables outside functions, and reads nothing but its arguments. The prefix of types is the name in camel case: `my_rule` has
//! `MyRuleCoefficients`.
//!
//! | name | what it is |
//! | --- | --- |
//! | `General` | `gradient_scale`, `gradient_prescale`, `coupled_decay`, `decoupled_decay: f32`, `options: u32`, `is_debiased: bool`: what all rules have. Passed on to the functions below |
//! | `Elements` | `theta: vec4<f32>`, `gradient: vec4<u32>` (bits), `state: State` |
//! | `State` | `array<vec4<f32>, 3>`; states that the rule does not have are passed through |
//! | `Stepped` | `theta`, `state`, and the learning rates `eta` and `bounded` before and after a bound, each `vec4<f32>`, for histograms |
//! | `Decay` | `one_minus_beta`, `one_minus_power: array<f32, 3>`: 1 - beta and 1 - beta^t of the [decay rates](RuleDefinition::with_decay_rates); `t: u32` from 1 |
//! | `limited_gradient(general, e)` | the gradient, scaled, with coupled decay, clamped to ±2^63 |
//! | `scaled_gradient(general, e)` | the same, not clamped |
//! | `ema(old, latest, weight)` | a step of a moving average; [`ema_weight`] gives the weight |
//! | `eta_of(step_size, v, correction, epsilon)` | `step_size / (sqrt(v correction) + epsilon)` |
//! | `larger(old, latest)` | the larger number; `latest` if it is NaN |
//! | `signum(x)` | 1, 0, -1; infinity and NaN as they are |
//! | `apply_step(general, theta, g, rate, direction)` | subtracts decoupled decay and the step, `rate * direction`, both cautiously if the group is |
//! | `exp_of`, `log_of` and others of `shaders/lib/elementary.wgsl` | for coefficients |
//!
//! # Why the coefficients are there twice
//!
//! With [`Control::Host`](crate::Control::Host) the host computes coefficients in f64 and rounds them once. With
//! [`Control::Device`](crate::Control::Device) only the device knows the step count, because it may skip steps, and it has no f64. The same
//! formula in f32 would cancel (`1 - beta^t`), so neither text can be made of the other. A definition has both; a rule without
//! step counts returns `base`. [`check_rule`](crate::testing::check_rule) compares the two.
//!
//! # What has to hold
//!
//! - Without decay, a gradient of zero and states of zero leave the parameter and the states where they are. Past the end of a tensor the
//!   kernels compute such elements and drop their parameters.
//! - A NaN in the gradient shows in its parameter, at the latest one step later, and in no other. Comparisons with NaN are
//!   false, and `clamp`, `min` and `max` may lose one.
//! - Finite gradients up to 2^63 leave states and parameters finite.
//! - A [`Sign::NonNegative`] state is at least 0, and a [`Sign::Positive`] one above 0 after its first step. Formats below 32 bits have no
//!   codes for other numbers.
//! - Coefficients named by [`RuleDefinition::with_rate_coefficients`] are proportional to the learning rate and all others independent of it.

mod declarations;
pub mod error;
mod validation;

use std::any::TypeId;

use crate::rules::custom::{self, CheckFn, CoefficientFn, CpuSteps, Definition, Identity};
use crate::rules::update_rule::{Description, MAX_COEFFICIENTS, MAX_DECAY_RATES};
use crate::rules::{Rule, RuleKind};
use crate::storage::state::{MAX_STATES, StateTensor};
use error::CustomRuleError;
use validation::Text;

pub use crate::rules::arithmetic::{
    Element, General, Stepped, apply_step, check_beta, check_epsilon, check_normal, debiased_weight, ema,
    ema_weight, eta_of, larger, limited_gradient, one_minus_power, scaled_gradient, signum,
};
pub use crate::rules::custom::{CustomKind, CustomRule, MAX_HYPERPARAMETERS};
pub use crate::rules::range::{OutOfRange, in_range};
pub use crate::rules::real::Real;
pub use crate::rules::update_rule::{BASE, CoefficientArray};
pub use crate::storage::state::Sign;

/// The step of one element on the CPU, in the same order of operations as the WGSL.
pub trait CpuStep: 'static {
    /// Steps one element. `coefficients` has the rule's coefficients in their order, and zeros.
    fn step<T: Real>(
        general: &General<T>,
        coefficients: &CoefficientArray<T>,
        element: Element<T>,
    ) -> Stepped<T>;
}

/// What [`Rule::custom`] makes a rule of. The [module](self) describes the WGSL.
///
/// ```
/// use adamod::Rule;
/// use adamod::custom::{RuleDefinition, Sign, ema_weight};
///
/// const WGSL: &str = "
/// struct SignumCoefficients { exp_avg_weight: f32, step_size: f32 }
///
/// fn signum_coefficients(base: SignumCoefficients, variant: u32, decay: Decay) -> SignumCoefficients {
///     return base;
/// }
///
/// fn signum_step(general: General, c: SignumCoefficients, e: Elements) -> Stepped {
///     let g = limited_gradient(general, e);
///     let m = ema(e.state[0], g, c.exp_avg_weight);
///     let rate = vec4(c.step_size);
///     let theta = apply_step(general, e.theta, g, rate, signum(m));
///     return Stepped(theta, State(m, e.state[1], e.state[2]), rate, rate);
/// }
/// ";
/// let definition = RuleDefinition::new("signum", WGSL)
///     .with_states([("exp_avg", Sign::Signed)])
///     .with_hyperparameters([("beta", 0.9)])
///     .with_coefficients(["exp_avg_weight", "step_size"], |&[beta], learning_rate, _t| {
///         [ema_weight(beta), learning_rate]
///     });
/// let mut signum = Rule::custom(definition)?;
/// assert!(signum.set_hyperparameter("beta", 0.95));
/// # Ok::<(), adamod::custom::error::CustomRuleError>(())
/// ```
#[must_use = "Rule::custom makes a rule of a definition"]
pub struct RuleDefinition {
    name: String,
    wgsl: String,
    states: Vec<(String, Sign)>,
    hyperparameters: Vec<(String, f64)>,
    decay_rates: Vec<String>,
    /// States and the decay rates by which they are stored debiased.
    debiased: Vec<(String, String)>,
    coefficients: Vec<String>,
    /// Gives the coefficients; none if there are none.
    function: Option<Function<CoefficientFn>>,
    rate_coefficients: Option<Vec<String>>,
    check: Option<Function<CheckFn>>,
    has_element_rates: bool,
    learning_rate: f64,
    f32_state_only: Option<String>,
    cpu_steps: Option<(CpuSteps, TypeId)>,
}

/// A function of hyperparameters.
struct Function<F> {
    /// How many it takes.
    hyperparameters: usize,
    function: F,
    /// Its type, if it captures nothing.
    id: Option<TypeId>,
}

impl<F> Function<F> {
    fn new<const H: usize, G: 'static>(function: F) -> Self {
        Self { hyperparameters: H, function, id: (size_of::<G>() == 0).then(TypeId::of::<G>) }
    }
}

impl std::fmt::Debug for RuleDefinition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleDefinition").field("name", &self.name).finish_non_exhaustive()
    }
}

fn owned<S: Into<String>, const N: usize>(names: [S; N]) -> Vec<String> {
    names.into_iter().map(Into::into).collect()
}

impl RuleDefinition {
    /// A rule of that name with this WGSL, without states and hyperparameters. Checkpoints store the name. The default learning rate is
    /// 1e-3.
    pub fn new(name: impl Into<String>, wgsl: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            wgsl: wgsl.into(),
            states: Vec::new(),
            hyperparameters: Vec::new(),
            decay_rates: Vec::new(),
            debiased: Vec::new(),
            coefficients: Vec::new(),
            function: None,
            rate_coefficients: None,
            check: None,
            has_element_rates: false,
            learning_rate: 1e-3,
            f32_state_only: None,
            cpu_steps: None,
        }
    }

    /// Names and signs of the states, at most 3, which start at zero. Checkpoints store the names; 8-bit codes depend on the signs.
    pub fn with_states<S: Into<String>, const N: usize>(self, states: [(S, Sign); N]) -> Self {
        Self { states: states.into_iter().map(|(name, sign)| (name.into(), sign)).collect(), ..self }
    }

    /// Names and default values of the hyperparameters, at most 8, apart from the learning rate. Checkpoints store both.
    pub fn with_hyperparameters<S: Into<String>, const N: usize>(
        self,
        hyperparameters: [(S, f64); N],
    ) -> Self {
        let hyperparameters =
            hyperparameters.into_iter().map(|(name, default)| (name.into(), default)).collect();
        Self { hyperparameters, ..self }
    }

    /// The hyperparameters, at most 3, that are decay rates of moving averages in [0, 1). For these the device computes `1 - beta^t`.
    pub fn with_decay_rates<S: Into<String>, const N: usize>(self, names: [S; N]) -> Self {
        Self { decay_rates: owned(names), ..self }
    }

    /// States that are moving averages from 0 whose step uses them without bias correction, each with its decay rate. Formats below 32 bits
    /// store such an average debiased, as `s / (1 - beta^t)`, because its first steps would span too many octaves; `general.is_debiased`
    /// says so, and the step then works on that number, as `shaders/rules/adamod.wgsl` does. Rows that are fresh may start from means of
    /// the first of them ([`FreshRows`](crate::FreshRows)).
    pub fn with_debiased_states<S: Into<String>, const N: usize>(self, states: [(S, S); N]) -> Self {
        let debiased = states.into_iter().map(|(state, rate)| (state.into(), rate.into())).collect();
        Self { debiased, ..self }
    }

    /// Names of the coefficients, at least 1 and at most 9, in the order of the WGSL structure, and the function that gives them from the
    /// hyperparameters, the learning rate and the step count `t`, from 1. For t = [`BASE`] it gives what the WGSL function starts from: bias
    /// corrections are then 1, as [`one_minus_power`] is.
    pub fn with_coefficients<S, F, const H: usize, const N: usize>(self, names: [S; N], function: F) -> Self
    where
        S: Into<String>,
        F: Fn(&[f64; H], f64, u64) -> [f64; N] + Send + Sync + 'static,
    {
        let erased: CoefficientFn = Box::new(move |values, learning_rate, t| {
            let mut array = [0.0; MAX_COEFFICIENTS];
            if let Some(values) = values.first_chunk() {
                array
                    .iter_mut()
                    .zip(function(values, learning_rate, t))
                    .for_each(|(place, value)| *place = value);
            }
            array
        });
        let function = Some(Function::new::<H, F>(erased));
        Self { coefficients: owned(names), function, ..self }
    }

    /// The coefficients that are proportional to the learning rate: `step_size` by default, if there is one. Schedules and factors of
    /// columns multiply them.
    pub fn with_rate_coefficients<S: Into<String>, const N: usize>(self, names: [S; N]) -> Self {
        Self { rate_coefficients: Some(owned(names)), ..self }
    }

    /// Checks hyperparameters, together with the learning rate; [`in_range`] makes the error. Without it they have to be finite, decay
    /// rates in [0, 1), and coefficients finite in f32.
    pub fn with_check<F, const H: usize>(self, check: F) -> Self
    where
        F: Fn(&[f64; H], f64) -> Result<(), OutOfRange> + Send + Sync + 'static,
    {
        let erased: CheckFn = Box::new(move |values, learning_rate| match values.first_chunk() {
            Some(values) => check(values, learning_rate),
            None => Ok(()),
        });
        Self { check: Some(Function::new::<H, F>(erased)), ..self }
    }

    /// Says that every element has a learning rate of its own, which the step returns as `eta` and `bounded`, so that histograms count it.
    pub fn with_element_rates(self) -> Self {
        Self { has_element_rates: true, ..self }
    }

    /// Sets the default learning rate.
    pub fn with_learning_rate(self, learning_rate: f64) -> Self {
        Self { learning_rate, ..self }
    }

    /// Refuses state in fewer than 32 bits, with the reason that errors give.
    pub fn with_f32_state_only(self, reason: impl Into<String>) -> Self {
        Self { f32_state_only: Some(reason.into()), ..self }
    }

    /// The step on the CPU, for [`Reference`](crate::reference::Reference) and [`check_rule`](crate::testing::check_rule).
    pub fn with_cpu_step<S: CpuStep>(self) -> Self {
        let steps = CpuSteps { f32: S::step::<f32>, f64: S::step::<f64> };
        Self { cpu_steps: Some((steps, TypeId::of::<S>())), ..self }
    }

    /// Checks everything but the WGSL.
    fn check(&self) -> Result<(), CustomRuleError> {
        let Self { states, hyperparameters, decay_rates, coefficients, .. } = self;
        check_identifier("the rule", &self.name)?;
        if RuleKind::from_name(&self.name).is_some() {
            let expected = "a name that no rule of the library has";
            return Err(CustomRuleError::Name { what: "the rule", found: self.name.clone(), expected });
        }
        for (name, _) in states {
            check_identifier("a state", name)?;
            if RESERVED_STATES.contains(&name.as_str()) {
                let expected = "a name other than master, param and scales, which checkpoints use";
                return Err(CustomRuleError::Name { what: "a state", found: name.clone(), expected });
            }
        }
        for name in coefficients {
            check_identifier("a coefficient", name)?;
        }
        for (name, _) in hyperparameters {
            if name.is_empty() {
                let expected = "a name";
                return Err(CustomRuleError::Name {
                    what: "a hyperparameter",
                    found: String::new(),
                    expected,
                });
            }
        }
        let state_names: Vec<_> = states.iter().map(|(name, _)| name.as_str()).collect();
        let names: Vec<_> = hyperparameters.iter().map(|(name, _)| name.as_str()).collect();
        let coefficient_names: Vec<_> = coefficients.iter().map(String::as_str).collect();
        check_distinct("state", &state_names)?;
        check_distinct("hyperparameter", &names)?;
        check_distinct("coefficient", &coefficient_names)?;
        check_count("states", states.len(), 0, MAX_STATES)?;
        check_count("hyperparameters", names.len(), 0, MAX_HYPERPARAMETERS)?;
        check_count("decay rates", decay_rates.len(), 0, MAX_DECAY_RATES)?;
        check_count("coefficients", coefficients.len(), 1, MAX_COEFFICIENTS)?;
        decay_rates.iter().try_for_each(|name| check_known("a decay rate", name, &names))?;
        let rate_names: Vec<_> = decay_rates.iter().map(String::as_str).collect();
        self.debiased.iter().try_for_each(|(state, rate)| {
            check_known("a state that is stored debiased", state, &state_names)?;
            check_known("the decay rate of a state that is stored debiased", rate, &rate_names)
        })?;
        let rates = self.rate_coefficients.iter().flatten();
        rates.into_iter().try_for_each(|name| {
            check_known("a coefficient that is proportional to the learning rate", name, &coefficient_names)
        })?;
        let of_coefficients = self.function.as_ref().map(|of| of.hyperparameters);
        let of_check = self.check.as_ref().map(|of| of.hyperparameters);
        for (what, taken) in [
            ("hyperparameters in the function of coefficients", of_coefficients),
            ("hyperparameters in the check", of_check),
        ] {
            if let Some(taken) = taken {
                check_count(what, taken, names.len(), names.len())?;
            }
        }
        Ok(())
    }

    fn identity(&self, rate_coefficients: &[String]) -> Identity {
        let coefficients = self.function.as_ref().map(|of| of.id);
        let check = self.check.as_ref().map(|of| of.id);
        let cpu_step = self.cpu_steps.map(|(_, id)| Some(id));
        let defaults = self.hyperparameters.iter().map(|(_, default)| *default);
        Identity {
            fingerprint: self.fingerprint(rate_coefficients),
            functions: [coefficients, check, cpu_step].into_iter().flatten().collect(),
            defaults: defaults.chain([self.learning_rate]).collect(),
        }
    }

    /// Hash (FNV-1a) of what kernels and stored states depend on. Every part is followed by its length.
    fn fingerprint(&self, rate_coefficients: &[String]) -> u64 {
        let mut parts = vec![self.name.clone(), self.wgsl.clone()];
        parts.extend(self.states.iter().flat_map(|(name, sign)| [name.clone(), (*sign as u32).to_string()]));
        parts.push("hyperparameters".to_owned());
        parts.extend(self.hyperparameters.iter().map(|(name, _)| name.clone()));
        for (title, names) in [
            ("decay rates", &self.decay_rates),
            ("coefficients", &self.coefficients),
            ("rate coefficients", &rate_coefficients.to_vec()),
        ] {
            parts.push(title.to_owned());
            parts.extend(names.iter().cloned());
        }
        parts.extend(self.debiased.iter().flat_map(|(state, rate)| [state.clone(), rate.clone()]));
        parts.push(format!("{} {:?}", self.has_element_rates, self.f32_state_only));
        let bytes = parts.iter().flat_map(|part| part.bytes().chain((part.len() as u64).to_le_bytes()));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}

/// Tensors of checkpoints that are not states.
const RESERVED_STATES: [&str; 3] = ["master", "param", "scales"];

/// `snake_case`, as WGSL and tensors of checkpoints need it.
fn check_identifier(what: &'static str, name: &str) -> Result<(), CustomRuleError> {
    let is_of_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if starts && name.bytes().all(is_of_name) {
        return Ok(());
    }
    let expected = "lower-case letters, digits and underscores, starting with a letter";
    Err(CustomRuleError::Name { what, found: name.to_owned(), expected })
}

fn check_distinct(what: &'static str, names: &[&str]) -> Result<(), CustomRuleError> {
    let repeated = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name));
    repeated.map_or(Ok(()), |(_, name)| Err(CustomRuleError::Duplicate { what, name: (*name).to_owned() }))
}

fn check_count(what: &'static str, found: usize, least: usize, most: usize) -> Result<(), CustomRuleError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    let expected = match least {
        _ if least == most => most.to_string(),
        0 => format!("at most {most}"),
        _ => format!("{least} to {most}"),
    };
    Err(CustomRuleError::Count { what, found, expected })
}

fn check_known(what: &'static str, name: &str, known: &[&str]) -> Result<(), CustomRuleError> {
    if known.contains(&name) {
        return Ok(());
    }
    Err(CustomRuleError::Unknown { what, found: name.to_owned(), expected: known.join(", ") })
}

/// `my_rule` is `MyRule`.
fn camel_case(name: &str) -> String {
    let words = name.split('_').filter(|word| !word.is_empty());
    words.map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

fn kept(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn all_kept(names: &[String]) -> &'static [&'static str] {
    Box::leak(names.iter().map(|name| kept(name.clone())).collect())
}

impl Rule {
    /// A rule of one's own, with its default hyperparameters. [`adamod::custom`](crate::custom) describes definitions.
    ///
    /// naga validates the WGSL by itself and linked into the kernels. A definition that passes is kept for the life of the process, so that
    /// the rule can be copied as those of the library; made again it is the same rule. A checkpoint of the rule can be read once it is
    /// made.
    ///
    /// # Errors
    /// The first thing that is wrong with the definition, and the line of its WGSL.
    pub fn custom(definition: RuleDefinition) -> Result<Self, CustomRuleError> {
        definition.check()?;
        let has_step_size = definition.coefficients.iter().any(|name| name == "step_size");
        let default = if has_step_size { vec!["step_size".to_owned()] } else { Vec::new() };
        let rates = definition.rate_coefficients.clone().unwrap_or(default);
        let identity = definition.identity(&rates);
        if let Some(known) = custom::known(&identity) {
            return Ok(Self::Custom(known));
        }
        let declared = declarations::declarations(&definition.wgsl);
        let type_name = camel_case(&definition.name);
        validation::check_source(
            &Text {
                name: &definition.name,
                type_name: &type_name,
                coefficients: &definition.coefficients,
                wgsl: &definition.wgsl,
            },
            &declared,
        )?;
        let RuleDefinition { name, wgsl, states, hyperparameters, coefficients, .. } = definition;
        let Some(function) = definition.function else {
            return Err(CustomRuleError::Missing { expected: "coefficients".to_owned() });
        };
        let place_of = |rate: &String| hyperparameters.iter().position(|(name, _)| name == rate);
        let decay_rates = definition.decay_rates.iter().filter_map(place_of).collect();
        let debiased_by = |state: &String| {
            let (_, rate) = definition.debiased.iter().find(|(of, _)| of == state)?;
            definition.decay_rates.iter().position(|of| of == rate)
        };
        let states: Vec<_> = states
            .into_iter()
            .map(|(name, sign)| {
                let debiased_by = debiased_by(&name);
                StateTensor { debiased_by, ..StateTensor::new(kept(name), sign) }
            })
            .collect();
        let definition = Definition {
            description: Description {
                type_name: kept(type_name),
                name: kept(name),
                forms: Box::leak(Box::new([("", &*states.leak())])),
                coefficients: all_kept(&coefficients),
                rate_coefficients: all_kept(&rates),
                has_element_rates: definition.has_element_rates,
                learning_rate: definition.learning_rate,
                wgsl: kept(wgsl),
            },
            hyperparameters: hyperparameters
                .into_iter()
                .map(|(name, default)| (kept(name), default))
                .collect(),
            decay_rates,
            f32_state_only: definition.f32_state_only.map(kept),
            coefficients: function.function,
            check: definition.check.map(|of| of.function),
            cpu_steps: definition.cpu_steps.map(|(steps, _)| steps),
            declarations: declared.into_iter().map(|of| of.name).collect(),
            identity,
        };
        let custom = custom::keep(definition);
        let rule = Self::Custom(custom);
        rule.validate(rule.kind().default_learning_rate())?;
        check_proportions(&rule)?;
        validation::check_kernels(rule.form())?;
        Ok(Self::Custom(custom::register(custom)))
    }
}

/// Coefficients are proportional to the learning rate as declared.
fn check_proportions(rule: &Rule) -> Result<(), CustomRuleError> {
    for t in [1, 2, 1000, BASE] {
        let (one, three) = (rule.coefficients(0.01, t), rule.coefficients(0.03, t));
        for (index, name) in rule.kind().coefficients().iter().enumerate() {
            let is_rate = rule.kind().rate_coefficients() >> index & 1 == 1;
            let (factor, expected) = if is_rate {
                (3.0, "three times as much, as it is named proportional to the learning rate")
            } else {
                (1.0, "as much, as it is not named proportional to the learning rate")
            };
            let (one, three) = (one[index], three[index]);
            if (three - factor * one).abs() <= 1e-12 * (factor * one).abs() {
                continue;
            }
            return Err(CustomRuleError::Proportion { name: (*name).to_owned(), t, one, three, expected });
        }
    }
    Ok(())
}
