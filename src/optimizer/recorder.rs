//! Records steps: pipelines, the tables of a step, and the source of its coefficients.

use super::memory::Memory;
use super::registry::{Registry, Selection};
use super::source::CoefficientSource;
use super::step::Part;
use super::tables::{Context, Tables};
use crate::device::error_scope::DeviceError;
use crate::device::gpu::Gpu;
use crate::kernels::pipeline::{Kernel, Pipelines};
use crate::options::Diagnostics;
use crate::plan::launches::Launch;
use crate::plan::limits::PlanLimits;

/// Everything that recording a step needs besides the registry and the memory.
#[derive(Debug)]
pub struct Recorder {
    limits: PlanLimits,
    workgroups_per_dimension: u32,
    diagnostics: Diagnostics,
    pipelines: Pipelines,
    source: CoefficientSource,
    /// Tables of the registered views, with the revisions of views and memory that they were made for.
    registered: Option<(Tables, (u64, u64))>,
    /// Tables of the last step at views of its own, for what the next one can use again.
    transient: Option<Tables>,
    /// Which of the two the last step used.
    last_is_transient: bool,
    /// The revision of groups whose custom rules the kernels of prepared steps have.
    custom_rules_of: Option<u64>,
}

impl Recorder {
    pub fn new(
        limits: PlanLimits,
        workgroups_per_dimension: u32,
        diagnostics: Diagnostics,
        pipelines: Pipelines,
        source: CoefficientSource,
    ) -> Self {
        Self {
            limits,
            workgroups_per_dimension,
            diagnostics,
            pipelines,
            source,
            registered: None,
            transient: None,
            last_is_transient: false,
            custom_rules_of: None,
        }
    }

    pub fn source(&self) -> &CoefficientSource {
        &self.source
    }

    /// The launches of the last step that was recorded or prepared.
    pub fn launches(&self) -> &[Launch] {
        let registered = self.registered.as_ref().map(|(tables, _)| tables);
        let tables = if self.last_is_transient { self.transient.as_ref() } else { registered };
        tables.map_or(&[], Tables::launches)
    }

    /// What compiles and keeps kernels, and what the device counts.
    pub fn pipelines_and_source(&mut self) -> (&mut Pipelines, &mut CoefficientSource) {
        (&mut self.pipelines, &mut self.source)
    }

    /// Prepares parts of a step: makes their pipelines and brings their tables up to date.
    pub fn prepare(
        &mut self,
        gpu: &Gpu,
        registry: &Registry,
        memory: &Memory,
        selection: &mut Selection,
        parts: &[Part],
    ) -> Result<(), DeviceError> {
        let Self { limits, diagnostics, .. } = *self;
        let of = Context { gpu, registry, memory, limits: &limits, diagnostics };
        if let Some(located) = selection.located.take() {
            self.transient = Some(Tables::new(&of, located, self.transient.take())?);
            self.last_is_transient = true;
        } else {
            let revisions = (registry.revisions().views, memory.revision());
            if self.registered.as_ref().is_none_or(|(_, made_for)| *made_for != revisions) {
                self.registered = Some((Tables::new(&of, registry.locate_registered(), None)?, revisions));
            }
            self.last_is_transient = false;
        }
        let prepared = self.update(&of, selection, parts);
        if prepared.is_err() {
            self.finish();
        }
        prepared
    }

    fn update(&mut self, of: &Context<'_>, selection: &Selection, parts: &[Part]) -> Result<(), DeviceError> {
        let Self { pipelines, source, registered, transient, last_is_transient, custom_rules_of, .. } = self;
        let Some(tables) = last_tables(registered, transient, *last_is_transient) else { return Ok(()) };
        // A device that counts steps counts those without gradients, too.
        if tables.launches().is_empty() && source.device().is_none() {
            return Ok(());
        }
        source.update(of.gpu, of.registry, selection)?;
        let groups = of.registry.revisions().groups;
        if source.device().is_some() && *custom_rules_of != Some(groups) {
            pipelines.set_custom_rules(of.registry.custom_rules().collect());
            *custom_rules_of = Some(groups);
        }
        parts.iter().try_for_each(|part| tables.update(of, pipelines, source, *part))
    }

    /// Records a part of the step that was prepared last.
    pub fn record(&mut self, pass: &mut wgpu::ComputePass<'_>, part: Part) {
        let Self { pipelines, source, registered, transient, last_is_transient, .. } = self;
        if let Some(tables) = last_tables(registered, transient, *last_is_transient) {
            tables.record(pass, pipelines, source, part, self.workgroups_per_dimension);
        }
    }

    /// Records a kernel of joint steps.
    pub fn record_joint(&self, pass: &mut wgpu::ComputePass<'_>, kernel: Kernel) {
        if let Some(steps) = self.source.device() {
            steps.record_joint(pass, &self.pipelines, kernel);
        }
    }

    /// Ends the step that was prepared last, once its parts are recorded: nothing refers to buffers of its own views any more.
    pub fn finish(&mut self) {
        drop(self.source.take_slot());
        if let Some(tables) = &mut self.transient {
            tables.release();
        }
    }
}

fn last_tables<'a>(
    registered: &'a mut Option<(Tables, (u64, u64))>,
    transient: &'a mut Option<Tables>,
    is_transient: bool,
) -> Option<&'a mut Tables> {
    if is_transient { transient.as_mut() } else { registered.as_mut().map(|(tables, _)| tables) }
}
