//! [`FusedOptimizer`]: all parameters of a module in one submission a step.

use std::fmt;
use std::sync::Arc;

use adamod::{
    Checkpoint, GroupId, HyperparameterError, Hyperparameters, LearningRates, Optimizer, Options, Precision,
    Progress, ReadError,
};
use burn::module::Module;
use burn::optim::GradAdaptor;

use crate::backend;
use crate::error::{Error, StepError};
use crate::gpu::Gpu;
use crate::parameters::{KnownParameters, Register, Registry, Return, Take};
use crate::shared::Shared;

/// The optimizer step of a Burn module, in place on Burn's own buffers.
///
/// Parameters are known by their paths, `encoder.layers.0.weight`; they are registered when they first have a gradient. Those
/// without one in a step are left alone, weight decay and step count included, and so are integer and boolean ones.
///
/// With Burn's fusion (feature `fusion`) a step is queued like any other operation and no call waits for the device. An error
/// that only shows when it runs is then returned by the next call of a method that returns [`Error`]; the values are those before
/// that step.
pub struct FusedOptimizer {
    shared: Arc<Shared>,
    groups: Vec<Group>,
    known: KnownParameters,
}

/// A group of parameters.
pub(crate) struct Group {
    pub id: GroupId,
    hyperparameters: Hyperparameters,
    /// Whether a path belongs to it.
    pub takes: Box<dyn Fn(&str) -> bool + Send>,
}

impl fmt::Debug for FusedOptimizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FusedOptimizer")
            .field("gpu", &self.shared.gpu)
            .field("groups", &self.groups.len())
            .field("parameters", &self.known.len())
            .finish_non_exhaustive()
    }
}

