//! Steps that the device counts: its control buffer, the tables of parameters and groups, and the dispatches before an update.

use std::ops::Range;

use bytemuck::Zeroable;

use super::registry::{Registry, Selection};
use super::step::Part;
use crate::device::error_scope::DeviceError;
use crate::device::gpu::{Gpu, binding};
use crate::device::ring::{Lease, Ring};
use crate::kernels::abi::{self, Partial, Row};
use crate::kernels::bindings;
use crate::kernels::pipeline::{BindGroups, Kernel, LEAST_GROUP_TABLE_BYTES, NormEnd, Pipelines};
use crate::kernels::rows::GroupTable;
use crate::kernels::variant::GradientBinding;
use crate::options::{DeviceControl, LossScale, Options};
use crate::plan::launches::{Launch, Plan};
use crate::rules::range::OutOfRange;

/// What the device keeps of its steps, and what it needs to prepare one.
#[derive(Debug)]
pub struct DeviceSteps {
    settings: DeviceControl,
    uses_norm: bool,
    most_partials: u32,
    norm_is_fused: bool,
    control: wgpu::Buffer,
    prepared: wgpu::Buffer,
    generation: u64,
    rows: Ring,
    groups: Ring,
    /// The selection and the revision of the parameters that the slot of rows has.
    rows_written: Option<(Option<Vec<bool>>, u64)>,
    rows_slot: Option<Lease>,
    /// The revision of the groups and the largest norm that the slot of groups has.
    groups_written: Option<(u64, f32)>,
    groups_slot: Option<Lease>,
    group_table: GroupTable,
    /// Binds the schedule of the learning rates, if there is one.
    schedule: Option<wgpu::BindGroup>,
    /// Binds the control of the first optimizer of the last joint step and this one's, if this was another one there.
    joint: Option<Joint>,
}

/// The bind groups of the kernels of joint steps.
#[derive(Debug)]
struct Joint {
    /// The control buffer of the first optimizer.
    first: wgpu::Buffer,
    join: wgpu::BindGroup,
    follow: wgpu::BindGroup,
}

const USAGES: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

impl DeviceSteps {
    /// The most parameters of an optimizer whose steps the device counts, each in a word of the control buffer.
    pub const MOST_PARAMETERS: usize = 1 << 18;
    /// Where the step counts start in the control buffer.
    const STEP_COUNTS_OFFSET: u64 = size_of::<abi::ControlHead>() as u64;
    /// Size of the control buffer.
    pub const CONTROL_BYTES: u64 = Self::STEP_COUNTS_OFFSET + 4 * Self::MOST_PARAMETERS as u64;

    pub fn new(gpu: &Gpu, options: &Options, settings: DeviceControl) -> Result<Self, DeviceError> {
        let initial =
            abi::ControlHead { control: initial(&settings), rate_factor: 1.0, ..abi::ControlHead::zeroed() };
        let (control, prepared) = gpu.catch(|| {
            let control =
                gpu.buffer_with("control", Self::CONTROL_BYTES, USAGES, bytemuck::bytes_of(&initial));
            (control, prepared_buffer(gpu, size_of::<abi::Coefficients>() as u64))
        })?;
        Ok(Self {
            uses_norm: settings.uses_norm(),
            settings,
            most_partials: options
                .tuning
                .most_partials
                .unwrap_or_else(|| options.workgroups.most_partials(&gpu.device)),
            norm_is_fused: options.norm_dispatch.is_fused(&gpu.device),
            control,
            prepared,
            generation: 0,
            rows: Ring::new(gpu, "rows", 2, size_of::<Row>() as u64)?,
            groups: Ring::new(gpu, "groups", 4, LEAST_GROUP_TABLE_BYTES as u64)?,
            rows_written: None,
            rows_slot: None,
            groups_written: None,
            groups_slot: None,
            group_table: GroupTable::default(),
            schedule: None,
            joint: None,
        })
    }

    /// Whether steps compute a norm, as decided when the optimizer was created.
    pub fn uses_norm(&self) -> bool {
        self.uses_norm
    }

    /// Sets the largest norm from the next recorded step on.
    pub fn set_max_norm(&mut self, max_norm: Option<f64>) -> Result<(), OutOfRange> {
        let settings = DeviceControl { max_norm, ..self.settings };
        settings.check_max_norm()?;
        self.settings = settings;
        Ok(())
    }

    /// Settings of the steps, with the largest norm as it is now.
    pub fn settings(&self) -> &DeviceControl {
        &self.settings
    }

