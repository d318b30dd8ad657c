//! [`FusedOptimizer`] steps all parameters of a module in one submission.

use std::fmt;
use std::sync::Arc;

use adamod::{
    Checkpoint, Control, ErrorKind, FreshRows, Group, GroupId, Hyperparameters, LossScale, Optimizer,
    Options, Progress, RateHistograms, Restore,
};
use burn::grad_clipping::GradientClipping;
use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::{Module, ParamGroup, ParamId};
use burn::optim::{GradAdaptor, OptimizerRecord};
use burn::tensor::{DType, Int, Tensor};

use crate::backend;
use crate::config::{FusedConfig, FusedGroup};
use crate::error::{Error, StepError};
use crate::gpu::Gpu;
use crate::parameters::{ColumnFactors, KnownParameters, Register, Registry, Return, Take, values_of};
use crate::records::{self, Restored};
use crate::shared::{Shared, StepGroup};

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
    factors: ColumnFactors,
}

/// A group, and the parameters that it takes.
pub(crate) struct ModuleGroup {
    pub id: GroupId,
    pub group: Group,
    pub clipping: Option<GradientClipping>,
    pub rounds_decay: bool,
    pub members: Members,
}

impl ModuleGroup {
    fn at_step(&self) -> StepGroup {
        StepGroup { id: self.id, group: self.group, rounds_decay: self.rounds_decay }
    }
}

/// The parameters that a group takes.
pub(crate) enum Members {
    /// Those with a path for which it is true.
    Paths(Box<dyn Fn(&str) -> bool + Send>),
    /// Those of a group of Burn's.
    Burn(ParamGroup),
}

