//! Values, state and counters, read back and written.

use super::Optimizer;
use super::device_steps::DeviceSteps;
use super::handles::{ParameterId, State};
use super::memory::BlockPart;
use super::readback::Readback;
use super::registry::Record;
use crate::device::error_scope::DeviceError;
use crate::device::readback::{Snapshot, Source};
use crate::device::staged_write::{Write, write_staged};
use crate::error::{Error, ErrorKind, Role};
use crate::plan::views::View;
use crate::storage::block::WORD_BYTES;
use crate::storage::contents::Contents;
use crate::storage::dtype::DType;
use crate::storage::master::{MasterWeights, join, split};
use crate::storage::random::Random;

impl Optimizer {
    /// Reads values at `view`, or else at the registered view.
    pub(super) fn read_values(&self, parameter: ParameterId, view: Option<&View<'_>>) -> Readback<Vec<f32>> {
        let (record, values) = match self.values_of(parameter, view, wgpu::BufferUsages::COPY_SRC) {
            Ok(found) => found,
            Err(error) => return Readback::failed(error),
        };
        let (dtype, layout, len) = (record.dtype, record.layout, record.len);
        let mut sources = vec![Source {
            buffer: values.buffer.clone(),
            offset: values.offset,
            bytes: (len * dtype.bytes()).next_multiple_of(WORD_BYTES),
        }];
        if layout.master_weights != MasterWeights::None {
            sources.extend(self.memory.sources(parameter.key.index(), layout));
        }
        self.read(sources, false, Some(&record.label), move |mut copies| {
            let blocks = copies.split_off(1);
            let values = copies.concat();
            if dtype == DType::F32 {
                return bytemuck::pod_collect_to_vec(&values);
            }
            let halves: Vec<u16> = bytemuck::pod_collect_to_vec(&values);
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(&blocks.concat());
            let differences = Contents::decode(layout, len, &words).differences;
            let join =
                |(half, difference): (u16, u32)| join(dtype, layout.master_weights, half.into(), difference);
            // The half after an odd number of halves was read, too. It has no difference.
            halves.into_iter().zip(differences).map(join).collect()
        })
    }

    pub(super) fn read_states(&self, parameter: ParameterId) -> Readback<State> {
        let record = match self.registry.record(parameter) {
            Ok(record) => record,
            Err(error) => return Readback::failed(error),
        };
        let index = parameter.key.index();
        let (layout, len) = (record.layout, record.len);
        let rule = self.registry.group_of(record).hyperparameters.rule;
        let mut sources = self.memory.sources(index, layout);
        let count = self.recorder.source().device().map(|steps| Source {
            buffer: steps.control().clone(),
            offset: DeviceSteps::step_count_offset(index),
            bytes: 4,
        });
        let recorded = count.is_none().then(|| self.registry.steps(parameter));
        sources.extend(count);
        self.read(sources, false, Some(&record.label), move |mut copies| {
            let step = match recorded {
                Some(step) => step,
                None => copies.pop().map_or(0, |count| bytemuck::pod_read_unaligned::<u32>(&count).into()),
            };
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(&copies.concat());
            let mut contents = Contents::decode(layout, len, &words);
            if layout.state.is_debiased() {
                contents.scale_states(&rule.debiased_scales(step));
            }
            State::new(step, rule.state_names().zip(contents.states).collect())
        })
    }

