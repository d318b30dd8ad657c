//! The demo without its page: several rules learn the digits from one seed, an epoch of each at a time.

use std::error::Error;

use adamod::{Diagnostics, OutOfRange, RuleKind};
use serde::{Deserialize, Serialize};

use crate::digits::{CLASSES, Digits, PIXELS};
use crate::gpu::Gpu;
use crate::network::Forward;
use crate::pictures;
use crate::ridges::Window;
use crate::statistics::mean;
use crate::train::{Run, Session, Trainer};

/// The rules that always run.
const COMPARED: [RuleKind; 3] = [RuleKind::AdaMod, RuleKind::Adam, RuleKind::Sgd];
const BATCH: usize = 128;

/// What to train.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The rule whose learning rates are counted, and whose network recognises what is drawn.
    pub rule: RuleKind,
    pub learning_rate: f64,
    /// AdaMod's third decay rate.
    pub beta3: f64,
    /// Determines the initial weights and the minibatches of all runs.
    pub seed: u64,
    pub epochs: usize,
}

impl Settings {
    fn run(&self, rule: RuleKind) -> Run {
        Run { rule, learning_rate: self.learning_rate, beta3: self.beta3, seed: self.seed }
    }

    fn rules(&self) -> Vec<RuleKind> {
        let other = Some(self.rule).filter(|rule| !COMPARED.contains(rule));
        COMPARED.into_iter().chain(other).collect()
    }
}

/// One of the runs.
struct Racer {
    rule: RuleKind,
    trainer: Trainer,
    session: Session,
    losses: Vec<f32>,
}

/// Numbers of all runs, to be compared between devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// The bits of the loss of every step, by name of the rule.
    pub losses: Vec<(String, Vec<u32>)>,
    /// Test images that the chosen rule recognised.
    pub recognised: u32,
    /// Counts of the last histogram: learning rates and those that were used.
    pub rates: Option<(Vec<u64>, Vec<u64>)>,
}

/// Runs that are under way.
pub struct Demo {
    settings: Settings,
    racers: Vec<Racer>,
    epoch: usize,
    window: Option<Window>,
    accuracy: f64,
    /// The forward pass of one image, with the weights of the chosen rule.
    drawn: Forward,
    gpu: Gpu,
}

impl Demo {
    /// Uploads the images and prepares all runs.
    pub async fn new(gpu: &Gpu, settings: Settings) -> Result<Self, Box<dyn Error>> {
        let check = |rule: &RuleKind| settings.run(*rule).hyperparameters().validate();
        settings.rules().iter().try_for_each(check).map_err(|error: OutOfRange| error.to_string())?;
        let digits = Digits::load()?;
        let mut racers = Vec::new();
        for rule in settings.rules() {
            let trainer = Trainer::new(gpu, &digits, settings.epochs, BATCH);
            let is_counted = rule == settings.rule && rule.has_element_rates();
            let diagnostics = if is_counted { Diagnostics::RateHistograms } else { Diagnostics::Off };
            let session = trainer.start(&settings.run(rule), diagnostics)?;
            racers.push(Racer { rule, trainer, session, losses: Vec::new() });
        }
        let chosen = racers.iter().position(|racer| racer.rule == settings.rule).unwrap_or(0);
        racers.swap(0, chosen);
        let drawn = racers[0].trainer.network().forward(gpu, 1);
        let accuracy = racers[0].trainer.test_accuracy().await?;
        Ok(Self { settings, racers, epoch: 0, window: None, accuracy, drawn, gpu: gpu.clone() })
    }