    /// Takes the factor of all learning rates from `factors`, by the number of steps taken.
    pub fn set_schedule(
        &mut self,
        gpu: &Gpu,
        pipelines: &mut Pipelines,
        factors: &[f32],
    ) -> Result<(), DeviceError> {
        pipelines.make(Kernel::Schedule)?;
        let bytes: &[u8] = bytemuck::cast_slice(factors);
        let buffer = gpu
            .catch(|| gpu.buffer_with("schedule", bytes.len() as u64, wgpu::BufferUsages::STORAGE, bytes))?;
        let entries = [
            (bindings::CONTROL, self.control.as_entire_binding()),
            (bindings::SCHEDULE, buffer.as_entire_binding()),
        ];
        self.schedule = Some(pipelines.bind_group(&Kernel::Schedule, entries)?);
        Ok(())
    }

    /// Prepares this optimizer to follow the one with the control buffer `first` in a joint step.
    pub fn follow(&mut self, pipelines: &mut Pipelines, first: &wgpu::Buffer) -> Result<(), DeviceError> {
        if self.joint.as_ref().is_some_and(|joint| joint.first == *first) {
            return Ok(());
        }
        let mut bind = |kernel| {
            pipelines.make(kernel)?;
            let entries = [
                (bindings::CONTROL, first.as_entire_binding()),
                (bindings::OTHER_CONTROL, self.control.as_entire_binding()),
            ];
            pipelines.bind_group(&kernel, entries)
        };
        let (join, follow) = (bind(Kernel::Join)?, bind(Kernel::Follow)?);
        self.joint = Some(Joint { first: first.clone(), join, follow });
        Ok(())
    }

    /// Records a kernel of joint steps, after [`DeviceSteps::follow`].
    pub fn record_joint(&self, pass: &mut wgpu::ComputePass<'_>, pipelines: &Pipelines, kernel: Kernel) {
        let Some(joint) = &self.joint else { return };
        let bind_group = if kernel == Kernel::Join { &joint.join } else { &joint.follow };
        pass.set_pipeline(pipelines.get(&kernel));
        pass.set_bind_group(0, bind_group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }

    /// [`abi::Control`] at its start, and the step counts of all parameters.
    pub fn control(&self) -> &wgpu::Buffer {
        &self.control
    }

    /// Byte offset of a parameter's step count in the control buffer, a u32.
    pub fn step_count_offset(index: usize) -> u64 {
        Self::STEP_COUNTS_OFFSET + 4 * index as u64
    }

    /// The control to continue with after a checkpoint. A constant loss scale stays this optimizer's.
    #[cfg(feature = "checkpoint")]
    pub fn continued(&self, saved: &abi::Control) -> abi::Control {
        match self.settings.loss_scale {
            LossScale::Constant(scale) => abi::Control { loss_scale: scale as f32, ..*saved },
            LossScale::Dynamic { .. } => *saved,
        }
    }

    /// The control of a new optimizer.
    #[cfg(feature = "checkpoint")]
    pub fn initial(&self) -> abi::Control {
        initial(&self.settings)
    }

    /// The prepared coefficients.
    pub fn prepared(&self) -> wgpu::BindingResource<'_> {
        self.prepared.as_entire_binding()
    }

    /// Changes whenever the prepared coefficients lie in another buffer.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Uploads which parameters step, the group of each, and each group's hyperparameters, if any of them has changed.
    pub fn update(
        &mut self,
        gpu: &Gpu,
        registry: &Registry,
        selection: &Selection,
    ) -> Result<(), DeviceError> {
        // Nothing may be uploaded below, so that a lost device would not show.
        if gpu.is_lost() {
            return Err(DeviceError::Lost);
        }
        let revisions = registry.revisions();
        let is_written = self.rows_written.as_ref().is_some_and(|(present, parameters)| {
            *present == selection.present && *parameters == revisions.parameters
        });
        if !is_written {
            self.rows_written = None;
            let rows: Vec<Row> = (0..registry.end())
                .map(|index| match registry.at(index) {
                    Some(record) if selection.present.as_ref().is_none_or(|present| present[index]) => {
                        Row { group: record.group.key.index() as u32, activity: abi::ACTIVE }
                    }
                    _ => Row { group: 0, activity: abi::INACTIVE },
                })
                .collect();
            self.rows_slot = Some(self.rows.write(gpu, bytemuck::cast_slice(&rows))?);
            self.rows_written = Some((selection.present.clone(), revisions.parameters));
        }
        let max_norm = self.settings.max_norm.unwrap_or(0.0) as f32;
        if self.groups_written != Some((revisions.groups, max_norm)) {
            self.group_table.update(registry.group_places().map(|of| of.map(|group| &group.hyperparameters)));
            let table = self.group_table.bytes(max_norm);
            self.groups_slot = Some(self.groups.write(gpu, &table)?);
            self.groups_written = Some((revisions.groups, max_norm));
        }
        // As many rows as the slot has room for, because the kernel takes their number from the buffer.
        let rows = self.rows.slot_bytes() / size_of::<Row>() as u64;
        let bytes = rows * size_of::<abi::Coefficients>() as u64;
        if self.prepared.size() < bytes {
            self.prepared = gpu.catch(|| prepared_buffer(gpu, bytes))?;
            self.generation += 1;
        }
        Ok(())
    }

