//! Records steps: pipelines, the tables of a step, and the source of its coefficients.

use super::memory::Memory;
use super::registry::{Registry, Selection};
use super::source::CoefficientSource;
use super::step::Part;
use super::tables::{Context, Tables};
use crate::device::error_scope::DeviceError;
use crate::device::gpu::Gpu;
use crate::kernels::pipeline::Pipelines;
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
        }
    }

    pub fn source(&self) -> &CoefficientSource {
        &self.source
    }

    pub fn source_mut(&mut self) -> &mut CoefficientSource {
        &mut self.source
    }

    /// The launches of the last step that was recorded or prepared.
    pub fn launches(&self) -> &[Launch] {
        let registered = self.registered.as_ref().map(|(tables, _)| tables);
        let tables = if self.last_is_transient { self.transient.as_ref() } else { registered };
        tables.map_or(&[], Tables::launches)
    }

    /// Records a part of a step into `pass`; without a pass, only prepares it.
    pub fn record(
        &mut self,
        gpu: &Gpu,
        registry: &Registry,
        memory: &Memory,
        selection: &mut Selection,
        part: Part,
        pass: Option<&mut wgpu::ComputePass<'_>>,
    ) -> Result<(), DeviceError> {
        let Self { limits, diagnostics, .. } = *self;
        let of = Context { gpu, registry, memory, limits: &limits, diagnostics };
        if let Some(located) = selection.located.take() {
            let mut tables = Tables::new(&of, located, self.transient.take())?;
            let recorded = self.record_tables(&of, &mut tables, selection, part, pass);
            tables.release();
            self.transient = Some(tables);
            self.last_is_transient = true;
            return recorded;
        }
        let revisions = (registry.revisions().views, memory.revision());
        if self.registered.as_ref().is_none_or(|(_, made_for)| *made_for != revisions) {
            self.registered = Some((Tables::new(&of, registry.locate_registered(), None)?, revisions));
        }
        self.last_is_transient = false;
        let Some((mut tables, made_for)) = self.registered.take() else { return Ok(()) };
        let recorded = self.record_tables(&of, &mut tables, selection, part, pass);
        self.registered = Some((tables, made_for));
        recorded
    }

    fn record_tables(
        &mut self,
        of: &Context<'_>,
        tables: &mut Tables,
        selection: &Selection,
        part: Part,
        pass: Option<&mut wgpu::ComputePass<'_>>,
    ) -> Result<(), DeviceError> {
        // A device that counts steps counts those without gradients, too.
        if tables.launches().is_empty() && self.source.device().is_none() {
            return Ok(());
        }
        self.source.update(of.gpu, of.registry, selection)?;
        tables.update(of, &mut self.pipelines, &self.source, part)?;
        match pass {
            Some(pass) => {
                tables.record(pass, &self.pipelines, &mut self.source, part, self.workgroups_per_dimension);
            }
            None => drop(self.source.take_slot()),
        }
        Ok(())
    }
}
