//! Groups and parameters: what is registered, and the bytes that it takes.

use super::places::check_views;
use super::{Group, GroupId, Optimizer, Parameter, ParameterId, Record};
use crate::control::DeviceSteps;
use crate::error::{HyperparameterError, RegisterError, ViewError};
use crate::format::{BlockLayout, DType, MasterWeights, Precision, StateFormat};
use crate::hyperparameters::Hyperparameters;
use crate::rounding::key_of;
use crate::views::{Overlap, OwnedViews, Views};

impl Optimizer {
    /// Adds a group, PyTorch's `param_group`, with its state in f32 and no master weights.
    ///
    /// # Errors
    /// If a hyperparameter is refused, see [`Hyperparameters::validate`].
    pub fn add_group(&mut self, hyperparameters: Hyperparameters) -> Result<GroupId, HyperparameterError> {
        self.add_group_with(hyperparameters, Precision::default())
    }

    /// Adds a group that is stored in another way.
    ///
    /// # Errors
    /// As [`Optimizer::add_group`].
    pub fn add_group_with(
        &mut self,
        hyperparameters: Hyperparameters,
        precision: Precision,
    ) -> Result<GroupId, HyperparameterError> {
        hyperparameters.validate()?;
        let vacant = self.groups.iter().position(|group| !group.is_live);
        let index = vacant.unwrap_or(self.groups.len());
        let generation = vacant.map_or(0, |index| self.groups[index].generation);
        let group = Group { hyperparameters, precision, generation, is_live: true };
        match vacant {
            Some(index) => self.groups[index] = group,
            None => self.groups.push(group),
        }
        self.forget_groups();
        Ok(GroupId { optimizer: self.id, index: index as u32, generation })
    }

    /// Replaces a group's hyperparameters from the next recorded step on.
    ///
    /// # Errors
    /// If one is refused; the old ones stay.
    pub fn set_hyperparameters(
        &mut self,
        group: GroupId,
        hyperparameters: Hyperparameters,
    ) -> Result<(), HyperparameterError> {
        hyperparameters.validate()?;
        let index = self.group_index(group).ok_or(HyperparameterError::UnknownGroup)?;
        let kept = &mut self.groups[index].hyperparameters;
        if *kept != hyperparameters {
            *kept = hyperparameters;
            self.forget_groups();
        }
        Ok(())
    }

    /// Sets a group's learning rate from the next recorded step on: `optimizer.set_learning_rate(group, schedule(step))`.
    ///
    /// # Errors
    /// If it is refused; the old one stays.
    pub fn set_learning_rate(
        &mut self,
        group: GroupId,
        learning_rate: f64,
    ) -> Result<(), HyperparameterError> {
        let hyperparameters = *self.hyperparameters(group).ok_or(HyperparameterError::UnknownGroup)?;
        self.set_hyperparameters(group, Hyperparameters { learning_rate, ..hyperparameters })
    }

    /// A group's hyperparameters; `None` if it is of another optimizer or was removed.
    pub fn hyperparameters(&self, group: GroupId) -> Option<&Hyperparameters> {
        self.group_index(group).map(|index| &self.groups[index].hyperparameters)
    }

    pub(super) fn group_index(&self, group: GroupId) -> Option<usize> {
        let of = self.groups.get(group.index as usize).filter(|_| group.optimizer == self.id)?;
        (of.is_live && of.generation == group.generation).then_some(group.index as usize)
    }

    /// Registers a parameter. Its state starts at zero; it is allocated when the next step is recorded.
    ///
    /// # Errors
    /// Everything that can be known to be wrong with it: group, label, length, and each view's usage, alignment, size, and
    /// overlap with any other.
    pub fn add_parameter(
        &mut self,
        group: GroupId,
        parameter: Parameter<'_>,
    ) -> Result<ParameterId, RegisterError> {
        let label = || parameter.label.to_owned();
        let group = self.group_index(group).ok_or_else(|| RegisterError::UnknownGroup { label: label() })?;
        if self.by_label.contains_key(parameter.label) {
            return Err(RegisterError::DuplicateLabel { label: label() });
        }
        if parameter.len == 0 {
            return Err(RegisterError::Empty { label: label() });
        }
        let most = self.longest_bytes / parameter.dtype.bytes();
        if parameter.views.is_none() && parameter.len > most {
            let (len, dtype) = (parameter.len, parameter.dtype);
            return Err(RegisterError::TooLong { label: label(), len, dtype, most });
        }
        let most = DeviceSteps::MOST_PARAMETERS;
        if self.device_steps.is_some() && self.by_label.len() == most {
            return Err(RegisterError::TooMany { label: label(), most });
        }
        let precision = self.groups[group].precision;
        let layout = self.layout_of(&parameter, precision)?;
        let index = self.vacant.last().map_or(self.parameters.len(), |&index| index as usize);
        if let Some(views) = &parameter.views {
            self.occupy(index, parameter.label, parameter.len, parameter.dtype, views)?;
            self.fixed = None;
        }
        let generation = self.vacant.pop().map_or(0, |index| self.parameters[index as usize].generation);
        let record = Record {
            generation,
            is_live: true,
            label: label(),
            len: parameter.len,
            dtype: parameter.dtype,
            group: group as u32,
            layout,
            key: key_of(self.options.seed, parameter.label),
            views: parameter.views.as_ref().map(OwnedViews::new),
            extents: Vec::new(),
            pool: 0,
        };
        match self.parameters.get_mut(index) {
            Some(place) => *place = record,
            None => self.parameters.push(record),
        }
        self.without_views += usize::from(parameter.views.is_none());
        self.without_state += 1;
        self.by_label.insert(label(), index as u32);
        self.cohorts.add_parameter(index, group as u32);
        self.forget_rows();
        Ok(ParameterId { optimizer: self.id, index: index as u32, generation })
    }

