//! The CPU reference: the same arithmetic as the kernels, in the same order.
//!
//! [`Reference<f64>`] is the truth that tests compare the GPU with. [`Reference<f32>`] rounds where the GPU rounds. On an adapter whose
//! arithmetic is correctly rounded and not contracted (lavapipe) the two agree in every bit.
//!
//! ```
//! use adamod::{AdaMod, reference::Reference};
//!
//! let mut reference = Reference::<f64>::new();
//! let group = reference.add_group(AdaMod::new());
//! let weight = reference.add_parameter(group, vec![1.0, -2.0]);
//! reference.step(&[Some(&[0.5, 0.25])]);
//! assert!(reference.values(weight)[0] < 1.0);
//! ```

use crate::hyperparameters::{Group, Hyperparameters};
use crate::options::FreshRows;
pub use crate::rules::arithmetic::GRADIENT_LIMIT;
use crate::rules::arithmetic::General;
pub use crate::rules::real::Real;
use crate::rules::update_rule::CoefficientArray;
use crate::storage::block::{BlockLayout, state_words};
use crate::storage::contents::{Contents, write_f32_states};
use crate::storage::dtype::{DType, narrow, widen};
use crate::storage::master::{MasterWeights, join, split};
use crate::storage::random::{Random, key_of, random_of};
use crate::storage::rows::{RowMap, rates_of, remapped};
use crate::storage::state::{Precision, StateFormat};

/// Groups, parameters and state on the CPU, in precision `T`.
#[derive(Clone, Debug, Default)]
pub struct Reference<T> {
    pub(crate) groups: Vec<Group>,
    pub(crate) parameters: Vec<Parameter<T>>,
}

#[derive(Clone, Debug)]
#[cfg_attr(
    not(feature = "checkpoint"),
    expect(dead_code, reason = "only checkpoints read the label and the seed")
)]
pub(crate) struct Parameter<T> {
    pub label: String,
    pub seed: u64,
    pub group: usize,
    pub steps: u64,
    pub values: Vec<T>,
    pub states: Vec<Vec<T>>,
    pub dtype: DType,
    pub layout: BlockLayout,
    key: [u32; 2],
    /// Its first element in the tensor.
    pub first: u64,
    /// Bits of the values in `dtype`.
    pub narrowed: Vec<u32>,
    /// The blocks of state as the GPU has them.
    pub words: Vec<u32>,
    /// Factors of the learning rates of its columns.
    column_factors: Vec<f32>,
    /// Elements of a row, and which rows step; none if all do.
    row_mask: Option<(usize, Vec<bool>)>,
}

/// How a parameter is stored. `Reference<f64>` ignores it.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Storage<'a> {
    /// Data type of the parameter.
    pub dtype: DType,
    /// Format of its state.
    pub state: StateFormat,
    /// Its master weights.
    pub master_weights: MasterWeights,
    /// Its label, for random numbers and checkpoints.
    pub label: &'a str,
    /// The optimizer's seed.
    pub seed: u64,
    /// Its first element in the tensor that it is a part of, a multiple of 4.
    pub first: u64,
}

impl<'a> Storage<'a> {
    /// f32 values and state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`Storage::dtype`].
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// Sets [`Storage::state`].
    pub fn with_state(self, state: StateFormat) -> Self {
        Self { state, ..self }
    }

    /// Sets [`Storage::master_weights`].
    pub fn with_master_weights(self, master_weights: MasterWeights) -> Self {
        Self { master_weights, ..self }
    }

    /// Sets the state format and the master weights that a group of this precision gives a parameter of `len` elements of
    /// [`Storage::dtype`].
    pub fn with_precision(self, precision: &Precision, len: u64) -> Self {
        let (state, master_weights) = (precision.state_format(len), precision.master_weights_of(self.dtype));
        Self { state, master_weights, ..self }
    }

    /// Sets [`Storage::label`].
    pub fn with_label(self, label: &'a str) -> Self {
        Self { label, ..self }
    }

    /// Sets [`Storage::seed`].
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets [`Storage::first`].
    pub fn with_first(self, first: u64) -> Self {
        Self { first, ..self }
    }
}

impl<T: Real> Reference<T> {
    /// A reference without groups and parameters.
    pub fn new() -> Self {
        Self { groups: Vec::new(), parameters: Vec::new() }
    }

    /// Adds a group and returns its index. The hyperparameters are not checked. Its precision is only noted: [`Storage`] says how a
    /// parameter is stored.
    pub fn add_group(&mut self, group: impl Into<Group>) -> usize {
        self.groups.push(group.into());
        self.groups.len() - 1
    }

