//! A model and its optimizer: one step after the other.

use adamod::{Diagnostics, Options, Precision};
use adamod_burn::{FusedOptimizer, Gpu};
use anyhow::Context;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::method::Method;
use crate::ridges::Window;

/// A model in training.
pub struct Learner<M> {
    // Empty only while the optimizer has it.
    model: Option<M>,
    optimizer: FusedOptimizer,
    method: Method,
    step: u64,
    windows: Option<Vec<Window>>,
}

impl<M: Module> Learner<M> {
    /// The method applies to all parameters.
    pub fn new(model: M, method: &Method, gpu: &Gpu) -> anyhow::Result<Self> {
        Self::with_options(model, method, gpu, false)
    }

    /// The same, and learning rates are counted: over step 1, 2 to 3, 4 to 7 and so on.
    pub fn counting(model: M, method: &Method, gpu: &Gpu) -> anyhow::Result<Self> {
        Self::with_options(model, method, gpu, true)
    }

    fn with_options(model: M, method: &Method, gpu: &Gpu, counts: bool) -> anyhow::Result<Self> {
        let diagnostics = if counts { Diagnostics::LearningRates } else { Diagnostics::Off };
        let options = Options { rule: method.rule, diagnostics, ..Options::default() };
        let mut optimizer = FusedOptimizer::new(gpu, options)?;
        optimizer.add_group(method.hyperparameters, Precision::default(), |_| true)?;
        let windows = counts.then(Vec::new);
        Ok(Self { model: Some(model), optimizer, method: method.clone(), step: 0, windows })
    }

    pub fn model(&self) -> &M {
        self.model.as_ref().expect("a model: a learner whose step failed is not used again")
    }

    /// Takes one step down the loss; returns the loss before it.
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
            windows.push(Window { steps: (first, self.step), rates: self.optimizer.learning_rates()? });
        }
        Ok(())
    }

    /// What was counted; empty if nothing was to be.
    pub fn into_windows(mut self) -> anyhow::Result<Vec<Window>> {
        self.close_window()?;
        Ok(self.windows.unwrap_or_default())
    }
}
