//! A plan on the device: its tables, and the bind groups of its launches.

use std::ops::Range;

use crate::arena::Arena;
use crate::control::{DeviceSteps, NormBindings, NormEnd, Part};
use crate::error::EncodeError;
use crate::layout::{Chunk, Partial};
use crate::pipeline::{Bindings, Pipelines};
use crate::plan::{Launch, Plan, Window, grid};
use crate::ring::{Lease, Ring};
use crate::scope::{Refusal, catch};

const PARTIAL_BYTES: u64 = size_of::<Partial>() as u64;

/// The plan of a step and everything it needs on the device.
#[derive(Debug)]
pub struct Tables {
    plan: Plan,
    /// The parameter that each tensor of the plan is.
    parameters: Vec<usize>,
    /// The buffers that the plan's windows name.
    buffers: Vec<wgpu::Buffer>,
    chunks: wgpu::Buffer,
    segments: Ring,
    /// The slot that holds the plan's segments; `None` when they have to be written.
    segments_slot: Option<Lease>,
    bind_groups: Vec<wgpu::BindGroup>,
    /// Generations of the coefficients and of the segments' ring that the bind groups name.
    bound: Option<(u64, u64)>,
    preparation: Option<Preparation>,
}

/// What a step that the device prepares binds besides.
#[derive(Debug)]
struct Preparation {
    /// Partial sums of the norm; those between launches stay zero.
    partials: wgpu::Buffer,
    /// Which of them each launch writes.
    of_launches: Vec<Range<u64>>,
    /// Of each launch's norm, if there is one.
    norms: Vec<wgpu::BindGroup>,
    /// Of a preparation by itself.
    prepare: Option<wgpu::BindGroup>,
    /// Generations of the rings, and of the segments' ring, that the bind groups name.
    bound: Option<((u64, u64, u64), u64)>,
}

/// Where a step's coefficients are bound.
pub struct Coefficients<'a> {
    /// The binding; its place is given by a dynamic offset.
    pub binding: wgpu::BindingResource<'a>,
    /// Changes whenever they have to be bound anew.
    pub generation: u64,
}

/// What tables are made with.
pub struct Device<'a> {
    pub device: &'a wgpu::Device,
    pub queue: &'a wgpu::Queue,
}

impl Tables {
    /// Slots of the segment ring at first: one in use, one to write.
    const SEGMENT_SLOTS: usize = 2;