impl FusedOptimizer {
    /// An optimizer without groups.
    ///
    /// # Errors
    /// As [`adamod::Optimizer::new`], and if `options.gradients` is not [`adamod::AfterUse::Keep`].
    pub fn new(gpu: &Gpu, options: Options) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(gpu, options)?);
        Ok(Self { shared, groups: Vec::new(), known: KnownParameters::new() })
    }

    /// Adds a group for the parameters whose paths `takes` is true for. The first group that takes a parameter has it; a
    /// parameter with a gradient that none takes is an error, so a last group `|_| true` is a default.
    ///
    /// # Errors
    /// If a hyperparameter is refused.
    pub fn add_group(
        &mut self,
        hyperparameters: Hyperparameters,
        precision: Precision,
        takes: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<GroupId, Error> {
        let id = self.shared.core().add_group_with(hyperparameters, precision)?;
        self.groups.push(Group { id, hyperparameters, takes: Box::new(takes) });
        Ok(id)
    }

    /// Sets a group's learning rate for [`FusedOptimizer::step_groups`].
    ///
    /// # Errors
    /// If it is refused, or the group is of another optimizer.
    pub fn set_learning_rate(&mut self, group: GroupId, learning_rate: f64) -> Result<(), Error> {
        let hyperparameters = *self.hyperparameters(group).ok_or(HyperparameterError::UnknownGroup)?;
        self.set_hyperparameters(group, Hyperparameters { learning_rate, ..hyperparameters })
    }

    /// Replaces a group's hyperparameters from the next step on.
    ///
    /// # Errors
    /// If one is refused, or the group is of another optimizer; the old ones stay.
    pub fn set_hyperparameters(
        &mut self,
        group: GroupId,
        hyperparameters: Hyperparameters,
    ) -> Result<(), Error> {
        hyperparameters.validate()?;
        let found = self.groups.iter_mut().find(|of| of.id == group);
        found.ok_or(HyperparameterError::UnknownGroup)?.hyperparameters = hyperparameters;
        Ok(())
    }

    /// A group's hyperparameters; `None` if it is of another optimizer.
    pub fn hyperparameters(&self, group: GroupId) -> Option<&Hyperparameters> {
        self.groups.iter().find(|of| of.id == group).map(|group| &group.hyperparameters)
    }

    /// A step with one learning rate for all groups. `gradients` are [`burn::optim::GradientsParams`], or
    /// [`burn::optim::MultiGradientsParams`] of several devices, which are added up.
    ///
    /// # Errors
    /// As [`FusedOptimizer::step_groups`], and if the learning rate is refused.
    pub fn step<M: Module>(
        &mut self,
        learning_rate: f64,
        module: M,
        gradients: impl Into<GradAdaptor>,
    ) -> Result<M, StepError<M>> {
        for index in 0..self.groups.len() {
            if let Err(error) = self.set_learning_rate(self.groups[index].id, learning_rate) {
                return Err(StepError::new(error, module));
            }
        }
        self.step_groups(module, gradients)
    }

    /// A step in which each group has its own learning rate, see [`FusedOptimizer::set_learning_rate`].
    ///
    /// Values that something else refers to as well, a clone of the module or a live autodiff graph, are copied first, and so
    /// are tensors that are not contiguous.
    ///
    /// # Errors
    /// If a parameter with a gradient belongs to no group, is on another device, or has another type or shape than its gradient
    /// or than in an earlier step; or if the device fails. The module comes back with the error, its values unchanged.
    pub fn step_groups<M: Module>(
        &mut self,
        module: M,
        gradients: impl Into<GradAdaptor>,
    ) -> Result<M, StepError<M>> {
        if let Err(error) = self.shared.take_failure() {
            return Err(StepError::new(error, module));
        }
        let registry = Registry { shared: &self.shared, groups: &self.groups, known: &mut self.known };
        let mut take = Take::new(registry, gradients.into());
        let module = module.map(&mut take);
        let (taken, jobs, error) = take.finish();
        let (values, outcome) = match error {
            Some(error) => (jobs.into_iter().map(|job| job.value).collect(), Err(error)),
            None => {
                let groups = self.groups.iter().map(|group| (group.id, group.hyperparameters)).collect();
                backend::run(&self.shared, groups, jobs)
            }
        };
        let module = module.map(&mut Return::new(taken, values));
        match outcome {
            Ok(()) => Ok(module),
            Err(error) => Err(StepError::new(error, module)),
        }
    }

    /// Multiplies gradients by a number of the caller's from the next step on, besides what loss scale and clip make of them:
    /// 1 over the number of accumulated batches, or the clip to a norm that several devices have reduced. Needs
    /// [`adamod::Control::Device`].
    ///
    /// # Errors
    /// With [`adamod::Control::Host`], if it is not finite, or a queued step failed.
    pub fn set_gradient_multiplier(&mut self, multiplier: f32) -> Result<(), Error> {
        if !multiplier.is_finite() {
            let (name, found, needed) = ("gradient multiplier", multiplier.into(), "a finite number");
            return Err(HyperparameterError::OutOfRange { name, found, needed }.into());
        }
        self.shared.drain()?;
        let core = self.shared.core();
        let control = core.control_buffer().ok_or(ReadError::NoControl)?;
        let queue = &self.shared.gpu.queue;
        // Takes effect with the next submit, which is that of the next step at the earliest.
        queue.write_buffer(control, Optimizer::MULTIPLIER_OFFSET, &multiplier.to_le_bytes());
        Ok(())
    }

    /// Submits every step so far. Only needed where something outside Burn looks at its buffers.
    ///
    /// # Errors
    /// The first error of a step that was queued.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.shared.drain()
    }

    /// State, step counts and hyperparameters after all steps so far; waits for the device. The values of the parameters are
    /// Burn's to save.
    ///
    /// # Errors
    /// If the device fails, or a queued step did.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        self.shared.drain()?;
        Ok(self.shared.core().checkpoint_blocking()?)
    }

    /// Continues from a checkpoint: the next step has the same bits as if nothing had happened. The groups have to be added
    /// already; parameters that have not stepped yet are registered from `module`, which may be a fresh one.
    ///
    /// # Errors
    /// What differs, by name. Nothing has changed then, but for the registration of parameters.
    pub fn restore<M: Module>(&mut self, checkpoint: &Checkpoint, module: &M) -> Result<(), Error> {
        self.shared.drain()?;
        let labels = checkpoint.parameters().map(|parameter| parameter.label).collect();
        let registry = Registry { shared: &self.shared, groups: &self.groups, known: &mut self.known };
        Register::all(registry, labels, module)?;
        let mut core = self.shared.core();
        core.restore(checkpoint)?;
        for group in &mut self.groups {
            if let Some(&hyperparameters) = core.hyperparameters(group.id) {
                group.hyperparameters = hyperparameters;
            }
        }
        Ok(())
    }

    /// Histograms of the learning rates since the last call; waits for the device.
    ///
    /// # Errors
    /// If the options did not ask for [`adamod::Diagnostics::LearningRates`], the device fails, or a queued step did.
    pub fn learning_rates(&mut self) -> Result<LearningRates, Error> {
        self.shared.drain()?;
        Ok(self.shared.core().read_learning_rates_blocking()?)
    }

    /// Steps taken and called off, loss scale and norm, with [`adamod::Control::Device`]; waits for the device.
    ///
    /// # Errors
    /// With [`adamod::Control::Host`], if the device fails, or a queued step did.
    pub fn progress(&mut self) -> Result<Progress, Error> {
        self.shared.drain()?;
        Ok(self.shared.core().read_progress_blocking()?)
    }

    /// Calls `look` with the core optimizer, all steps so far submitted. Parameters go by their paths:
    /// `core.parameter("encoder.layers.0.weight")`. `look` must not call Burn, whose threads may wait for it; hyperparameters
    /// it sets hold until the next step.
    ///
    /// # Errors
    /// The first error of a step that was queued.
    pub fn with_core<T>(&mut self, look: impl FnOnce(&mut Optimizer) -> T) -> Result<T, Error> {
        self.shared.drain()?;
        Ok(look(&mut self.shared.core()))
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::wgpu::Wgpu;
    use burn::module::Param;
    use burn::optim::GradientsParams;
    use burn::tensor::{DeviceKind, Tensor};

    use super::*;
    use crate::parameters::primitive;
    use crate::shared::Job;

    #[derive(Module, Debug)]
    struct Vector {
        weight: Param<Tensor<1>>,
    }

    #[test]
    fn a_step_that_fails_when_it_runs_leaves_its_values_and_is_told_by_the_next_call() {
        let gpu = Gpu::open(DeviceKind::DefaultDevice).expect("a device");
        let mut optimizer = FusedOptimizer::new(&gpu, Options::default()).expect("an optimizer");
        optimizer.add_group(Hyperparameters::default(), Precision::default(), |_| true).expect("a group");
        // The core refuses a parameter of another optimizer when it records the step.
        let mut other = Optimizer::new(&gpu.wgpu, &gpu.queue, Options::default()).expect("an optimizer");
        let group = other.add_group(Hyperparameters::default()).expect("a group");
        let parameter = other.add_parameter(group, adamod::Parameter::new("weight", 3)).expect("a parameter");

        let tensor = |value: f32| Tensor::<1>::full([3], value, &gpu.device());
        let of = |value| primitive(&tensor(value)).expect("a tensor on wgpu");
        let job = Job { parameter, value: of(2.0), gradient: of(1.0) };
        let (mut values, outcome) = backend::run(&optimizer.shared, Vec::new(), vec![job]);
        let value = Tensor::<1>::from_primitive::<Wgpu>(values.pop().expect("a value"));
        if let Err(error) = outcome {
            optimizer.shared.fail(error);
        }
        assert_eq!(value.into_data().try_into_vec::<f32>().expect("f32"), [2.0; 3]);

        let step = |optimizer: &mut FusedOptimizer, module: Vector| {
            let mut gradients = GradientsParams::new();
            gradients.register(module.weight.id, tensor(1.0));
            optimizer.step(0.5, module, gradients)
        };
        let module = Vector { weight: Param::from_tensor(tensor(4.0).autodiff()) };
        let error = step(&mut optimizer, module).expect_err("the error of the step before");
        assert!(matches!(error.error(), Error::Encode(adamod::EncodeError::UnknownParameter)), "{error}");
        let (module, _) = error.into_parts();
        let module = step(&mut optimizer, module).expect("a step");
        let values = module.weight.val().into_data().try_into_vec::<f32>().expect("f32");
        assert!(values.iter().all(|value| *value < 4.0), "{values:?}");
    }
}