    fn bindings(&self) -> [(u32, wgpu::BindingResource<'_>); 4] {
        [
            (bindings::ROWS, self.rows.binding()),
            (bindings::GROUPS, self.groups.binding()),
            (bindings::CONTROL, self.control.as_entire_binding()),
            (bindings::PREPARED, self.prepared.as_entire_binding()),
        ]
    }

    fn generations(&self) -> [u64; 3] {
        [self.rows.generation(), self.groups.generation(), self.generation]
    }
}

/// The control before the first step.
fn initial(settings: &DeviceControl) -> abi::Control {
    abi::Control {
        loss_scale: settings.loss_scale.initial() as f32,
        multiplier: 1.0,
        norm: 0.0,
        growth_tracker: 0,
        taken: 0,
        skipped: 0,
        skipped_in_a_row: 0,
    }
}

/// Overrides of the kernels that prepare steps.
pub fn control_constants(settings: &DeviceControl) -> Vec<(&'static str, f64)> {
    let flag = |value: bool| f64::from(u8::from(value));
    let mut constants = vec![
        ("USES_NORM", flag(settings.uses_norm())),
        ("SKIPS", flag(settings.skips())),
        ("LEAST_LOSS_SCALE", settings.least_loss_scale),
    ];
    if let LossScale::Dynamic { growth_factor, backoff_factor, growth_interval, .. } = settings.loss_scale {
        constants.extend([
            ("IS_DYNAMIC", 1.0),
            ("GROWTH_FACTOR", growth_factor),
            ("BACKOFF_FACTOR", backoff_factor),
            ("GROWTH_INTERVAL", growth_interval.into()),
        ]);
    }
    constants
}

fn prepared_buffer(gpu: &Gpu, bytes: u64) -> wgpu::Buffer {
    gpu.buffer("prepared", bytes, USAGES)
}

const PARTIAL_BYTES: u64 = size_of::<Partial>() as u64;

/// The dispatches before the update of one plan.
#[derive(Debug)]
pub struct Preparation {
    /// Partial sums of the norm. Those between launches stay zero.
    partials: wgpu::Buffer,
    /// The partial sums of each launch.
    of_launches: Vec<Range<u64>>,
    /// The dispatches of each part of a step, with the generations of the rings and of the segments that they bind.
    parts: [Option<(Vec<Dispatch>, Generations)>; Part::COUNT],
}

/// Generations of the buffers of rows, groups and coefficients, of the ring of segments, and of the custom rules.
type Generations = ([u64; 3], u64, usize);

#[derive(Debug)]
struct Dispatch {
    kernel: Kernel,
    bind_groups: BindGroups,
    workgroups: u32,
    /// Which of the slots of segments, rows and groups it binds.
    slots: Range<usize>,
}

/// How a launch's gradients and chunks are bound.
pub struct LaunchBindings<'a> {
    pub segments: wgpu::BindingResource<'a>,
    pub chunks: wgpu::BindingResource<'a>,
    /// One for each window.
    pub gradients: Vec<wgpu::BufferBinding<'a>>,
}

impl Preparation {
    pub fn new(gpu: &Gpu, plan: &Plan, steps: &DeviceSteps) -> Result<Self, DeviceError> {
        let alignment = gpu.device.limits().min_storage_buffer_offset_alignment;
        let of_launches = plan.partials(alignment.into(), steps.most_partials);
        let entries = of_launches.last().map_or(1, |last| last.end);
        let partials =
            gpu.catch(|| gpu.buffer("partials", entries * PARTIAL_BYTES, wgpu::BufferUsages::STORAGE))?;
        Ok(Self { partials, of_launches, parts: [const { None }; Part::COUNT] })
    }