    /// Replaces a group's hyperparameters from the next step on.
    pub fn set_hyperparameters(&mut self, group: usize, hyperparameters: impl Into<Hyperparameters>) {
        self.groups[group].hyperparameters = hyperparameters.into();
    }

    /// Adds a parameter with zeroed f32 state and returns its index.
    pub fn add_parameter(&mut self, group: usize, values: Vec<T>) -> usize {
        self.add_stored_parameter(group, values, Storage::default())
    }

    /// Adds a parameter that is stored in fewer bits. The values have to be numbers of its data type.
    ///
    /// # Panics
    /// If the group does not exist.
    pub fn add_stored_parameter(&mut self, group: usize, values: Vec<T>, storage: Storage<'_>) -> usize {
        assert!(group < self.groups.len(), "group {group} does not exist");
        let zero = vec![T::from_f64(0.0); values.len()];
        let Storage { dtype, state, master_weights, label, seed, first } = storage;
        let states = self.groups[group].hyperparameters.rule.states();
        let layout = BlockLayout::new(states, state, master_weights);
        let words = if T::IS_STORED { state_words(layout, values.len() as u64) } else { 0 };
        self.parameters.push(Parameter {
            label: label.to_owned(),
            seed,
            group,
            steps: 0,
            states: vec![zero; states.len()],
            dtype,
            layout,
            key: key_of(seed, label),
            first,
            narrowed: Vec::new(),
            words: vec![0; words as usize],
            values,
            column_factors: Vec::new(),
            row_mask: None,
        });
        self.parameters.len() - 1
    }