    /// Trains every run for one epoch. Returns whether there was one left.
    pub async fn train_epoch(&mut self) -> Result<bool, Box<dyn Error>> {
        if self.epoch == self.settings.epochs {
            return Ok(false);
        }
        let per_epoch = self.racers[0].trainer.steps_per_epoch() as u64;
        let (first, last) = (self.epoch as u64 * per_epoch + 1, (self.epoch as u64 + 1) * per_epoch);
        // All runs are submitted before the first one is waited for.
        for Racer { trainer, session, .. } in &mut self.racers {
            trainer.submit(session, first..=last)?;
        }
        for Racer { trainer, losses, .. } in &mut self.racers {
            *losses = trainer.losses(last).await?;
        }
        let Racer { rule, trainer, session, .. } = &self.racers[0];
        if rule.has_element_rates() {
            self.window = Some(trainer.window(session, (first, last)).await?);
        }
        self.accuracy = trainer.test_accuracy().await?;
        self.epoch += 1;
        Ok(true)
    }

    /// Epochs that all runs have trained.
    pub fn epoch(&self) -> usize {
        self.epoch
    }

    /// Steps that all runs together have taken.
    pub fn steps(&self) -> usize {
        self.racers.iter().map(|racer| racer.losses.len()).sum()
    }

    /// Fraction of the test images that the chosen rule recognises.
    pub fn accuracy(&self) -> f64 {
        self.accuracy
    }

    /// The fraction of the chosen rule's learning rates of the last epoch that were clipped, if it has any.
    pub fn clipped(&self) -> Option<f64> {
        let window = self.window.as_ref()?;
        let all: u64 = window.eta.iter().sum();
        Some(window.clipped as f64 / all.max(1) as f64)
    }

    /// The mean losses of the epochs of all runs, in the order of the rules.
    fn epoch_losses(&self) -> Vec<(RuleKind, Vec<f64>)> {
        let per_epoch = self.racers[0].trainer.steps_per_epoch();
        let of = |racer: &Racer| {
            let losses: Vec<f64> = racer.losses.iter().map(|loss| f64::from(*loss)).collect();
            losses.chunks(per_epoch).map(mean).collect()
        };
        let rules = self.settings.rules();
        let racer = |rule| self.racers.iter().find(|racer| racer.rule == rule);
        rules.into_iter().filter_map(|rule| Some((rule, of(racer(rule)?)))).collect()
    }

    /// The losses of all runs as SVG.
    pub fn loss_picture(&self, size: (u32, u32)) -> Result<String, Box<dyn Error>> {
        pictures::race(size, self.settings.epochs, &self.epoch_losses())
    }

    /// The histogram of the chosen rule's learning rates in the last epoch as SVG, if the rule has any.
    pub fn rates_picture(&self, size: (u32, u32)) -> Result<Option<String>, Box<dyn Error>> {
        let Some(window) = &self.window else { return Ok(None) };
        pictures::rates(size, self.settings.rule, window).map(Some)
    }

    /// Probabilities of the ten digits, given an image as the network takes it.
    pub async fn recognise(&self, image: &[f32; PIXELS]) -> Result<[f64; CLASSES], Box<dyn Error>> {
        self.gpu.write(self.drawn.input(), image);
        let logits = self.racers[0].trainer.logits(&self.drawn).await?;
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        Ok(std::array::from_fn(|digit| powers[digit] / sum))
    }

    /// The numbers of all runs so far.
    pub fn numbers(&self) -> Numbers {
        let bits = |racer: &Racer| racer.losses.iter().map(|loss| loss.to_bits()).collect();
        let losses = self.racers.iter().map(|racer| (racer.rule.name().to_owned(), bits(racer)));
        Numbers {
            losses: losses.collect(),
            recognised: (self.accuracy * crate::digits::TEST_IMAGES as f64).round() as u32,
            rates: self.window.as_ref().map(|window| (window.eta.to_vec(), window.bounded.to_vec())),
        }
    }

    /// Runs a short race for each rule and hands over its numbers, which the check compares with those of a browser.
    pub async fn short_races(gpu: &Gpu, mut report: impl FnMut(Numbers)) -> Result<(), Box<dyn Error>> {
        for &rule in RuleKind::ALL {
            let settings = Settings { rule, learning_rate: 0.01, beta3: 0.999, seed: 0, epochs: 3 };
            let mut demo = Self::new(gpu, settings).await?;
            while demo.train_epoch().await? {}
            report(demo.numbers());
        }
        Ok(())
    }
}
