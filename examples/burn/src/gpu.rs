//! [`Gpu`]: one wgpu device that Burn and the optimizer share.

use std::sync::{Mutex, PoisonError};

use adamod::Kernels;
use burn::backend::DispatchDevice;
use burn::backend::wgpu::wgpu;
use burn::tensor::wgpu::{WgpuInitError, WgpuSetup};
use burn::tensor::{Device, DeviceKind};

use crate::error::Error;

/// A wgpu device and its queue, with Burn's name for it.
///
/// Burn does not reveal the wgpu device of an existing [`Device`], so the two are created together. Cloning is cheap, and all clones
/// are the same device.
#[derive(Clone, Debug)]
pub struct Gpu {
    device: Device,
    pub(crate) cube: cubecl::Device,
    pub(crate) wgpu: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    /// Those of all optimizers of this device.
    pub(crate) kernels: Kernels,
}

impl Gpu {
    /// Opens an adapter with Burn's limits and features. If this was called with the same `kind` before, the device is the same.
    ///
    /// # Errors
    /// If there is no adapter, or if a tensor or Burn itself has opened that `kind` before ([`Error::InUse`]).
    pub fn open(kind: DeviceKind) -> Result<Self, Error> {
        static OPENED: Mutex<Vec<(DeviceKind, Gpu)>> = Mutex::new(Vec::new());
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gpu)) = opened.iter().find(|(of, _)| *of == kind) {
            return Ok(gpu.clone());
        }
        let (device, setup) = Device::wgpu_options().device_kind(kind.clone()).init_with_setup().map_err(
            |error| match error {
                WgpuInitError::Registration { message } => Error::InUse { kind: kind.clone(), message },
                error => error.into(),
            },
        )?;
        let gpu = Self::new(device, setup)?;
        opened.push((kind, gpu.clone()));
        Ok(gpu)
    }

    /// Registers the engine's own wgpu device with Burn. Call it once for each device.
    ///
    /// # Errors
    /// If Burn refuses it.
    pub fn from_setup(setup: WgpuSetup) -> Result<Self, Error> {
        let device = Device::wgpu_options().setup(setup.clone()).init()?;
        Self::new(device, setup)
    }

    fn new(device: Device, setup: WgpuSetup) -> Result<Self, Error> {
        let device = device.without_autodiff();
        let DispatchDevice::Cube(cube) = device.as_dispatch() else {
            return Err(Error::Burn { what: format!("{device:?} is not a device of Burn's wgpu backend") });
        };
        let cube = cube.clone();
        Ok(Self { cube, wgpu: setup.device, queue: setup.queue, kernels: Kernels::new(), device })
    }

    /// Burn's device without autodiff. Train on `gpu.device().autodiff()`.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// The wgpu device.
    pub fn wgpu_device(&self) -> &wgpu::Device {
        &self.wgpu
    }

    /// Its queue.
    pub fn wgpu_queue(&self) -> &wgpu::Queue {
        &self.queue
    }
}
