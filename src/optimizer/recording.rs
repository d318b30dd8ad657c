//! Steps: what is recorded into an encoder.

use std::collections::HashMap;

use super::places::{Buffers, Places};
use super::{LaunchInfo, Optimizer, Options, ParameterId, Scratch, Update};
use crate::control::{DeviceSteps, Part, Present};
use crate::error::EncodeError;
use crate::layout;
use crate::plan::{Plan, Tensor};
use crate::ring::Lease;
use crate::scope::{Refusal, catch, is_lost, submit};
use crate::tables::{self, Device, Tables};

impl Optimizer {
    /// Records a step of every parameter at its registered views.
    ///
    /// # Errors
    /// If a parameter has no views, or the device refuses a resource. Nothing was recorded then, and no step count advanced.
    pub fn encode(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), EncodeError> {
        self.encode_in_pass(&mut begin_pass(encoder))
    }

    /// Like [`Optimizer::encode`], within a compute pass of the caller's. Sets pipeline and bind group 0.
    ///
    /// # Errors
    /// As [`Optimizer::encode`].
    pub fn encode_in_pass(&mut self, pass: &mut wgpu::ComputePass<'_>) -> Result<(), EncodeError> {
        self.record_all(pass, Part::Whole)?;
        self.advance();
        Ok(())
    }

    /// Records a step of the parameters that have a gradient; the others are left alone, weight decay and step count included.
    ///
    /// # Errors
    /// As [`Optimizer::encode`]; and if a parameter is not of this optimizer or is named twice.
    pub fn encode_present(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        present: &[ParameterId],
    ) -> Result<(), EncodeError> {
        self.select(present.iter().copied())?;
        let mut selected = self.parameters.iter().zip(&self.scratch.present);
        if let Some((record, _)) = selected.find(|(record, present)| **present && record.views.is_none()) {
            return Err(EncodeError::NoViews { label: record.label.clone() });
        }
        self.split();
        self.record_fixed(&mut begin_pass(encoder), false, Part::Whole)?;
        self.advance();
        Ok(())
    }

    /// Records the first half of a step of every parameter: the norm of this device's gradients, for engines that train on
    /// several devices. It is then in [`Optimizer::control_buffer`] at [`Optimizer::NORM_OFFSET`], without the loss scale, and
    /// infinite if a gradient is not finite. The engine adds up the squares of all devices' norms, writes the root back, and
    /// records [`Optimizer::encode_after_norm`].
    ///
    /// # Errors
    /// As [`Optimizer::encode`], and if the optimizer's [`Control`](crate::Control) has no norm.
    pub fn encode_norm(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), EncodeError> {
        self.check_norm()?;
        self.record_all(&mut begin_pass(encoder), Part::Norm)
    }

