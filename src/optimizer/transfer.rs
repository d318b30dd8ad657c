//! Values, state and counters of an [`Optimizer`], read back and written.

use super::{Optimizer, Options, ParameterId, Record, State};
use crate::blocks::Contents;
use crate::control::{DeviceSteps, Progress};
use crate::diagnostics::LearningRates;
use crate::error::{ReadError, ViewError, WriteError};
use crate::format::{BlockLayout, DType, MasterWeights};
use crate::layout::CHUNK_ELEMENTS;
use crate::plan::{WORD_BYTES, state_words};
use crate::readback::{Snapshot, Source, Wait};
use crate::rounding::{Random, join, split};
use crate::upload::{Write, upload};
use crate::views::View;

/// What of a block is written.
#[derive(Clone, Copy)]
enum BlockPart {
    States,
    Master,
}

impl Optimizer {
    /// Reads the values of a parameter at its registered view. Submits a copy at once, so all steps recorded so far have to be
    /// submitted; the future borrows nothing and resolves when the caller polls the device or submits again.
    ///
    /// # Errors
    /// If the parameter has no views, its buffer lacks COPY_SRC, or the device fails.
    pub fn read_parameter(
        &self,
        parameter: ParameterId,
    ) -> impl Future<Output = Result<Vec<f32>, ReadError>> + use<> {
        self.read_values(parameter, None, Wait::Caller)
    }

