//! Steps that the device prepares: step counts, loss scale, clip and skipping, with nothing asked of the host.

use std::collections::HashMap;

use crate::error::{CreateError, EncodeError};
use crate::hyperparameters::{Formula, Rule};
use crate::layout::{self, Chunk, Coefficients, Partial, Row, Segment};
use crate::optimizer::Options;
use crate::pipeline::{compute_pipeline, storage_entry};
use crate::plan::Launch;
use crate::ring::{Lease, Ring};
use crate::scope::{Refusal, catch};
use crate::shader::{Access, GradientBinding, norm_source, prepare_source};

/// Who keeps step counts and computes coefficients.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Control {
    /// The host, in f64; uploads one small table a step. Gradients are used as they are: infinite and NaN ones propagate.
    #[default]
    Host,
    /// The device, in f32 to 1e-6: PyTorch's `capturable`. Any number of steps can be recorded ahead; only what the caller
    /// changes is uploaded. Steps can be called off and gradients rescaled without a read-back.
    Device(DeviceControl),
}

/// What the device does with gradients before a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceControl {
    /// By what the engine multiplies its loss; gradients are divided by it.
    pub loss_scale: LossScale,
    /// Largest norm of all gradients of a step together, without the loss scale and times the engine's multiplier
    /// ([`Optimizer::MULTIPLIER_OFFSET`](crate::Optimizer::MULTIPLIER_OFFSET)): larger ones are scaled down to it. PyTorch's
    /// `clip_grad_norm_`, but without its 1e-6 in the denominator. Above 0.
    pub max_norm: Option<f64>,
    /// What becomes of a step with infinite or NaN gradients.
    pub non_finite: NonFinite,
}

impl Default for DeviceControl {
    fn default() -> Self {
        Self { loss_scale: LossScale::Constant(1.0), max_norm: None, non_finite: NonFinite::Skip }
    }
}

/// By what the engine multiplies its loss, so that small gradients survive 16 bits. The engine reads it where
/// [`Optimizer::control_buffer`](crate::Optimizer::control_buffer) has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossScale {
    /// Always the same, also after a checkpoint with another one. Above 0.
    Constant(f64),
    /// As `torch.amp.GradScaler`: a step whose gradients are not finite is skipped, whatever [`DeviceControl::non_finite`] says,
    /// and the scale is multiplied by `backoff_factor`, down to 2^-126; after `growth_interval` steps without one, by
    /// `growth_factor`. It goes on from a checkpoint's.
    Dynamic {
        /// The first scale; PyTorch's 65,536. Above 0.
        initial: f64,
        /// PyTorch's 2. At least 1.
        growth_factor: f64,
        /// PyTorch's 0.5. In (0, 1).
        backoff_factor: f64,
        /// PyTorch's 2,000. At least 1.
        growth_interval: u32,
    },
}

impl LossScale {
    /// PyTorch's defaults.
    pub const DYNAMIC: Self =
        Self::Dynamic { initial: 65_536.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2000 };

    fn initial(self) -> f64 {
        match self {
            Self::Constant(scale) | Self::Dynamic { initial: scale, .. } => scale,
        }
    }
}

/// What becomes of a step with infinite or NaN gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// It is called off as a whole: no parameter, state or step count of any group changes. Costs a pass over the gradients.
    #[default]
    Skip,
    /// They propagate into the elements they belong to, and nothing looks for them unless a norm is needed.
    Propagate,
}

/// What the device has counted, as of the latest step that has finished.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps taken.
    pub taken: u32,
    /// Steps called off.
    pub skipped: u32,
    /// The loss scale.
    pub loss_scale: f32,
    /// Norm of the latest step's gradients, without the loss scale and the engine's multiplier; infinite if an element is not
    /// finite. 0 where no norm is needed.
    pub norm: f32,
}

impl Progress {
    pub(crate) const BYTES: u64 = size_of::<layout::Control>() as u64;

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let control: layout::Control = bytemuck::pod_read_unaligned(bytes);
        let layout::Control { taken, skipped, loss_scale, norm, .. } = control;
        Self { taken, skipped, loss_scale, norm }
    }
}

impl DeviceControl {
    /// Whether a step looks at all gradients first.
    pub(crate) fn uses_norm(&self) -> bool {
        self.max_norm.is_some() || self.skips()
    }

    fn skips(&self) -> bool {
        self.non_finite == NonFinite::Skip || matches!(self.loss_scale, LossScale::Dynamic { .. })
    }

