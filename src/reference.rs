//! The CPU twin of the kernels: the same arithmetic, in the same order, line by line with `shaders/rules/*.wgsl`.
//!
//! [`Reference<f64>`] is the truth that tests and `adamod replay --backend cpu` hold the GPU against. [`Reference<f32>`]
//! rounds where the GPU rounds: on an adapter whose arithmetic is correctly rounded and not contracted (lavapipe) the
//! two agree in every bit, elsewhere it explains differences.

use crate::hyperparameters::{Formula, Hyperparameters, Rule, StepCoefficients};

mod real {
    use std::fmt::Debug;
    use std::ops::{Add, Div, Mul, Sub};

    /// The arithmetic that the twin needs: f32 or f64.
    pub trait Real:
        Copy
        + Debug
        + PartialOrd
        + Add<Output = Self>
        + Sub<Output = Self>
        + Mul<Output = Self>
        + Div<Output = Self>
    {
        /// Rounds to this precision.
        fn from_f64(value: f64) -> Self;
        /// Square root.
        fn sqrt(self) -> Self;
        /// Neither infinite nor NaN.
        fn is_finite(self) -> bool;
    }

    macro_rules! real {
        ($($t:ty),*) => {$(
            impl Real for $t {
                fn from_f64(value: f64) -> Self {
                    value as $t
                }
                fn sqrt(self) -> Self {
                    self.sqrt()
                }
                fn is_finite(self) -> bool {
                    self.is_finite()
                }
            }
        )*};
    }
    real!(f32, f64);
}
pub use real::Real;

/// Gradients of the adaptive rules are held within plus or minus this, 2^63, so that their squares stay finite in f32;
/// `GRADIENT_LIMIT` in `shaders/arithmetic.wgsl`.
pub const GRADIENT_LIMIT: f64 = 9_223_372_036_854_775_808.0;

/// Groups, parameters and state on the CPU, in precision `T`.
#[derive(Clone, Debug)]
pub struct Reference<T> {
    rule: Rule,
    formula: Formula,
    groups: Vec<Hyperparameters>,
    parameters: Vec<Parameter<T>>,
}

#[derive(Clone, Debug)]
struct Parameter<T> {
    group: usize,
    steps: u64,
    values: Vec<T>,
    states: Vec<Vec<T>>,
}

impl<T: Real> Reference<T> {
    /// A reference without groups or parameters.
    pub fn new(rule: Rule, formula: Formula) -> Self {
        Self { rule, formula, groups: Vec::new(), parameters: Vec::new() }
    }

    /// Adds a group and returns its index. The hyperparameters are not checked.
    pub fn add_group(&mut self, hyperparameters: Hyperparameters) -> usize {
        self.groups.push(hyperparameters);
        self.groups.len() - 1
    }

    /// Replaces a group's hyperparameters from the next step on.
    pub fn set_hyperparameters(&mut self, group: usize, hyperparameters: Hyperparameters) {
        self.groups[group] = hyperparameters;
    }

    /// Adds a parameter with zero state and returns its index.
    pub fn add_parameter(&mut self, group: usize, values: Vec<T>) -> usize {
        assert!(group < self.groups.len(), "group {group} does not exist");
        let zero = vec![T::from_f64(0.0); values.len()];
        self.parameters.push(Parameter {
            group,
            steps: 0,
            states: vec![zero; self.rule.states() as usize],
            values,
        });
        self.parameters.len() - 1
    }

    /// One step. `gradients` has one entry a parameter, in order of registration; without one, a parameter is left alone, its
    /// step count and weight decay included.
    ///
    /// # Panics
    /// If the number of gradients, or the length of one, is not that of the parameters.
    pub fn step(&mut self, gradients: &[Option<&[T]>]) {
        assert_eq!(gradients.len(), self.parameters.len(), "one gradient a parameter");
        for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            assert_eq!(gradient.len(), parameter.values.len(), "the gradient's length");
            parameter.steps += 1;
            let c = Coefficients::from(self.groups[parameter.group].coefficients(
                self.formula,
                self.rule,
                parameter.steps,
            ));
            let states = parameter.states.as_mut_slice();
            for (i, (theta, &g)) in parameter.values.iter_mut().zip(*gradient).enumerate() {
                match (self.rule, &mut *states) {
                    (Rule::AdaMod, [m, v, s]) => adamod(&c, theta, g, &mut m[i], &mut v[i], &mut s[i]),
                    (Rule::Adam, [m, v]) => adam(&c, theta, g, &mut m[i], &mut v[i]),
                    (Rule::Sgd, [b]) => sgd(&c, theta, g, &mut b[i]),
                    _ => unreachable!("add_parameter makes as many states as the rule has"),
                }
            }
        }
    }

    /// Values of a parameter.
    pub fn values(&self, parameter: usize) -> &[T] {
        &self.parameters[parameter].values
    }

    /// States of a parameter, in the order of [`Rule::state_names`].
    pub fn state(&self, parameter: usize) -> &[Vec<T>] {
        &self.parameters[parameter].states
    }

    /// Steps that a parameter has taken.
    pub fn step_count(&self, parameter: usize) -> u64 {
        self.parameters[parameter].steps
    }
}