    /// Tables for `plan`, in the place of `old` ones, whose chunk table and ring are used on where they fit.
    pub fn new(
        at: &Device<'_>,
        plan: Plan,
        parameters: Vec<usize>,
        buffers: Vec<wgpu::Buffer>,
        old: Option<Self>,
    ) -> Result<Self, Refusal> {
        let (segments, chunks, preparation) = match old {
            Some(old) if plan.has_chunks_of(&old.plan) => {
                (Some(old.segments), Some(old.chunks), old.preparation)
            }
            Some(old) => (Some(old.segments), None, None),
            None => (None, None, None),
        };
        let chunks = match chunks {
            Some(chunks) => chunks,
            None => chunk_buffer(at, &plan)?,
        };
        let segments = match segments {
            Some(segments) => segments,
            None => Ring::new(
                at.device,
                "adamod.segments",
                Self::SEGMENT_SLOTS,
                size_of_val(plan.segments.as_slice()) as u64,
            )?,
        };
        Ok(Self {
            plan,
            parameters,
            buffers,
            chunks,
            segments,
            segments_slot: None,
            bind_groups: Vec::new(),
            bound: None,
            preparation,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Forgets the segments, so that the next `upload` writes them with each parameter's cohort of then.
    pub fn regroup(&mut self) {
        self.segments_slot = None;
    }

    /// Brings segments and bind groups up to date; does nothing where they are. `row_of` gives a parameter's row of
    /// coefficients.
    pub fn upload(
        &mut self,
        at: &Device<'_>,
        pipelines: &mut Pipelines,
        coefficients: &Coefficients<'_>,
        arena: &Arena,
        row_of: impl Fn(usize) -> u32,
    ) -> Result<(), EncodeError> {
        if self.segments_slot.is_none() {
            self.plan.set_coefficients(|tensor| row_of(self.parameters[tensor]));
            let bytes = bytemuck::cast_slice(&self.plan.segments);
            self.segments_slot = Some(self.segments.write(at.device, at.queue, bytes)?);
        }
        let generations = (coefficients.generation, self.segments.generation());
        if self.bound != Some(generations) {
            self.bind(at, pipelines, coefficients, arena)?;
            self.bound = Some(generations);
        }
        Ok(())
    }

    /// Brings what the device needs to prepare a part of a step up to date.
    pub fn upload_preparation(
        &mut self,
        at: &Device<'_>,
        steps: &mut DeviceSteps,
        part: Part,
    ) -> Result<(), EncodeError> {
        let mut preparation = match self.preparation.take() {
            Some(preparation) => preparation,
            None => {
                let alignment = at.device.limits().min_storage_buffer_offset_alignment;
                let of_launches = self.plan.partials(alignment.into(), steps.most_partials());
                let entries = of_launches.last().map_or(1, |last| last.end);
                let partials = catch(at.device, || {
                    at.device.create_buffer(&wgpu::BufferDescriptor {
                        label: Some("adamod.partials"),
                        size: entries * PARTIAL_BYTES,
                        usage: wgpu::BufferUsages::STORAGE,
                        mapped_at_creation: false,
                    })
                })?;
                Preparation { partials, of_launches, norms: Vec::new(), prepare: None, bound: None }
            }
        };
        if steps.uses_norm() {
            steps.make_norms(at.device, &self.plan.launches, part)?;
        }
        let generations = (steps.ring_generations(), self.segments.generation());
        if preparation.bound != Some(generations) {
            let mut norms = Vec::new();
            if steps.uses_norm() {
                for (launch, partials, end) in self.norms(&preparation, part) {
                    let first = if end == NormEnd::Launch { partials.start } else { 0 };
                    let bytes = (partials.end - first) * PARTIAL_BYTES;
                    let bindings = NormBindings {
                        segments: self.segments.binding(),
                        chunks: self.chunks_of(launch),
                        gradients: self.window(&launch.gradients),
                        partials: binding(&preparation.partials, first * PARTIAL_BYTES, bytes),
                    };
                    norms.push(steps.bind_norm(at.device, launch, end, bindings)?);
                }
            }
            preparation.norms = norms;
            preparation.prepare = Some(steps.bind_prepare(at.device)?);
            preparation.bound = Some(generations);
        }
        self.preparation = Some(preparation);
        Ok(())
    }

    /// Each launch, its partial sums, and what comes after its norm.
    fn norms<'a>(
        &'a self,
        preparation: &'a Preparation,
        part: Part,
    ) -> impl Iterator<Item = (&'a Launch, &'a Range<u64>, NormEnd)> {
        let launches = &self.plan.launches;
        let ends = NormEnd::of_launches(launches.len(), part);
        launches
            .iter()
            .zip(&preparation.of_launches)
            .zip(ends)
            .map(|((launch, partials), end)| (launch, partials, end))
    }

    /// Records what the device does before a step, and what keeps its tables until it is done.
    pub fn record_preparation(&self, pass: &mut wgpu::ComputePass<'_>, steps: &DeviceSteps, part: Part) {
        let (Some(preparation), Some(segments)) = (&self.preparation, self.segments_slot.clone()) else {
            return;
        };
        let Some((rows, groups)) = steps.slots() else { return };
        if self.plan.launches.is_empty()
            && let Some(prepare) = &preparation.prepare
        {
            steps.record_without_gradients(pass, prepare, (&rows, &groups), part);
        } else if steps.uses_norm() && part != Part::AfterNorm {
            for ((launch, partials, end), bind_group) in self.norms(preparation, part).zip(&preparation.norms)
            {
                let slots = (&segments, &rows, &groups);
                let workgroups = (partials.end - partials.start) as u32;
                steps.record_norm(pass, launch, end, bind_group, slots, workgroups);
            }
        } else if let Some(prepare) = &preparation.prepare {
            steps.record_prepare(pass, prepare, (&rows, &groups));
        }
        pass.on_submitted_work_done(move || drop((segments, rows, groups)));
    }

    fn bind(
        &mut self,
        at: &Device<'_>,
        pipelines: &mut Pipelines,
        coefficients: &Coefficients<'_>,
        arena: &Arena,
    ) -> Result<(), Refusal> {
        self.bind_groups.clear();
        for launch in &self.plan.launches {
            let pipeline = pipelines.get(at.device, launch)?;
            let bindings = Bindings {
                coefficients: coefficients.binding.clone(),
                segments: self.segments.binding(),
                chunks: self.chunks_of(launch),
                parameters: self.window(&launch.values),
                gradients: self.window(&launch.gradients),
                state: arena.page(launch.page).as_entire_binding(),
                histogram: arena.histogram().map(wgpu::Buffer::as_entire_binding),
                copies: launch.copies.as_ref().map(|copies| self.window(copies)),
            };
            let made = catch(at.device, || pipeline.bind_group(at.device, bindings, launch.binding))?;
            self.bind_groups.push(made);
        }
        Ok(())
    }

    fn chunks_of(&self, launch: &Launch) -> wgpu::BindingResource<'_> {
        let entry_bytes = size_of::<Chunk>() as u64;
        let (first, count) = (u64::from(launch.first_chunk), u64::from(launch.chunks));
        binding(&self.chunks, first * entry_bytes, count * entry_bytes)
    }

    fn window(&self, window: &Window) -> wgpu::BindingResource<'_> {
        binding(&self.buffers[window.buffer as usize], window.offset, window.bytes)
    }

