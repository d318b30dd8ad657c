//! A plan on the device: its tables and the bind groups of its launches.

use super::device_steps::{LaunchBindings, Preparation};
use super::memory::Memory;
use super::registry::{Located, Registry};
use super::source::CoefficientSource;
use super::step::Part;
use crate::device::error_scope::DeviceError;
use crate::device::gpu::{Gpu, binding, range};
use crate::device::ring::{Lease, Ring};
use crate::kernels::abi::{Chunk, QUAD_ELEMENTS};
use crate::kernels::bindings;
use crate::kernels::pipeline::{BindGroups, Kernel, Pipelines};
use crate::kernels::variant::GradientBinding;
use crate::options::Diagnostics;
use crate::plan::launches::{Launch, Plan, RowsOfTensor, Tensor, Window, Windows};
use crate::plan::limits::{PlanLimits, grid};

/// The plan of a step and everything that it needs on the device.
#[derive(Debug)]
pub struct Tables {
    plan: Plan,
    /// The index of the parameter that each tensor of the plan is.
    parameters: Vec<usize>,
    /// The buffers that the plan's windows name.
    buffers: Vec<wgpu::Buffer>,
    kernels: Vec<Kernel>,
    chunks: wgpu::Buffer,
    segments: Ring,
    /// The slot that holds the plan's segments, and the revision of the rows that they name.
    segments_written: Option<(Lease, u64)>,
    /// What the table of columns and rows is made from, for each tensor of the plan; empty if no launch needs it.
    rows_of_tensors: Vec<RowsOfTensor>,
    rows: Option<Ring>,
    /// The slot that holds that table, and the revision of the factors that it has.
    rows_written: Option<(Lease, u64)>,
    bind_groups: Vec<BindGroups>,
    /// Generations of the coefficients and of the rings of segments and of rows that the bind groups name.
    bound: Option<(u64, u64, u64)>,
    preparation: Option<Preparation>,
}

/// What tables are made from.
pub struct Context<'a> {
    pub gpu: &'a Gpu,
    pub registry: &'a Registry,
    pub memory: &'a Memory,
    pub limits: &'a PlanLimits,
    pub diagnostics: Diagnostics,
}

impl Tables {
    /// Slots of the ring of segments at first: one in use and one to write.
    const SEGMENT_SLOTS: usize = 2;

    /// Tables for parameters at these places. They take over the ring of `old` tables, and their chunk table if it is the same.
    pub fn new(of: &Context<'_>, located: Located, old: Option<Self>) -> Result<Self, DeviceError> {
        let Located { parameters, buffers } = located;
        let tensors: Vec<_> = parameters
            .iter()
            .filter_map(|&(index, places)| {
                let record = of.registry.at(index)?;
                let hyperparameters = of.registry.group_of(record).hyperparameters;
                Some(Tensor {
                    values: places.values,
                    gradients: places.gradients,
                    shadow: places.shadow,
                    extents: of.memory.extents(index),
                    layout: record.layout,
                    key: record.random_key,
                    first_quad: record.shard.first / u64::from(QUAD_ELEMENTS),
                    form: hyperparameters.rule.form(),
                    is_cautious: hyperparameters.has_caution(),
                    has_factors: record.column_factors.is_some(),
                    row_mask: places.row_mask,
                })
            })
            .collect();
        let zero_gradients = of.registry.settings().zero_gradients;
        let plan = Plan::new(&tensors, &buffers.sizes, zero_gradients, of.limits);
        let (segments, rows, chunks, preparation) = match old {
            Some(old) if plan.has_chunks_of(&old.plan) => {
                (Some(old.segments), old.rows, Some(old.chunks), old.preparation)
            }
            Some(old) => (Some(old.segments), old.rows, None, None),
            None => (None, None, None, None),
        };
        let has_rows = plan.launches.iter().any(|launch| launch.rows.is_some());
        let rows_of_tensors = parameters
            .iter()
            .filter(|_| has_rows)
            .filter_map(|&(index, places)| {
                let record = of.registry.at(index)?;
                Some(RowsOfTensor { first: record.shard.first, row_mask: places.row_mask })
            })
            .collect();
        let chunks = match chunks {
            Some(chunks) => chunks,
            None => chunk_buffer(of.gpu, &plan)?,
        };
        let segments = match segments {
            Some(segments) => segments,
            None => {
                let bytes = size_of_val(plan.segments.as_slice()) as u64;
                Ring::new(of.gpu, "segments", Self::SEGMENT_SLOTS, bytes)?
            }
        };
        Ok(Self {
            kernels: plan.launches.iter().map(|launch| launch.update_kernel(of.diagnostics)).collect(),
            plan,
            parameters: parameters.into_iter().map(|(index, _)| index).collect(),
            buffers: buffers.list,
            chunks,
            segments,
            segments_written: None,
            rows_of_tensors,
            rows,
            rows_written: None,
            bind_groups: Vec::new(),
            bound: None,
            preparation,
        })
    }

