//! The optimizer step of a Burn module on the CPU, by adamod's CPU reference, which computes the bits of the kernels.

use std::collections::HashMap;

use adamod::reference::{Reference, Storage, rounded};
use adamod::{Checkpoint, DType, Group, Hyperparameters};
use anyhow::Context;
use burn::module::Module;
use burn::optim::GradientsParams;

use crate::rate_counts::RateCounts;
use crate::tensors;

/// Steps all parameters of a module. Labels are their paths, as those of [`adamod_burn::FusedOptimizer`].
pub struct CpuOptimizer {
    reference: Reference<f32>,
    group: Group,
    /// Data type in which parameters and gradients are stored. Forward and backward passes are in f32.
    weights: DType,
    /// Index of each parameter that has stepped.
    known: HashMap<String, usize>,
    counts: Option<RateCounts>,
}

impl CpuOptimizer {
    /// An optimizer with one group for all parameters. Counts learning rates if asked to.
    pub fn new(group: Group, weights: DType, counts: bool) -> Self {
        let mut reference = Reference::new();
        reference.add_group(group);
        let counts = counts.then(RateCounts::default);
        Self { reference, group, weights, known: HashMap::new(), counts }
    }

    /// Takes a step with these hyperparameters. Parameters without a gradient stay as they are.
    pub fn step<M: Module>(
        &mut self,
        hyperparameters: Hyperparameters,
        module: M,
        gradients: GradientsParams,
    ) -> M {
        let mut taken = HashMap::new();
        for one in tensors::gradients(&module, gradients, |label| !self.known.contains_key(label)) {
            let index = match one.values {
                Some(values) => self.register(&one.label, values),
                None => self.known[&one.label],
            };
            let gradient = match self.weights {
                DType::F32 => one.gradient,
                weights => rounded(weights, &one.gradient),
            };
            taken.insert(index, gradient);
        }
        self.reference.set_hyperparameters(0, hyperparameters);
        let all: Vec<_> = (0..self.known.len()).map(|index| taken.remove(&index)).collect();
        self.reference.step(&all.iter().map(Option::as_deref).collect::<Vec<_>>());
        let stepped = || (0..all.len()).filter(|&index| all[index].is_some());
        if let Some(counts) = &mut self.counts {
            for index in stepped() {
                counts.add(&hyperparameters, self.reference.step_count(index), self.reference.state(index));
            }
        }
        tensors::replace(module, |path| {
            let index = *self.known.get(path)?;
            all[index].as_ref().map(|_| self.values_of(index))
        })
    }

    /// The values that the network sees: those of the parameter's data type. `None` before its first step.
    pub fn values(&self, path: &str) -> Option<Vec<f32>> {
        self.known.get(path).map(|&index| self.values_of(index))
    }

    fn values_of(&self, index: usize) -> Vec<f32> {
        let bits = self.reference.narrowed(index).iter();
        match self.weights {
            DType::F32 => bits.map(|&bits| f32::from_bits(bits)).collect(),
            // A bfloat16 is the upper half of an f32.
            _ => bits.map(|&bits| f32::from_bits(bits << 16)).collect(),
        }
    }

    /// The learning rates that were counted since the last call.
    pub fn take_counts(&mut self) -> RateCounts {
        self.counts.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// State and values of the parameters that have stepped.
    pub fn checkpoint(&self) -> anyhow::Result<Checkpoint> {
        Ok(self.reference.checkpoint()?)
    }

    /// Continues from a checkpoint with the same bits.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> anyhow::Result<()> {
        for parameter in checkpoint.parameters() {
            let values = checkpoint.values(parameter.label)?;
            self.register(parameter.label, values);
        }
        self.reference.restore(checkpoint).context("the optimizer cannot continue from the checkpoint")
    }

    fn register(&mut self, label: &str, values: Vec<f32>) -> usize {
        let storage = Storage::new().with_dtype(self.weights).with_label(label);
        let storage = storage.with_precision(&self.group.precision, values.len() as u64);
        let index = self.reference.add_stored_parameter(0, values, storage);
        self.known.insert(label.to_owned(), index);
        index
    }
}
