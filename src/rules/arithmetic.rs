//! Arithmetic that the rules share. The functions of `Real` numbers mirror `shaders/lib/arithmetic.wgsl` line by line.

use super::range::{OutOfRange, in_range};
use super::real::Real;
use crate::storage::state::MAX_STATES;

/// Gradients of the adaptive rules are clamped to plus or minus 2^63, so that their squares stay finite in f32.
/// `GRADIENT_LIMIT` in WGSL.
pub const GRADIENT_LIMIT: f64 = 9_223_372_036_854_775_808.0;

/// Coefficients that do not depend on the rule.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct General<T> {
    /// Factor of the gradient: 1 or -1 (maximize), times what a clip and a loss scale make of it.
    pub gradient_scale: T,
    /// L2 regularisation: added to the gradient, times the parameter.
    pub coupled_decay: T,
    /// alpha * lambda: subtracted from the parameter, times the parameter.
    pub decoupled_decay: T,
    /// Whether an element moves only if its step has the sign of its gradient.
    pub is_cautious: bool,
    /// Whether an element decays only where its step does not move it away from 0.
    pub has_cautious_decay: bool,
    /// Whether states that declare a decay rate are stored debiased.
    pub is_debiased: bool,
}

/// What a step of one element reads. `Elements` in WGSL, where it is four elements.
#[derive(Clone, Copy, Debug)]
pub struct Element<T> {
    /// The parameter.
    pub theta: T,
    /// Its gradient.
    pub gradient: T,
    /// Its states, in the order of the rule's list.
    pub state: [T; MAX_STATES],
}

/// What a step of one element writes.
#[derive(Clone, Copy, Debug)]
pub struct Stepped<T> {
    /// The parameter.
    pub theta: T,
    /// Its states.
    pub state: [T; MAX_STATES],
}

/// The scaled gradient, with coupled weight decay.
pub fn scaled_gradient<T: Real>(general: &General<T>, element: &Element<T>) -> T {
    general.gradient_scale * element.gradient + general.coupled_decay * element.theta
}

/// The same, clamped. Infinity and NaN in the gradient or the parameter pass.
pub fn limited_gradient<T: Real>(general: &General<T>, element: &Element<T>) -> T {
    let scaled = scaled_gradient(general, element);
    let limit = T::from_f64(GRADIENT_LIMIT);
    let negative_limit = T::from_f64(-GRADIENT_LIMIT);
    if !(element.gradient.is_finite() && element.theta.is_finite()) {
        scaled
    } else if scaled > limit {
        limit
    } else if scaled < negative_limit {
        negative_limit
    } else {
        scaled
    }
}

/// One step of an exponential moving average; [`ema_weight`] gives the weight.
pub fn ema<T: Real>(old: T, latest: T, weight: T) -> T {
    let base = if weight > T::from_f64(0.0) { old } else { latest };
    base + weight * (latest - old)
}

/// The learning rate of an element as Adam computes it.
pub fn eta_of<T: Real>(step_size: T, v: T, correction: T, epsilon: T) -> T {
    step_size / ((v * correction).sqrt() + epsilon)
}

/// The larger of two numbers; `latest` if it is NaN.
pub fn larger<T: Real>(old: T, latest: T) -> T {
    if old > latest { old } else { latest }
}

/// 1, 0 or -1. Infinity and NaN pass, so that they show in the parameter.
pub fn signum<T: Real>(x: T) -> T {
    let zero = T::from_f64(0.0);
    match () {
        () if !x.is_finite() => x,
        () if x > zero => T::from_f64(1.0),
        () if x < zero => T::from_f64(-1.0),
        () => zero,
    }
}

/// The new parameter: decoupled weight decay of the old one, then the step, `rate * direction`, which is subtracted. `gradient` is what the
/// rule sees of it.
pub fn apply_step<T: Real>(general: &General<T>, theta: T, gradient: T, rate: T, direction: T) -> T {
    let zero = T::from_f64(0.0);
    let step = rate * direction;
    let mut decay = general.decoupled_decay * theta;
    let mut taken = step;
    if general.has_cautious_decay && (step > zero && theta < zero || step < zero && theta > zero) {
        decay = zero;
    }
    if general.is_cautious && (step >= zero && gradient <= zero || step <= zero && gradient >= zero) {
        taken = zero;
    }
    theta - decay - taken
}

/// `1 - beta^t`, without cancellation for betas close to 1.
pub fn one_minus_power(beta: f64, t: u64) -> f64 {
    if beta == 0.0 { 1.0 } else { -(beta.ln() * t as f64).exp_m1() }
}

/// The weight of an exponential moving average for [`ema`]: `1 - beta`, as a step from the old value, or `-beta`, as a step back
/// from the latest value. Each is the form that f32 rounds better, and `beta = 0` is exact.
pub fn ema_weight(beta: f64) -> f64 {
    if beta >= 0.5 { 1.0 - beta } else { -beta }
}

/// The weight of an average that is stored debiased: `(1 - beta) / (1 - beta^t)` if it is at most 1/2, else its difference to 1,
/// negated. It is 0 at t = 1 and where beta is 0.
pub fn debiased_weight(beta: f64, t: u64) -> f64 {
    let scale = one_minus_power(beta, t);
    let weight = (1.0 - beta) / scale;
    if weight > 0.5 { -(scale - (1.0 - beta)).max(0.0) / scale } else { weight }
}

/// Sets an option from its number in a checkpoint, 0 or 1. False for other numbers.
pub fn set_option(option: &mut bool, value: f64) -> bool {
    if value == 0.0 || value == 1.0 {
        *option = value == 1.0;
    }
    value == 0.0 || value == 1.0
}

/// A decay rate.
pub fn check_beta(name: &'static str, beta: f64) -> Result<(), OutOfRange> {
    in_range(name, beta, "a number in [0, 1)", (0.0..1.0).contains(&beta))
}

/// An epsilon. A GPU may flush a subnormal one to zero, and zero would give 0 / 0.
pub fn check_normal(name: &'static str, value: f64) -> Result<(), OutOfRange> {
    in_range(
        name,
        value,
        "a number above 0 and normal in f32 (1.18e-38 to 3.4e38)",
        value > 0.0 && (value as f32).is_normal(),
    )
}

/// The learning rate of an element whose second moment is zero. A gradient or first moment is at most [`GRADIENT_LIMIT`], so a rate of up
/// to 2^64 gives a finite step. `name` is the rate's expression.
pub fn check_largest_rate(name: &'static str, rate: f64) -> Result<(), OutOfRange> {
    in_range(
        name,
        rate,
        "at most 1.8e19 (2^64), so that the largest step of an element whose second moment is zero is finite",
        rate <= 2_f64.powi(64),
    )
}

/// The epsilon of Adam and of rules like it, and the rates that it leads to. `largest_step_size` is the numerator of eta at most.
pub fn check_epsilon(epsilon: f64, largest_step_size: f64) -> Result<(), OutOfRange> {
    check_normal("epsilon", epsilon)?;
    in_range(
        "learning_rate / (1 - betas[0])",
        largest_step_size,
        "at most 1.7e38 (2^127), so that it is finite in f32",
        largest_step_size <= 2_f64.powi(127),
    )?;
    check_largest_rate("learning_rate / (1 - betas[0]) / epsilon", largest_step_size / epsilon)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