    /// Takes a step. `gradients` has one entry per parameter, in the order of registration. A parameter with `None` stays as it is: no
    /// weight decay, and its step count does not advance.
    ///
    /// # Panics
    /// If the number of gradients, or the length of one, is not that of the parameters.
    pub fn step(&mut self, gradients: &[Option<&[T]>]) {
        assert_eq!(gradients.len(), self.parameters.len(), "one gradient per parameter");
        for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            assert_eq!(gradient.len(), parameter.values.len(), "the length of the gradient");
            parameter.steps += 1;
            let hyperparameters = &self.groups[parameter.group].hyperparameters;
            let is_debiased = T::IS_STORED && parameter.layout.state.is_debiased();
            let (general, coefficients) = hyperparameters.coefficients(parameter.steps, is_debiased);
            let before = parameter.row_mask.is_some().then(|| parameter.clone());
            parameter.step(hyperparameters, &general, &coefficients, gradient);
            if let Some(before) = before {
                parameter.rest(&before);
            }
            if T::IS_STORED {
                parameter.store();
            }
        }
    }

    /// Sets the factors of a parameter's learning rates by column, as [`Optimizer::set_column_factors`](crate::Optimizer::set_column_factors)
    /// does. They are not checked.
    pub fn set_column_factors(&mut self, parameter: usize, factors: &[f32]) {
        self.parameters[parameter].column_factors = factors.to_vec();
    }

    /// Sets which rows of a parameter step from now on ([`RowMask`](crate::RowMask)); none at all mean every one.
    ///
    /// # Panics
    /// If rows of `row_len` elements are not as many as `active` has.
    pub fn set_row_mask(&mut self, parameter: usize, row_len: usize, active: &[bool]) {
        let parameter = &mut self.parameters[parameter];
        if !active.is_empty() {
            assert_eq!(parameter.values.len().div_ceil(row_len), active.len(), "all rows");
        }
        parameter.row_mask = (!active.is_empty()).then(|| (row_len, active.to_vec()));
    }

    /// Moves the rows of a parameter, as [`Optimizer::remap`](crate::Optimizer::remap) does: state of row `r` continues that of old row
    /// `sources[r]`, or is fresh if there is none. `values` are the new values, which are the caller's as they are the engine's there. A mask of
    /// rows is removed, where [`Optimizer::remap`](crate::Optimizer::remap) keeps a registered one.
    ///
    /// # Panics
    /// If rows of `row_len` elements do not divide the parameter, or `values` are not as many as the rows have.
    pub fn remap(
        &mut self,
        parameter: usize,
        row_len: usize,
        sources: &[u32],
        fresh: FreshRows,
        values: Vec<T>,
    ) {
        let parameter = &mut self.parameters[parameter];
        parameter.row_mask = None;
        let old_len = parameter.values.len();
        assert!(row_len > 0 && old_len.is_multiple_of(row_len), "rows of {row_len} of {old_len} elements");
        assert_eq!(values.len(), sources.len() * row_len, "values for all rows");
        let map = RowMap { row_len, sources, has_means: fresh == FreshRows::Mean };
        if T::IS_STORED {
            let Parameter { layout, key, steps, .. } = *parameter;
            parameter.words = remapped(layout, old_len as u64, &parameter.words, map, key, steps as u32);
            let contents = Contents::decode(layout, values.len() as u64, &parameter.words);
            parameter.states = contents
                .states
                .into_iter()
                .map(|state| state.into_iter().map(|x| T::from_f64(x.into())).collect())
                .collect();
            let (dtype, master) = (parameter.dtype, parameter.layout.master_weights);
            parameter.narrowed = values.iter().map(|value| narrow(dtype, value.to_f32().to_bits())).collect();
            let joined = |(&narrowed, &difference): (&u32, &u32)| {
                T::from_f64(join(dtype, master, narrowed, difference).into())
            };
            parameter.values = parameter.narrowed.iter().zip(&contents.differences).map(joined).collect();
        } else {
            let origins = map.origins(old_len);
            let rates = rates_of(parameter.layout.states).filter(|_| map.has_means);
            for (index, state) in parameter.states.iter_mut().enumerate() {
                let as_f32: Vec<f32> = state.iter().map(|x| x.to_f32()).collect();
                let means = rates.filter(|rates| *rates == index).map(|_| map.means(&as_f32));
                let fresh = |i: usize| means.as_ref().map_or(0.0, |means| means[i % row_len].into());
                *state = origins
                    .iter()
                    .enumerate()
                    .map(|(i, origin)| origin.map_or_else(|| T::from_f64(fresh(i)), |from| state[from]))
                    .collect();
            }
            parameter.values = values;
        }
    }

    /// Values of a parameter.
    pub fn values(&self, parameter: usize) -> &[T] {
        &self.parameters[parameter].values
    }

    /// Bits of a parameter's values in its data type, after a step.
    pub fn narrowed(&self, parameter: usize) -> &[u32] {
        &self.parameters[parameter].narrowed
    }

    /// A parameter's blocks of state as the GPU has them, after a step.
    pub fn words(&self, parameter: usize) -> &[u32] {
        &self.parameters[parameter].words
    }

    /// States of a parameter as they are stored, in the order of [`Rule::state_names`](crate::Rule::state_names). In formats below 32 bits
    /// `exp_avg_lr` is debiased, unlike in [`Optimizer::read_state`](crate::Optimizer::read_state).
    pub fn state(&self, parameter: usize) -> &[Vec<T>] {
        &self.parameters[parameter].states
    }

    /// Steps that a parameter has taken.
    pub fn step_count(&self, parameter: usize) -> u64 {
        self.parameters[parameter].steps
    }
}

impl<T: Real> Parameter<T> {
    fn step(
        &mut self,
        hyperparameters: &Hyperparameters,
        general: &General<T>,
        coefficients: &CoefficientArray<T>,
        gradient: &[T],
    ) {
        let rule = &hyperparameters.rule;
        let Self { values, states, column_factors, first, .. } = self;
        if column_factors.is_empty() {
            rule.step_elements(general, coefficients, values, gradient, states);
            return;
        }
        let rates = rule.kind().rate_coefficients();
        let period = column_factors.len();
        for (column, &factor) in column_factors.iter().enumerate() {
            let factor = T::from_f64(factor.into());
            let mut scaled = *coefficients;
            for (_, of) in scaled.iter_mut().enumerate().filter(|(index, _)| rates >> index & 1 == 1) {
                *of = *of * factor;
            }
            let general = General { decoupled_decay: general.decoupled_decay * factor, ..*general };
            let of_column: Vec<usize> =
                (0..values.len()).filter(|i| (*first + *i as u64) % period as u64 == column as u64).collect();
            let pick = |from: &[T]| of_column.iter().map(|&i| from[i]).collect::<Vec<_>>();
            let (mut theta, mut state) = (pick(values), states.iter().map(|of| pick(of)).collect::<Vec<_>>());
            rule.step_elements(&general, &scaled, &mut theta, &pick(gradient), &mut state);
            for (n, &i) in of_column.iter().enumerate() {
                values[i] = theta[n];
                for (states, state) in states.iter_mut().zip(&state) {
                    states[i] = state[n];
                }
            }
        }
    }