/// WGSL `Coefficients`.
struct Coefficients<T> {
    gradient_scale: T,
    coupled_decay: T,
    decoupled_decay: T,
    momentum: T,
    exp_avg_weight: T,
    exp_avg_sq_weight: T,
    exp_avg_lr_weight: T,
    step_size: T,
    exp_avg_correction: T,
    exp_avg_sq_correction: T,
    epsilon: T,
}

impl<T: Real> From<StepCoefficients> for Coefficients<T> {
    fn from(c: StepCoefficients) -> Self {
        Self {
            gradient_scale: T::from_f64(c.gradient_scale),
            coupled_decay: T::from_f64(c.coupled_decay),
            decoupled_decay: T::from_f64(c.decoupled_decay),
            momentum: T::from_f64(c.momentum),
            exp_avg_weight: T::from_f64(c.exp_avg_weight),
            exp_avg_sq_weight: T::from_f64(c.exp_avg_sq_weight),
            exp_avg_lr_weight: T::from_f64(c.exp_avg_lr_weight),
            step_size: T::from_f64(c.step_size),
            exp_avg_correction: T::from_f64(c.exp_avg_correction),
            exp_avg_sq_correction: T::from_f64(c.exp_avg_sq_correction),
            epsilon: T::from_f64(c.epsilon),
        }
    }
}

/// WGSL `scaled_gradient`.
fn scaled_gradient<T: Real>(c: &Coefficients<T>, g: T, theta: T) -> T {
    c.gradient_scale * g + c.coupled_decay * theta
}

/// WGSL `limited_gradient`.
fn limited_gradient<T: Real>(c: &Coefficients<T>, g: T, theta: T) -> T {
    let scaled = scaled_gradient(c, g, theta);
    let limit = T::from_f64(GRADIENT_LIMIT);
    let negative_limit = T::from_f64(-GRADIENT_LIMIT);
    if !g.is_finite() {
        scaled
    } else if scaled > limit {
        limit
    } else if scaled < negative_limit {
        negative_limit
    } else {
        scaled
    }
}

/// WGSL `ema`.
fn ema<T: Real>(old: T, new: T, weight: T) -> T {
    let base = if weight > T::from_f64(0.0) { old } else { new };
    base + weight * (new - old)
}

/// WGSL `eta_of`.
fn eta_of<T: Real>(c: &Coefficients<T>, v: T) -> T {
    c.step_size / ((v * c.exp_avg_sq_correction).sqrt() + c.epsilon)
}

/// WGSL `moved`.
fn moved<T: Real>(c: &Coefficients<T>, theta: T, rate: T, m: T) -> T {
    let decayed = theta - c.decoupled_decay * theta;
    decayed - rate * (m * c.exp_avg_correction)
}

/// `shaders/rules/adamod.wgsl`.
fn adamod<T: Real>(c: &Coefficients<T>, theta: &mut T, g: T, m: &mut T, v: &mut T, s: &mut T) {
    let g = limited_gradient(c, g, *theta);
    *m = ema(*m, g, c.exp_avg_weight);
    *v = ema(*v, g * g, c.exp_avg_sq_weight);
    let eta = eta_of(c, *v);
    *s = ema(*s, eta, c.exp_avg_lr_weight);
    let bounded = if *s < eta { *s } else { eta };
    *theta = moved(c, *theta, bounded, *m);
}

/// `shaders/rules/adam.wgsl`.
fn adam<T: Real>(c: &Coefficients<T>, theta: &mut T, g: T, m: &mut T, v: &mut T) {
    let g = limited_gradient(c, g, *theta);
    *m = ema(*m, g, c.exp_avg_weight);
    *v = ema(*v, g * g, c.exp_avg_sq_weight);
    *theta = moved(c, *theta, eta_of(c, *v), *m);
}