    /// Like [`Optimizer::read_parameter`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_parameter`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_parameter_blocking(&self, parameter: ParameterId) -> Result<Vec<f32>, ReadError> {
        pollster::block_on(self.read_values(parameter, None, self.blocking()))
    }

    /// Like [`Optimizer::read_parameter`], where the values lie in `view` now: for engines whose tensors move. Master weights are
    /// taken into account.
    ///
    /// # Errors
    /// If the view cannot be used, its buffer lacks COPY_SRC, or the device fails.
    pub fn read_parameter_at(
        &self,
        parameter: ParameterId,
        view: &View<'_>,
    ) -> impl Future<Output = Result<Vec<f32>, ReadError>> + use<> {
        self.read_values(parameter, Some(view), Wait::Caller)
    }

    /// Like [`Optimizer::read_parameter_at`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_parameter_at`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_parameter_at_blocking(
        &self,
        parameter: ParameterId,
        view: &View<'_>,
    ) -> Result<Vec<f32>, ReadError> {
        pollster::block_on(self.read_values(parameter, Some(view), self.blocking()))
    }

    /// At the view given, or else at the registered one.
    fn read_values(
        &self,
        parameter: ParameterId,
        view: Option<&View<'_>>,
        wait: Wait,
    ) -> impl Future<Output = Result<Vec<f32>, ReadError>> + use<> {
        let copied = self.record_of(parameter).and_then(|record| {
            let mut sources = vec![values_of(record, view)?];
            if record.layout.master_weights != MasterWeights::None {
                sources.extend(self.block_sources(record));
            }
            let snapshot = Snapshot::new(&self.device, &self.queue, &sources, false)?;
            Ok((snapshot, record.dtype, record.layout, record.len))
        });
        async move {
            let (snapshot, dtype, layout, len) = copied?;
            let mut copies = snapshot.read(wait).await?;
            let blocks = copies.split_off(1);
            let values = copies.concat();
            if dtype == DType::F32 {
                return Ok(bytemuck::pod_collect_to_vec(&values));
            }
            let halves: Vec<u16> = bytemuck::pod_collect_to_vec(&values);
            let differences = contents_of(layout, len, &blocks).differences;
            let join = |(half, difference): (u16, u32)| join(dtype, half.into(), difference);
            // An odd number of halves was read with the one after it; there is no difference for that.
            Ok(halves.into_iter().zip(differences).map(join).collect())
        }
    }

    /// Reads the state of a parameter. Submits a copy at once, so all steps recorded so far have to be submitted; the future
    /// borrows nothing and resolves when the caller polls the device or submits again.
    ///
    /// # Errors
    /// If the parameter is not of this optimizer, or the device fails.
    pub fn read_state(
        &self,
        parameter: ParameterId,
    ) -> impl Future<Output = Result<State, ReadError>> + use<> {
        self.read_state_waiting(parameter, Wait::Caller)
    }

    /// Like [`Optimizer::read_state`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_state`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_state_blocking(&self, parameter: ParameterId) -> Result<State, ReadError> {
        pollster::block_on(self.read_state_waiting(parameter, self.blocking()))
    }

    fn read_state_waiting(
        &self,
        parameter: ParameterId,
        wait: Wait,
    ) -> impl Future<Output = Result<State, ReadError>> + use<> {
        let Options { rule, formula, .. } = self.options;
        let copied = self.record_of(parameter).and_then(|record| {
            let index = parameter.index as usize;
            let mut sources = self.block_sources(record);
            let count = self.device_steps.as_ref().map(|steps| Source {
                buffer: steps.kept().clone(),
                offset: DeviceSteps::step_count_offset(index),
                bytes: 4,
            });
            let recorded = count.is_none().then(|| self.cohorts.steps(index));
            sources.extend(count);
            let snapshot = Snapshot::new(&self.device, &self.queue, &sources, false)?;
            let hyperparameters = self.groups[record.group as usize].hyperparameters;
            Ok((snapshot, record.layout, record.len, recorded, hyperparameters))
        });
        async move {
            let (snapshot, layout, len, recorded, hyperparameters) = copied?;
            let mut copies = snapshot.read(wait).await?;
            let step = match recorded {
                Some(step) => step,
                None => copies.pop().map_or(0, |count| bytemuck::pod_read_unaligned::<u32>(&count).into()),
            };
            let mut states = contents_of(layout, len, &copies).states;
            if layout.state.is_debiased()
                && let Some(exp_avg_lr) = states.get_mut(2)
            {
                let scale = hyperparameters.coefficients(formula, rule, step).debiased_lr_scale;
                for value in exp_avg_lr {
                    *value = (f64::from(*value) * scale) as f32;
                }
            }
            Ok(State { step, tensors: rule.state_names().iter().copied().zip(states).collect() })
        }
    }

    fn record_of(&self, parameter: ParameterId) -> Result<&Record, ReadError> {
        let index = self.index_of(parameter).ok_or(ReadError::UnknownParameter)?;
        Ok(&self.parameters[index])
    }

    /// Where a parameter's blocks lie; nowhere before its first step.
    fn block_sources(&self, record: &Record) -> Vec<Source> {
        if record.extents.is_empty() {
            return Vec::new();
        }
        self.arena.sources(record.layout, &record.extents)
    }

    /// Steps that a count may start from: on the device the next one has to fit into 32 bits, and f64 has 53.
    pub(super) fn most_steps(&self) -> u64 {
        if self.device_steps.is_some() { u64::from(u32::MAX) - 1 } else { 1 << 53 }
    }

    /// How methods that block wait.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn blocking(&self) -> Wait {
        Wait::Blocking(self.options.device_timeout)
    }

    /// `1 - beta3^t` of a parameter's group.
    fn debiased_lr_scale(&self, record: &Record, step: u64) -> f64 {
        let hyperparameters = &self.groups[record.group as usize].hyperparameters;
        let Options { rule, formula, .. } = self.options;
        hyperparameters.coefficients(formula, rule, step).debiased_lr_scale
    }

    /// Reads the histograms of learning rates since the last call, and sets them to zero. Submits a copy at once; the future
    /// borrows nothing and resolves when the caller polls the device or submits again.
    ///
    /// # Errors
    /// If the optimizer was made without [`Diagnostics::LearningRates`](crate::Diagnostics::LearningRates), or the device fails.
    pub fn read_learning_rates(&self) -> impl Future<Output = Result<LearningRates, ReadError>> + use<> {
        self.read_learning_rates_waiting(Wait::Caller)
    }

    /// Like [`Optimizer::read_learning_rates`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_learning_rates`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_learning_rates_blocking(&self) -> Result<LearningRates, ReadError> {
        pollster::block_on(self.read_learning_rates_waiting(self.blocking()))
    }

    fn read_learning_rates_waiting(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<LearningRates, ReadError>> + use<> {
        let histogram = self.arena.histogram().ok_or(ReadError::NoDiagnostics);
        let bytes = histogram.map(|histogram| self.read_start(histogram, histogram.size(), true, wait));
        async move { Ok(LearningRates::from_counters(&bytes?.await?)) }
    }

    /// Reads what the device has counted up to the latest step that was submitted. Submits a copy at once; the future borrows
    /// nothing and resolves when the caller polls the device or submits again: nothing is stalled.
    ///
    /// # Errors
    /// With [`Control::Host`](crate::Control::Host), or if the device fails.
    pub fn read_progress(&self) -> impl Future<Output = Result<Progress, ReadError>> + use<> {
        self.read_progress_waiting(Wait::Caller)
    }

    /// Like [`Optimizer::read_progress`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_progress`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_progress_blocking(&self) -> Result<Progress, ReadError> {
        pollster::block_on(self.read_progress_waiting(self.blocking()))
    }

    fn read_progress_waiting(&self, wait: Wait) -> impl Future<Output = Result<Progress, ReadError>> + use<> {
        let control = self.control_buffer().ok_or(ReadError::NoControl);
        let bytes = control.map(|control| self.read_start(control, Progress::BYTES, false, wait));
        async move { Ok(Progress::from_bytes(&bytes?.await?)) }
    }

    /// The first bytes of a buffer as they are now.
    fn read_start(
        &self,
        buffer: &wgpu::Buffer,
        bytes: u64,
        clear: bool,
        wait: Wait,
    ) -> impl Future<Output = Result<Vec<u8>, ReadError>> + use<> {
        let source = Source { buffer: buffer.clone(), offset: 0, bytes };
        let snapshot = Snapshot::new(&self.device, &self.queue, &[source], clear);
        async move { Ok(snapshot?.read(wait).await?.concat()) }
    }

    /// Writes the values of a parameter at its registered view, and what its master weights need. Submits the copy.
    ///
    /// Values of a 16-bit parameter are rounded as its master weights say; without any, to the nearest. Whole words of 4 bytes are
    /// written: behind an odd number of 16-bit elements the other half becomes zero. The 16-bit copy of an f32 parameter follows
    /// at the next step; before the first one the engine fills it.
    ///
    /// All steps recorded so far have to be submitted: the copy runs before those that are not.
    ///
    /// # Errors
    /// If the parameter has no views, its buffer lacks COPY_DST, there are more or fewer values than elements, or the device
    /// fails.
    pub fn write_parameter(&mut self, parameter: ParameterId, values: &[f32]) -> Result<(), WriteError> {
        self.write_values(parameter, None, values)
    }

    /// Like [`Optimizer::write_parameter`], where the values lie in `view` now: for engines whose tensors move.
    ///
    /// # Errors
    /// If the view cannot be used, its buffer lacks COPY_DST, there are more or fewer values than elements, or the device fails.
    pub fn write_parameter_at(
        &mut self,
        parameter: ParameterId,
        view: &View<'_>,
        values: &[f32],
    ) -> Result<(), WriteError> {
        self.write_values(parameter, Some(view), values)
    }

    /// At the view given, or else at the registered one.
    fn write_values(
        &mut self,
        parameter: ParameterId,
        view: Option<&View<'_>>,
        values: &[f32],
    ) -> Result<(), WriteError> {
        let index = self.index_of(parameter).ok_or(WriteError::UnknownParameter)?;
        self.allocate()?;
        let record = &self.parameters[index];
        let label = || record.label.clone();
        check_length(record, "values", values.len())?;
        let registered = record.views.as_ref().map(|views| views.borrow().values);
        let view = *view.or(registered.as_ref()).ok_or_else(|| WriteError::NoViews { label: label() })?;
        check_values(record, &view).map_err(|source| WriteError::View { label: label(), source })?;
        let View { buffer, offset, dtype } = view;
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_DST) {
            return Err(WriteError::Usage { label: label(), found: buffer.usage() });
        }
        let layout = record.layout;
        let split = |value: &f32| split(dtype, layout.master_weights, *value, Random::TO_NEAREST.parameter);
        let (narrowed, differences): (Vec<u32>, Vec<u32>) = values.iter().map(split).unzip();
        let bytes = match dtype {
            DType::F32 => bytemuck::cast_slice(&narrowed).to_vec(),
            DType::F16 | DType::Bf16 => {
                // A write covers whole words of 4 bytes; the half after an odd end is its tensor's.
                let mut halves: Vec<u16> = narrowed.iter().map(|&bits| bits as u16).collect();
                halves.resize(halves.len().next_multiple_of(2), 0);
                bytemuck::cast_slice(&halves).to_vec()
            }
        };
        let words;
        let mut writes = vec![Write { buffer, offset, bytes: &bytes }];
        if layout.master_weights != MasterWeights::None {
            let contents = Contents { differences, ..Contents::zero(layout, record.len) };
            words = encode_blocks(record, &contents);
            writes.extend(self.block_writes(record, &words, BlockPart::Master));
        }
        upload(&self.device, &self.queue, &writes)?;
        Ok(())
    }

    /// Replaces the state of a parameter, its step count included; rounded to the nearest where its format has fewer bits. Submits
    /// the copy, so all steps recorded so far have to be submitted.
    ///
    /// # Errors
    /// If the states are not exactly those of the rule, a length is not the parameter's, or the device fails.
    pub fn write_state(&mut self, parameter: ParameterId, state: &State) -> Result<(), WriteError> {
        let index = self.index_of(parameter).ok_or(WriteError::UnknownParameter)?;
        self.allocate()?;
        let record = &self.parameters[index];
        let layout = record.layout;
        if state.step > self.most_steps() {
            let (label, found) = (record.label.clone(), state.step);
            return Err(WriteError::Steps { label, found, most: self.most_steps() });
        }
        let needed = self.options.rule.state_names();
        let found: Vec<_> = state.tensors.iter().map(|&(name, _)| name).collect();
        if found.len() != needed.len() || !needed.iter().all(|name| found.contains(name)) {
            return Err(WriteError::States { label: record.label.clone(), found, needed });
        }
        let mut contents = Contents::zero(layout, record.len);
        for (&name, target) in needed.iter().zip(&mut contents.states) {
            let given = state.tensor(name).unwrap_or_default();
            check_length(record, name, given.len())?;
            target.copy_from_slice(given);
        }
        if layout.state.is_debiased()
            && state.step > 0
            && let Some(exp_avg_lr) = contents.states.get_mut(2)
        {
            let scale = self.debiased_lr_scale(record, state.step);
            for value in exp_avg_lr {
                *value = (f64::from(*value) / scale) as f32;
            }
        }
        let (words, count) = (encode_blocks(record, &contents), (state.step as u32).to_le_bytes());
        let mut writes = self.block_writes(record, &words, BlockPart::States);
        writes.extend(self.step_count_write(index, &count));
        upload(&self.device, &self.queue, &writes)?;
        if self.cohorts.set_steps([(index, state.step)]) {
            self.regroup();
        }
        self.changes += 1;
        Ok(())
    }

    /// A step count's write, if the device counts.
    pub(super) fn step_count_write<'a>(&'a self, index: usize, count: &'a [u8; 4]) -> Option<Write<'a>> {
        let steps = self.device_steps.as_ref()?;
        Some(Write { buffer: steps.kept(), offset: DeviceSteps::step_count_offset(index), bytes: count })
    }

    /// Writes of one part of a parameter's blocks.
    fn block_writes<'a>(&'a self, record: &Record, words: &'a [u32], part: BlockPart) -> Vec<Write<'a>> {
        let layout = record.layout;
        let mut writes = Vec::new();
        let mut block_start = 0;
        for extent in &record.extents {
            let mut place = u64::from(extent.state);
            let mut left = extent.elements;
            while left > 0 {
                let elements = left.min(CHUNK_ELEMENTS.into());
                let (size, master) = (layout.words(elements), layout.master_start(elements));
                let range = match part {
                    BlockPart::States => 0..master,
                    BlockPart::Master => master..size,
                };
                let words = &words[(block_start + range.start) as usize..(block_start + range.end) as usize];
                writes.push(Write {
                    buffer: self.arena.page(extent.page),
                    offset: (place + range.start) * WORD_BYTES,
                    bytes: bytemuck::cast_slice(words),
                });
                block_start += size;
                place += size;
                left -= elements;
            }
        }
        writes
    }
}

