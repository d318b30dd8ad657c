//! Training runs. Everything stays on the GPU. The host records, submits an epoch at a time, and reads back at the end.

use std::error::Error;
use std::ops::RangeInclusive;

use adamod::wgpu;
use adamod::{
    AdaMod, Diagnostics, GroupId, Hyperparameters, Optimizer, Options, Parameter, Rule, RuleKind, Step, View,
    Views, schedule,
};

use crate::digits::{CLASSES, Digits, PIXELS, TEST_IMAGES, TRAINING_IMAGES};
use crate::gpu::{Gpu, Launch, Submission, whole, workgroups};
use crate::minibatches::{minibatches, steps_per_epoch};
use crate::network::{Backward, Forward, Network, WIDTHS};
use crate::ridges::Window;

/// The paper divides the learning rate by 10 after 150 of 200 epochs.
const DECAY_AFTER: f64 = 0.75;
const DECAY_FACTOR: f64 = 0.1;

/// The rules of the paper's pictures.
pub const RULES: [RuleKind; 3] = [RuleKind::AdaMod, RuleKind::Adam, RuleKind::Sgd];

/// What distinguishes one run from another.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub rule: RuleKind,
    pub learning_rate: f64,
    /// AdaMod's third decay rate. Other rules do not have it.
    pub beta3: f64,
    /// Determines the initial weights and the minibatches.
    pub seed: u64,
}

impl Run {
    /// The paper's hyperparameters without weight decay. The library's defaults are the paper's, apart from beta3.
    pub fn hyperparameters(&self) -> Hyperparameters {
        let rule = match self.rule {
            RuleKind::AdaMod => Rule::AdaMod(AdaMod::new().with_betas([0.9, 0.999, self.beta3])),
            other => other.with_defaults(),
        };
        Hyperparameters::from(rule).with_learning_rate(self.learning_rate)
    }
}

/// The results of a run.
pub struct Outcome {
    /// Mean loss of the minibatch of every step.
    pub losses: Vec<f32>,
    /// Fraction of the test images that were recognised; `None` if a loss was not finite.
    pub accuracy: Option<f64>,
}

/// A run in progress.
pub struct Session {
    run: Run,
    optimizer: Optimizer,
    group: GroupId,
}

/// Everything that runs share. A run only rewrites the contents of buffers.
pub struct Trainer {
    gpu: Gpu,
    epochs: usize,
    batch: usize,
    network: Network,
    gather: Launch,
    forward: Forward,
    loss: Launch,
    backward: Backward,
    /// The number of the step, which the loss kernel advances.
    step: wgpu::Buffer,
    order: wgpu::Buffer,
    losses: wgpu::Buffer,
    test: Forward,
    test_labels: Vec<u32>,
}

impl Trainer {
    /// Uploads the images and prepares all kernels.
    pub fn new(gpu: &Gpu, digits: &Digits, epochs: usize, batch: usize) -> Self {
        let network = Network::new(gpu, WIDTHS);
        let forward = network.forward(gpu, batch);
        let backward = network.backward(gpu, &forward);
        let test = network.forward(gpu, TEST_IMAGES);
        gpu.write(test.input(), &digits.test.pixels);

        let steps = epochs * steps_per_epoch(TRAINING_IMAGES, batch);
        let step = gpu.buffer("digits.step", 1);
        let order = gpu.buffer("digits.order", steps * batch);
        let losses = gpu.buffer("digits.losses", steps);
        let batch_labels = gpu.buffer("digits.batch_labels", batch);
        let images = gpu.filled("digits.images", &digits.training.pixels);
        let labels = gpu.filled("digits.labels", &digits.training.labels);
        Self {
            gather: gpu.launch(
                &gpu.kernel("digits.batch", include_str!("batch.wgsl")),
                [
                    whole(&step),
                    whole(&order),
                    whole(&images),
                    whole(&labels),
                    whole(forward.input()),
                    whole(&batch_labels),
                ],
                workgroups(batch * PIXELS),
            ),
            loss: loss_launch(gpu, &step, &batch_labels, &forward, &backward, &losses),
            gpu: gpu.clone(),
            epochs,
            batch,
            network,
            forward,
            backward,
            step,
            order,
            losses,
            test,
            test_labels: digits.test.labels.clone(),
        }
    }

    /// The network that is trained.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Elements of all weights and biases.
    pub fn parameters(&self) -> usize {
        self.network().tensors().map(|tensor| tensor.len).sum()
    }

