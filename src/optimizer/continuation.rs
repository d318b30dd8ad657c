//! Checkpoints of an [`Optimizer`]: taken, checked, restored.

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Group, Optimizer, Options, Record};
use crate::blocks::Contents;
use crate::checkpoint::{Checkpoint, SavedParameter};
use crate::control::DeviceSteps;
use crate::error::{CheckpointError, ReadError};
use crate::format::BlockLayout;
use crate::hyperparameters::Rule;
use crate::layout;
use crate::plan::{Extent, WORD_BYTES, state_words};
use crate::readback::{Snapshot, Source, Wait};
use crate::rounding::Random;
use crate::upload::{Write, upload};

impl Optimizer {
    /// Everything that a continuation needs to be the same bit for bit, but for the values of the parameters. Submits a copy at
    /// once: all steps recorded so far have to be submitted. The future borrows nothing, so training goes on meanwhile, and it
    /// resolves when the caller polls the device or submits again.
    ///
    /// # Errors
    /// If the device fails.
    pub fn checkpoint(&self) -> impl Future<Output = Result<Checkpoint, ReadError>> + use<> {
        self.checkpoint_waiting(Wait::Caller)
    }

    /// Like [`Optimizer::checkpoint`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::checkpoint`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn checkpoint_blocking(&self) -> Result<Checkpoint, ReadError> {
        pollster::block_on(self.checkpoint_waiting(self.blocking()))
    }

    fn checkpoint_waiting(&self, wait: Wait) -> impl Future<Output = Result<Checkpoint, ReadError>> + use<> {
        let whole =
            |buffer: &wgpu::Buffer| Source { buffer: buffer.clone(), offset: 0, bytes: buffer.size() };
        let (pages, mut sources): (HashMap<_, _>, Vec<_>) = (0_usize..)
            .zip(self.arena.pages())
            .map(|(source, (number, page))| ((number, source), whole(page)))
            .unzip();
        if let Some(steps) = &self.device_steps {
            let bytes = DeviceSteps::step_count_offset(self.parameters.len());
            sources.push(Source { bytes, ..whole(steps.kept()) });
        }
        let wgpu::AdapterInfo { name, driver, driver_info, .. } = self.device.adapter_info();
        let mut checkpoint = Checkpoint {
            rule: self.options.rule,
            formula: self.options.formula,
            seed: self.options.seed,
            groups: self.live_groups().map(|group| (group.hyperparameters, group.precision)).collect(),
            parameters: Vec::with_capacity(self.by_label.len()),
            control: None,
            adapter: name,
            driver: format!("{driver} {driver_info}").trim().to_owned(),
        };
        checkpoint.parameters.extend(self.live().map(|(index, record)| SavedParameter {
            label: record.label.clone(),
            len: record.len,
            dtype: record.dtype,
            group: self.group_number(record),
            step: self.cohorts.steps(index),
            layout: record.layout,
            words: Vec::new(),
        }));
        // Where each one's state and step count lie.
        let places: Vec<(usize, Vec<Extent>)> =
            self.live().map(|(index, record)| (index, record.extents.clone())).collect();
        let snapshot = Snapshot::new(&self.device, &self.queue, &sources, false);
        async move {
            let contents = snapshot?.read(wait).await?;
            let kept = contents.get(pages.len());
            for (parameter, (index, extents)) in checkpoint.parameters.iter_mut().zip(places) {
                if let Some(kept) = kept {
                    let count = &kept[DeviceSteps::step_count_offset(index) as usize..][..4];
                    parameter.step = bytemuck::pod_read_unaligned::<u32>(count).into();
                }
                parameter.words = vec![0; state_words(parameter.layout, parameter.len) as usize];
                let mut to = 0;
                for extent in extents {
                    let words = state_words(parameter.layout, extent.elements) as usize;
                    let start = extent.state as usize * WORD_BYTES as usize;
                    let bytes = &contents[pages[&extent.page]][start..start + words * WORD_BYTES as usize];
                    let target = &mut parameter.words[to..to + words];
                    bytemuck::cast_slice_mut::<u32, u8>(target).copy_from_slice(bytes);
                    to += words;
                }
            }
            checkpoint.control =
                kept.map(|kept| bytemuck::pod_read_unaligned(&kept[..size_of::<layout::Control>()]));
            Ok(checkpoint)
        }
    }

    /// Continues from a checkpoint: state, master weights, step counts and hyperparameters are the checkpoint's from the next
    /// recorded step on. The same parameters have to be registered, in groups of the same order; formats of state may differ and
    /// are converted, rounding to the nearest. Everything is checked before anything changes, and all of it
    /// changes or nothing does. Submits the copy, so all steps recorded so far have to be submitted.
    ///
    /// With [`Control::Device`](crate::Control::Device) a dynamic loss scale, the engine's multiplier and the counts of
    /// [`Progress`](crate::Progress) are the checkpoint's, too; a constant loss scale stays this optimizer's. An engine that sets
    /// the multiplier does so after this.
    ///
    /// # Errors
    /// What differs, by name.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.check_checkpoint(checkpoint)?;
        self.allocate()?;
        let indices: Vec<usize> =
            checkpoint.parameters.iter().map(|saved| self.by_label[&saved.label] as usize).collect();
        let restored = || indices.iter().zip(&checkpoint.parameters);
        let blocks: Vec<Cow<'_, [u32]>> = restored()
            .map(|(&index, saved)| {
                let record = &self.parameters[index];
                if record.layout == saved.layout {
                    Cow::Borrowed(saved.words.as_slice())
                } else {
                    Cow::Owned(self.converted(record, saved, checkpoint))
                }
            })
            .collect();
        let counts: Vec<[u8; 4]> =
            checkpoint.parameters.iter().map(|saved| (saved.step as u32).to_le_bytes()).collect();
        let mut writes = Vec::new();
        for ((&index, words), count) in indices.iter().zip(&blocks).zip(&counts) {
            let record = &self.parameters[index];
            let mut from = 0;
            for extent in &record.extents {
                let count = state_words(record.layout, extent.elements) as usize;
                writes.push(Write {
                    buffer: self.arena.page(extent.page),
                    offset: u64::from(extent.state) * WORD_BYTES,
                    bytes: bytemuck::cast_slice(&words[from..from + count]),
                });
                from += count;
            }
            writes.extend(self.step_count_write(index, count));
        }
        let control = self.device_steps.as_ref().zip(checkpoint.control.as_ref());
        let control = control.map(|(steps, saved)| (steps.kept(), steps.continued(saved)));
        if let Some((buffer, control)) = &control {
            writes.push(Write { buffer, offset: 0, bytes: bytemuck::bytes_of(control) });
        }
        upload(&self.device, &self.queue, &writes)?;
        self.cohorts.set_steps(restored().map(|(&index, saved)| (index, saved.step)));
        let live = self.groups.iter_mut().filter(|group| group.is_live);
        for (group, (hyperparameters, _)) in live.zip(&checkpoint.groups) {
            group.hyperparameters = *hyperparameters;
        }
        self.changes += 1;
        self.forget_groups();
        self.regroup();
        Ok(())
    }

    fn live_groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|group| group.is_live)
    }

    /// Number of a parameter's group among those that were not removed.
    fn group_number(&self, record: &Record) -> u32 {
        self.groups[..record.group as usize].iter().filter(|group| group.is_live).count() as u32
    }

    fn check_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let same = |what: &str, found: String, needed: String| {
            if found == needed {
                Ok(())
            } else {
                Err(CheckpointError::Mismatch { what: what.to_owned(), found, needed })
            }
        };
        let Options { rule, formula, seed, .. } = self.options;
        same("the rule", format!("{:?}", checkpoint.rule), format!("{rule:?}"))?;
        // Adam and SGD have one.
        if rule == Rule::AdaMod {
            same("the formula", format!("{:?}", checkpoint.formula), format!("{formula:?}"))?;
        }
        same("the seed", checkpoint.seed.to_string(), seed.to_string())?;
        let groups = self.live_groups().count();
        same("the number of groups", checkpoint.groups.len().to_string(), groups.to_string())?;
        let who = |on_device| if on_device { "Control::Device" } else { "Control::Host" }.to_owned();
        same("the control", who(checkpoint.control.is_some()), who(self.device_steps.is_some()))?;
        let mut saved: HashMap<&str, &SavedParameter> = HashMap::new();
        for parameter in &checkpoint.parameters {
            if !self.by_label.contains_key(&parameter.label) {
                return Err(CheckpointError::ExtraParameter { label: parameter.label.clone() });
            }
            saved.insert(&parameter.label, parameter);
        }
        for (_, record) in self.live() {
            let label = &record.label;
            let Some(saved) = saved.get(label.as_str()) else {
                return Err(CheckpointError::MissingParameter { label: label.clone() });
            };
            let of = |what: &str| format!("the {what} of parameter {label:?}");
            same(&of("length"), saved.len.to_string(), record.len.to_string())?;
            same(&of("type"), saved.dtype.to_string(), record.dtype.to_string())?;
            same(&of("group"), saved.group.to_string(), self.group_number(record).to_string())?;
            if saved.step > self.most_steps() {
                let (found, needed) = (saved.step.to_string(), format!("at most {}", self.most_steps()));
                return Err(CheckpointError::Mismatch { what: of("step count"), found, needed });
            }
            let master = |layout: BlockLayout| format!("{:?}", layout.master_weights);
            same(&of("master weights"), master(saved.layout), master(record.layout))?;
        }
        Ok(())
    }

    /// A saved parameter's blocks in the format of this optimizer.
    fn converted(&self, record: &Record, saved: &SavedParameter, checkpoint: &Checkpoint) -> Vec<u32> {
        let mut contents = Contents::decode(saved.layout, saved.len, &saved.words);
        let (before, now) = (saved.layout.state.is_debiased(), record.layout.state.is_debiased());
        if before != now
            && saved.step > 0
            && let Some(exp_avg_lr) = contents.states.get_mut(2)
        {
            let (hyperparameters, _) = checkpoint.groups[saved.group as usize];
            let Options { rule, formula, .. } = self.options;
            let scale = hyperparameters.coefficients(formula, rule, saved.step).debiased_lr_scale;
            let factor = if now { 1.0 / scale } else { scale };
            for value in exp_avg_lr {
                *value = (f64::from(*value) * factor) as f32;
            }
        }
        let zeros = vec![0; state_words(record.layout, record.len) as usize];
        contents.encode(record.layout, &zeros, |_| Random::TO_NEAREST)
    }
}