    /// Records the launches, and what keeps the tables' slots until they are done.
    pub fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        pipelines: &Pipelines,
        coefficients: Option<Lease>,
        workgroups_per_dimension: u32,
    ) {
        let Some(segments) = self.segments_slot.clone() else {
            return;
        };
        let coefficients_offset = coefficients.as_ref().map_or(0, |lease| lease.offset);
        for (launch, bind_group) in self.plan.launches.iter().zip(&self.bind_groups) {
            pass.set_pipeline(pipelines.made(launch));
            pass.set_bind_group(0, bind_group, &[coefficients_offset, segments.offset]);
            let (x, y) = grid(launch.chunks, workgroups_per_dimension);
            pass.dispatch_workgroups(x, y, 1);
        }
        pass.on_submitted_work_done(move || drop((coefficients, segments)));
    }

    /// Lets go of the caller's buffers: the step is recorded, and they may be other ones at the next.
    pub fn release(&mut self) {
        self.bind_groups.clear();
        self.buffers.clear();
        self.segments_slot = None;
        self.bound = None;
        if let Some(preparation) = &mut self.preparation {
            preparation.norms.clear();
            preparation.bound = None;
        }
    }
}

fn binding(buffer: &wgpu::Buffer, offset: u64, bytes: u64) -> wgpu::BindingResource<'_> {
    wgpu::BindingResource::Buffer(wgpu::BufferBinding {
        buffer,
        offset,
        size: std::num::NonZeroU64::new(bytes),
    })
}

fn chunk_buffer(at: &Device<'_>, plan: &Plan) -> Result<wgpu::Buffer, Refusal> {
    let table = plan.chunk_table();
    let bytes: &[u8] = bytemuck::cast_slice(&table);
    catch(at.device, || {
        let buffer = at.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod.chunks"),
            size: (bytes.len() as u64).max(size_of::<Chunk>() as u64),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: true,
        });
        if let Ok(mut view) = buffer.get_mapped_range_mut(..bytes.len() as u64) {
            view.copy_from_slice(bytes);
        }
        buffer.unmap();
        buffer
    })
}
