//! A model and its optimizer: one step after the other.

use adamod::{Diagnostics, Options};
use adamod_burn::{FusedOptimizer, Gpu};
use anyhow::Context;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::method::Method;
use crate::ridges::Window;

/// A model in training.
pub struct Learner<M> {
    // `None` only while the optimizer has it.
    model: Option<M>,
    optimizer: FusedOptimizer,
    method: Method,
    step: u64,
    windows: Option<Vec<Window>>,
}

impl<M: Module> Learner<M> {
    /// Trains all parameters with the method.
    pub fn new(model: M, method: &Method, gpu: &Gpu) -> anyhow::Result<Self> {
        Self::with_options(model, method, gpu, false)
    }

    /// Also counts learning rates, over step 1, steps 2 to 3, 4 to 7 and so on.
    pub fn counting(model: M, method: &Method, gpu: &Gpu) -> anyhow::Result<Self> {
        Self::with_options(model, method, gpu, true)
    }

    fn with_options(model: M, method: &Method, gpu: &Gpu, counts: bool) -> anyhow::Result<Self> {
        let diagnostics = if counts { Diagnostics::RateHistograms } else { Diagnostics::Off };
        let mut optimizer = FusedOptimizer::new(gpu, Options::new().with_diagnostics(diagnostics))?;
        optimizer.add_group(method.hyperparameters, |_| true)?;
        let windows = counts.then(Vec::new);
        Ok(Self { model: Some(model), optimizer, method: method.clone(), step: 0, windows })
    }

    pub fn model(&self) -> &M {
        self.model.as_ref().expect("a model: a learner whose step failed is not used again")
    }

    /// Takes one step. Returns the loss before it.
    pub fn step(&mut self, loss: impl FnOnce(&M) -> Tensor<1>) -> anyhow::Result<f32> {
        let model = self.model.take().context("an earlier step failed")?;
        self.step += 1;
        let loss = loss(&model);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let rate = self.method.learning_rate(self.step);
        let stepped = self.optimizer.step(rate, model, gradients);
        self.model = Some(stepped.map_err(|error| error.into_parts().1)?);
        let is_last_of_window = (self.step + 1).is_power_of_two();
        if is_last_of_window {
            self.close_window()?;
        }
        Ok(loss.into_scalar::<f32>())
    }

    fn close_window(&mut self) -> anyhow::Result<()> {
        let Some(windows) = &mut self.windows else { return Ok(()) };
        let first = windows.last().map_or(1, |window| window.steps.1 + 1);
        if first <= self.step {
            windows.push(Window::new((first, self.step), &self.optimizer.take_rate_histograms()?));
        }
        Ok(())
    }

    /// The counted learning rates; empty if none were counted.
    pub fn into_windows(mut self) -> anyhow::Result<Vec<Window>> {
        self.close_window()?;
        Ok(self.windows.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use adamod::{Hyperparameters, RuleKind};
    use burn::nn::{Linear, LinearConfig};

    use super::*;
    use crate::common::test_gpu;
    use crate::method::Schedule;
    use crate::weights;

    fn method(rule: RuleKind, beta3: f64) -> Method {
        let hyperparameters = Hyperparameters::from(rule.with_defaults()).with_learning_rate(0.1);
        Method { name: "", hyperparameters, schedule: Schedule::Constant }.with_beta3(beta3)
    }

    /// Losses of some steps.
    fn losses(method: &Method, seed: u64, counts: bool) -> (Vec<f32>, Vec<Window>) {
        let gpu = test_gpu();
        let device = gpu.device().autodiff();
        let model = weights::draw(LinearConfig::new(4, 3).init(&device), seed);
        let learner = if counts { Learner::counting } else { Learner::new };
        let mut learner = learner(model, method, gpu).unwrap();
        let input = Tensor::<2>::from_floats([[0.5, -1.0, 2.0, 0.25], [1.0, 3.0, -0.5, 0.75]], &device);
        let loss = |model: &Linear| (model.forward(input.clone()) - 1.0).square().mean();
        let losses = (0..5).map(|_| learner.step(loss).unwrap()).collect();
        (losses, learner.into_windows().unwrap())
    }

    #[test]
    fn a_seed_determines_a_run() {
        for &rule in RuleKind::ALL {
            let of = |seed| losses(&method(rule, 0.9), seed, false).0;
            assert_eq!(of(1), of(1));
            assert_ne!(of(1), of(2));
        }
    }

    #[test]
    fn all_rules_reduce_the_loss_each_in_its_way() {
        let last = |rule, beta3| {
            let losses = losses(&method(rule, beta3), 1, false).0;
            assert!(losses[4] < losses[0], "{rule:?}: {losses:?}");
            losses[4]
        };
        // Those of the paper.
        let rules = [RuleKind::AdaMod, RuleKind::Adam, RuleKind::Sgd];
        let losses = rules.map(|rule| last(rule, 0.9));
        for (index, loss) in losses.iter().enumerate() {
            assert!(!losses[..index].contains(loss), "{losses:?}");
        }
        let adam = last(RuleKind::Adam, 0.9);
        // With beta3 = 0 the bound is the rate itself.
        assert!((last(RuleKind::AdaMod, 0.0) - adam).abs() < 1e-4 * adam.abs());
    }

    #[test]
    fn windows_cover_all_steps_and_all_weights() {
        let (_, windows) = losses(&method(RuleKind::AdaMod, 0.9), 1, true);
        let steps: Vec<_> = windows.iter().map(|window| window.steps).collect();
        assert_eq!(steps, [(1, 1), (2, 3), (4, 5)]);
        for Window { steps: (first, last), eta, bounded, .. } in &windows {
            // 12 weights and 3 biases.
            assert_eq!(eta.iter().sum::<u64>(), 15 * (last - first + 1));
            assert_eq!(bounded.iter().sum::<u64>(), 15 * (last - first + 1));
        }
        assert_eq!(windows[0].clipped, 15);
        assert!(losses(&method(RuleKind::Adam, 0.9), 1, false).1.is_empty());
    }
}