    pub(crate) fn validate(&self) -> Result<(), CreateError> {
        let check = |name, found: f64, needed, holds: bool| {
            if found.is_finite() && holds {
                Ok(())
            } else {
                Err(CreateError::Control { name, found, needed })
            }
        };
        let positive = |value: f64| (value as f32).is_normal() && value > 0.0;
        let needed = "a number above 0 and normal in f32";
        check("loss_scale", self.loss_scale.initial(), needed, positive(self.loss_scale.initial()))?;
        if let LossScale::Dynamic { growth_factor, backoff_factor, growth_interval, .. } = self.loss_scale {
            let is_growth = growth_factor >= 1.0 && (growth_factor as f32).is_finite();
            check("growth_factor", growth_factor, "at least 1, and finite in f32", is_growth)?;
            let is_backoff = positive(backoff_factor) && (backoff_factor as f32) < 1.0;
            check("backoff_factor", backoff_factor, "a number in (0, 1), normal in f32", is_backoff)?;
            check("growth_interval", growth_interval.into(), "at least 1", growth_interval >= 1)?;
        }
        let max_norm = self.max_norm.unwrap_or(1.0);
        check("max_norm", max_norm, needed, positive(max_norm))
    }

    /// Overrides of the kernels that prepare steps.
    fn constants(&self, rule: Rule, formula: Formula, lanes: u32) -> Vec<(&'static str, f64)> {
        let flag = |value: bool| f64::from(u8::from(value));
        let formula = match (rule, formula) {
            (Rule::Sgd, _) => 2.0,
            (Rule::AdaMod, Formula::AuthorsCode) => 1.0,
            (Rule::AdaMod, Formula::Paper) | (Rule::Adam, _) => 0.0,
        };
        let mut constants = vec![
            ("LANES", lanes.into()),
            ("USES_NORM", flag(self.uses_norm())),
            ("SKIPS", flag(self.skips())),
            ("MAX_NORM", self.max_norm.unwrap_or(0.0)),
            ("FORMULA", formula),
        ];
        if let LossScale::Dynamic { growth_factor, backoff_factor, growth_interval, .. } = self.loss_scale {
            constants.extend([
                ("IS_DYNAMIC", 1.0),
                ("GROWTH_FACTOR", growth_factor),
                ("BACKOFF_FACTOR", backoff_factor),
                ("GROWTH_INTERVAL", growth_interval.into()),
            ]);
        }
        constants
    }
}

/// What of a step is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it.
    Whole,
    /// The norm of its gradients.
    Norm,
    /// The rest.
    AfterNorm,
}

/// Which parameters step.
#[derive(Clone, Copy, Debug)]
pub enum Present<'a> {
    /// All of so many.
    All(usize),
    /// Those that are marked.
    Some(&'a [bool]),
}

#[derive(Debug, PartialEq)]
enum Stepping {
    All(usize),
    Some(Vec<bool>),
}

impl Present<'_> {
    fn is(&self, other: &Stepping) -> bool {
        match (self, other) {
            (Self::All(count), Stepping::All(other)) => count == other,
            (Self::Some(marks), Stepping::Some(other)) => marks == other,
            _ => false,
        }
    }

    fn to_owned(self) -> Stepping {
        match self {
            Self::All(count) => Stepping::All(count),
            Self::Some(marks) => Stepping::Some(marks.to_vec()),
        }
    }

    fn marks(self) -> Vec<bool> {
        match self {
            Self::All(count) => vec![true; count],
            Self::Some(marks) => marks.to_vec(),
        }
    }
}

/// Buffers, tables and pipelines of steps that the device prepares.
#[derive(Debug)]
pub struct DeviceSteps {
    settings: DeviceControl,
    most_partials: u32,
    constants: Vec<(&'static str, f64)>,
    kept: wgpu::Buffer,
    prepared: wgpu::Buffer,
    generation: u64,
    rows: Ring,
    groups: Ring,
    /// Which parameters step by the rows' slot; `None` when it has to be written.
    rows_written: Option<Stepping>,
    rows_slot: Option<Lease>,
    groups_slot: Option<Lease>,
    prepare: Kernel,
    /// Sets the norm to zero, where there is one.
    no_norm: Option<wgpu::ComputePipeline>,
    norms: HashMap<NormKey, Kernel>,
}

#[derive(Debug)]
struct Kernel {
    layout: wgpu::BindGroupLayout,
    pipeline: wgpu::ComputePipeline,
}

/// What the kernel of a launch's norm depends on.
type NormKey = (Access, GradientBinding, Option<u32>, NormEnd);

/// What comes after a launch's norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormEnd {
    /// The norm of another launch.
    Launch,
    /// Nothing: the norm is complete, and what the step needs from it is prepared unless only the norm is asked for.
    Step {
        /// The step is recorded in two parts.
        norm_only: bool,
    },
}