/// Where a parameter's values lie.
fn values_of(record: &Record, view: Option<&View<'_>>) -> Result<Source, ReadError> {
    let label = || record.label.clone();
    let registered = record.views.as_ref().map(|views| views.borrow().values);
    let values = *view.or(registered.as_ref()).ok_or_else(|| ReadError::NoViews { label: label() })?;
    check_values(record, &values).map_err(|source| ReadError::View { label: label(), source })?;
    if !values.buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
        return Err(ReadError::Usage { label: label(), found: values.buffer.usage() });
    }
    Ok(Source {
        buffer: values.buffer.clone(),
        offset: values.offset,
        bytes: (record.len * record.dtype.bytes()).next_multiple_of(WORD_BYTES),
    })
}

/// Whether a parameter's values can lie there.
fn check_values(record: &Record, view: &View<'_>) -> Result<(), ViewError> {
    if view.dtype != record.dtype {
        return Err(ViewError::DType { found: view.dtype, needed: record.dtype });
    }
    view.end(record.len).map(drop)
}

/// What a parameter's blocks hold, if there are any.
fn contents_of(layout: BlockLayout, len: u64, blocks: &[Vec<u8>]) -> Contents {
    if blocks.is_empty() {
        return Contents::zero(layout, len);
    }
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(&blocks.concat());
    Contents::decode(layout, len, &words)
}

/// A parameter's blocks of these contents, rounded to the nearest.
fn encode_blocks(record: &Record, contents: &Contents) -> Vec<u32> {
    let zeros = vec![0; state_words(record.layout, record.len) as usize];
    contents.encode(record.layout, &zeros, |_| Random::TO_NEAREST)
}

fn check_length(record: &Record, what: &'static str, found: usize) -> Result<(), WriteError> {
    if found as u64 == record.len {
        return Ok(());
    }
    let label = record.label.clone();
    Err(WriteError::Length { label, what, found: found as u64, needed: record.len })
}