    /// The launches of the plan.
    pub fn launches(&self) -> &[Launch] {
        &self.plan.launches
    }

    /// Brings segments, pipelines and bind groups up to date for a part of a step. Does nothing where they are.
    pub fn update(
        &mut self,
        of: &Context<'_>,
        pipelines: &mut Pipelines,
        source: &CoefficientSource,
        part: Part,
    ) -> Result<(), DeviceError> {
        let row_revision = source.row_revision(of.registry);
        if self.segments_written.as_ref().is_none_or(|(_, written)| *written != row_revision) {
            self.segments_written = None;
            let parameters = &self.parameters;
            self.plan.set_coefficients(|tensor| source.row_of(of.registry, parameters[tensor]));
            let slot = self.segments.write(of.gpu, bytemuck::cast_slice(&self.plan.segments))?;
            self.segments_written = Some((slot, row_revision));
        }
        if part != Part::Norm {
            self.update_rows(of)?;
            let rows_generation = self.rows.as_ref().map_or(0, Ring::generation);
            let generations = (source.generation(), self.segments.generation(), rows_generation);
            if self.bound != Some(generations) {
                self.bind(of, pipelines, source)?;
                self.bound = Some(generations);
            }
        }
        if let CoefficientSource::Device(steps) = source {
            let mut preparation = match self.preparation.take() {
                Some(preparation) => preparation,
                None => Preparation::new(of.gpu, &self.plan, steps)?,
            };
            let updated = preparation.update(
                pipelines,
                steps,
                &self.plan.launches,
                part,
                self.segments.generation(),
                |launch| LaunchBindings {
                    segments: self.segments.binding(),
                    chunks: self.chunks_of(launch),
                    gradients: self.windows(launch, |windows| Some(windows.gradients)),
                },
            );
            self.preparation = Some(preparation);
            updated?;
        }
        Ok(())
    }

    /// Writes the table of columns and rows, if there is one and its factors have changed.
    fn update_rows(&mut self, of: &Context<'_>) -> Result<(), DeviceError> {
        let revision = of.registry.revisions().column_factors;
        let is_written = self.rows_written.as_ref().is_some_and(|(_, written)| *written == revision);
        if self.rows_of_tensors.is_empty() || is_written {
            return Ok(());
        }
        self.rows_written = None;
        let parameters = &self.parameters;
        let table = self.plan.row_table(&self.rows_of_tensors, |tensor| {
            of.registry.at(parameters[tensor])?.column_factors.as_deref()
        });
        let bytes: &[u8] = bytemuck::cast_slice(&table);
        let mut ring = match self.rows.take() {
            Some(ring) => ring,
            None => Ring::new(of.gpu, "row_table", Self::SEGMENT_SLOTS, bytes.len() as u64)?,
        };
        let slot = ring.write(of.gpu, bytes);
        self.rows = Some(ring);
        self.rows_written = Some((slot?, revision));
        Ok(())
    }