impl NormEnd {
    /// Of each of so many launches.
    pub fn of_launches(launches: usize, part: Part) -> impl Iterator<Item = Self> {
        let last = Self::Step { norm_only: part != Part::Whole };
        (1..launches).map(|_| Self::Launch).chain(std::iter::once(last))
    }
}

/// What a launch's norm binds.
pub struct NormBindings<'a> {
    /// Slot of segments; dynamic offset.
    pub segments: wgpu::BindingResource<'a>,
    /// The launch's part of the chunk table.
    pub chunks: wgpu::BindingResource<'a>,
    /// Window of gradients, or of values with the gradients in it.
    pub gradients: wgpu::BindingResource<'a>,
    /// The launch's part of the partial sums; for the last launch, all of them.
    pub partials: wgpu::BindingResource<'a>,
}

impl DeviceSteps {
    /// Parameters of an optimizer whose steps the device prepares: it counts the steps of each.
    pub const MOST_PARAMETERS: usize = 1 << 18;
    /// Where the step counts start in what is kept: behind the control, and the number of workgroups that are done.
    const STEP_COUNTS_OFFSET: u64 = size_of::<layout::Control>() as u64 + 4;
    const KEPT_BYTES: u64 = Self::STEP_COUNTS_OFFSET + 4 * Self::MOST_PARAMETERS as u64;