impl Members {
    pub fn has(&self, id: ParamId, path: &str) -> bool {
        match self {
            Members::Paths(takes) => takes(path),
            Members::Burn(group) => group.matches(&id, Some(path)),
        }
    }
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
        Ok(Self { shared, groups: Vec::new(), known: KnownParameters::new(), factors: ColumnFactors::new() })
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
        let members = Members::Paths(Box::new(takes));
        self.groups.push(ModuleGroup { id, group, clipping: None, rounds_decay: false, members });
        Ok(id)
    }

    /// Adds a group for the parameters of a group of Burn's, as `ModuleOptimizer::with_group` does: it takes precedence over the groups
    /// that were added before, and parameters that are in it lose their state.
    ///
    /// # Errors
    /// If a hyperparameter is refused or the core has no kernel for the configuration, if it clips and the loss scale is not 1, or if a
    /// queued step failed.
    pub fn with_group(
        mut self,
        members: ParamGroup,
        config: &(impl FusedConfig + ?Sized),
    ) -> Result<Self, Error> {
        let FusedGroup { group, clipping, rounds_decay } = config.fused_group()?;
        self.check_clipping(clipping.as_ref())?;
        let is_member = |(path, known): (&String, &crate::parameters::Known)| {
            members.matches(&known.id, Some(path)).then(|| path.clone())
        };
        let moved: Vec<_> = self.known.iter().filter_map(is_member).collect();
        let id = self.shared.core().add_group(group)?;
        for path in moved {
            self.forget(&path)?;
        }
        self.groups
            .insert(0, ModuleGroup { id, group, clipping, rounds_decay, members: Members::Burn(members) });
        Ok(self)
    }

    /// Clips gradients as `ModuleOptimizer::with_grad_clipping` does: those of the group with the lowest precedence.
    ///
    /// # Errors
    /// As [`FusedOptimizer::set_grad_clipping`], and if there is no group.
    pub fn with_grad_clipping(mut self, clipping: GradientClipping) -> Result<Self, Error> {
        let group = self.groups.last().ok_or_else(unknown_group)?.id;
        self.set_grad_clipping(group, Some(clipping))?;
        Ok(self)
    }

    /// Clips the gradient of each tensor of a group by itself from the next step on, with Burn's own tensor operations on the device:
    /// its elements to a range, or its norm. [`adamod::DeviceControl::max_norm`] clips the norm of all gradients of a step together, in
    /// the kernels, and after this.
    ///
    /// # Errors
    /// If the group belongs to another optimizer, or the loss scale is not 1, because gradients are divided by it after this.
    pub fn set_grad_clipping(
        &mut self,
        group: GroupId,
        clipping: Option<GradientClipping>,
    ) -> Result<(), Error> {
        self.check_clipping(clipping.as_ref())?;
        let group = self.groups.iter_mut().find(|of| of.id == group).ok_or_else(unknown_group)?;
        group.clipping = clipping;
        Ok(())
    }

    fn check_clipping(&self, clipping: Option<&GradientClipping>) -> Result<(), Error> {
        match self.shared.core().options().control {
            Control::Device(control)
                if clipping.is_some() && control.loss_scale != LossScale::Constant(1.0) =>
            {
                Err(Error::ClippingWithLossScale { found: format!("{:?}", control.loss_scale) })
            }
            _ => Ok(()),
        }
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
        let (found, expected) = (hyperparameters.rule.kind(), old.group.hyperparameters.rule.kind());
        if found != expected {
            return Err(adamod::Error::from(ErrorKind::Rule { found, expected }).into());
        }
        hyperparameters.validate().map_err(adamod::Error::from)?;
        old.group.hyperparameters = hyperparameters;
        Ok(())
    }

    /// A group's hyperparameters; `None` if it belongs to another optimizer.
    pub fn hyperparameters(&self, group: GroupId) -> Option<&Hyperparameters> {
        self.groups.iter().find(|of| of.id == group).map(|group| &group.group.hyperparameters)
    }

    /// Takes a step. `learning_rate` is one number for all parameters, or what `ModuleLrScheduler::step` returns, which has a rate for each
    /// of its own groups. `gradients` are [`burn::optim::GradientsParams`], or [`burn::optim::MultiGradientsParams`] of several devices,
    /// which are summed.
    ///
    /// A group keeps the rate of the first of its parameters for [`FusedOptimizer::step_groups`].
    ///
    /// # Errors
    /// As [`FusedOptimizer::step_groups`], and if a learning rate is refused.
    pub fn step<M: Module>(
        &mut self,
        learning_rate: impl Into<ModuleLearningRate>,
        module: M,
        gradients: impl Into<GradAdaptor>,
    ) -> Result<M, StepError<M>> {
        self.step_at(Some(learning_rate.into()), module, gradients.into())
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
        self.step_at(None, module, gradients.into())
    }

    fn step_at<M: Module>(
        &mut self,
        learning_rates: Option<ModuleLearningRate>,
        module: M,
        gradients: GradAdaptor,
    ) -> Result<M, StepError<M>> {
        if let Err(error) = self.shared.take_failure() {
            return Err(StepError::new(error, module));
        }
        let registry = Registry {
            shared: &self.shared,
            groups: &self.groups,
            known: &mut self.known,
            factors: &self.factors,
        };
        let mut take = Take::new(registry, learning_rates, gradients);
        let module = module.map(&mut take);
        let (taken, jobs, error) = take.finish();
        let (values, outcome) = match error {
            Some(error) => (jobs.into_iter().map(|job| job.value).collect(), Err(error)),
            None => {
                for group in &mut self.groups {
                    if let Some(first) = jobs.iter().find(|job| job.group == group.id) {
                        group.group.hyperparameters.learning_rate = first.learning_rate;
                    }
                }
                let groups = self.groups.iter().map(ModuleGroup::at_step).collect();
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
        Ok(self.shared.settled()?.checkpoint().wait()?)
    }

    /// Takes a checkpoint with the values of `module`'s parameters that have stepped ([`Checkpoint::values`]), so that one file has all of
    /// them. Waits for the device.
    ///
    /// # Errors
    /// As [`FusedOptimizer::checkpoint`], and if the module lacks a parameter that has stepped, or has it with another length.
    pub fn checkpoint_with_values<M: Module>(&mut self, module: &M) -> Result<Checkpoint, Error> {
        let checkpoint = self.checkpoint()?;
        let mut values = values_of(module, |path| self.known.contains_key(path));
        let missing = checkpoint.parameters().find(|parameter| !values.contains_key(parameter.label));
        if let Some(parameter) = missing {
            return Err(Error::NotInModule { label: parameter.label.to_owned() });
        }
        Ok(checkpoint.with_values(|parameter| values.remove(parameter.label))?)
    }

    /// Continues from a checkpoint with the same bits. The groups have to be added before. Parameters that have not stepped yet are
    /// registered from `module`, which may be a new one. Values stay those of the module, also if the checkpoint has any.
    ///
    /// # Errors
    /// If the checkpoint and the optimizer differ, or a queued step failed. The error names what differs. Nothing has changed then, except
    /// that parameters may have been registered.
    pub fn restore<M: Module>(&mut self, checkpoint: &Checkpoint, module: &M) -> Result<(), Error> {
        drop(self.shared.settled()?);
        let labels = checkpoint.parameters().map(|parameter| parameter.label).collect();
        let registry = Registry {
            shared: &self.shared,
            groups: &self.groups,
            known: &mut self.known,
            factors: &self.factors,
        };
        Register::all(registry, labels, module)?;
        let mut core = self.shared.core();
        core.restore_with(checkpoint, &Restore::new().without_values())?;
        for group in &mut self.groups {
            if let Some(restored) = core.group(group.id) {
                group.group.hyperparameters = restored.hyperparameters;
            }
        }
        Ok(())
    }

    /// Continues from the record of a `ModuleOptimizer`: of Burn's Adam, AdamW, SGD, RMSprop, AdaGrad or Lion, which are converted, or of
    /// [`PerTensor`](crate::PerTensor). Hyperparameters stay those of the groups.
    ///
    /// A record names parameters by Burn's ids, so `module` has to be the one that was trained, or loaded from its record.
    ///
    /// # Errors
    /// If the record is of another optimizer or has parameters that the module does not have, if a group has another rule, or if a queued
    /// step failed. No state has changed then, unless the device failed.
    pub fn load_record<M: Module>(&mut self, record: OptimizerRecord, module: &M) -> Result<(), Error> {
        self.shared.drain()?;
        let states = records::states_of(record)?;
        let registry = Registry {
            shared: &self.shared,
            groups: &self.groups,
            known: &mut self.known,
            factors: &self.factors,
        };
        let restored = records::match_parameters(registry, states, module)?;
        let mut core = self.shared.core();
        for restored in &restored {
            restored.check(&core)?;
        }
        for Restored { parameter, state, .. } in &restored {
            core.write_state(*parameter, state)?;
        }
        Ok(())
    }

    /// Removes the state of the parameter with this path, which starts anew at its next step, in the first group that takes it and with
    /// the length and type that it has then. Returns whether there was any.
    ///
    /// # Errors
    /// If the device fails or a queued step failed.
    pub fn forget(&mut self, path: &str) -> Result<bool, Error> {
        self.shared.drain()?;
        let Some(known) = self.known.get(path) else { return Ok(false) };
        self.shared.core().remove_parameter(known.parameter)?;
        self.known.remove(path);
        Ok(true)
    }

    /// Lets the state of the parameter with this path follow its rows, which are those of the first axis: new row `r` continues old row
    /// `sources[r]`. A number that no old row has, as -1, makes a row whose state starts fresh. There are as many rows afterwards as
    /// `sources` has elements, and the step count stays. [`adamod::Optimizer::remap`] describes formats and memory.
    ///
    /// The caller gives the module the new value, `value.select(0, ..)` for example, before its next step. Runs after all steps so far, on
    /// the device. Returns whether there was any state.
    ///
    /// # Errors
    /// If `sources` is empty or of another type than I32 and U32, the device fails, or a queued step failed. The state is as it was then.
    pub fn remap(&mut self, path: &str, sources: Tensor<1, Int>, fresh: FreshRows) -> Result<bool, Error> {
        self.shared.drain()?;
        let Some(known) = self.known.get_mut(path) else { return Ok(false) };
        let ([rows], dtype) = (sources.dims(), sources.dtype());
        if rows == 0 || !matches!(dtype, DType::I32 | DType::U32) {
            let found = format!("{rows} elements of type {dtype:?}");
            return Err(Error::SourceRows { label: path.to_owned(), found });
        }
        let row_len = known.elements / known.rows;
        let sources = backend::integers(sources.to_device(&self.shared.gpu.device()))?;
        self.shared.remap(known.parameter, sources, row_len as u64, fresh)?;
        (known.rows, known.elements) = (rows, rows * row_len);
        Ok(true)
    }

    /// Multiplies the learning rates of the columns of the parameter with this path from the next step on: that of element `i` by
    /// `factors[i % factors.len()]`, as [`adamod::Optimizer::set_column_factors`] does. Factors belong to the path: they may be set before
    /// the first step, and they stay when the state is forgotten. Without factors all columns have the group's rate.
    ///
    /// # Errors
    /// If the core refuses the factors, or a queued step failed. The old factors stay then. Of a parameter that has not stepped yet, its
    /// first step returns the error.
    pub fn set_column_factors(&mut self, path: &str, factors: &[f32]) -> Result<(), Error> {
        self.shared.drain()?;
        if let Some(known) = self.known.get(path) {
            self.shared.core().set_column_factors(known.parameter, factors)?;
        }
        if factors.is_empty() {
            self.factors.remove(path);
        } else {
            self.factors.insert(path.to_owned(), factors.to_vec());
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

    /// Submits all steps so far and calls `look` with the core optimizer, to read from it. Labels of parameters are their paths:
    /// `core.parameter("encoder.layers.0.weight")`. `look` must not call Burn, whose threads may wait for the core.
    ///
    /// # Errors
    /// The first error of a queued step.
    pub fn with_core<T>(&mut self, look: impl FnOnce(&Optimizer) -> T) -> Result<T, Error> {
        self.shared.drain()?;
        Ok(look(&self.shared.core()))
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
        let job = Job { parameter, group, learning_rate: 0.5, value: of(2.0), gradient: of(1.0) };
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
