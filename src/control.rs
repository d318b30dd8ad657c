//! Steps that the device prepares: step counts, loss scale, clip and skipping, with nothing asked of the host.

use std::collections::HashMap;

use crate::error::{CreateError, EncodeError};
use crate::hyperparameters::{Formula, Rule};
use crate::layout::{self, CPU_LANES, Chunk, Coefficients, GPU_LANES, Partial, Row, Segment};
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
    /// Largest norm of all gradients of a step together, without the loss scale: larger ones are scaled down to it. PyTorch's
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
    /// Always the same. Above 0.
    Constant(f64),
    /// As `torch.amp.GradScaler`: a step whose gradients are not finite is skipped, whatever [`DeviceControl::non_finite`] says,
    /// and the scale is multiplied by `backoff_factor`; after `growth_interval` steps without one, by `growth_factor`.
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
    /// Norm of the latest step's gradients, without the loss scale; infinite if an element is not finite. 0 where no norm is
    /// needed.
    pub norm: f32,
}

impl Progress {
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
            check("growth_factor", growth_factor, "at least 1", growth_factor >= 1.0)?;
            let is_below_one = backoff_factor > 0.0 && backoff_factor < 1.0;
            check("backoff_factor", backoff_factor, "a number in (0, 1)", is_below_one)?;
            check("growth_interval", growth_interval.into(), "at least 1", growth_interval >= 1)?;
        }
        let max_norm = self.max_norm.unwrap_or(1.0);
        check("max_norm", max_norm, needed, positive(max_norm))
    }

    /// Overrides of the kernel, but for `PART`.
    fn constants(&self, rule: Rule, formula: Formula) -> Vec<(&'static str, f64)> {
        let flag = |value: bool| f64::from(u8::from(value));
        let formula = match (rule, formula) {
            (Rule::Sgd, _) => 2.0,
            (Rule::AdaMod, Formula::AuthorsCode) => 1.0,
            (Rule::AdaMod, Formula::Paper) | (Rule::Adam, _) => 0.0,
        };
        let mut constants = vec![
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
    constants: Vec<(&'static str, f64)>,
    lanes: u32,
    control: wgpu::Buffer,
    step_counts: wgpu::Buffer,
    prepared: wgpu::Buffer,
    generation: u64,
    rows: Ring,
    groups: Ring,
    /// Which parameters step by the rows' slot; `None` when it has to be written.
    rows_written: Option<Stepping>,
    rows_slot: Option<Lease>,
    groups_slot: Option<Lease>,
    prepare: HashMap<Part, wgpu::ComputePipeline>,
    layout: wgpu::BindGroupLayout,
    norms: HashMap<(Access, GradientBinding, Option<u32>), NormPipeline>,
}

#[derive(Debug)]
struct NormPipeline {
    layout: wgpu::BindGroupLayout,
    pipeline: wgpu::ComputePipeline,
}

/// What a launch's norm binds.
pub struct NormBindings<'a> {
    /// Slot of segments; dynamic offset.
    pub segments: wgpu::BindingResource<'a>,
    /// The launch's part of the chunk table.
    pub chunks: wgpu::BindingResource<'a>,
    /// Window of gradients, or of values with the gradients in it.
    pub gradients: wgpu::BindingResource<'a>,
    /// The launch's part of the partial sums.
    pub partials: wgpu::BindingResource<'a>,
}

impl DeviceSteps {
    /// Parameters of an optimizer whose steps the device prepares: it counts the steps of each.
    pub const MOST_PARAMETERS: usize = 1 << 18;
    const STEP_COUNTS_BYTES: u64 = 4 * Self::MOST_PARAMETERS as u64;

    pub fn new(
        device: &wgpu::Device,
        settings: DeviceControl,
        rule: Rule,
        formula: Formula,
    ) -> Result<Self, CreateError> {
        settings.validate()?;
        let (found, needed) = (device.limits().max_storage_buffer_binding_size, Self::STEP_COUNTS_BYTES);
        if found < needed {
            return Err(CreateError::Limit { limit: "max_storage_buffer_binding_size", found, needed });
        }
        let is_cpu = device.adapter_info().device_type == wgpu::DeviceType::Cpu;
        let initial = layout::Control {
            loss_scale: settings.loss_scale.initial() as f32,
            multiplier: 1.0,
            norm: 0.0,
            growth_tracker: 0,
            taken: 0,
            skipped: 0,
        };
        let made = catch(device, || {
            let storage = |binding, read_only, has_dynamic_offset, bytes: usize| {
                storage_entry(binding, read_only, has_dynamic_offset, bytes as u64)
            };
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("adamod.prepare"),
                entries: &[
                    storage(0, true, true, size_of::<Row>()),
                    storage(1, true, true, size_of::<layout::Group>()),
                    storage(2, true, false, size_of::<Partial>()),
                    storage(3, false, false, size_of::<layout::Control>()),
                    storage(4, false, false, 4),
                    storage(5, false, false, size_of::<Coefficients>()),
                ],
            });
            let control = device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("adamod.control"),
                size: size_of::<layout::Control>() as u64,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: true,
            });
            if let Ok(mut view) = control.get_mapped_range_mut(..) {
                view.copy_from_slice(bytemuck::bytes_of(&initial));
            }
            control.unmap();
            let counts = buffer(device, "adamod.step_counts", Self::STEP_COUNTS_BYTES);
            (layout, control, counts, buffer(device, "adamod.prepared", size_of::<Coefficients>() as u64))
        });
        let (layout, control, step_counts, prepared) = made?;
        Ok(Self {
            settings,
            constants: settings.constants(rule, formula),
            lanes: if is_cpu { CPU_LANES } else { GPU_LANES },
            control,
            step_counts,
            prepared,
            generation: 0,
            rows: Ring::new(device, "adamod.rows", 2, size_of::<Row>() as u64)?,
            groups: Ring::new(device, "adamod.groups", 4, size_of::<layout::Group>() as u64)?,
            rows_written: None,
            rows_slot: None,
            groups_slot: None,
            prepare: HashMap::new(),
            layout,
            norms: HashMap::new(),
        })
    }

    pub fn uses_norm(&self) -> bool {
        self.settings.uses_norm()
    }

    pub fn control(&self) -> &wgpu::Buffer {
        &self.control
    }

    pub fn step_counts(&self) -> &wgpu::Buffer {
        &self.step_counts
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
        // As many as the rows' slot has room for: the kernel goes by that.
        let needed = self.rows.slot_bytes() / size_of::<Row>() as u64 * size_of::<Coefficients>() as u64;
        if self.prepared.size() < needed {
            self.prepared = catch(device, || buffer(device, "adamod.prepared", needed))?;
            self.generation += 1;
        }
        Ok(())
    }

    /// The bind group of a launch's norm; `None` where none is needed.
    pub fn bind_norm(
        &mut self,
        device: &wgpu::Device,
        launch: &Launch,
        bindings: NormBindings<'_>,
    ) -> Result<wgpu::BindGroup, Refusal> {
        let key = (launch.access, launch.binding, launch.format);
        if !self.norms.contains_key(&key) {
            let made = catch(device, || NormPipeline::new(device, launch, self.lanes))?;
            self.norms.insert(key, made);
        }
        let gradients = if launch.binding == GradientBinding::Shared { 3 } else { 4 };
        let entry = |binding, resource| wgpu::BindGroupEntry { binding, resource };
        catch(device, || {
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("adamod.norm"),
                layout: &self.norms[&key].layout,
                entries: &[
                    entry(1, bindings.segments),
                    entry(2, bindings.chunks),
                    entry(gradients, bindings.gradients),
                    entry(8, self.rows.binding()),
                    entry(9, bindings.partials),
                ],
            })
        })
    }

    /// Generation of what `bind_norm` and `bind_prepare` bind.
    pub fn ring_generations(&self) -> (u64, u64, u64) {
        (self.rows.generation(), self.groups.generation(), self.generation)
    }

    /// The bind group of the preparation.
    pub fn bind_prepare(
        &self,
        device: &wgpu::Device,
        partials: wgpu::BindingResource<'_>,
    ) -> Result<wgpu::BindGroup, Refusal> {
        let entry = |binding, resource| wgpu::BindGroupEntry { binding, resource };
        catch(device, || {
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("adamod.prepare"),
                layout: &self.layout,
                entries: &[
                    entry(0, self.rows.binding()),
                    entry(1, self.groups.binding()),
                    entry(2, partials),
                    entry(3, self.control.as_entire_binding()),
                    entry(4, self.step_counts.as_entire_binding()),
                    entry(5, self.prepared.as_entire_binding()),
                ],
            })
        })
    }

    /// Makes the pipeline of a part, if it is not there yet.
    pub fn make_prepare(&mut self, device: &wgpu::Device, part: Part) -> Result<(), Refusal> {
        if self.prepare.contains_key(&part) {
            return Ok(());
        }
        let mut constants = self.constants.clone();
        let number = match part {
            Part::Whole => 0.0,
            Part::Norm => 1.0,
            Part::AfterNorm => 2.0,
        };
        constants.extend([("LANES", self.lanes.into()), ("PART", number)]);
        let pipeline = catch(device, || {
            compute_pipeline(device, "adamod.prepare", &self.layout, prepare_source(), "prepare", &constants)
        })?;
        self.prepare.insert(part, pipeline);
        Ok(())
    }

    /// Records the norm of a launch.
    pub fn record_norm(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        launch: &Launch,
        bind_group: &wgpu::BindGroup,
        segments: &Lease,
        grid: (u32, u32),
    ) {
        let Some(rows) = &self.rows_slot else { return };
        pass.set_pipeline(&self.norms[&(launch.access, launch.binding, launch.format)].pipeline);
        // In the order of their bindings.
        pass.set_bind_group(0, bind_group, &[segments.offset, rows.offset]);
        pass.dispatch_workgroups(grid.0, grid.1, 1);
    }

    /// Records the preparation, and what keeps its tables until it is done.
    pub fn record_prepare(&self, pass: &mut wgpu::ComputePass<'_>, bind_group: &wgpu::BindGroup, part: Part) {
        let (Some(rows), Some(groups)) = (self.rows_slot.clone(), self.groups_slot.clone()) else { return };
        pass.set_pipeline(&self.prepare[&part]);
        pass.set_bind_group(0, bind_group, &[rows.offset, groups.offset]);
        pass.dispatch_workgroups(1, 1, 1);
        pass.on_submitted_work_done(move || drop((rows, groups)));
    }
}