    pub fn new(
        device: &wgpu::Device,
        settings: DeviceControl,
        options: &Options,
    ) -> Result<Self, CreateError> {
        settings.validate()?;
        let (found, needed) = (device.limits().max_storage_buffer_binding_size, Self::KEPT_BYTES);
        if found < needed {
            return Err(CreateError::Limit { limit: "max_storage_buffer_binding_size", found, needed });
        }
        let Options { rule, formula, workgroups, .. } = *options;
        let constants = settings.constants(rule, formula, workgroups.lanes(device));
        let initial = layout::Control {
            loss_scale: settings.loss_scale.initial() as f32,
            multiplier: 1.0,
            norm: 0.0,
            growth_tracker: 0,
            taken: 0,
            skipped: 0,
        };
        let (kept, prepared, prepare, no_norm) = catch(device, || {
            let kept = device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("adamod.control"),
                size: Self::KEPT_BYTES,
                usage: USAGES,
                mapped_at_creation: true,
            });
            let bytes = bytemuck::bytes_of(&initial);
            if let Ok(mut view) = kept.get_mapped_range_mut(..bytes.len() as u64) {
                view.copy_from_slice(bytes);
            }
            kept.unmap();
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("adamod.prepare"),
                entries: &prepare_entries(),
            });
            let made = |entry_point| {
                compute_pipeline(device, "adamod.prepare", &layout, prepare_source(), entry_point, &constants)
            };
            let pipeline = made("prepare");
            let no_norm = settings.uses_norm().then(|| made("no_norm"));
            let prepared = prepared_buffer(device, size_of::<Coefficients>() as u64);
            (kept, prepared, Kernel { layout, pipeline }, no_norm)
        })?;
        Ok(Self {
            settings,
            most_partials: workgroups.most_partials(device),
            constants,
            kept,
            prepared,
            generation: 0,
            rows: Ring::new(device, "adamod.rows", 2, size_of::<Row>() as u64)?,
            groups: Ring::new(device, "adamod.groups", 4, size_of::<layout::Group>() as u64)?,
            rows_written: None,
            rows_slot: None,
            groups_slot: None,
            prepare,
            no_norm,
            norms: HashMap::new(),
        })
    }

    /// Partial sums of a norm, besides one a launch.
    pub fn most_partials(&self) -> u32 {
        self.most_partials
    }

    pub fn uses_norm(&self) -> bool {
        self.settings.uses_norm()
    }

    /// What is kept from step to step: [`layout::Control`] at its start, and all parameters' step counts.
    pub fn kept(&self) -> &wgpu::Buffer {
        &self.kept
    }

    /// Byte offset of a parameter's step count in what is kept, a u32.
    pub fn step_count_offset(index: usize) -> u64 {
        Self::STEP_COUNTS_OFFSET + 4 * index as u64
    }

    /// The coefficients that are prepared, and a number that changes whenever they lie elsewhere.
    pub fn prepared(&self) -> (wgpu::BindingResource<'_>, u64) {
        (self.prepared.as_entire_binding(), self.generation)
    }

    /// Parameters came or went.
    pub fn forget_rows(&mut self) {
        self.rows_written = None;
    }

    /// A group's hyperparameters have changed.
    pub fn forget_groups(&mut self) {
        self.groups_slot = None;
    }

    /// Brings the tables up to date: which parameters step, the group of each, and each group's hyperparameters.
    pub fn upload(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        present: Present<'_>,
        group_of: impl Fn(usize) -> u32,
        groups: impl Iterator<Item = layout::Group>,
    ) -> Result<(), EncodeError> {
        if !self.rows_written.as_ref().is_some_and(|written| present.is(written)) {
            self.rows_written = None;
            let row = |(index, steps): (usize, bool)| Row {
                group: group_of(index),
                activity: if steps { layout::ACTIVE } else { layout::INACTIVE },
            };
            let rows: Vec<Row> = present.marks().into_iter().enumerate().map(row).collect();
            self.rows_slot = Some(self.rows.write(device, queue, bytemuck::cast_slice(&rows))?);
            self.rows_written = Some(present.to_owned());
        }
        if self.groups_slot.is_none() {
            let groups: Vec<_> = groups.collect();
            self.groups_slot = Some(self.groups.write(device, queue, bytemuck::cast_slice(&groups))?);
        }
        // As many as the rows' slot has room for: the kernel goes by how many there are.
        let needed = self.rows.slot_bytes() / size_of::<Row>() as u64 * size_of::<Coefficients>() as u64;
        if self.prepared.size() < needed {
            self.prepared = catch(device, || prepared_buffer(device, needed))?;
            self.generation += 1;
        }
        Ok(())
    }

    /// Makes the kernels of the launches' norms for a part of a step, those that are not there yet.
    pub fn make_norms(
        &mut self,
        device: &wgpu::Device,
        launches: &[Launch],
        part: Part,
    ) -> Result<(), Refusal> {
        for (launch, end) in launches.iter().zip(NormEnd::of_launches(launches.len(), part)) {
            let key = norm_key(launch, end);
            if !self.norms.contains_key(&key) {
                let made = catch(device, || Kernel::norm(device, key, &self.constants))?;
                self.norms.insert(key, made);
            }
        }
        Ok(())
    }

    /// The bind group of a launch's norm, whose kernel has been made.
    pub fn bind_norm(
        &self,
        device: &wgpu::Device,
        launch: &Launch,
        end: NormEnd,
        bindings: NormBindings<'_>,
    ) -> Result<wgpu::BindGroup, Refusal> {
        let gradients = if launch.binding == GradientBinding::Shared { 3 } else { 4 };
        let mut entries = vec![
            entry(1, bindings.segments),
            entry(2, bindings.chunks),
            entry(gradients, bindings.gradients),
            entry(PARTIALS, bindings.partials),
        ];
        match end {
            NormEnd::Launch => entries.push(entry(ROWS, self.rows.binding())),
            NormEnd::Step { .. } => entries.extend(self.prepare_bindings()),
        }
        catch(device, || {
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("adamod.norm"),
                layout: &self.norms[&norm_key(launch, end)].layout,
                entries: &entries,
            })
        })
    }

    /// Generation of what `bind_norm` and `bind_prepare` bind.
    pub fn ring_generations(&self) -> (u64, u64, u64) {
        (self.rows.generation(), self.groups.generation(), self.generation)
    }

    fn prepare_bindings(&self) -> [wgpu::BindGroupEntry<'_>; 4] {
        [
            entry(ROWS, self.rows.binding()),
            entry(GROUPS, self.groups.binding()),
            entry(KEPT, self.kept.as_entire_binding()),
            entry(PREPARED, self.prepared.as_entire_binding()),
        ]
    }

    /// The bind group of a preparation by itself.
    pub fn bind_prepare(&self, device: &wgpu::Device) -> Result<wgpu::BindGroup, Refusal> {
        catch(device, || {
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("adamod.prepare"),
                layout: &self.prepare.layout,
                entries: &self.prepare_bindings(),
            })
        })
    }

    /// The slots of rows and groups that a step uses; `None` before the first upload.
    pub fn slots(&self) -> Option<(Lease, Lease)> {
        self.rows_slot.clone().zip(self.groups_slot.clone())
    }

    /// Records a launch's norm in so many workgroups.
    pub fn record_norm(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        launch: &Launch,
        end: NormEnd,
        bind_group: &wgpu::BindGroup,
        (segments, rows, groups): (&Lease, &Lease, &Lease),
        workgroups: u32,
    ) {
        pass.set_pipeline(&self.norms[&norm_key(launch, end)].pipeline);
        // In the order of their bindings.
        let offsets = [segments.offset, rows.offset, groups.offset];
        let count = if end == NormEnd::Launch { 2 } else { 3 };
        pass.set_bind_group(0, bind_group, &offsets[..count]);
        pass.dispatch_workgroups(workgroups, 1, 1);
    }

    /// Records what comes before a step that has no gradients on this device: the norm of nothing, and the preparation.
    pub fn record_without_gradients(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        bind_group: &wgpu::BindGroup,
        slots: (&Lease, &Lease),
        part: Part,
    ) {
        if part != Part::AfterNorm
            && let Some(no_norm) = &self.no_norm
        {
            pass.set_pipeline(no_norm);
            pass.set_bind_group(0, bind_group, &[slots.0.offset, slots.1.offset]);
            pass.dispatch_workgroups(1, 1, 1);
        }
        if part != Part::Norm {
            self.record_prepare(pass, bind_group, slots);
        }
    }

    /// What to go on with from a checkpoint: a constant loss scale is the engine's.
    pub fn continued(&self, saved: &layout::Control) -> layout::Control {
        match self.settings.loss_scale {
            LossScale::Constant(scale) => layout::Control { loss_scale: scale as f32, ..*saved },
            LossScale::Dynamic { .. } => *saved,
        }
    }

    /// Records a preparation by itself.
    pub fn record_prepare(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        bind_group: &wgpu::BindGroup,
        (rows, groups): (&Lease, &Lease),
    ) {
        pass.set_pipeline(&self.prepare.pipeline);
        pass.set_bind_group(0, bind_group, &[rows.offset, groups.offset]);
        pass.dispatch_workgroups(1, 1, 1);
    }
}

