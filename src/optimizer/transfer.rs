//! Values, state and counters of an [`Optimizer`], read back and written.

use super::{Optimizer, Options, ParameterId, Record, State};
use crate::blocks::Contents;
use crate::control::Progress;
use crate::diagnostics::LearningRates;
use crate::error::{ReadError, WriteError};
use crate::format::{DType, MasterWeights};
use crate::layout::CHUNK_ELEMENTS;
use crate::plan::{WORD_BYTES, state_words};
use crate::readback::{Snapshot, Source, Wait, download};
use crate::rounding::{Random, join, split};
use crate::scope::catch;
use crate::views::View;

/// What of a block is written.
#[derive(Clone, Copy)]
enum BlockPart {
    States,
    Master,
}

impl Optimizer {
    /// Reads the values of a parameter at its registered view. Submits a copy; resolves when the caller polls the device or
    /// submits again.
    ///
    /// # Errors
    /// If the parameter has no views, its buffer lacks COPY_SRC, or the device fails.
    pub async fn read_parameter(&self, parameter: ParameterId) -> Result<Vec<f32>, ReadError> {
        self.read_parameter_waiting(parameter, Wait::Caller).await
    }

    /// Like [`Optimizer::read_parameter`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_parameter`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_parameter_blocking(&self, parameter: ParameterId) -> Result<Vec<f32>, ReadError> {
        pollster::block_on(self.read_parameter_waiting(parameter, Wait::Poll))
    }

    async fn read_parameter_waiting(
        &self,
        parameter: ParameterId,
        wait: Wait,
    ) -> Result<Vec<f32>, ReadError> {
        let index = self.index_of(parameter).ok_or(ReadError::UnknownParameter)?;
        let record = &self.parameters[index];
        let label = || record.label.clone();
        let views = record.views.as_ref().ok_or_else(|| ReadError::NoViews { label: label() })?;
        let values = views.borrow().values;
        if !values.buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            return Err(ReadError::Usage { label: label(), found: values.buffer.usage() });
        }
        let source = Source {
            buffer: values.buffer.clone(),
            offset: values.offset,
            bytes: (record.len * record.dtype.bytes()).next_multiple_of(WORD_BYTES),
        };
        let bytes = download(&self.device, &self.queue, &[source], wait).await?;
        if record.dtype == DType::F32 {
            return Ok(bytemuck::pod_collect_to_vec(&bytes));
        }
        let halves: Vec<u16> = bytemuck::pod_collect_to_vec(&bytes);
        let differences = match record.layout.master_weights {
            MasterWeights::None => Contents::zero(record.layout, record.len).differences,
            _ => self.contents(record, wait).await?.differences,
        };
        let join = |(half, difference): (u16, u32)| join(record.dtype, half.into(), difference);
        // An odd number of halves was read with the one after it; there is no difference for that.
        Ok(halves.into_iter().zip(differences).map(join).collect())
    }

    /// Reads the state of a parameter. Submits a copy; resolves when the caller polls the device or submits again.
    ///
    /// # Errors
    /// If the parameter is not of this optimizer, or the device fails.
    pub async fn read_state(&self, parameter: ParameterId) -> Result<State, ReadError> {
        self.read_state_waiting(parameter, Wait::Caller).await
    }

    /// Like [`Optimizer::read_state`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_state`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_state_blocking(&self, parameter: ParameterId) -> Result<State, ReadError> {
        pollster::block_on(self.read_state_waiting(parameter, Wait::Poll))
    }

    async fn read_state_waiting(&self, parameter: ParameterId, wait: Wait) -> Result<State, ReadError> {
        let index = self.index_of(parameter).ok_or(ReadError::UnknownParameter)?;
        let record = &self.parameters[index];
        let step = self.steps_taken(index, wait).await?;
        let mut states = self.contents(record, wait).await?.states;
        if record.layout.state.is_debiased()
            && let Some(exp_avg_lr) = states.get_mut(2)
        {
            let scale = self.debiased_lr_scale(record, step);
            for value in exp_avg_lr {
                *value = (f64::from(*value) * scale) as f32;
            }
        }
        Ok(State { step, tensors: self.options.rule.state_names().iter().copied().zip(states).collect() })
    }

    async fn contents(&self, record: &Record, wait: Wait) -> Result<Contents, ReadError> {
        if record.extents.is_empty() {
            return Ok(Contents::zero(record.layout, record.len));
        }
        let sources = self.arena.sources(record.layout, &record.extents);
        let bytes = download(&self.device, &self.queue, &sources, wait).await?;
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        Ok(Contents::decode(record.layout, record.len, &words))
    }

    /// A parameter's t.
    async fn steps_taken(&self, index: usize, wait: Wait) -> Result<u64, ReadError> {
        let Some(steps) = &self.device_steps else {
            return Ok(self.cohorts.steps(index));
        };
        let source = Source { buffer: steps.step_counts().clone(), offset: 4 * index as u64, bytes: 4 };
        let bytes = download(&self.device, &self.queue, &[source], wait).await?;
        Ok(bytemuck::pod_read_unaligned::<u32>(&bytes).into())
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
    pub fn read_learning_rates(
        &self,
    ) -> impl Future<Output = Result<LearningRates, ReadError>> + Send + use<> {
        self.read_learning_rates_waiting(Wait::Caller)
    }

    /// Like [`Optimizer::read_learning_rates`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_learning_rates`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_learning_rates_blocking(&self) -> Result<LearningRates, ReadError> {
        pollster::block_on(self.read_learning_rates_waiting(Wait::Poll))
    }

    fn read_learning_rates_waiting(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<LearningRates, ReadError>> + Send + use<> {
        let histogram = self.arena.histogram().ok_or(ReadError::NoDiagnostics);
        let bytes = histogram.map(|histogram| self.read_whole(histogram, true, wait));
        async move { Ok(LearningRates::from_counters(&bytes?.await?)) }
    }

    /// Reads what the device has counted up to the latest step that was submitted. Submits a copy at once; the future borrows
    /// nothing and resolves when the caller polls the device or submits again: nothing is stalled.
    ///
    /// # Errors
    /// With [`Control::Host`](crate::Control::Host), or if the device fails.
    pub fn read_progress(&self) -> impl Future<Output = Result<Progress, ReadError>> + Send + use<> {
        self.read_progress_waiting(Wait::Caller)
    }

    /// Like [`Optimizer::read_progress`], waiting for the device.
    ///
    /// # Errors
    /// As [`Optimizer::read_progress`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn read_progress_blocking(&self) -> Result<Progress, ReadError> {
        pollster::block_on(self.read_progress_waiting(Wait::Poll))
    }

    fn read_progress_waiting(
        &self,
        wait: Wait,
    ) -> impl Future<Output = Result<Progress, ReadError>> + Send + use<> {
        let control = self.control_buffer().ok_or(ReadError::NoControl);
        let bytes = control.map(|control| self.read_whole(control, false, wait));
        async move { Ok(Progress::from_bytes(&bytes?.await?)) }
    }

    /// A small buffer as it is now.
    fn read_whole(
        &self,
        buffer: &wgpu::Buffer,
        clear: bool,
        wait: Wait,
    ) -> impl Future<Output = Result<Vec<u8>, ReadError>> + Send + use<> {
        let source = Source { buffer: buffer.clone(), offset: 0, bytes: buffer.size() };
        let snapshot = Snapshot::new(&self.device, &self.queue, &[source], clear);
        async move { Ok(snapshot?.read(wait).await?.concat()) }
    }

    /// Writes the values of a parameter at its registered view, and what its master weights need. Takes effect before the next
    /// submit.
    ///
    /// Values of a 16-bit parameter are rounded as its master weights say; without any, to the nearest.
    ///
    /// # Errors
    /// If the parameter has no views, its buffer lacks COPY_DST, there are more or fewer values than elements, or the device
    /// fails.
    pub fn write_parameter(&mut self, parameter: ParameterId, values: &[f32]) -> Result<(), WriteError> {
        let index = self.index_of(parameter).ok_or(WriteError::UnknownParameter)?;
        self.allocate()?;
        let record = &self.parameters[index];
        let label = || record.label.clone();
        check_length(record, "values", values.len())?;
        let views = record.views.as_ref().ok_or_else(|| WriteError::NoViews { label: label() })?;
        let View { buffer, offset, dtype } = views.borrow().values;
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
        catch(&self.device, || {
            self.queue.write_buffer(buffer, offset, &bytes);
            if layout.master_weights != MasterWeights::None {
                let contents = Contents { differences, ..Contents::zero(layout, record.len) };
                self.write_blocks(record, &contents, BlockPart::Master);
            }
        })?;
        Ok(())
    }

    /// Replaces the state of a parameter, its step count included; rounded to the nearest where its format has fewer bits. Takes
    /// effect before the next submit. Steps recorded and not yet submitted are wrong then.
    ///
    /// # Errors
    /// If a state's name or length is not the parameter's, or the device fails.
    pub fn write_state(&mut self, parameter: ParameterId, state: &State) -> Result<(), WriteError> {
        let index = self.index_of(parameter).ok_or(WriteError::UnknownParameter)?;
        self.allocate()?;
        let record = &self.parameters[index];
        let layout = record.layout;
        let mut contents = Contents::zero(layout, record.len);
        for (&name, target) in self.options.rule.state_names().iter().zip(&mut contents.states) {
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
        catch(&self.device, || {
            self.write_blocks(record, &contents, BlockPart::States);
            if let Some(steps) = &self.device_steps {
                let count = state.step as u32;
                self.queue.write_buffer(steps.step_counts(), 4 * index as u64, &count.to_le_bytes());
            }
        })?;
        if self.cohorts.set_steps(index, state.step)
            && let Some(tables) = &mut self.fixed
        {
            tables.regroup();
        }
        Ok(())
    }

    /// Writes one part of a parameter's blocks.
    fn write_blocks(&self, record: &Record, contents: &Contents, part: BlockPart) {
        let layout = record.layout;
        let zeros = vec![0; state_words(layout, record.len) as usize];
        let words = contents.encode(layout, &zeros, |_| Random::TO_NEAREST);
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
                let bytes = &words[(block_start + range.start) as usize..(block_start + range.end) as usize];
                let page = self.arena.page(extent.page);
                self.queue.write_buffer(
                    page,
                    (place + range.start) * WORD_BYTES,
                    bytemuck::cast_slice(bytes),
                );
                block_start += size;
                place += size;
                left -= elements;
            }
        }
    }
}

fn check_length(record: &Record, what: &'static str, found: usize) -> Result<(), WriteError> {
    if found as u64 == record.len {
        return Ok(());
    }
    let label = record.label.clone();
    Err(WriteError::Length { label, what, found: found as u64, needed: record.len })
}