    /// Steps in an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        steps_per_epoch(TRAINING_IMAGES, self.batch)
    }

    /// Steps of a run.
    pub fn steps(&self) -> u64 {
        (self.epochs * self.steps_per_epoch()) as u64
    }

    /// Trains from the start to the end; `on_epoch` is called after each epoch.
    pub async fn train(&self, run: &Run, on_epoch: impl FnMut()) -> Result<Outcome, Box<dyn Error>> {
        let mut session = self.start(run, Diagnostics::Off)?;
        self.run_steps(&mut session, 1..=self.steps(), on_epoch).await?;
        let losses = self.losses(self.steps()).await?;
        let finite = losses.iter().all(|loss| loss.is_finite());
        let accuracy = if finite { Some(self.test_accuracy().await?) } else { None };
        Ok(Outcome { accuracy, losses })
    }

    /// Trains and collects histograms of the learning rates over windows of steps, each twice as long as the one before it.
    pub async fn learning_rates(&self, run: &Run) -> Result<Vec<Window>, Box<dyn Error>> {
        let mut session = self.start(run, Diagnostics::RateHistograms)?;
        let mut windows = Vec::new();
        let mut first = 1;
        while first <= self.steps() {
            let last = (2 * first - 1).min(self.steps());
            self.run_steps(&mut session, first..=last, || ()).await?;
            windows.push(self.window(&session, (first, last)).await?);
            first = last + 1;
        }
        Ok(windows)
    }

    /// The learning rates since the last window, which are those of these steps.
    pub async fn window(&self, session: &Session, steps: (u64, u64)) -> Result<Window, Box<dyn Error>> {
        let rates = self.gpu.finish(session.optimizer.take_rate_histograms()).await?;
        Ok(Window::new(steps, &rates))
    }

    /// The losses of the first `steps` steps.
    pub async fn losses(&self, steps: u64) -> Result<Vec<f32>, Box<dyn Error>> {
        let mut losses = self.gpu.read(&self.losses).await?;
        losses.truncate(steps as usize);
        Ok(losses)
    }

    /// Resets parameters, minibatches and step, and creates the run's optimizer.
    pub fn start(&self, run: &Run, diagnostics: Diagnostics) -> Result<Session, Box<dyn Error>> {
        let initial = self.network.initial_parameters(run.seed);
        self.gpu.write(&self.network.parameters, &initial);
        let order = minibatches(TRAINING_IMAGES, run.seed, self.epochs, self.batch);
        self.gpu.write(&self.order, &order);
        self.gpu.write(&self.step, &[0_u32]);

        let options = Options::new().with_diagnostics(diagnostics);
        let mut optimizer =
            Optimizer::with_kernels(&self.gpu.device, &self.gpu.queue, options, &self.gpu.kernels)?;
        let group = optimizer.add_group(run.hyperparameters())?;
        for tensor in self.network.tensors() {
            let views = Views::new(
                View::new(&self.network.parameters, tensor.offset_bytes),
                View::new(&self.network.gradients, tensor.offset_bytes),
            );
            let parameter = Parameter::new(&tensor.label, tensor.len as u64).with_views(views);
            optimizer.add_parameter(group, parameter)?;
        }
        Ok(Session { run: *run, optimizer, group })
    }

    /// The paper's schedule: constant, then divided by 10.
    fn learning_rate(&self, run: &Run, step: u64) -> f64 {
        let milestone = (DECAY_AFTER * self.steps() as f64) as u64;
        schedule::step_decay(run.learning_rate, &[milestone], DECAY_FACTOR, step)
    }

    /// Submits the steps of an epoch at a time, and records the next submission while the previous one runs. So the GPU does not wait
    /// for the host, and the host does not run far ahead.
    async fn run_steps(
        &self,
        session: &mut Session,
        steps: RangeInclusive<u64>,
        mut on_submit: impl FnMut(),
    ) -> Result<(), Box<dyn Error>> {
        let mut previous = None;
        for first in steps.clone().step_by(self.steps_per_epoch()) {
            let last = (first + self.steps_per_epoch() as u64 - 1).min(*steps.end());
            let submitted = self.submit(session, first..=last)?;
            if let Some(submission) = previous.replace(submitted) {
                self.gpu.wait(submission).await?;
            }
            on_submit();
        }
        Ok(())
    }

    /// Records whole training steps (gather, forward, loss, backward, update) and submits them together.
    pub fn submit(
        &self,
        session: &mut Session,
        steps: RangeInclusive<u64>,
    ) -> Result<Submission, Box<dyn Error>> {
        let Session { run, optimizer, group } = session;
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for step in steps {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            self.gather.record(&mut pass);
            self.forward.record(&mut pass);
            self.loss.record(&mut pass);
            self.backward.record(&mut pass);
            drop(pass);
            optimizer.set_learning_rate(*group, self.learning_rate(run, step))?;
            optimizer.encode(&mut encoder, &Step::all())?;
        }
        Ok(self.gpu.submit(encoder.finish()))
    }

    /// Fraction of the test images whose largest logit is that of their label.
    pub async fn test_accuracy(&self) -> Result<f64, Box<dyn Error>> {
        let logits = self.logits(&self.test).await?;
        let recognised = logits
            .chunks(CLASSES)
            .zip(&self.test_labels)
            .filter(|(logits, label)| largest(logits) == **label as usize)
            .count();
        Ok(recognised as f64 / self.test_labels.len() as f64)
    }

    /// Runs a forward pass and returns its logits.
    pub async fn logits(&self, forward: &Forward) -> Result<Vec<f32>, Box<dyn Error>> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        forward.record(&mut encoder.begin_compute_pass(&Default::default()));
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.read(forward.logits()).await
    }
}