    fn bind(
        &mut self,
        of: &Context<'_>,
        pipelines: &mut Pipelines,
        source: &CoefficientSource,
    ) -> Result<(), DeviceError> {
        self.bind_groups.clear();
        self.bound = None;
        for (launch, kernel) in self.plan.launches.iter().zip(&self.kernels) {
            pipelines.make(*kernel)?;
            let mut entries = vec![
                (bindings::COEFFICIENTS, source.binding()),
                (bindings::SEGMENTS, self.segments.binding()),
                (bindings::CHUNKS, self.chunks_of(launch)),
                (bindings::STATE, of.memory.buffer(launch.state_buffer).as_entire_binding()),
            ];
            let histogram = of.memory.histogram().filter(|_| launch.form.rule().has_element_rates());
            entries.extend(histogram.map(|of| (bindings::HISTOGRAM, of.as_entire_binding())));
            if let (Some(masks), Some(rows)) = (launch.rows, &self.rows) {
                // Without masks anything may be bound there.
                let masks = masks.map(|masks| wgpu::BindingResource::Buffer(self.window(masks)));
                entries.push((bindings::ROW_TABLE, rows.binding()));
                entries.push((bindings::ROW_MASKS, masks.unwrap_or_else(|| self.chunks_of(launch))));
            }
            let mut tensors =
                vec![(bindings::PARAMETERS, self.windows(launch, |windows| Some(windows.values)))];
            if launch.binding != GradientBinding::Shared {
                tensors.push((bindings::GRADIENTS, self.windows(launch, |windows| Some(windows.gradients))));
            }
            tensors.push((bindings::SHADOW, self.windows(launch, |windows| windows.shadow)));
            self.bind_groups.push(pipelines.bind_groups(kernel, entries, tensors)?);
        }
        Ok(())
    }

    fn chunks_of(&self, launch: &Launch) -> wgpu::BindingResource<'_> {
        let entry_bytes = size_of::<Chunk>() as u64;
        let (first, count) = (u64::from(launch.first_chunk), u64::from(launch.chunks));
        binding(&self.chunks, first * entry_bytes, count * entry_bytes)
    }

    fn window(&self, window: Window) -> wgpu::BufferBinding<'_> {
        range(&self.buffers[window.buffer as usize], window.offset, window.bytes)
    }

    fn windows(
        &self,
        launch: &Launch,
        of: impl Fn(&Windows) -> Option<Window>,
    ) -> Vec<wgpu::BufferBinding<'_>> {
        launch.windows.iter().filter_map(of).map(|window| self.window(window)).collect()
    }

    /// Records a part of a step that [`Tables::update`] was called for.
    pub fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        pipelines: &Pipelines,
        source: &mut CoefficientSource,
        part: Part,
        workgroups_per_dimension: u32,
    ) {
        let coefficients = source.take_slot();
        let Some((segments, _)) = self.segments_written.clone() else { return };
        if let (CoefficientSource::Device(steps), Some(preparation)) = (&*source, &self.preparation) {
            preparation.record(pass, pipelines, steps, &segments, part);
        }
        if part == Part::Norm {
            return;
        }
        let rows = self.rows_written.as_ref().map(|(lease, _)| lease.clone());
        let offsets = [
            coefficients.as_ref().map_or(0, |lease| lease.offset),
            segments.offset,
            rows.as_ref().map_or(0, |lease| lease.offset),
        ];
        for ((launch, kernel), bind_groups) in
            self.plan.launches.iter().zip(&self.kernels).zip(&self.bind_groups)
        {
            pass.set_pipeline(pipelines.get(kernel));
            bind_groups.set(pass, &offsets[..if launch.rows.is_some() { 3 } else { 2 }]);
            let (x, y) = grid(launch.chunks, workgroups_per_dimension);
            pass.dispatch_workgroups(x, y, 1);
        }
        pass.on_submitted_work_done(move || drop((coefficients, segments, rows)));
    }

    /// Drops everything that refers to the caller's buffers, once the step is recorded.
    pub fn release(&mut self) {
        self.bind_groups.clear();
        self.buffers.clear();
        self.segments_written = None;
        self.rows_written = None;
        self.bound = None;
        if let Some(preparation) = &mut self.preparation {
            preparation.release();
        }
    }
}

fn chunk_buffer(gpu: &Gpu, plan: &Plan) -> Result<wgpu::Buffer, DeviceError> {
    let table = plan.chunk_table();
    let contents: &[u8] = bytemuck::cast_slice(&table);
    let bytes = (contents.len() as u64).max(size_of::<Chunk>() as u64);
    gpu.catch(|| gpu.buffer_with("chunks", bytes, wgpu::BufferUsages::STORAGE, contents))
}
