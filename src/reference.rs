//! The CPU twin of the kernels: the same arithmetic, in the same order, line by line with `shaders/rules/*.wgsl`.
//!
//! [`Reference<f64>`] is the truth that tests and `adamod replay --backend cpu` hold the GPU against. [`Reference<f32>`]
//! rounds where the GPU rounds: on an adapter whose arithmetic is correctly rounded and not contracted (lavapipe) the
//! two agree in every bit, elsewhere it explains differences.

use crate::blocks::Contents;
use crate::format::{BlockLayout, DType, MasterWeights, StateFormat};
use crate::hyperparameters::{Formula, Hyperparameters, Rule, StepCoefficients};
use crate::plan::state_words;
use crate::rounding::{join, key_of, random_of, split, widen};

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
        /// Whether numbers are stored as the GPU stores them. The truth is stored in full.
        const IS_STORED: bool;
        /// Rounds to this precision.
        fn from_f64(value: f64) -> Self;
        /// Rounds to f32.
        fn to_f32(self) -> f32;
        /// Square root.
        fn sqrt(self) -> Self;
        /// Neither infinite nor NaN.
        fn is_finite(self) -> bool;
    }

    macro_rules! real {
        ($($t:ty: $is_stored:literal),*) => {$(
            impl Real for $t {
                const IS_STORED: bool = $is_stored;
                fn to_f32(self) -> f32 {
                    self as f32
                }
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
    real!(f32: true, f64: false);
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
    dtype: DType,
    layout: BlockLayout,
    key: [u32; 2],
    /// Bits of the values in `dtype`.
    narrowed: Vec<u32>,
    /// The blocks of state as the GPU has them.
    words: Vec<u32>,
}

/// How the twin stores a parameter; the truth ignores it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Storage<'a> {
    /// Type of the parameter.
    pub dtype: DType,
    /// Format of its state.
    pub state: StateFormat,
    /// Its master weights.
    pub master_weights: MasterWeights,
    /// Its label, for random numbers.
    pub label: &'a str,
    /// The optimizer's seed.
    pub seed: u64,
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
        self.add_stored_parameter(group, values, Storage::default())
    }

    /// Adds a parameter that is stored in fewer bits. The values have to be numbers of its type.
    pub fn add_stored_parameter(&mut self, group: usize, values: Vec<T>, storage: Storage<'_>) -> usize {
        assert!(group < self.groups.len(), "group {group} does not exist");
        let zero = vec![T::from_f64(0.0); values.len()];
        let Storage { dtype, state, master_weights, label, seed } = storage;
        let states = self.rule.states();
        let layout = BlockLayout { states, state, master_weights };
        let words = if T::IS_STORED { state_words(layout, values.len() as u64) } else { 0 };
        self.parameters.push(Parameter {
            group,
            steps: 0,
            states: vec![zero; states as usize],
            dtype,
            layout,
            key: key_of(seed, label),
            narrowed: Vec::new(),
            words: vec![0; words as usize],
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
            let mut c = Coefficients::from(self.groups[parameter.group].coefficients(
                self.formula,
                self.rule,
                parameter.steps,
            ));
            if T::IS_STORED && parameter.layout.state.is_debiased() {
                c.exp_avg_lr_weight = c.debiased_lr_weight;
            } else {
                c.debiased_lr_scale = T::from_f64(1.0);
            }
            let states = parameter.states.as_mut_slice();
            for (i, (theta, &g)) in parameter.values.iter_mut().zip(*gradient).enumerate() {
                match (self.rule, &mut *states) {
                    (Rule::AdaMod, [m, v, s]) => adamod(&c, theta, g, &mut m[i], &mut v[i], &mut s[i]),
                    (Rule::Adam, [m, v]) => adam(&c, theta, g, &mut m[i], &mut v[i]),
                    (Rule::Sgd, [b]) => sgd(&c, theta, g, &mut b[i]),
                    _ => unreachable!("add_parameter makes as many states as the rule has"),
                }
            }
            if T::IS_STORED {
                parameter.store();
            }
        }
    }

    /// Values of a parameter.
    pub fn values(&self, parameter: usize) -> &[T] {
        &self.parameters[parameter].values
    }

    /// Bits of a parameter's values in its type, after a step.
    pub fn narrowed(&self, parameter: usize) -> &[u32] {
        &self.parameters[parameter].narrowed
    }

    /// A parameter's blocks of state, word by word as the GPU has them, after a step.
    pub fn words(&self, parameter: usize) -> &[u32] {
        &self.parameters[parameter].words
    }

    /// States of a parameter, in the order of [`Rule::state_names`], as they are stored: `exp_avg_lr` debiased where the format
    /// has it so ([`StateFormat::is_debiased`]), unlike [`Optimizer::read_state`](crate::Optimizer::read_state).
    pub fn state(&self, parameter: usize) -> &[Vec<T>] {
        &self.parameters[parameter].states
    }

    /// Steps that a parameter has taken.
    pub fn step_count(&self, parameter: usize) -> u64 {
        self.parameters[parameter].steps
    }
}

impl<T: Real> Parameter<T> {
    /// What the kernel does at its end: stores, and what was lost is lost.
    fn store(&mut self) {
        let (key, step) = (self.key, self.steps as u32);
        let random = |i: u64| random_of(key, step, (i / 4) as u32)[(i % 4) as usize];
        let (dtype, master) = (self.dtype, self.layout.master_weights);
        let split = self
            .values
            .iter()
            .zip(0..)
            .map(|(value, i)| split(dtype, master, value.to_f32(), random(i).parameter));
        let (narrowed, differences): (Vec<_>, Vec<_>) = split.unzip();
        for (value, (&narrowed, &difference)) in self.values.iter_mut().zip(narrowed.iter().zip(&differences))
        {
            *value = T::from_f64(join(dtype, narrowed, difference).into());
        }
        let states = self.states.iter().map(|state| state.iter().map(|x| x.to_f32()).collect()).collect();
        let contents = Contents { states, differences };
        self.words = contents.encode(self.layout, &self.words, random);
        let stored = Contents::decode(self.layout, self.values.len() as u64, &self.words);
        for (state, stored) in self.states.iter_mut().zip(stored.states) {
            *state = stored.into_iter().map(|x| T::from_f64(x.into())).collect();
        }
        self.narrowed = narrowed;
    }
}

/// f32 numbers of gradients that have been rounded to a type.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    let round = |value: &f32| f32::from_bits(widen(dtype, crate::rounding::narrow(dtype, value.to_bits())));
    values.iter().map(round).collect()
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
    debiased_lr_weight: T,
    debiased_lr_scale: T,
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
            debiased_lr_weight: T::from_f64(c.debiased_lr_weight),
            debiased_lr_scale: T::from_f64(c.debiased_lr_scale),
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
    if !(g.is_finite() && theta.is_finite()) {
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
    let bound = *s * c.debiased_lr_scale;
    let bounded = if bound < eta { bound } else { eta };
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
