//! Checkpoints are restored into an [`Optimizer`].

use std::collections::HashMap;
use std::ops::Range;

use super::Optimizer;
use super::checkpointing::{numbers_of, parts_of};
use super::handles::{GroupId, ParameterId};
use super::registry::Record;
use super::restore::{Mismatch, Restore, Restored};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::saved::{SavedParameter, Wanted, read};
use crate::device::staged_write::{StagedWrites, Write};
use crate::error::Error;
use crate::plan::views::View;
use crate::rules::Rule;
use crate::storage::block::{BlockLayout, CHUNK_ELEMENTS, QUANT_BLOCK_ELEMENTS, WORD_BYTES, state_words};
use crate::storage::contents::Contents;

/// A parameter to be restored.
struct Job<'a> {
    id: ParameterId,
    record: &'a Record,
    saved: &'a SavedParameter,
    /// The rule of the saved parameter.
    rule: Rule,
    /// Its first element in the saved parameter.
    first: u64,
    /// Where its values are written.
    values: Option<View<'a>>,
}

/// Some blocks of a parameter to be restored, which lie one after the other.
struct Run {
    job: usize,
    /// Elements of the parameter.
    elements: Range<u64>,
    /// State buffer, and the word there at which the blocks start.
    place: (u32, u64),
}

