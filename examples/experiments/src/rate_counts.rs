//! Histograms of learning rates: those of the kernels ([`RateHistograms`]), and the same counted on the CPU.

use adamod::{BINS, Hyperparameters, RateHistograms, Rule, low_level::abi::LOWEST_EXPONENT};
use serde::{Deserialize, Serialize};

use crate::ridges::Window;

/// How often each learning rate occurred, in the bins of [`RateHistograms`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RateCounts {
    /// Rates as Adam computes them.
    eta: Vec<u64>,
    /// Rates that were used.
    bounded: Vec<u64>,
    /// How many rates the bound made smaller.
    clipped: u64,
}

impl Default for RateCounts {
    fn default() -> Self {
        Self { eta: vec![0; BINS], bounded: vec![0; BINS], clipped: 0 }
    }
}

impl From<RateHistograms> for RateCounts {
    fn from(rates: RateHistograms) -> Self {
        Self { eta: rates.eta.into(), bounded: rates.bounded.into(), clipped: rates.clipped }
    }
}

impl RateCounts {
    /// Counts the rates of a step of AdaMod or Adam, given the state after it: the bits of the kernels. The state has to be in f32; in other
    /// formats the averages are stored without their bias.
    pub fn add(&mut self, hyperparameters: &Hyperparameters, step: u64, state: &[Vec<f32>]) {
        let (beta2, epsilon) = match hyperparameters.rule {
            Rule::AdaMod(rule) => (rule.betas[1], rule.epsilon),
            Rule::Adam(rule) => (rule.betas[1], rule.epsilon),
            _ => return,
        };
        let [_, exp_avg_sq, rest @ ..] = state else { return };
        let correction = (-1.0 / (beta2.ln() * step as f64).exp_m1()) as f32;
        let (step_size, epsilon) = (hyperparameters.learning_rate as f32, epsilon as f32);
        for (element, &v) in exp_avg_sq.iter().enumerate() {
            let eta = step_size / ((v * correction).sqrt() + epsilon);
            let bound = rest.first().map_or(eta, |exp_avg_lr| exp_avg_lr[element]);
            let bounded = if bound < eta { bound } else { eta };
            self.eta[bin_of(eta)] += 1;
            self.bounded[bin_of(bounded)] += 1;
            self.clipped += u64::from(bounded < eta);
        }
    }

    /// Adds the counts of later steps.
    pub fn merge(&mut self, other: &Self) {
        let all = |counts: &mut [u64], more: &[u64]| {
            counts.iter_mut().zip(more).for_each(|(count, more)| *count += more)
        };
        all(&mut self.eta, &other.eta);
        all(&mut self.bounded, &other.bounded);
        self.clipped += other.clipped;
    }

    /// The counts as what a picture shows; `None` if they have another number of bins.
    pub fn window(&self, steps: (u64, u64)) -> Option<Window> {
        let (eta, bounded) = (self.eta[..].try_into().ok()?, self.bounded[..].try_into().ok()?);
        Some(Window { steps, eta, bounded, clipped: self.clipped })
    }
}

/// The bin of a rate. The first and the last include what lies beyond.
fn bin_of(rate: f32) -> usize {
    let exponent = (rate.to_bits() >> 23) as i32 - 127;
    (exponent - LOWEST_EXPONENT).clamp(0, BINS as i32 - 1) as usize
}