impl NormPipeline {
    fn new(device: &wgpu::Device, launch: &Launch, lanes: u32) -> Self {
        let word_bytes = match launch.access {
            Access::Vec4 => 16,
            Access::Vec2 => 8,
            Access::Scalar => 4,
        };
        let gradients = match launch.binding {
            GradientBinding::Read => storage_entry(4, true, false, word_bytes),
            GradientBinding::ReadWrite => storage_entry(4, false, false, word_bytes),
            GradientBinding::Shared => storage_entry(3, false, false, word_bytes),
        };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("adamod.norm"),
            entries: &[
                storage_entry(1, true, true, size_of::<Segment>() as u64),
                storage_entry(2, true, false, size_of::<Chunk>() as u64),
                gradients,
                storage_entry(8, true, true, size_of::<Row>() as u64),
                storage_entry(9, false, false, size_of::<Partial>() as u64),
            ],
        });
        let mut constants = vec![("LANES", f64::from(lanes))];
        constants.extend(launch.format.map(|format| ("FORMAT", f64::from(format))));
        let source = norm_source(launch.access, launch.binding);
        let pipeline = compute_pipeline(device, "adamod.norm", &layout, source, "norm_of_chunks", &constants);
        Self { layout, pipeline }
    }
}

fn buffer(device: &wgpu::Device, label: &str, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}
