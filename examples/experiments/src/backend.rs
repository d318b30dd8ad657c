//! What a run trains on.

use adamod::wgpu::DeviceType;
use adamod_burn::Gpu;
use burn::tensor::{Device, DeviceKind};
use clap::ValueEnum;

/// The device that the command line asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// A GPU if there is one, otherwise the CPU
    #[default]
    Auto,
    /// wgpu's adapter, hardware or software: Burn's wgpu backend and adamod's kernels
    Gpu,
    /// Burn's CPU backend (flex) and adamod's CPU reference, which computes the bits of the kernels
    Cpu,
}

/// What runs forward and backward passes, and what takes the optimizer steps.
#[derive(Clone, Debug)]
pub enum Backend {
    /// Burn's wgpu backend and [`adamod_burn::FusedOptimizer`].
    Gpu(Gpu),
    /// Burn's flex backend and [`adamod::reference::Reference`].
    Cpu,
}

impl Backend {
    /// Opens a device.
    ///
    /// # Errors
    /// If the choice is [`DeviceChoice::Gpu`] and there is no adapter.
    pub fn open(choice: DeviceChoice) -> anyhow::Result<Self> {
        let gpu = || Gpu::open(DeviceKind::DefaultDevice);
        let is_hardware = |gpu: &Gpu| gpu.wgpu_device().adapter_info().device_type != DeviceType::Cpu;
        Ok(match choice {
            DeviceChoice::Cpu => Self::Cpu,
            DeviceChoice::Gpu => Self::Gpu(gpu()?),
            DeviceChoice::Auto => gpu().ok().filter(is_hardware).map_or(Self::Cpu, Self::Gpu),
        })
    }

    /// Burn's device without autodiff.
    pub fn device(&self) -> Device {
        match self {
            Self::Gpu(gpu) => gpu.device(),
            Self::Cpu => Device::flex(),
        }
    }

    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gpu(_) => "gpu",
            Self::Cpu => "cpu",
        }
    }

    /// What trains, for the report.
    pub fn description(&self) -> String {
        match self {
            Self::Gpu(gpu) => {
                let adapter = gpu.wgpu_device().adapter_info();
                format!("{} ({}, {} {})", adapter.name, adapter.backend, adapter.driver, adapter.driver_info)
            }
            Self::Cpu => "the CPU (Burn's backend flex; steps by adamod's CPU reference)".to_owned(),
        }
    }
}