    /// Records the second half of a step, which takes the norm from [`Optimizer::control_buffer`].
    ///
    /// # Errors
    /// As [`Optimizer::encode_norm`].
    pub fn encode_after_norm(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<(), EncodeError> {
        self.check_norm()?;
        self.record_all(&mut begin_pass(encoder), Part::AfterNorm)?;
        self.advance();
        Ok(())
    }

    /// Records a step of the parameters that have a gradient, at views of this step only: for engines with memory pools, whose
    /// tensors move. Registered views are not looked at. Nothing of the buffers is kept once this returns.
    ///
    /// # Errors
    /// As [`Optimizer::encode`]; and if a parameter is not of this optimizer or is named twice, or a view cannot be used or
    /// overlaps another one of this step. Gradients may share bytes with each other, unless they are to be zeroed.
    pub fn encode_views(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        updates: &[Update<'_>],
    ) -> Result<(), EncodeError> {
        self.record_views(&mut begin_pass(encoder), updates)?;
        self.advance();
        Ok(())
    }

    /// Records a step at views of this step only into an encoder of its own, and submits it.
    ///
    /// # Errors
    /// As [`Optimizer::encode_views`], and if the submit fails; no step count has advanced then.
    pub fn step_views(&mut self, updates: &[Update<'_>]) -> Result<wgpu::SubmissionIndex, EncodeError> {
        self.submit_step(|optimizer, pass| optimizer.record_views(pass, updates))
    }

    /// Records a step at views of this step only, without counting it.
    fn record_views(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        updates: &[Update<'_>],
    ) -> Result<(), EncodeError> {
        self.select(updates.iter().map(|update| update.parameter))?;
        let mut buffers = Buffers::default();
        let places = self.locate(updates, &mut buffers)?;
        self.split();
        self.allocate()?;
        let tensors: Vec<_> = updates
            .iter()
            .zip(places)
            .map(|(update, places)| self.tensor(update.parameter.index as usize, places))
            .collect();
        let plan = Plan::new(&tensors, &buffers.sizes, self.options.gradients, &self.limits);
        let parameters = updates.iter().map(|update| update.parameter.index as usize).collect();
        let old = self.moving.take();
        let mut tables = Tables::new(&self.on_device(), plan, parameters, buffers.list, old)?;
        let recorded = self.record(pass, &mut tables, false, Part::Whole);
        tables.release();
        self.moving = Some(tables);
        recorded
    }

    /// Records a step of every parameter into an encoder of its own and submits it.
    ///
    /// # Errors
    /// As [`Optimizer::encode`], and if the submit fails; no step count has advanced then.
    pub fn step(&mut self) -> Result<wgpu::SubmissionIndex, EncodeError> {
        self.submit_step(|optimizer, pass| optimizer.record_all(pass, Part::Whole))
    }

    /// Submits a step that `record` records, and counts it once the device has taken it.
    fn submit_step(
        &mut self,
        record: impl FnOnce(&mut Self, &mut wgpu::ComputePass<'_>) -> Result<(), EncodeError>,
    ) -> Result<wgpu::SubmissionIndex, EncodeError> {
        let device = self.device.clone();
        let commands = catch(&device, || {
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("adamod.step") });
            record(self, &mut begin_pass(&mut encoder))?;
            Ok::<_, EncodeError>(encoder.finish())
        })??;
        let submission = submit(&self.device, &self.queue, commands)?;
        self.advance();
        Ok(submission)
    }

    /// The dispatches of a step of every parameter at its registered views.
    ///
    /// # Errors
    /// As [`Optimizer::encode`].
    pub fn launches(&mut self) -> Result<Vec<LaunchInfo>, EncodeError> {
        self.check_views()?;
        let tables = self.take_fixed()?;
        let launches = tables
            .plan()
            .launches
            .iter()
            .map(|launch| LaunchInfo {
                workgroups: launch.chunks,
                segments: launch.segments.len() as u32,
                access: launch.access,
                gradients: launch.binding,
            })
            .collect();
        self.fixed = Some(tables);
        Ok(launches)
    }

    /// Whether every parameter has views of its own.
    fn check_views(&self) -> Result<(), EncodeError> {
        let mut live = self.live();
        match live.find(|(_, record)| self.without_views > 0 && record.views.is_none()) {
            Some((_, record)) => Err(EncodeError::NoViews { label: record.label.clone() }),
            None => Ok(()),
        }
    }

    fn check_norm(&self) -> Result<(), EncodeError> {
        let has_norm = self.device_steps.as_ref().is_some_and(DeviceSteps::uses_norm);
        if has_norm { Ok(()) } else { Err(EncodeError::NoNorm) }
    }

    /// Notes which parameters have a gradient.
    fn select(&mut self, named: impl Iterator<Item = ParameterId>) -> Result<(), EncodeError> {
        let present = &mut self.scratch.present;
        present.clear();
        present.resize(self.parameters.len(), false);
        for parameter in named {
            let index = parameter.index as usize;
            let record = self.parameters.get(index).filter(|record| record.is_live);
            let is_known = record.is_some_and(|record| record.generation == parameter.generation);
            if parameter.optimizer != self.id || !is_known {
                return Err(EncodeError::UnknownParameter);
            }
            if std::mem::replace(&mut present[index], true) {
                return Err(EncodeError::Repeated { label: self.parameters[index].label.clone() });
            }
        }
        Ok(())
    }

    /// Regroups cohorts by the parameters selected, and notes which cohorts step.
    fn split(&mut self) {
        // With step counts on the device, coefficients go by parameter and never move.
        if self.cohorts.split(&self.scratch.present) && self.device_steps.is_none() {
            self.regroup();
        }
        let stepping = &mut self.scratch.stepping;
        stepping.clear();
        stepping.resize(self.cohorts.list().len(), false);
        for (index, &is_present) in self.scratch.present.iter().enumerate() {
            if is_present {
                stepping[self.cohorts.of(index) as usize] = true;
            }
        }
    }

    /// Gives state to the parameters registered since the last step.
    pub(super) fn allocate(&mut self) -> Result<(), Refusal> {
        if self.without_state == 0 {
            return Ok(());
        }
        // A pool of state for each buffer of values; pool 0 for values that have no buffer of their own.
        #[expect(clippy::mutable_key_type, reason = "a buffer is hashed and compared by identity")]
        let mut pools: HashMap<wgpu::Buffer, u32> = HashMap::new();
        let placed = || self.live().filter(|(_, record)| !record.extents.is_empty());
        let mut count = placed().map(|(_, record)| record.pool).max().unwrap_or(0);
        for (_, record) in placed() {
            if let Some(views) = &record.views {
                pools.entry(views.borrow().values.buffer.clone()).or_insert(record.pool);
            }
        }
        let mut indices = Vec::with_capacity(self.without_state);
        let mut tensors = Vec::with_capacity(self.without_state);
        for (index, record) in self.live().filter(|(_, record)| record.extents.is_empty()) {
            let pool = record.views.as_ref().map_or(0, |views| {
                *pools.entry(views.borrow().values.buffer.clone()).or_insert_with(|| {
                    count += 1;
                    count
                })
            });
            indices.push(index);
            tensors.push((pool, record.layout, record.len));
        }
        let extents = self.arena.allocate(&self.device, &tensors)?;
        for ((index, extents), (pool, ..)) in indices.into_iter().zip(extents).zip(tensors) {
            self.parameters[index].extents = extents;
            self.parameters[index].pool = pool;
        }
        self.without_state = 0;
        Ok(())
    }

    fn tensor(&self, index: usize, places: Places) -> Tensor<'_> {
        let record = &self.parameters[index];
        let Places { values, gradients, copies } = places;
        Tensor { values, gradients, copies, extents: &record.extents, layout: record.layout, key: record.key }
    }

    /// Takes out the tables of the registered views; the caller puts them back.
    fn take_fixed(&mut self) -> Result<Tables, EncodeError> {
        if let Some(tables) = self.fixed.take() {
            return Ok(tables);
        }
        self.allocate()?;
        let mut buffers = Buffers::default();
        let mut parameters = Vec::new();
        let mut tensors = Vec::new();
        for (index, record) in self.parameters.iter().enumerate() {
            if let Some(views) = &record.views {
                parameters.push(index);
                tensors.push(self.tensor(index, buffers.locate(&views.borrow())));
            }
        }
        let plan = Plan::new(&tensors, &buffers.sizes, self.options.gradients, &self.limits);
        Ok(Tables::new(&self.on_device(), plan, parameters, buffers.list, None)?)
    }

    /// Records every parameter at its registered views, without counting the step.
    fn record_all(&mut self, pass: &mut wgpu::ComputePass<'_>, part: Part) -> Result<(), EncodeError> {
        self.check_views()?;
        self.scratch.stepping.clear();
        self.scratch.stepping.resize(self.cohorts.list().len(), true);
        let is_all = self.vacant.is_empty();
        if !is_all {
            let Self { scratch, parameters, .. } = self;
            scratch.present.clear();
            scratch.present.extend(parameters.iter().map(|record| record.is_live));
        }
        self.record_fixed(pass, is_all, part)
    }

    fn record_fixed(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        is_all: bool,
        part: Part,
    ) -> Result<(), EncodeError> {
        let mut tables = self.take_fixed()?;
        let recorded = self.record(pass, &mut tables, is_all, part);
        self.fixed = Some(tables);
        recorded
    }

    /// Uploads what has changed and records the dispatches, for all parameters or for those selected.
    fn record(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        tables: &mut Tables,
        is_all: bool,
        part: Part,
    ) -> Result<(), EncodeError> {
        // A device that counts steps counts those without gradients, too.
        if tables.plan().launches.is_empty() && self.device_steps.is_none() {
            return Ok(());
        }
        let at = Device { device: &self.device, queue: &self.queue };
        let (pipelines, arena) = (&mut self.pipelines, &self.arena);
        let Some(steps) = &mut self.device_steps else {
            let lease = self.upload_coefficients()?;
            let at = Device { device: &self.device, queue: &self.queue };
            let coefficients = tables::Coefficients {
                binding: self.coefficients.binding(),
                generation: self.coefficients.generation(),
            };
            let row_of = |parameter| self.cohorts.of(parameter);
            tables.upload(&at, &mut self.pipelines, &coefficients, &self.arena, row_of)?;
            tables.record(pass, &self.pipelines, Some(lease), self.workgroups_per_dimension);
            return Ok(());
        };
        if is_lost(&self.device) {
            return Err(EncodeError::Lost);
        }
        let present = match is_all {
            true => Present::All(self.parameters.len()),
            false => Present::Some(&self.scratch.present),
        };
        let group_of = |parameter: usize| self.parameters[parameter].group;
        let groups = self.groups.iter().map(|group| group.hyperparameters.group_row());
        steps.upload(at.device, at.queue, present, group_of, groups)?;
        let (binding, generation) = steps.prepared();
        let coefficients = tables::Coefficients { binding, generation };
        tables.upload(&at, pipelines, &coefficients, arena, |parameter| parameter as u32)?;
        tables.upload_preparation(&at, steps, part)?;
        tables.record_preparation(pass, steps, part);
        if part != Part::Norm {
            tables.record(pass, pipelines, None, self.workgroups_per_dimension);
        }
        Ok(())
    }

    /// One row a cohort, for its next step.
    fn upload_coefficients(&mut self) -> Result<Lease, EncodeError> {
        let Options { rule, formula, .. } = self.options;
        let Scratch { coefficients, stepping, .. } = &mut self.scratch;
        coefficients.clear();
        coefficients.extend(self.cohorts.list().iter().zip(stepping).map(|(cohort, steps)| {
            if *steps {
                let hyperparameters = &self.groups[cohort.group as usize].hyperparameters;
                let t = cohort.steps + 1;
                layout::Coefficients::active(hyperparameters.coefficients(formula, rule, t), t)
            } else {
                layout::Coefficients::inactive()
            }
        }));
        self.coefficients.write(&self.device, &self.queue, bytemuck::cast_slice(coefficients))
    }

    fn advance(&mut self) {
        let stepping = &self.scratch.stepping;
        self.cohorts.advance(|cohort| stepping[cohort]);
    }

    fn on_device(&self) -> Device<'_> {
        Device { device: &self.device, queue: &self.queue }
    }
}

fn begin_pass(encoder: &mut wgpu::CommandEncoder) -> wgpu::ComputePass<'_> {
    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
        label: Some("adamod.update"),
        timestamp_writes: None,
    })
}