    /// Reads the first bytes of a buffer.
    pub(super) fn read_start<T: 'static>(
        &self,
        buffer: &wgpu::Buffer,
        bytes: u64,
        clear: bool,
        decode: fn(&[u8]) -> T,
    ) -> Readback<T> {
        let source = Source { buffer: buffer.clone(), offset: 0, bytes };
        self.read(vec![source], clear, None, move |copies| decode(&copies.concat()))
    }

    pub(super) fn read<T>(
        &self,
        sources: Vec<Source>,
        clear: bool,
        label: Option<&str>,
        decode: impl FnOnce(Vec<Vec<u8>>) -> T + Send + Sync + 'static,
    ) -> Readback<T> {
        let snapshot = Snapshot::new(&self.gpu, &sources, clear).map_err(Error::from);
        Readback::new(snapshot, label, self.options.device_timeout, decode)
    }

    /// Writes values at `view`, or else at the registered view.
    pub(super) fn write_values(
        &mut self,
        parameter: ParameterId,
        view: Option<&View<'_>>,
        values: &[f32],
    ) -> Result<(), Error> {
        let record = self.registry.record(parameter)?;
        check_length(record, "values", values.len())?;
        let refused = |error: DeviceError| ErrorKind::from(error).of(&record.label);
        self.memory.update(&self.gpu, &self.registry).map_err(refused)?;
        let (_, place) = self.values_of(parameter, view, wgpu::BufferUsages::COPY_DST)?;
        let (dtype, layout) = (record.dtype, record.layout);
        let split = |value: &f32| split(dtype, layout.master_weights, *value, Random::TO_NEAREST.parameter);
        let (narrowed, differences): (Vec<u32>, Vec<u32>) = values.iter().map(split).unzip();
        let bytes = match dtype {
            DType::F32 => bytemuck::cast_slice(&narrowed).to_vec(),
            DType::F16 | DType::Bf16 => {
                // A write covers whole words of 4 bytes. The tensor owns the half after an odd end.
                let mut halves: Vec<u16> = narrowed.iter().map(|&bits| bits as u16).collect();
                halves.resize(halves.len().next_multiple_of(2), 0);
                bytemuck::cast_slice(&halves).to_vec()
            }
        };
        let words;
        let mut writes = vec![Write { buffer: place.buffer, offset: place.offset, bytes: &bytes }];
        if layout.master_weights != MasterWeights::None {
            words = Contents { differences, ..Contents::zero(layout, record.len) }.encode_to_nearest(layout);
            writes.extend(self.memory.writes(parameter.key.index(), layout, &words, BlockPart::Master));
        }
        write_staged(&self.gpu, &writes).map_err(refused)
    }

    pub(super) fn write_states(&mut self, parameter: ParameterId, state: &State) -> Result<(), Error> {
        let record = self.registry.record(parameter)?;
        let refused = |error: DeviceError| ErrorKind::from(error).of(&record.label);
        self.memory.update(&self.gpu, &self.registry).map_err(refused)?;
        let (index, layout) = (parameter.key.index(), record.layout);
        let rule = self.registry.group_of(record).hyperparameters.rule;
        let most = self.registry.settings().most_steps;
        if state.step > most {
            return Err(ErrorKind::Steps { found: state.step, most }.of(&record.label));
        }
        let expected: Vec<_> = rule.state_names().collect();
        let found: Vec<_> = state.tensors.iter().map(|&(name, _)| name).collect();
        if found.len() != expected.len() || !expected.iter().all(|name| found.contains(name)) {
            let found = found.into_iter().map(str::to_owned).collect();
            return Err(ErrorKind::States { found, expected }.of(&record.label));
        }
        let mut contents = Contents::zero(layout, record.len);
        for (&name, target) in expected.iter().zip(&mut contents.states) {
            let given = state.tensor(name).unwrap_or_default();
            check_length(record, name, given.len())?;
            target.copy_from_slice(given);
        }
        if layout.state.is_debiased() {
            contents.unscale_states(&rule.debiased_scales(state.step));
        }
        let (words, count) = (contents.encode_to_nearest(layout), (state.step as u32).to_le_bytes());
        let mut writes = self.memory.writes(index, layout, &words, BlockPart::States);
        writes.extend(self.step_count_write(parameter, &count));
        write_staged(&self.gpu, &writes).map_err(refused)?;
        self.registry.set_steps([(parameter, state.step)]);
        Ok(())
    }

    /// The write of a step count, if the device counts.
    pub(super) fn step_count_write<'a>(
        &'a self,
        parameter: ParameterId,
        count: &'a [u8; 4],
    ) -> Option<Write<'a>> {
        let steps = self.recorder.source().device()?;
        let offset = DeviceSteps::step_count_offset(parameter.key.index());
        Some(Write { buffer: steps.control(), offset, bytes: count })
    }

    /// A parameter, and where its values lie in a buffer with this usage.
    pub(super) fn values_of<'a>(
        &'a self,
        parameter: ParameterId,
        view: Option<&View<'a>>,
        expected: wgpu::BufferUsages,
    ) -> Result<(&'a Record, View<'a>), Error> {
        let record = self.registry.record(parameter)?;
        let registered = record.views.as_ref().map(|views| views.borrow().values);
        let view = view.copied().or(registered).ok_or_else(|| ErrorKind::NoViews.of(&record.label))?;
        let refused = |error| ErrorKind::View { role: Role::Values, error }.of(&record.label);
        view.check_values(record.len, record.dtype).map_err(refused)?;
        let found = view.buffer.usage();
        if !found.contains(expected) {
            return Err(ErrorKind::Usage { found, expected }.of(&record.label));
        }
        Ok((record, view))
    }
}

fn check_length(record: &Record, what: &str, found: usize) -> Result<(), Error> {
    if found as u64 == record.len {
        return Ok(());
    }
    let (what, found, expected) = (what.to_owned(), found as u64, record.len);
    Err(ErrorKind::Length { what, found, expected }.of(&record.label))
}