impl Optimizer {
    /// Continues from a checkpoint: state, master weights, step counts and hyperparameters are the checkpoint's from the next recorded
    /// step on. Values are, too, if the checkpoint has any, in whole words of 4 bytes as [`Optimizer::write_parameter`] writes them.
    ///
    /// The optimizer needs the same parameters, in groups of the same order and rules. [`Optimizer::restore_with`] allows differences. A
    /// parameter of the checkpoint may be a larger part of its tensor than the optimizer's shard, which takes its part. State formats may
    /// differ and are converted, rounding to the nearest. Everything is checked before anything changes, and then all of it changes or
    /// nothing does. Submits a copy, so all recorded steps have to be submitted before.
    ///
    /// The data of an [open](Checkpoint::open) checkpoint are read twice, a part at a time: all of them are verified before anything
    /// changes. At most some 150 MiB are in memory at once, on the host and the device together. If the device or the file fails between
    /// two parts, the error is [`CheckpointError::Interrupted`].
    ///
    /// With [`Control::Device`](crate::Control::Device) a dynamic loss scale, the engine's multiplier and the counts of
    /// [`Progress`](crate::Progress) are the checkpoint's, too. A constant loss scale stays this optimizer's. An engine that sets the
    /// multiplier does so after this.
    ///
    /// # Errors
    /// If the checkpoint and the optimizer differ. The error names what differs. If the checkpoint has values of a parameter without
    /// registered views, or with a buffer without COPY_DST; [`Restore::without_values`] leaves them alone.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.restore_with(checkpoint, &Restore::new()).map(drop)
    }

    /// Continues from a checkpoint of a run that may differ from this one: [`Optimizer::restore`], with the differences that `restore`
    /// allows. Returns what was restored and what was not.
    ///
    /// # Errors
    /// As [`Optimizer::restore`].
    pub fn restore_with(
        &mut self,
        checkpoint: &Checkpoint,
        restore: &Restore,
    ) -> Result<Restored, CheckpointError> {
        self.check_head(checkpoint, restore)?;
        let (_, restored) = self.jobs(checkpoint, restore)?;
        self.memory.update(&self.gpu, &self.registry).map_err(Error::from)?;
        let (jobs, _) = self.jobs(checkpoint, restore)?;
        self.write_all(checkpoint, restore, &jobs)?;
        let steps: Vec<_> = jobs.iter().map(|job| (job.id, job.saved.step)).collect();
        self.registry.set_steps(steps);
        if !restore.keeps_hyperparameters {
            let groups: Vec<_> = self.registry.groups_in_order().into_iter().map(|(id, _)| id).collect();
            for (id, saved) in groups.into_iter().zip(&checkpoint.groups) {
                self.registry.set_hyperparameters(id, saved.hyperparameters)?;
            }
        }
        Ok(restored)
    }

    /// Checks what does not belong to one parameter.
    fn check_head(&self, checkpoint: &Checkpoint, restore: &Restore) -> Result<(), CheckpointError> {
        if !restore.allows_other_seed {
            same("the seed", &checkpoint.seed, &self.options.seed)?;
        }
        if !restore.keeps_hyperparameters {
            let groups = self.registry.groups_in_order();
            same("the number of groups", &checkpoint.groups.len(), &groups.len())?;
            for (number, (saved, (_, group))) in checkpoint.groups.iter().zip(&groups).enumerate() {
                let (saved, rule) = (saved.hyperparameters.rule, group.hyperparameters.rule);
                same(&format!("the rule of group {number}"), &saved.form(), &rule.form())?;
                // Two formulas of one rule are different algorithms with the same states.
                if saved.variant() != rule.variant() {
                    let (found, expected) = (format!("{saved:?}"), format!("{rule:?}"));
                    let what = format!("the formula of group {number}");
                    return Err(CheckpointError::Mismatch { what, found, expected });
                }
            }
            for (saved, (id, _)) in checkpoint.groups.iter().zip(&groups) {
                self.registry.check_hyperparameters(*id, &saved.hyperparameters)?;
            }
        }
        if !restore.has_fresh_control {
            let who = |on_device| if on_device { "Control::Device" } else { "Control::Host" };
            let is_on_device = self.recorder.source().device().is_some();
            same("the control", &who(checkpoint.control.is_some()), &who(is_on_device))?;
        }
        Ok(())
    }

    /// What is to be restored, in the order of the optimizer's parameters.
    fn jobs<'a>(
        &'a self,
        checkpoint: &'a Checkpoint,
        restore: &Restore,
    ) -> Result<(Vec<Job<'a>>, Restored), CheckpointError> {
        let groups: Vec<_> = self.registry.groups_in_order().into_iter().map(|(id, _)| id).collect();
        let numbers = numbers_of(&groups);
        let mut restored = Restored::default();
        let mut by_label: HashMap<&str, &SavedParameter> = HashMap::new();
        for saved in &checkpoint.parameters {
            let label = &saved.label;
            if self.registry.parameter(label).is_some() {
                by_label.insert(label, saved);
            } else if restore.allows_extra {
                restored.extra.push(label.clone());
            } else {
                return Err(CheckpointError::ExtraParameter { label: label.clone() });
            }
        }
        let mut jobs = Vec::with_capacity(by_label.len());
        for (id, record) in self.registry.parameters() {
            let label = &record.label;
            let Some(saved) = by_label.get(label.as_str()).copied() else {
                if restore.allows_missing {
                    restored.missing.push(label.clone());
                    continue;
                }
                return Err(CheckpointError::MissingParameter { label: label.clone() });
            };
            let rule = checkpoint.groups[saved.group as usize].hyperparameters.rule;
            if let Err(mismatch) = self.check_parameter(record, saved, rule, &numbers, restore) {
                if restore.allows_mismatch {
                    restored.mismatched.push(mismatch);
                    continue;
                }
                return Err(mismatch.into());
            }
            let has_values = saved.has_values && !restore.skips_values;
            let values = has_values.then(|| self.values_of(id, None, wgpu::BufferUsages::COPY_DST));
            let values = values.transpose()?.map(|(_, view)| view);
            restored.restored.push(label.clone());
            jobs.push(Job { id, record, saved, rule, first: record.shard.first - saved.first, values });
        }
        Ok((jobs, restored))
    }

    fn check_parameter(
        &self,
        record: &Record,
        saved: &SavedParameter,
        rule: Rule,
        numbers: &HashMap<GroupId, u32>,
        restore: &Restore,
    ) -> Result<(), Mismatch> {
        fn same<T: PartialEq + std::fmt::Display>(
            record: &Record,
            what: &'static str,
            found: T,
            expected: T,
        ) -> Result<(), Mismatch> {
            if found == expected {
                return Ok(());
            }
            let (found, expected) = (found.to_string(), expected.to_string());
            Err(Mismatch { label: record.label.clone(), what, found, expected })
        }
        same(record, "length", saved.whole, record.shard.whole)?;
        let (first, end) = (record.shard.first, record.shard.first + record.len);
        if first < saved.first || end > saved.end() {
            let range = |first: u64, end: u64| format!("{first}..{end} of {}", saved.whole);
            return same(record, "range", range(saved.first, saved.end()), range(first, end));
        }
        same(record, "data type", saved.dtype, record.dtype)?;
        if restore.keeps_hyperparameters {
            let own = self.registry.group_of(record).hyperparameters.rule;
            same(record, "rule", rule.form(), own.form())?;
            if rule.variant() != own.variant() {
                return same(record, "formula", format!("{rule:?}"), format!("{own:?}"));
            }
        } else {
            same(record, "group", saved.group, numbers[&record.group])?;
        }
        let most = self.registry.settings().most_steps;
        if saved.step > most {
            return same(record, "step count", saved.step.to_string(), format!("at most {most}"));
        }
        let master = |layout: BlockLayout| layout.master_weights.name();
        same(record, "master weights", master(saved.layout), master(record.layout))
    }

    /// Writes everything of a restore that is on the device.
    fn write_all(
        &self,
        checkpoint: &Checkpoint,
        restore: &Restore,
        jobs: &[Job<'_>],
    ) -> Result<(), CheckpointError> {
        let windows = self.restore_windows(jobs);
        let is_streamed = windows.len() > 1 && jobs.iter().any(|job| job.saved.is_stored());
        if is_streamed {
            for window in &windows {
                read(&wanted(jobs, window))?;
            }
        }
        let mut staged = StagedWrites::new(&self.gpu).map_err(Error::from)?;
        let mut is_interrupted = false;
        let mut write = || -> Result<(), CheckpointError> {
            for window in &windows {
                self.write_window(jobs, window, &mut staged)?;
                if is_streamed {
                    let next = StagedWrites::new(&self.gpu).map_err(Error::from)?;
                    std::mem::replace(&mut staged, next).submit().map_err(Error::from)?;
                    is_interrupted = true;
                    self.wait_until_done()?;
                }
            }
            Ok(())
        };
        let result = write().and_then(|()| {
            let counts: Vec<_> =
                jobs.iter().map(|job| (job.id, (job.saved.step as u32).to_le_bytes())).collect();
            let mut writes: Vec<_> =
                counts.iter().filter_map(|(id, count)| self.step_count_write(*id, count)).collect();
            let control = self.recorder.source().device().map(|steps| {
                let saved = checkpoint.control.as_ref().filter(|_| !restore.has_fresh_control);
                (steps.control(), saved.map_or_else(|| steps.initial(), |saved| steps.continued(saved)))
            });
            if let Some((buffer, control)) = &control {
                writes.push(Write { buffer, offset: 0, bytes: bytemuck::bytes_of(control) });
            }
            staged.add(&writes).map_err(Error::from)?;
            Ok(staged.submit().map_err(Error::from)?)
        });
        match result {
            Err(error) if is_interrupted => Err(CheckpointError::Interrupted(Box::new(error))),
            result => result,
        }
    }

    /// Divides the blocks of all jobs into windows.
    fn restore_windows(&self, jobs: &[Job<'_>]) -> Vec<Vec<Run>> {
        let chunk = u64::from(CHUNK_ELEMENTS);
        let mut windows = Vec::new();
        let mut window = Vec::new();
        let mut bytes = 0;
        for (number, job) in jobs.iter().enumerate() {
            let layout = job.record.layout;
            // A conversion decodes to f32 first.
            let is_converted = layout != job.saved.layout;
            let decoded = if is_converted { 8 * (layout.states.len() as u64 + 1) } else { 0 };
            let values = if job.values.is_some() { job.record.dtype.bytes() } else { 0 };
            let bytes_of =
                |elements: u64| state_words(layout, elements) * WORD_BYTES + elements * (values + decoded);
            let mut first = 0;
            for extent in self.memory.extents(job.id.key.index()) {
                let mut done = 0;
                while done < extent.elements {
                    let fits = Self::WINDOW_BYTES.saturating_sub(bytes) / bytes_of(chunk) * chunk;
                    if fits < (extent.elements - done).min(chunk) && !window.is_empty() {
                        windows.push(std::mem::take(&mut window));
                        bytes = 0;
                        continue;
                    }
                    let taken = (extent.elements - done).min(fits.max(chunk));
                    let word = u64::from(extent.state) + state_words(layout, done);
                    let place = (extent.buffer, word);
                    window.push(Run { job: number, elements: first..first + taken, place });
                    bytes += bytes_of(taken);
                    done += taken;
                    first += taken;
                }
            }
        }
        windows.push(window);
        windows
    }

    /// Reads a window and adds its writes.
    fn write_window(
        &self,
        jobs: &[Job<'_>],
        window: &[Run],
        staged: &mut StagedWrites<'_>,
    ) -> Result<(), CheckpointError> {
        let wanted = wanted(jobs, window);
        let data = read(&wanted)?;
        let blocks: Vec<_> = window
            .iter()
            .zip(&wanted)
            .zip(data)
            .map(|((run, wanted), tensors)| jobs[run.job].blocks(run, wanted, tensors))
            .collect();
        let states = window.iter().zip(&blocks).map(|(run, (words, _))| {
            let (buffer, word) = run.place;
            let buffer = self.memory.buffer(buffer);
            Write { buffer, offset: word * WORD_BYTES, bytes: bytemuck::cast_slice(words) }
        });
        let values = window.iter().zip(&blocks).filter_map(|(run, (_, values))| {
            let (view, bytes) = (jobs[run.job].values?, values.as_ref()?);
            let offset = view.offset + run.elements.start * jobs[run.job].record.dtype.bytes();
            Some(Write { buffer: view.buffer, offset, bytes })
        });
        let writes: Vec<_> = states.chain(values).collect();
        Ok(staged.add(&writes).map_err(Error::from)?)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn wait_until_done(&self) -> Result<(), Error> {
        let timeout = self.options.device_timeout;
        let done = crate::device::readback::wait_until_done(&self.gpu, timeout);
        done.map_err(|error| crate::error::ErrorKind::of_snapshot(error, timeout).into())
    }

    /// In a browser no checkpoint is in a file.
    #[cfg(target_arch = "wasm32")]
    fn wait_until_done(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// What a window needs of the saved parameters.
fn wanted<'a>(jobs: &[Job<'a>], window: &[Run]) -> Vec<Wanted<'a>> {
    window
        .iter()
        .map(|run| {
            let Job { saved, first, record, .. } = &jobs[run.job];
            let (mut start, mut end) = (first + run.elements.start, first + run.elements.end);
            if saved.layout != record.layout {
                // Whole quant blocks, whatever format the optimizer has.
                start -= start % QUANT_BLOCK_ELEMENTS;
                end = end.next_multiple_of(QUANT_BLOCK_ELEMENTS).min(saved.len);
            }
            Wanted { parameter: saved, elements: start..end }
        })
        .collect()
}

impl Job<'_> {
    /// The words of a run's blocks and the bytes of its values, given the bytes of the tensors that were read for it.
    fn blocks(&self, run: &Run, read: &Wanted<'_>, tensors: Vec<Vec<u8>>) -> (Vec<u32>, Option<Vec<u8>>) {
        let Self { record, saved, .. } = self;
        let elements = run.elements.end - run.elements.start;
        let (parts, values) = parts_of(saved.layout, tensors);
        // Elements that were read before the run.
        let before = (self.first + run.elements.start - read.elements.start) as usize;
        let words = if record.layout == saved.layout {
            parts.to_words(record.layout, elements)
        } else {
            let len = read.elements.end - read.elements.start;
            let words = parts.to_words(saved.layout, len);
            let mut contents = Contents::decode(saved.layout, len, &words);
            let range = before..before + elements as usize;
            for state in &mut contents.states {
                *state = state[range.clone()].to_vec();
            }
            contents.differences = contents.differences[range].to_vec();
            let scales = self.rule.debiased_scales(saved.step);
            match (saved.layout.state.is_debiased(), record.layout.state.is_debiased()) {
                (true, false) => contents.scale_states(&scales),
                (false, true) => contents.scale_states(&scales.map(|scale| 1.0 / scale)),
                (true, true) | (false, false) => {}
            }
            contents.encode_to_nearest(record.layout)
        };
        let values = values.filter(|_| self.values.is_some()).map(|values| {
            let bytes = record.dtype.bytes() as usize;
            let mut values = values[before * bytes..][..elements as usize * bytes].to_vec();
            // A write covers whole words of 4 bytes. The tensor owns the half after an odd end.
            values.resize(values.len().next_multiple_of(WORD_BYTES as usize), 0);
            values
        });
        (words, values)
    }
}

fn same<T: PartialEq + std::fmt::Display>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), CheckpointError> {
    if found == expected {
        return Ok(());
    }
    let (what, found, expected) = (what.to_owned(), found.to_string(), expected.to_string());
    Err(CheckpointError::Mismatch { what, found, expected })
}