fn norm_key(launch: &Launch, end: NormEnd) -> NormKey {
    (launch.access, launch.binding, launch.format, end)
}

impl Kernel {
    fn norm(
        device: &wgpu::Device,
        (access, binding, format, end): NormKey,
        constants: &[(&'static str, f64)],
    ) -> Self {
        let word_bytes = match access {
            Access::Vec4 => 16,
            Access::Vec2 => 8,
            Access::Scalar => 4,
        };
        let gradients = match binding {
            GradientBinding::Read => storage_entry(4, true, false, word_bytes),
            GradientBinding::ReadWrite => storage_entry(4, false, false, word_bytes),
            GradientBinding::Shared => storage_entry(3, false, false, word_bytes),
        };
        let mut entries = vec![
            storage_entry(1, true, true, size_of::<Segment>() as u64),
            storage_entry(2, true, false, size_of::<Chunk>() as u64),
            gradients,
            storage_entry(PARTIALS, false, false, size_of::<Partial>() as u64),
        ];
        let (entry_point, of_step) = match end {
            NormEnd::Launch => ("norm_of_chunks", 1),
            NormEnd::Step { .. } => ("norm_and_prepare", 4),
        };
        entries.extend(&prepare_entries()[..of_step]);
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("adamod.norm"),
            entries: &entries,
        });
        let mut constants = constants.to_vec();
        constants.extend(format.map(|format| ("FORMAT", f64::from(format))));
        if end == (NormEnd::Step { norm_only: true }) {
            constants.push(("NORM_ONLY", 1.0));
        }
        let source = norm_source(access, binding);
        let pipeline = compute_pipeline(device, "adamod.norm", &layout, source, entry_point, &constants);
        Self { layout, pipeline }
    }
}

const ROWS: u32 = 8;
const GROUPS: u32 = 9;
const KEPT: u32 = 10;
const PREPARED: u32 = 11;
const PARTIALS: u32 = 12;

/// What a preparation binds, rows first.
fn prepare_entries() -> [wgpu::BindGroupLayoutEntry; 4] {
    [
        storage_entry(ROWS, true, true, size_of::<Row>() as u64),
        storage_entry(GROUPS, true, true, size_of::<layout::Group>() as u64),
        storage_entry(KEPT, false, false, DeviceSteps::KEPT_BYTES),
        storage_entry(PREPARED, false, false, size_of::<Coefficients>() as u64),
    ]
}

fn entry(binding: u32, resource: wgpu::BindingResource<'_>) -> wgpu::BindGroupEntry<'_> {
    wgpu::BindGroupEntry { binding, resource }
}

const USAGES: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

fn prepared_buffer(device: &wgpu::Device, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("adamod.prepared"),
        size: bytes,
        usage: USAGES,
        mapped_at_creation: false,
    })
}
