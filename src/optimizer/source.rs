//! Where the coefficients of a step come from: the one seam between steps that the host counts and steps that the device counts.

use super::device_steps::DeviceSteps;
use super::registry::{Registry, Selection};
use crate::device::error_scope::DeviceError;
use crate::device::gpu::Gpu;
use crate::device::ring::{Lease, Ring};
use crate::kernels::abi;
use crate::kernels::rows::coefficient_row;

/// Computes the coefficients of steps.
#[derive(Debug)]
pub enum CoefficientSource {
    /// The host computes one row per cohort.
    Host(HostSteps),
    /// The device computes one row per parameter.
    Device(Box<DeviceSteps>),
}

/// Steps that the host counts.
#[derive(Debug)]
pub struct HostSteps {
    rows: Vec<abi::Coefficients>,
    ring: Ring,
    /// The rows of the step that is being recorded.
    slot: Option<Lease>,
}

impl HostSteps {
    /// Slots of the ring at first: how many steps can be recorded or running at once before it grows.
    const SLOTS: usize = 8;

    pub fn new(gpu: &Gpu) -> Result<Self, DeviceError> {
        let ring = Ring::new(gpu, "coefficients", Self::SLOTS, size_of::<abi::Coefficients>() as u64)?;
        Ok(Self { rows: Vec::new(), ring, slot: None })
    }

    /// Uploads one row per cohort, for its next step.
    fn update(&mut self, gpu: &Gpu, registry: &Registry, selection: &Selection) -> Result<(), DeviceError> {
        self.rows.clear();
        self.rows.extend(registry.cohorts().list().iter().enumerate().map(|(index, cohort)| {
            match registry.group_at(cohort.group as usize) {
                Some(group) if selection.steps(index) => {
                    coefficient_row(&group.hyperparameters, cohort.steps + 1)
                }
                _ => abi::Coefficients::inactive(),
            }
        }));
        self.slot = Some(self.ring.write(gpu, bytemuck::cast_slice(&self.rows))?);
        Ok(())
    }
}

impl CoefficientSource {
    /// Brings the tables of coefficients up to date for a step.
    pub fn update(
        &mut self,
        gpu: &Gpu,
        registry: &Registry,
        selection: &Selection,
    ) -> Result<(), DeviceError> {
        match self {
            Self::Host(steps) => steps.update(gpu, registry, selection),
            Self::Device(steps) => steps.update(gpu, registry, selection),
        }
    }

    /// The binding of the coefficients, whose place is given by a dynamic offset.
    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        match self {
            Self::Host(steps) => steps.ring.binding(),
            Self::Device(steps) => steps.prepared(),
        }
    }

    /// Changes whenever the coefficients have to be bound anew.
    pub fn generation(&self) -> u64 {
        match self {
            Self::Host(steps) => steps.ring.generation(),
            Self::Device(steps) => steps.generation(),
        }
    }

    /// The lease of the updated coefficients, if they lie in a ring.
    pub fn take_slot(&mut self) -> Option<Lease> {
        match self {
            Self::Host(steps) => steps.slot.take(),
            Self::Device(_) => None,
        }
    }

    /// The row of a parameter.
    pub fn row_of(&self, registry: &Registry, parameter: usize) -> u32 {
        match self {
            Self::Host(_) => registry.cohorts().of(parameter),
            Self::Device(_) => parameter as u32,
        }
    }

    /// Changes whenever parameters get other rows.
    pub fn row_revision(&self, registry: &Registry) -> u64 {
        match self {
            Self::Host(_) => registry.revisions().cohorts,
            Self::Device(_) => 0,
        }
    }

    /// Steps that the device counts, to change their settings.
    pub fn device_mut(&mut self) -> Option<&mut DeviceSteps> {
        match self {
            Self::Host(_) => None,
            Self::Device(steps) => Some(steps),
        }
    }

    /// Steps that the device counts.
    pub fn device(&self) -> Option<&DeviceSteps> {
        match self {
            Self::Host(_) => None,
            Self::Device(steps) => Some(steps),
        }
    }
}
