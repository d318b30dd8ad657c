//! Removal of parameters and groups.

use super::{GroupId, Optimizer, ParameterId};
use crate::control::DeviceSteps;
use crate::error::RemoveError;
use crate::plan::{WORD_BYTES, state_words};
use crate::scope::{catch, submit};

impl Optimizer {
    /// Removes a parameter: its handle is refused from then on, its label and its views' bytes are free, and its state is given
    /// back. Submits a clear of the state, so all steps recorded so far have to be submitted.
    ///
    /// # Errors
    /// If the parameter is not of this optimizer or was removed already, or the device fails; it is still there then.
    pub fn remove_parameter(&mut self, parameter: ParameterId) -> Result<(), RemoveError> {
        let index = self.index_of(parameter).ok_or(RemoveError::UnknownParameter)?;
        self.clear(index)?;
        let record = &mut self.parameters[index];
        self.arena.release(record.layout, &record.extents);
        if record.extents.is_empty() {
            self.without_state -= 1;
        }
        record.extents = Vec::new();
        record.is_live = false;
        record.generation = record.generation.wrapping_add(1);
        self.by_label.remove(&record.label);
        match record.views.take() {
            Some(views) => self.vacate(&views.borrow()),
            None => self.without_views -= 1,
        }
        self.cohorts.remove_parameter(index);
        self.vacant.push(index as u32);
        self.forget_rows();
        self.fixed = None;
        self.moving = None;
        Ok(())
    }

    /// Removes a group without parameters: its handle is refused from then on.
    ///
    /// # Errors
    /// If the group is not of this optimizer or was removed already, or has parameters.
    pub fn remove_group(&mut self, group: GroupId) -> Result<(), RemoveError> {
        let index = self.group_index(group).ok_or(RemoveError::UnknownGroup)?;
        let members: Vec<_> = self.live().filter(|(_, record)| record.group as usize == index).collect();
        if let [(_, record), ..] = members.as_slice() {
            return Err(RemoveError::GroupInUse { members: members.len(), label: record.label.clone() });
        }
        let group = &mut self.groups[index];
        group.is_live = false;
        group.generation = group.generation.wrapping_add(1);
        Ok(())
    }

    /// Zeroes a parameter's state and its step count on the device: what is free is zero.
    fn clear(&self, index: usize) -> Result<(), RemoveError> {
        let record = &self.parameters[index];
        if record.extents.is_empty() {
            return Ok(());
        }
        let commands = catch(&self.device, || {
            let mut encoder = self
                .device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("adamod.remove") });
            for extent in &record.extents {
                let start = u64::from(extent.state) * WORD_BYTES;
                let bytes = state_words(record.layout, extent.elements) * WORD_BYTES;
                encoder.clear_buffer(self.arena.page(extent.page), start, Some(bytes));
            }
            if let Some(steps) = &self.device_steps {
                encoder.clear_buffer(steps.kept(), DeviceSteps::step_count_offset(index), Some(4));
            }
            encoder.finish()
        })?;
        submit(&self.device, &self.queue, commands)?;
        Ok(())
    }
}
