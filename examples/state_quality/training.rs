//! Trains small networks with each format of state.

use std::error::Error;

use adamod::reference::{Reference, Storage};
use adamod::{Hyperparameters, StateFormat};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::digits::{CLASSES, Digits, Images, PIXELS};
use crate::network::{Examples, Inputs, Network, TENSORS};
use crate::optimizers::Settings;
use crate::statistics::mean;
use crate::text;

/// The paper's beta3.
const BETA3: f64 = 0.9999;
const LEARNING_RATE: f64 = 1e-2;
const TEXT_NUMBERS: usize = 3000;
const HELD_OUT_NUMBERS: usize = 100;
/// The final loss is the mean over the last of this many parts of the steps.
const FINAL_PART: usize = 20;

/// AdaMod as it trains the networks.
pub fn adamod() -> Settings {
    Settings::new(LEARNING_RATE, BETA3)
}

/// A network, its training examples and its held-out examples.
pub struct Task {
    pub name: &'static str,
    network: Network,
    training: Examples,
    held_out: Examples,
    batch: usize,
}

/// The results of a run.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Mean training loss of the last steps.
    pub loss: f64,
    pub held_out_loss: f64,
    pub held_out_accuracy: f64,
}

fn features(images: &Images) -> Examples {
    Examples {
        inputs: Inputs::Features(images.pixels.clone()),
        labels: images.labels.iter().map(|&label| label as usize).collect(),
    }
}

/// The two tasks.
pub fn tasks() -> Result<[Task; 2], Box<dyn Error>> {
    let digits = Digits::load()?;
    let columns = 16;
    Ok([
        Task {
            name: "digits",
            network: Network { embedding: None, inputs: PIXELS, hidden: 64, classes: CLASSES },
            training: features(&digits.training),
            held_out: features(&digits.test),
            batch: 128,
        },
        Task {
            name: "number words",
            network: Network {
                embedding: Some((text::CHARACTERS, columns)),
                inputs: text::CONTEXT * columns,
                hidden: 64,
                classes: text::CHARACTERS,
            },
            training: text::examples(TEXT_NUMBERS, 1),
            held_out: text::examples(HELD_OUT_NUMBERS, 2),
            batch: 64,
        },
    ])
}

impl Task {
    /// Trains from the seed's initial values on the seed's minibatches, which are the same for every format. The state of all tensors has
    /// the format, biases included.
    pub fn train(
        &self,
        hyperparameters: impl Into<Hyperparameters>,
        format: StateFormat,
        seed: u64,
        steps: usize,
    ) -> Outcome {
        let mut reference = Reference::<f32>::new();
        let group = reference.add_group(hyperparameters);
        let initial = self.network.initial(seed);
        let tensors = initial.len();
        for (values, label) in initial.into_iter().zip(TENSORS) {
            let storage = Storage::new().with_state(format).with_label(label).with_seed(seed);
            reference.add_stored_parameter(group, values, storage);
        }
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(!seed);
        let mut losses = Vec::with_capacity(steps);
        for _ in 0..steps {
            let indices: Vec<usize> =
                (0..self.batch).map(|_| rng.random_range(0..self.training.labels.len())).collect();
            let batch = self.training.select(indices.iter().copied());
            let values: Vec<&[f32]> = (0..tensors).map(|i| reference.values(i)).collect();
            let pass = self.network.pass(&values, &batch);
            losses.push(pass.loss);
            let gradients: Vec<Option<&[f32]>> = pass.gradients.iter().map(|g| Some(g.as_slice())).collect();
            reference.step(&gradients);
        }
        let values: Vec<&[f32]> = (0..tensors).map(|i| reference.values(i)).collect();
        let held_out = self.network.pass(&values, &self.held_out);
        Outcome {
            loss: mean(&losses[steps - steps.div_ceil(FINAL_PART)..]),
            held_out_loss: held_out.loss,
            held_out_accuracy: held_out.accuracy,
        }
    }
}