    /// Moves a parameter to other views, or gives views to one that had none, from the next recorded step on.
    ///
    /// # Errors
    /// As [`Optimizer::add_parameter`]; the old views stay.
    pub fn set_views(&mut self, parameter: ParameterId, views: Views<'_>) -> Result<(), RegisterError> {
        let index = self.index_of(parameter).ok_or(RegisterError::UnknownParameter)?;
        let record = &self.parameters[index];
        let (label, len, dtype) = (record.label.clone(), record.len, record.dtype);
        let old = record.views.clone();
        if let Some(old) = &old {
            self.vacate(&old.borrow());
        }
        if let Err(error) = self.occupy(index, &label, len, dtype, &views) {
            if let Some(old) = &old {
                self.occupy(index, &label, len, dtype, &old.borrow())?;
            }
            return Err(error);
        }
        self.without_views -= usize::from(old.is_none());
        self.parameters[index].views = Some(OwnedViews::new(&views));
        self.fixed = None;
        Ok(())
    }

    /// The parameter of that label.
    pub fn parameter(&self, label: &str) -> Option<ParameterId> {
        let &index = self.by_label.get(label)?;
        let generation = self.parameters[index as usize].generation;
        Some(ParameterId { optimizer: self.id, index, generation })
    }

    /// Label of a parameter; `None` if it is of another optimizer or was removed.
    pub fn label(&self, parameter: ParameterId) -> Option<&str> {
        self.index_of(parameter).map(|index| self.parameters[index].label.as_str())
    }

    /// How a parameter's state is laid out.
    fn layout_of(
        &self,
        parameter: &Parameter<'_>,
        precision: Precision,
    ) -> Result<BlockLayout, RegisterError> {
        let master_weights = match parameter.dtype {
            DType::F32 => MasterWeights::None,
            DType::F16 | DType::Bf16 => precision.master_weights,
        };
        if !master_weights.fit(parameter.dtype) {
            return Err(RegisterError::MasterWeights {
                label: parameter.label.to_owned(),
                dtype: parameter.dtype,
                found: precision.master_weights,
            });
        }
        let is_small = parameter.len < precision.f32_state_below;
        let state = parameter.state.unwrap_or(if is_small { StateFormat::F32 } else { precision.state });
        Ok(BlockLayout { states: self.options.rule.states(), state, master_weights })
    }

    /// Checks a parameter's views and takes their bytes; takes none on an error.
    fn occupy(
        &mut self,
        index: usize,
        label: &str,
        len: u64,
        dtype: DType,
        views: &Views<'_>,
    ) -> Result<(), RegisterError> {
        let refused = |(role, source)| RegisterError::View { label: label.to_owned(), role, source };
        let ends = check_views(views, len, dtype).map_err(refused)?;
        for (taken, ((role, view), end)) in views.each().zip(ends).enumerate() {
            if let Err(overlap) = self.occupied.take(&view, end, index, role) {
                for (_, earlier) in views.each().take(taken) {
                    self.occupied.release(&earlier);
                }
                // A parameter can also overlap itself; it may have no record yet, or the place of one that was removed.
                let other = self.parameters.get(overlap.parameter).filter(|_| overlap.parameter != index);
                let other_label = other.map_or(label, |record| &record.label).to_owned();
                return Err(refused((role, overlap_error(&overlap, other_label))));
            }
        }
        Ok(())
    }

    pub(super) fn vacate(&mut self, views: &Views<'_>) {
        for (_, view) in views.each() {
            self.occupied.release(&view);
        }
    }

    pub(super) fn forget_groups(&mut self) {
        if let Some(steps) = &mut self.device_steps {
            steps.forget_groups();
        }
    }

    /// Parameters came or went.
    pub(super) fn forget_rows(&mut self) {
        self.changes += 1;
        if let Some(steps) = &mut self.device_steps {
            steps.forget_rows();
        }
    }
}

fn overlap_error(overlap: &Overlap, other_label: String) -> ViewError {
    ViewError::Overlap { other_role: overlap.role, other_label, byte: overlap.byte }
}