    /// Takes the step of rows that rest back.
    fn rest(&mut self, before: &Self) {
        let Some((row_len, active)) = &self.row_mask else { return };
        for i in (0..self.values.len()).filter(|i| !active[i / row_len]) {
            self.values[i] = before.values[i];
            for (state, before) in self.states.iter_mut().zip(&before.states) {
                state[i] = before[i];
            }
        }
    }

    /// Stores values and states as the kernel does at its end, and continues with what was stored.
    fn store(&mut self) {
        let (dtype, master) = (self.dtype, self.layout.master_weights);
        if dtype == DType::F32 && self.layout.state == StateFormat::F32 {
            // Nothing is rounded.
            self.narrowed.clear();
            self.narrowed.extend(self.values.iter().map(|value| value.to_f32().to_bits()));
            let bits = |state: usize, element: usize| self.states[state][element].to_f32().to_bits();
            write_f32_states(self.layout, self.values.len() as u64, bits, &mut self.words);
            return;
        }
        let (key, step, first_quad) = (self.key, self.steps as u32, self.first / 4);
        let quads = (0..self.values.len().div_ceil(4) as u64).map(|quad| (first_quad + quad) as u32);
        let random: Vec<Random> = quads.flat_map(|quad| random_of(key, step, quad)).collect();
        let split = self
            .values
            .iter()
            .zip(&random)
            .map(|(value, random)| split(dtype, master, value.to_f32(), random.parameter));
        let (narrowed, differences): (Vec<_>, Vec<_>) = split.unzip();
        for (value, (&narrowed, &difference)) in self.values.iter_mut().zip(narrowed.iter().zip(&differences))
        {
            *value = T::from_f64(join(dtype, master, narrowed, difference).into());
        }
        let states = self.states.iter().map(|state| state.iter().map(|x| x.to_f32()).collect()).collect();
        let contents = Contents { states, differences };
        self.words = contents.encode(self.layout, &self.words, |i| random[i as usize]);
        let stored = Contents::decode(self.layout, self.values.len() as u64, &self.words);
        for (state, stored) in self.states.iter_mut().zip(stored.states) {
            *state = stored.into_iter().map(|x| T::from_f64(x.into())).collect();
        }
        self.narrowed = narrowed;
    }
}

/// Rounds numbers to a data type and back to f32, as gradients of that type are.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    let round = |value: &f32| f32::from_bits(widen(dtype, narrow(dtype, value.to_bits())));
    values.iter().map(round).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hyperparameters::{Objective, WeightDecay};
    use crate::rules::types::AdaMod;
    use crate::rules::{Formula, RuleKind};

    fn one_parameter(h: impl Into<Hyperparameters>) -> Reference<f64> {
        let mut reference = Reference::new();
        let group = reference.add_group(h);
        reference.add_parameter(group, vec![2.0]);
        reference
    }

    /// Algorithm 2 written out for two steps, apart from the code above.
    #[test]
    fn two_steps_of_algorithm_2_by_hand() {
        let (alpha, b1, b2, b3, eps) = (0.1, 0.9, 0.99, 0.5, 1e-8);
        let h = Hyperparameters::from(AdaMod::new().with_betas([b1, b2, b3]))
            .with_learning_rate(alpha)
            .with_weight_decay(WeightDecay::Decoupled(0.01));
        let mut reference = one_parameter(h);
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
                let mut reference = one_parameter(AdaMod::new().with_formula(formula));
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
        for kind in RuleKind::ALL {
            let h = Hyperparameters::from(kind.with_defaults());
            let mut up = one_parameter(h.with_objective(Objective::Maximize));
            let mut down = one_parameter(h);
            up.step(&[Some(&[0.25])]);
            down.step(&[Some(&[-0.25])]);
            assert_eq!(up.values(0), down.values(0));
            assert!(up.values(0)[0] > 2.0);
        }
    }

    #[test]
    fn finite_gradients_never_give_a_non_finite_value() {
        for kind in RuleKind::ALL.iter().filter(|kind| kind.has_element_rates()) {
            let mut reference = Reference::<f32>::new();
            let group = reference.add_group(kind.with_defaults());
            reference.add_parameter(group, vec![1.0]);
            for g in [f32::MAX, -1e30, 0.0, 1e-45, 1e19, f32::MIN, 1.0, 0.0] {
                reference.step(&[Some(&[g])]);
                assert!(reference.values(0)[0].is_finite(), "{kind} {g}");
            }
        }
    }
}