/// The loss of a forward pass: writes `losses[step]` and the gradients of the logits, and advances `step`.
pub fn loss_launch(
    gpu: &Gpu,
    step: &wgpu::Buffer,
    labels: &wgpu::Buffer,
    forward: &Forward,
    backward: &Backward,
    losses: &wgpu::Buffer,
) -> Launch {
    gpu.launch(
        &gpu.kernel("digits.loss", include_str!("loss.wgsl")),
        [
            whole(step),
            whole(labels),
            whole(forward.logits()),
            whole(&backward.logit_gradients),
            whole(losses),
        ],
        1,
    )
}

/// Index of the largest value.
fn largest(values: &[f32]) -> usize {
    let by_value = |a: &usize, b: &usize| values[*a].total_cmp(&values[*b]);
    (0..values.len()).max_by(by_value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCHS: usize = 2;
    const BATCH: usize = 256;

    fn losses(trainer: &Trainer, rule: RuleKind, beta3: f64, seed: u64) -> Vec<f32> {
        let run = Run { rule, learning_rate: 0.01, beta3, seed };
        pollster::block_on(trainer.train(&run, || ())).unwrap().losses
    }

    #[test]
    fn runs_of_one_seed_start_alike_and_then_differ() {
        let gpu = pollster::block_on(Gpu::open()).unwrap();
        let digits = Digits::load().unwrap();
        let trainer = Trainer::new(&gpu, &digits, EPOCHS, BATCH);
        let adam = losses(&trainer, RuleKind::Adam, 0.999, 0);
        let adamod = losses(&trainer, RuleKind::AdaMod, 0.999, 0);
        let other_seed = losses(&trainer, RuleKind::Adam, 0.999, 1);
        assert_eq!(adam.len() as u64, trainer.steps());
        assert_eq!(adam[0], adamod[0]);
        assert_ne!(adam[1..], adamod[1..]);
        assert_ne!(adam[0], other_seed[0]);
        assert!(adam[adam.len() - 1] < adam[0], "{adam:?}");
    }

    #[test]
    fn without_beta3_adamod_is_adam() {
        let gpu = pollster::block_on(Gpu::open()).unwrap();
        let digits = Digits::load().unwrap();
        let trainer = Trainer::new(&gpu, &digits, EPOCHS, BATCH);
        let adam = losses(&trainer, RuleKind::Adam, 0.999, 0);
        assert_eq!(losses(&trainer, RuleKind::AdaMod, 0.0, 0), adam);
    }

    #[test]
    fn the_windows_of_learning_rates_cover_every_step_once() {
        let gpu = pollster::block_on(Gpu::open()).unwrap();
        let digits = Digits::load().unwrap();
        let trainer = Trainer::new(&gpu, &digits, EPOCHS, BATCH);
        let run = Run { rule: RuleKind::AdaMod, learning_rate: 0.001, beta3: 0.999, seed: 0 };
        let windows = pollster::block_on(trainer.learning_rates(&run)).unwrap();
        let mut next = 1;
        for Window { steps, eta, bounded, .. } in &windows {
            assert_eq!(steps.0, next);
            next = steps.1 + 1;
            let updates = (next - steps.0) * trainer.parameters() as u64;
            assert_eq!(eta.iter().sum::<u64>(), updates);
            assert_eq!(bounded.iter().sum::<u64>(), updates);
        }
        assert_eq!(next, trainer.steps() + 1);
    }
}
