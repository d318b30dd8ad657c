//! [`FusedOptimizer`] steps all parameters of a module in one submission.

use std::fmt;
use std::sync::Arc;

use adamod::{
    Checkpoint, ErrorKind, Group, GroupId, Hyperparameters, Optimizer, Options, Progress, RateHistograms,
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
/// A parameter's label is its path, `encoder.layers.0.weight`. It is registered when it first has a gradient. A step leaves parameters
/// without a gradient as they are: no weight decay, and their step counts do not advance. Integer and boolean parameters stay too.
///
/// With Burn's fusion (feature `fusion`) a step is queued like any other operation, and no call waits for the device. If a step fails
/// when it runs, its values stay, and the next method that returns [`Error`] returns the error.
pub struct FusedOptimizer {
    shared: Arc<Shared>,
    groups: Vec<ModuleGroup>,
    known: KnownParameters,
}

/// A group, and the parameters that it takes.
pub(crate) struct ModuleGroup {
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
    /// As [`adamod::Optimizer::new`], and if [`Options::zero_gradients`] is set.
    pub fn new(gpu: &Gpu, options: Options) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(gpu, options)?);
        Ok(Self { shared, groups: Vec::new(), known: KnownParameters::new() })
    }

    /// Adds a group for the parameters for whose paths `takes` is true: hyperparameters, a rule, or a [`Group`] with a precision. Groups
    /// may have different rules.
    ///
    /// A parameter belongs to the first group that takes it. A parameter with a gradient that no group takes is an error, so a last group
    /// with `|_| true` is the default.
    ///
    /// # Errors
    /// If a hyperparameter is refused.
    pub fn add_group(
        &mut self,
        group: impl Into<Group>,
        takes: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<GroupId, Error> {
        let group = group.into();
        let id = self.shared.core().add_group(group)?;
        let hyperparameters = group.hyperparameters;
        self.groups.push(ModuleGroup { id, hyperparameters, takes: Box::new(takes) });
        Ok(id)
    }

    /// Sets a group's learning rate for [`FusedOptimizer::step_groups`].
    ///
    /// # Errors
    /// If it is refused, or the group belongs to another optimizer. The old rate stays.
    pub fn set_learning_rate(&mut self, group: GroupId, learning_rate: f64) -> Result<(), Error> {
        let hyperparameters = *self.hyperparameters(group).ok_or_else(unknown_group)?;
        self.set_hyperparameters(group, hyperparameters.with_learning_rate(learning_rate))
    }

    /// Replaces a group's hyperparameters from the next step on. The rule stays.
    ///
    /// # Errors
    /// If a hyperparameter is refused, the rule is another one, or the group belongs to another optimizer. The old hyperparameters stay.
    pub fn set_hyperparameters(
        &mut self,
        group: GroupId,
        hyperparameters: impl Into<Hyperparameters>,
    ) -> Result<(), Error> {
        let hyperparameters = hyperparameters.into();
        let old = self.groups.iter_mut().find(|of| of.id == group).ok_or_else(unknown_group)?;
        let (found, expected) = (hyperparameters.rule.kind(), old.hyperparameters.rule.kind());
        if found != expected {
            return Err(adamod::Error::from(ErrorKind::Rule { found, expected }).into());
        }
        hyperparameters.validate().map_err(adamod::Error::from)?;
        old.hyperparameters = hyperparameters;
        Ok(())
    }

    /// A group's hyperparameters; `None` if it belongs to another optimizer.
    pub fn hyperparameters(&self, group: GroupId) -> Option<&Hyperparameters> {
        self.groups.iter().find(|of| of.id == group).map(|group| &group.hyperparameters)
    }

    /// Takes a step with one learning rate for all groups. `gradients` are [`burn::optim::GradientsParams`], or
    /// [`burn::optim::MultiGradientsParams`] of several devices, which are summed.
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

    /// Takes a step in which each group has its own learning rate ([`FusedOptimizer::set_learning_rate`]).
    ///
    /// Copies values to which something else refers, such as a clone of the module or a live autodiff graph, and tensors that are not
    /// contiguous.
    ///
    /// # Errors
    /// If a parameter with a gradient belongs to no group or is on another device, if its gradient has another shape or an unsupported
    /// type, if its length or type has changed since an earlier step, or if the device fails. The error returns the module, whose values
    /// are unchanged.
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

    /// Multiplies gradients by the caller's number from the next step on, in addition to loss scale and clip: 1 over the number of
    /// accumulated batches, or the factor of a clip to a norm that several devices have reduced. Needs [`adamod::Control::Device`].
    ///
    /// # Errors
    /// If it is not finite, with [`adamod::Control::Host`], or if a queued step failed.
    pub fn set_gradient_multiplier(&mut self, multiplier: f32) -> Result<(), Error> {
        if !multiplier.is_finite() {
            return Err(Error::Multiplier { found: multiplier });
        }
        self.shared.drain()?;
        let core = self.shared.core();
        let control = core.control_buffer().ok_or_else(|| adamod::Error::from(ErrorKind::NoControl))?;
        let queue = &self.shared.gpu.queue;
        // Takes effect with the next submit, and so before the next step.
        queue.write_buffer(control, Optimizer::MULTIPLIER_OFFSET, &multiplier.to_le_bytes());
        Ok(())
    }

    /// Submits every step so far. Needed only if something outside Burn accesses its buffers.
    ///
    /// # Errors
    /// The first error of a queued step.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.shared.drain()
    }

    /// Takes a checkpoint of state, step counts and hyperparameters after all steps so far. Waits for the device. Burn saves the values of
    /// the parameters.
    ///
    /// # Errors
    /// If the device fails or a queued step failed.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        self.shared.drain()?;
        Ok(self.shared.core().checkpoint().wait()?)
    }

    /// Continues from a checkpoint with the same bits. The groups have to be added before. Parameters that have not stepped yet are
    /// registered from `module`, which may be a new one.
    ///
    /// # Errors
    /// If the checkpoint and the optimizer differ, or a queued step failed. The error names what differs. Nothing has changed then, except
    /// that parameters may have been registered.
    pub fn restore<M: Module>(&mut self, checkpoint: &Checkpoint, module: &M) -> Result<(), Error> {
        self.shared.drain()?;
        let labels = checkpoint.parameters().map(|parameter| parameter.label).collect();
        let registry = Registry { shared: &self.shared, groups: &self.groups, known: &mut self.known };
        Register::all(registry, labels, module)?;
        let mut core = self.shared.core();
        core.restore(checkpoint)?;
        for group in &mut self.groups {
            if let Some(restored) = core.group(group.id) {
                group.hyperparameters = restored.hyperparameters;
            }
        }
        Ok(())
    }

    /// Reads the histograms of learning rates since the last call and resets them. Waits for the device.
    ///
    /// # Errors
    /// If the optimizer was created without [`adamod::Diagnostics::RateHistograms`], the device fails, or a queued step failed.
    pub fn take_rate_histograms(&mut self) -> Result<RateHistograms, Error> {
        self.shared.drain()?;
        Ok(self.shared.core().take_rate_histograms().wait()?)
    }

    /// Reads the numbers of steps taken and skipped, the loss scale and the norm. Waits for the device.
    ///
    /// # Errors
    /// With [`adamod::Control::Host`], if the device fails, or if a queued step failed.
    pub fn progress(&mut self) -> Result<Progress, Error> {
        self.shared.drain()?;
        Ok(self.shared.core().read_progress().wait()?)
    }

    /// Submits all steps so far and calls `look` with the core optimizer. Labels of parameters are their paths:
    /// `core.parameter("encoder.layers.0.weight")`. `look` must not call Burn, whose threads may wait for the core. Hyperparameters that
    /// it sets hold until the next step.
    ///
    /// # Errors
    /// The first error of a queued step.
    pub fn with_core<T>(&mut self, look: impl FnOnce(&mut Optimizer) -> T) -> Result<T, Error> {
        self.shared.drain()?;
        Ok(look(&mut self.shared.core()))
    }
}

