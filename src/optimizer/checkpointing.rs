//! Checkpoints of an [`Optimizer`]: taken, checked and restored.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Optimizer;
use super::device_steps::DeviceSteps;
use super::handles::{GroupId, ParameterId};
use super::memory::BlockPart;
use super::readback::Readback;
use super::registry::Record;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::{Checkpoint, SavedParameter};
use crate::device::readback::Source;
use crate::device::staged_write::{Write, write_staged};
use crate::error::Error;
use crate::kernels::abi;
use crate::plan::allocator::Extent;
use crate::storage::block::{BlockLayout, WORD_BYTES, state_words};
use crate::storage::contents::Contents;

impl Optimizer {
    /// Takes a checkpoint: everything that a continuation needs to be the same bit for bit, apart from the values of the parameters.
    /// Submits a copy, so all recorded steps have to be submitted before. Training may go on while the copy is read.
    ///
    /// # Errors
    /// The read-back fails if the device fails.
    pub fn checkpoint(&self) -> Readback<Checkpoint> {
        let whole =
            |buffer: &wgpu::Buffer| Source { buffer: buffer.clone(), offset: 0, bytes: buffer.size() };
        let (buffers, mut sources): (HashMap<_, _>, Vec<_>) = (0_usize..)
            .zip(self.memory.buffers())
            .map(|(source, (number, buffer))| ((number, source), whole(buffer)))
            .unzip();
        if let Some(steps) = self.recorder.source().device() {
            let bytes = DeviceSteps::step_count_offset(self.registry.end());
            sources.push(Source { bytes, ..whole(steps.control()) });
        }
        let groups = self.registry.groups_in_order();
        let numbers = numbers_of(&groups.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        let wgpu::AdapterInfo { name, driver, driver_info, .. } = self.gpu.device.adapter_info();
        let mut checkpoint = Checkpoint {
            seed: self.options.seed,
            groups: groups.into_iter().map(|(_, group)| *group).collect(),
            parameters: Vec::with_capacity(self.registry.len()),
            control: None,
            adapter: name,
            driver: format!("{driver} {driver_info}").trim().to_owned(),
        };
        checkpoint.parameters.extend(self.registry.parameters().map(|(id, record)| SavedParameter {
            label: record.label.clone(),
            len: record.len,
            dtype: record.dtype,
            group: numbers[&record.group],
            step: self.registry.steps(id),
            first: record.shard.first,
            whole: record.shard.whole,
            layout: record.layout,
            words: Vec::new(),
        }));
        // Where the state and the step count of each parameter lie.
        let places: Vec<(usize, Vec<Extent>)> = self
            .registry
            .parameters()
            .map(|(id, _)| (id.key.index(), self.memory.extents(id.key.index()).to_vec()))
            .collect();
        self.read(sources, false, None, move |contents| {
            let control = contents.get(buffers.len());
            for (parameter, (index, extents)) in checkpoint.parameters.iter_mut().zip(places) {
                if let Some(control) = control {
                    let count = &control[DeviceSteps::step_count_offset(index) as usize..][..4];
                    parameter.step = bytemuck::pod_read_unaligned::<u32>(count).into();
                }
                parameter.words = vec![0; state_words(parameter.layout, parameter.len) as usize];
                let mut to = 0;
                for extent in extents {
                    let words = state_words(parameter.layout, extent.elements) as usize;
                    let start = extent.state as usize * WORD_BYTES as usize;
                    let bytes =
                        &contents[buffers[&extent.buffer]][start..start + words * WORD_BYTES as usize];
                    let target = &mut parameter.words[to..to + words];
                    bytemuck::cast_slice_mut::<u32, u8>(target).copy_from_slice(bytes);
                    to += words;
                }
            }
            checkpoint.control =
                control.map(|bytes| bytemuck::pod_read_unaligned(&bytes[..size_of::<abi::Control>()]));
            checkpoint
        })
    }

    /// Continues from a checkpoint: state, master weights, step counts and hyperparameters are the checkpoint's from the next recorded
    /// step on.
    ///
    /// The optimizer needs the same parameters, in groups of the same order and rules. State formats may differ and are converted,
    /// rounding to the nearest. Everything is checked before anything changes, and then all of it changes or nothing does. Submits a copy,
    /// so all recorded steps have to be submitted before.
    ///
    /// With [`Control::Device`](crate::Control::Device) a dynamic loss scale, the engine's multiplier and the counts of
    /// [`Progress`](crate::Progress) are the checkpoint's, too. A constant loss scale stays this optimizer's. An engine that sets the
    /// multiplier does so after this.
    ///
    /// # Errors
    /// If the checkpoint and the optimizer differ. The error names what differs.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.check_checkpoint(checkpoint)?;
        self.memory.update(&self.gpu, &self.registry).map_err(Error::from)?;
        let ids: Vec<ParameterId> =
            checkpoint.parameters.iter().filter_map(|saved| self.registry.parameter(&saved.label)).collect();
        let mut restored = Vec::with_capacity(ids.len());
        for (&id, saved) in ids.iter().zip(&checkpoint.parameters) {
            let record = self.registry.record(id)?;
            let words: Cow<'_, [u32]> = if record.layout == saved.layout {
                Cow::Borrowed(&saved.words)
            } else {
                Cow::Owned(converted(record, saved, checkpoint))
            };
            restored.push((id, record.layout, words, (saved.step as u32).to_le_bytes()));
        }
        let mut writes = Vec::new();
        for (id, layout, words, count) in &restored {
            writes.extend(self.memory.writes(id.key.index(), *layout, words, BlockPart::Whole));
            writes.extend(self.step_count_write(*id, count));
        }
        let control = self.recorder.source().device().zip(checkpoint.control.as_ref());
        let control = control.map(|(steps, saved)| (steps.control(), steps.continued(saved)));
        if let Some((buffer, control)) = &control {
            writes.push(Write { buffer, offset: 0, bytes: bytemuck::bytes_of(control) });
        }
        write_staged(&self.gpu, &writes).map_err(Error::from)?;
        self.registry
            .set_steps(ids.iter().copied().zip(checkpoint.parameters.iter().map(|saved| saved.step)));
        let groups: Vec<_> = self.registry.groups_in_order().into_iter().map(|(id, _)| id).collect();
        for (id, saved) in groups.into_iter().zip(&checkpoint.groups) {
            self.registry.set_hyperparameters(id, saved.hyperparameters)?;
        }
        Ok(())
    }

    fn check_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        same("the seed", &checkpoint.seed, &self.options.seed)?;
        let groups = self.registry.groups_in_order();
        same("the number of groups", &checkpoint.groups.len(), &groups.len())?;
        for (number, (saved, (_, group))) in checkpoint.groups.iter().zip(&groups).enumerate() {
            let (saved, rule) = (saved.hyperparameters.rule, group.hyperparameters.rule);
            same(&format!("the rule of group {number}"), &saved.kind(), &rule.kind())?;
            // Two formulas of one rule are different algorithms with the same states.
            if saved.variant() != rule.variant() {
                let what = format!("the formula of group {number}");
                return Err(mismatch(&what, format!("{saved:?}"), format!("{rule:?}")));
            }
        }
        let who = |on_device| if on_device { "Control::Device" } else { "Control::Host" };
        let is_on_device = self.recorder.source().device().is_some();
        same("the control", &who(checkpoint.control.is_some()), &who(is_on_device))?;
        let mut saved: HashMap<&str, &SavedParameter> = HashMap::new();
        for parameter in &checkpoint.parameters {
            if self.registry.parameter(&parameter.label).is_none() {
                return Err(CheckpointError::ExtraParameter { label: parameter.label.clone() });
            }
            saved.insert(&parameter.label, parameter);
        }
        let numbers = numbers_of(&groups.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        for (_, record) in self.registry.parameters() {
            let label = &record.label;
            let Some(saved) = saved.get(label.as_str()) else {
                return Err(CheckpointError::MissingParameter { label: label.clone() });
            };
            let of = |what: &str| format!("the {what} of parameter {label:?}");
            same(&of("length"), &saved.len, &record.len)?;
            let shard = |first: u64, whole: u64| format!("{first} of {whole}");
            let found = shard(saved.first, saved.whole);
            same(&of("first element"), &found, &shard(record.shard.first, record.shard.whole))?;
            same(&of("data type"), &saved.dtype, &record.dtype)?;
            same(&of("group"), &saved.group, &numbers[&record.group])?;
            let most = self.registry.settings().most_steps;
            if saved.step > most {
                return Err(mismatch(&of("step count"), saved.step.to_string(), format!("at most {most}")));
            }
            let master = |layout: BlockLayout| layout.master_weights.name();
            same(&of("master weights"), &master(saved.layout), &master(record.layout))?;
        }
        Ok(())
    }
}

/// The number of each group, in the order in which they were added.
fn numbers_of(groups: &[GroupId]) -> HashMap<GroupId, u32> {
    groups.iter().copied().zip(0..).collect()
}

fn mismatch(what: &str, found: String, expected: String) -> CheckpointError {
    CheckpointError::Mismatch { what: what.to_owned(), found, expected }
}

fn same<T: PartialEq + std::fmt::Display>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), CheckpointError> {
    if found == expected { Ok(()) } else { Err(mismatch(what, found.to_string(), expected.to_string())) }
}

/// The blocks of a saved parameter in the format of this optimizer.
fn converted(record: &Record, saved: &SavedParameter, checkpoint: &Checkpoint) -> Vec<u32> {
    let mut contents = Contents::decode(saved.layout, saved.len, &saved.words);
    let rule = checkpoint.groups[saved.group as usize].hyperparameters.rule;
    let scales = rule.debiased_scales(saved.step);
    match (saved.layout.state.is_debiased(), record.layout.state.is_debiased()) {
        (true, false) => contents.scale_states(&scales),
        (false, true) => contents.scale_states(&scales.map(|scale| 1.0 / scale)),
        (true, true) | (false, false) => {}
    }
    contents.encode_to_nearest(record.layout)
}
