//! What is compared: the library's formats, computed by its CPU reference with the GPU's bits, and the rejected formats.

use std::fmt;

use adamod::reference::{Reference, Storage};
use adamod::{AdaMod, Hyperparameters, StateFormat};
use half::{bf16, f16};

pub const LABEL: &str = "state_quality";
/// Elements of a quant block.
const BLOCK: usize = 32;

/// States as in AdaMod's formulas, in the order of [`adamod::Rule::state_names`].
pub type States = [Vec<f64>; 3];

/// An optimizer of one tensor that starts at zero.
pub trait Optimizer {
    fn name(&self) -> Name;
    fn step(&mut self, gradient: &[f32]);
    fn values(&self) -> &[f32];
    fn states(&self) -> States;
}

/// What an optimizer is called in tables and pictures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Name {
    Format(StateFormat),
    Rejected(Rejected),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // As the variant is called in the library.
            Self::Format(format) => write!(f, "{format:?}"),
            Self::Rejected(rejected) => f.write_str(rejected.name()),
        }
    }
}

/// The learning rate and the rule of all optimizers of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    learning_rate: f64,
    rule: AdaMod,
}

impl Settings {
    pub fn new(learning_rate: f64, beta3: f64) -> Self {
        Self { learning_rate, rule: AdaMod::new().with_betas([0.9, 0.999, beta3]) }
    }
}

impl From<Settings> for Hyperparameters {
    fn from(settings: Settings) -> Self {
        Self::from(settings.rule).with_learning_rate(settings.learning_rate)
    }
}

/// The library's CPU reference.
pub struct Twin {
    reference: Reference<f32>,
    format: StateFormat,
    beta3: f64,
}

impl Twin {
    pub fn new(format: StateFormat, settings: Settings, elements: usize) -> Self {
        let mut reference = Reference::new();
        let group = reference.add_group(settings);
        let storage = Storage::new().with_state(format).with_label(LABEL);
        reference.add_stored_parameter(group, vec![0.0; elements], storage);
        Self { reference, format, beta3: settings.rule.betas[2] }
    }
}

impl Optimizer for Twin {
    fn name(&self) -> Name {
        Name::Format(self.format)
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

/// A format that the library does not have. The arithmetic is f32, and one state is rounded after every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rejected {
    /// `exp_avg_lr` in bf16, rounded to the nearest.
    NearestBf16Rates,
    /// `exp_avg_sq` in 8 bits, evenly spaced from zero to the largest of the quant block.
    LinearSquares,
    /// `exp_avg` in 8 bits, evenly spaced, with the quant block's scale in f16.
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

/// Rounds to `codes` evenly spaced numbers on either side of zero. Every quant block has a scale.
fn linear(values: &mut [f32], codes: f32, rounded: fn(f32) -> f32) {
    for block in values.chunks_mut(BLOCK) {
        let largest = block.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let scale = rounded(largest / codes);
        for x in block {
            *x = if scale > 0.0 { (*x / scale).round().clamp(-codes, codes) * scale } else { 0.0 };
        }
    }
}

/// AdaMod, Algorithm 2, in f32 apart from the state that is rounded.
pub struct Ablation {
    rejected: Rejected,
    settings: Settings,
    steps: i32,
    values: Vec<f32>,
    states: [Vec<f32>; 3],
}

impl Ablation {
    pub fn new(rejected: Rejected, settings: Settings, elements: usize) -> Self {
        let zero = || vec![0.0; elements];
        Self { rejected, settings, steps: 0, values: zero(), states: [zero(), zero(), zero()] }
    }
}

impl Optimizer for Ablation {
    fn name(&self) -> Name {
        Name::Rejected(self.rejected)
    }

    fn step(&mut self, gradient: &[f32]) {
        self.steps += 1;
        let Settings { learning_rate, rule: AdaMod { betas, epsilon, .. } } = self.settings;
        let [w1, w2, w3] = betas.map(|beta| (1.0 - beta) as f32);
        let [m_correction, v_correction] =
            [betas[0], betas[1]].map(|beta| (1.0 / (1.0 - beta.powi(self.steps))) as f32);
        let (alpha, epsilon) = (learning_rate as f32, epsilon as f32);
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
    fn linear_codes_lose_small_elements_of_a_block() {
        let mut values = vec![1.0, -0.5, 1e-3];
        linear(&mut values, 127.0, |scale| scale);
        assert_eq!(values[0], 1.0);
        assert!((values[1] + 0.5).abs() <= 0.5 / 127.0);
        assert_eq!(values[2], 0.0);
    }

    #[test]
    fn an_ablation_is_the_twin_apart_from_the_rounded_state() {
        let settings = Settings::new(1e-3, 0.999);
        let mut ablation = Ablation::new(Rejected::NearestBf16Rates, settings, 1);
        let mut twin = Twin::new(StateFormat::F32, settings, 1);
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
