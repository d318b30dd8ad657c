//! Gradient streams.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal, StudentT};

/// Elements that share a scale in the 8-bit format.
const GROUP: usize = 32;
/// Standard deviation of the logarithms of scales that are alike.
const ALIKE: f64 = 0.7;
/// Decades over which the scales of a group are mixed, or those of all groups if a group's are alike.
const DECADES: f64 = 5.0;
/// Mean of the drifting stream in units of its deviation.
const DRIFT: f64 = 0.5;
/// Fraction of the sparse stream's gradients that is not zero.
const DENSITY: f64 = 0.1;
/// The factor by which the changing stream grows and shrinks.
const JUMP: f64 = 100.0;

/// How gradients are distributed over the steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Normal, without a mean.
    Noise,
    /// Normal, with a mean of half a deviation, so that averages are not only noise.
    Drift,
    /// Student's t with 2 degrees of freedom.
    HeavyTailed,
    /// Normal, and 90% exact zeros.
    Sparse,
    /// Normal; 100 times larger in every other interval of steps.
    Changing,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Noise, Self::Drift, Self::HeavyTailed, Self::Sparse, Self::Changing];

    pub fn name(self) -> &'static str {
        match self {
            Self::Noise => "noise",
            Self::Drift => "noise and drift",
            Self::HeavyTailed => "heavy-tailed",
            Self::Sparse => "sparse",
            Self::Changing => "changing",
        }
    }
}

/// How the scales of the elements of a group differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scales {
    /// Lognormal with deviation 0.7. The groups' own scales are spread over five decades.
    Alike,
    /// Spread evenly over five decades.
    Mixed,
}

impl Scales {
    pub const ALL: [Self; 2] = [Self::Alike, Self::Mixed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Alike => "alike",
            Self::Mixed => "five decades",
        }
    }
}

/// A stream: the same seed gives the same gradients.
pub struct Stream {
    kind: Kind,
    scales: Vec<f64>,
    interval: u64,
    step: u64,
    rng: Xoshiro256PlusPlus,
}

impl Stream {
    /// A stream of `elements` elements, with scales of up to about `factor`. The changing stream changes after every `interval` steps.
    pub fn new(kind: Kind, scales: Scales, elements: usize, interval: u64, factor: f64) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
        let decades = |rng: &mut Xoshiro256PlusPlus| 10_f64.powf(-DECADES * rng.random::<f64>());
        let mut group_scale = 1.0;
        let scales = (0..elements).map(|i| match scales {
            Scales::Alike => {
                if i % GROUP == 0 {
                    group_scale = decades(&mut rng);
                }
                let normal: f64 = StandardNormal.sample(&mut rng);
                factor * group_scale * (ALIKE * normal).exp()
            }
            Scales::Mixed => factor * decades(&mut rng),
        });
        Self { kind, scales: scales.collect(), interval, step: 0, rng: Xoshiro256PlusPlus::seed_from_u64(1) }
    }

    /// Gradients of the next step.
    pub fn next(&mut self, gradients: &mut [f32]) {
        let heavy_tailed = StudentT::new(2.0_f64).expect("2 is above 0");
        let factor =
            if self.kind == Kind::Changing && self.step / self.interval % 2 == 1 { JUMP } else { 1.0 };
        self.step += 1;
        for (gradient, scale) in gradients.iter_mut().zip(&self.scales) {
            let rng = &mut self.rng;
            let normal = |rng: &mut Xoshiro256PlusPlus| -> f64 { StandardNormal.sample(rng) };
            let unit = match self.kind {
                Kind::Noise | Kind::Changing => normal(rng),
                Kind::Drift => DRIFT + normal(rng),
                Kind::HeavyTailed => heavy_tailed.sample(rng),
                Kind::Sparse if rng.random::<f64>() < DENSITY => normal(rng),
                Kind::Sparse => 0.0,
            };
            *gradient = (factor * scale * unit) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_of_ten_sparse_gradients_are_zero() {
        let mut stream = Stream::new(Kind::Sparse, Scales::Alike, 10_000, 1, 1.0);
        let mut gradients = vec![0.0; 10_000];
        stream.next(&mut gradients);
        let zeros = gradients.iter().filter(|&&g| g == 0.0).count();
        assert!((8_800..9_200).contains(&zeros), "{zeros}");
    }

    #[test]
    fn the_changing_stream_jumps_after_every_interval() {
        let mut stream = Stream::new(Kind::Changing, Scales::Mixed, 10_000, 2, 1.0);
        let mut gradients = vec![0.0_f32; 10_000];
        let sums: Vec<f32> = (0..6)
            .map(|_| {
                stream.next(&mut gradients);
                gradients.iter().map(|g| g.abs()).sum()
            })
            .collect();
        for (step, pair) in sums.windows(2).enumerate() {
            let expected = [1.0, 100.0, 1.0, 0.01, 1.0][step];
            assert!((pair[1] / pair[0] / expected - 1.0).abs() < 0.1, "{sums:?}");
        }
    }
}