fn unknown_group() -> Error {
    adamod::Error::from(ErrorKind::UnknownGroup).into()
}

#[cfg(test)]
mod tests {
    use adamod::AdaMod;
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
    fn a_step_that_fails_when_it_runs_leaves_its_values_and_the_next_call_returns_its_error() {
        let gpu = Gpu::open(DeviceKind::DefaultDevice).expect("a device");
        let mut optimizer = FusedOptimizer::new(&gpu, Options::new()).expect("an optimizer");
        optimizer.add_group(AdaMod::new(), |_| true).expect("a group");
        // The core refuses a parameter of another optimizer when it records the step.
        let mut other = Optimizer::new(&gpu.wgpu, &gpu.queue, Options::new()).expect("an optimizer");
        let group = other.add_group(AdaMod::new()).expect("a group");
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
        let is_of_the_core = |error: &Error| matches!(error, Error::Core(of) if matches!(of.kind(), ErrorKind::UnknownParameter));
        assert!(is_of_the_core(error.error()), "{error}");
        let (module, _) = error.into_parts();
        let module = step(&mut optimizer, module).expect("a step");
        let values = module.weight.val().into_data().try_into_vec::<f32>().expect("f32");
        assert!(values.iter().all(|value| *value < 4.0), "{values:?}");
    }
}