    /// Brings the dispatches up to date for a part of a step.
    pub fn update<'a>(
        &mut self,
        pipelines: &mut Pipelines,
        steps: &DeviceSteps,
        launches: &[Launch],
        part: Part,
        segments_generation: u64,
        bindings_of: impl Fn(&Launch) -> LaunchBindings<'a>,
    ) -> Result<(), DeviceError> {
        let generations = (steps.generations(), segments_generation, pipelines.custom_rules());
        if self.parts[part as usize].as_ref().is_some_and(|(_, bound)| *bound == generations) {
            return Ok(());
        }
        let mut dispatches = Vec::new();
        let looks_at_gradients = steps.uses_norm() && matches!(part, Part::Whole | Part::Norm);
        if looks_at_gradients && !launches.is_empty() {
            for (index, launch) in launches.iter().enumerate() {
                let end = match part {
                    _ if !steps.norm_is_fused || index + 1 < launches.len() => NormEnd::Launch,
                    Part::Norm => NormEnd::Norm,
                    Part::Whole | Part::AfterNorm | Part::AfterJointNorm => NormEnd::Prepare,
                };
                let kernel = launch.norm_kernel(end);
                pipelines.make(kernel)?;
                let partials = &self.of_launches[index];
                // The last launch binds the partial sums of all launches.
                let first = if end == NormEnd::Launch { partials.start } else { 0 };
                let LaunchBindings { segments, chunks, gradients } = bindings_of(launch);
                let at = match launch.binding {
                    GradientBinding::Shared => bindings::PARAMETERS,
                    GradientBinding::Read | GradientBinding::ReadWrite => bindings::GRADIENTS,
                };
                let mut entries = vec![
                    (bindings::SEGMENTS, segments),
                    (bindings::CHUNKS, chunks),
                    (
                        bindings::PARTIALS,
                        binding(
                            &self.partials,
                            first * PARTIAL_BYTES,
                            (partials.end - first) * PARTIAL_BYTES,
                        ),
                    ),
                ];
                let slots = match end {
                    NormEnd::Launch => {
                        entries.push((bindings::ROWS, steps.rows.binding()));
                        0..2
                    }
                    NormEnd::Prepare | NormEnd::Norm => {
                        entries.extend(steps.bindings());
                        0..3
                    }
                };
                let bind_groups = pipelines.bind_groups(&kernel, entries, vec![(at, gradients)])?;
                let workgroups = (partials.end - partials.start) as u32;
                dispatches.push(Dispatch { kernel, bind_groups, workgroups, slots });
            }
            if !steps.norm_is_fused {
                let kernel = Kernel::Partials { norm_only: part == Part::Norm };
                pipelines.make(kernel)?;
                let partials = [(bindings::PARTIALS, self.partials.as_entire_binding())];
                let entries = partials.into_iter().chain(steps.bindings());
                let bind_groups = pipelines.bind_group(&kernel, entries)?.into();
                dispatches.push(Dispatch { kernel, bind_groups, workgroups: 1, slots: 1..3 });
            }
        } else {
            let no_norm = looks_at_gradients.then_some(Kernel::NoNorm);
            let prepare = match part {
                Part::Norm => None,
                Part::Whole | Part::AfterNorm => Some(Kernel::Prepare),
                Part::AfterJointNorm => Some(Kernel::PrepareJoint),
            };
            for kernel in no_norm.into_iter().chain(prepare) {
                pipelines.make(kernel)?;
                let bind_groups = pipelines.bind_group(&kernel, steps.bindings())?.into();
                dispatches.push(Dispatch { kernel, bind_groups, workgroups: 1, slots: 1..3 });
            }
        }
        self.parts[part as usize] = Some((dispatches, generations));
        Ok(())
    }

    /// Records the dispatches of a part of a step.
    pub fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        pipelines: &Pipelines,
        steps: &DeviceSteps,
        segments: &Lease,
        part: Part,
    ) {
        let Some((dispatches, _)) = &self.parts[part as usize] else { return };
        let Some((rows, groups)) = steps.rows_slot.clone().zip(steps.groups_slot.clone()) else { return };
        if let Some(schedule) = &steps.schedule
            && part != Part::Norm
        {
            pass.set_pipeline(pipelines.get(&Kernel::Schedule));
            pass.set_bind_group(0, schedule, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
        // In the order of their bindings.
        let offsets = [segments.offset, rows.offset, groups.offset];
        for dispatch in dispatches {
            pass.set_pipeline(pipelines.get(&dispatch.kernel));
            dispatch.bind_groups.set(pass, &offsets[dispatch.slots.clone()]);
            pass.dispatch_workgroups(dispatch.workgroups, 1, 1);
        }
        let segments = segments.clone();
        pass.on_submitted_work_done(move || drop((segments, rows, groups)));
    }

    /// Drops everything that refers to the caller's buffers.
    pub fn release(&mut self) {
        self.parts = [const { None }; Part::COUNT];
    }
}