/// `shaders/rules/sgd.wgsl`.
fn sgd<T: Real>(c: &Coefficients<T>, theta: &mut T, g: T, b: &mut T) {
    *b = c.momentum * *b + scaled_gradient(c, g, *theta);
    *theta = moved(c, *theta, c.step_size, *b);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hyperparameters::{Objective, WeightDecay};

    fn one_parameter(rule: Rule, formula: Formula, h: Hyperparameters) -> Reference<f64> {
        let mut reference = Reference::new(rule, formula);
        let group = reference.add_group(h);
        reference.add_parameter(group, vec![2.0]);
        reference
    }

    /// Algorithm 2 written out for two steps, apart from the code above.
    #[test]
    fn two_steps_of_algorithm_2_by_hand() {
        let (alpha, b1, b2, b3, eps) = (0.1, 0.9, 0.99, 0.5, 1e-8);
        let h = Hyperparameters {
            learning_rate: alpha,
            betas: [b1, b2, b3],
            weight_decay: WeightDecay::Decoupled(0.01),
            ..Hyperparameters::default()
        };
        let mut reference = one_parameter(Rule::AdaMod, Formula::Paper, h);
        let (mut theta, mut m, mut v, mut s) = (2.0_f64, 0.0, 0.0, 0.0);
        for (t, g) in [(1, 0.5), (2, -3.0)] {
            reference.step(&[Some(&[g])]);
            m = b1 * m + (1.0 - b1) * g;
            v = b2 * v + (1.0 - b2) * g * g;
            let m_hat = m / (1.0 - b1.powi(t));
            let v_hat: f64 = v / (1.0 - f64::powi(b2, t));
            let eta = alpha / (v_hat.sqrt() + eps);
            s = b3 * s + (1.0 - b3) * eta;
            theta -= alpha * 0.01 * theta;
            theta -= eta.min(s) * m_hat;
        }
        assert!((reference.values(0)[0] - theta).abs() < 1e-14);
        for (state, expected) in reference.state(0).iter().zip([m, v, s]) {
            assert!((state[0] - expected).abs() < 1e-14);
        }
        assert_eq!(reference.step_count(0), 2);
    }

    #[test]
    fn authors_code_takes_the_larger_first_steps_that_were_measured() {
        // With constant |g| its step is 2.2 times the paper's at t = 10 and 1.26 times at t = 100.
        let ratio_at = |t: usize| {
            let moved = |formula| {
                let mut reference = one_parameter(Rule::AdaMod, formula, Hyperparameters::default());
                let mut before = 2.0;
                for _ in 0..t {
                    before = reference.values(0)[0];
                    reference.step(&[Some(&[1.0])]);
                }
                before - reference.values(0)[0]
            };
            moved(Formula::AuthorsCode) / moved(Formula::Paper)
        };
        assert!((ratio_at(10) - 2.2).abs() < 0.1, "{}", ratio_at(10));
        assert!((ratio_at(100) - 1.26).abs() < 0.05, "{}", ratio_at(100));
    }

    #[test]
    fn maximize_mirrors_minimize() {
        let h = Hyperparameters { objective: Objective::Maximize, ..Hyperparameters::default() };
        for rule in [Rule::AdaMod, Rule::Adam, Rule::Sgd] {
            let mut up = one_parameter(rule, Formula::Paper, h);
            let mut down = one_parameter(rule, Formula::Paper, Hyperparameters::default());
            up.step(&[Some(&[0.25])]);
            down.step(&[Some(&[-0.25])]);
            assert_eq!(up.values(0), down.values(0));
            assert!(up.values(0)[0] > 2.0);
        }
    }

    #[test]
    fn finite_gradients_never_give_a_non_finite_value() {
        for rule in [Rule::AdaMod, Rule::Adam] {
            let mut reference = Reference::<f32>::new(rule, Formula::Paper);
            let group = reference.add_group(Hyperparameters::default());
            reference.add_parameter(group, vec![1.0]);
            for g in [f32::MAX, -1e30, 0.0, 1e-45, 1e19, f32::MIN, 1.0, 0.0] {
                reference.step(&[Some(&[g])]);
                assert!(reference.values(0)[0].is_finite(), "{rule:?} {g}");
            }
        }
    }
}
