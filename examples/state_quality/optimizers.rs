//! What is compared: the CPU twin in its formats, which is what the GPU computes bit by bit, and the formats that were not taken.

use adamod::reference::{Reference, Storage};
use adamod::{Formula, Hyperparameters, Rule, StateFormat};
use half::{bf16, f16};

const LABEL: &str = "state_quality";
const GROUP: usize = 32;

/// States as AdaMod's formulas have them, in the order of [`Rule::state_names`].
pub type States = [Vec<f64>; 3];

/// An optimizer of one tensor that starts at zero.
pub trait Optimizer {
    fn name(&self) -> &'static str;
    fn step(&mut self, gradient: &[f32]);
    fn values(&self) -> &[f32];
    fn states(&self) -> States;
}

pub fn format_name(format: StateFormat) -> &'static str {
    match format {
        StateFormat::F32 => "F32",
        StateFormat::Bf16 => "Bf16",
        StateFormat::Q8 => "Q8",
    }
}

pub fn hyperparameters(learning_rate: f64, beta3: f64) -> Hyperparameters {
    Hyperparameters { learning_rate, betas: [0.9, 0.999, beta3], ..Hyperparameters::default() }
}

/// The library's CPU twin.
pub struct Twin {
    reference: Reference<f32>,
    format: StateFormat,
    beta3: f64,
}

impl Twin {
    pub fn new(format: StateFormat, hyperparameters: Hyperparameters, elements: usize) -> Self {
        let mut reference = Reference::new(Rule::AdaMod, Formula::Paper);
        let group = reference.add_group(hyperparameters);
        let storage = Storage { state: format, label: LABEL, ..Storage::default() };
        reference.add_stored_parameter(group, vec![0.0; elements], storage);
        Self { reference, format, beta3: hyperparameters.betas[2] }
    }
}

impl Optimizer for Twin {
    fn name(&self) -> &'static str {
        format_name(self.format)
    }

    fn step(&mut self, gradient: &[f32]) {
        self.reference.step(&[Some(gradient)]);
    }

    fn values(&self) -> &[f32] {
        self.reference.values(0)
    }

    fn states(&self) -> States {
        let steps = self.reference.step_count(0) as i32;
        let bias = if self.format.is_debiased() { 1.0 - self.beta3.powi(steps) } else { 1.0 };
        let state = |i: usize, factor: f64| {
            self.reference.state(0)[i].iter().map(|&x| f64::from(x) * factor).collect()
        };
        [state(0, 1.0), state(1, 1.0), state(2, bias)]
    }
}

/// A format that the library does not have: one state of f32 arithmetic is rounded after every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rejected {
    /// `exp_avg_lr` in bf16, rounded to the nearest.
    NearestBf16Rates,
    /// `exp_avg_sq` in 8 bits, evenly spaced from zero to the group's largest.
    LinearSquares,
    /// `exp_avg` in 8 bits, evenly spaced, with the group's scale in f16.
    HalfScales,
}

impl Rejected {
    pub fn name(self) -> &'static str {
        match self {
            Self::NearestBf16Rates => "exp_avg_lr in bf16, to nearest",
            Self::LinearSquares => "exp_avg_sq in linear 8 bits",
            Self::HalfScales => "exp_avg in linear 8 bits, f16 scales",
        }
    }

    fn round(self, [m, v, s]: &mut [Vec<f32>; 3]) {
        match self {
            Self::NearestBf16Rates => s.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            Self::LinearSquares => linear(v, 255.0, |scale| scale),
            Self::HalfScales => linear(m, 127.0, |scale| f16::from_f32(scale).to_f32()),
        }
    }
}

/// Rounds to `codes` evenly spaced numbers on either side of zero, which every group has a scale for.
fn linear(values: &mut [f32], codes: f32, rounded: fn(f32) -> f32) {
    for group in values.chunks_mut(GROUP) {
        let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let scale = rounded(largest / codes);
        for x in group {
            *x = if scale > 0.0 { (*x / scale).round().clamp(-codes, codes) * scale } else { 0.0 };
        }
    }
}

/// AdaMod, Algorithm 2, in f32 but for what is rounded.
pub struct Ablation {
    rejected: Rejected,
    hyperparameters: Hyperparameters,
    steps: i32,
    values: Vec<f32>,
    states: [Vec<f32>; 3],
}

impl Ablation {
    pub fn new(rejected: Rejected, hyperparameters: Hyperparameters, elements: usize) -> Self {
        let zero = || vec![0.0; elements];
        Self { rejected, hyperparameters, steps: 0, values: zero(), states: [zero(), zero(), zero()] }
    }
}

impl Optimizer for Ablation {
    fn name(&self) -> &'static str {
        self.rejected.name()
    }

    fn step(&mut self, gradient: &[f32]) {
        self.steps += 1;
        let betas = self.hyperparameters.betas;
        let [w1, w2, w3] = betas.map(|beta| (1.0 - beta) as f32);
        let [m_correction, v_correction] =
            [betas[0], betas[1]].map(|beta| (1.0 / (1.0 - beta.powi(self.steps))) as f32);
        let alpha = self.hyperparameters.learning_rate as f32;
        let epsilon = self.hyperparameters.epsilon as f32;
        let [m, v, s] = &mut self.states;
        for (i, &g) in gradient.iter().enumerate() {
            m[i] += w1 * (g - m[i]);
            v[i] += w2 * (g * g - v[i]);
            let eta = alpha / ((v[i] * v_correction).sqrt() + epsilon);
            s[i] += w3 * (eta - s[i]);
            self.values[i] -= eta.min(s[i]) * (m[i] * m_correction);
        }
        self.rejected.round(&mut self.states);
    }

    fn values(&self) -> &[f32] {
        &self.values
    }

    fn states(&self) -> States {
        self.states.each_ref().map(|state| state.iter().map(|&x| x.into()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_codes_lose_what_is_small_in_its_group() {
        let mut values = vec![1.0, -0.5, 1e-3];
        linear(&mut values, 127.0, |scale| scale);
        assert_eq!(values[0], 1.0);
        assert!((values[1] + 0.5).abs() <= 0.5 / 127.0);
        assert_eq!(values[2], 0.0);
    }

    #[test]
    fn an_ablation_is_the_twin_but_for_what_is_rounded() {
        let h = hyperparameters(1e-3, 0.999);
        let mut ablation = Ablation::new(Rejected::NearestBf16Rates, h, 1);
        let mut twin = Twin::new(StateFormat::F32, h, 1);
        for g in [0.5, -0.25, 1.0] {
            ablation.step(&[g]);
            twin.step(&[g]);
        }
        for (a, b) in ablation.states().iter().zip(twin.states()).take(2) {
            assert!((a[0] / b[0] - 1.0).abs() < 1e-6, "{a:?} {b:?}");
        }
        let (a, b) = (ablation.states()[2][0], twin.states()[2][0]);
        assert!((a / b - 1.0).abs() < 1.0 / 128.0, "{a} {b}");
    }
}
