//! The adapter that the tool runs on.

use adamod::wgpu;
use anyhow::{Context as _, anyhow};
use clap::Args;

use crate::failure::Failure;

/// The message without any adapter.
pub const NO_ADAPTER: &str =
    "no GPU adapter was found; on Debian or Ubuntu the package mesa-vulkan-drivers provides a software one";

/// The option that subcommands share.
#[derive(Clone, Debug, Default, Args)]
pub struct AdapterChoice {
    /// Part of an adapter's name, in any case; `adamod info` lists the names [default: the fastest kind of adapter]
    #[arg(long, value_name = "NAME", env = "WGPU_ADAPTER_NAME")]
    adapter: Option<String>,
}

impl AdapterChoice {
    /// All adapters, starting with the chosen one; empty only if there are none.
    ///
    /// # Errors
    /// If an adapter was named and no adapter has that name.
    pub fn sorted(&self) -> Result<Vec<wgpu::Adapter>, Failure> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::from_env().unwrap_or_default();
        let instance = wgpu::Instance::new(descriptor);
        let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let matches = |adapter: &wgpu::Adapter| {
            self.adapter.as_ref().is_none_or(|part| {
                let name = adapter.get_info().name.to_lowercase();
                name.contains(&part.to_lowercase())
            })
        };
        if let Some(part) = &self.adapter
            && !adapters.is_empty()
            && !adapters.iter().any(matches)
        {
            let names: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
            let names = names.join(", ");
            return Err(Failure::Input(anyhow!("--adapter is {part:?}, expected a part of one of: {names}")));
        }
        adapters.sort_by_key(|adapter| {
            let info = adapter.get_info();
            let kind = match info.device_type {
                wgpu::DeviceType::DiscreteGpu => 0,
                wgpu::DeviceType::IntegratedGpu => 1,
                wgpu::DeviceType::VirtualGpu => 2,
                wgpu::DeviceType::Cpu => 3,
                wgpu::DeviceType::Other => 4,
            };
            (!matches(adapter), info.backend == wgpu::Backend::Gl, kind)
        });
        Ok(adapters)
    }

    /// A device on the chosen adapter, with its limits as `limits` changes them and those of `features` that it has.
    pub fn open(
        &self,
        features: wgpu::Features,
        limits: impl FnOnce(wgpu::Limits) -> wgpu::Limits,
    ) -> Result<(wgpu::Adapter, wgpu::Device, wgpu::Queue), Failure> {
        let adapter = self.sorted()?.into_iter().next().context(NO_ADAPTER).map_err(Failure::Machine)?;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("adamod"),
            required_features: features & adapter.features(),
            required_limits: limits(adapter.limits()),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .with_context(|| format!("adapter {:?} provides no device", adapter.get_info().name))
            .map_err(Failure::Machine)?;
        Ok((adapter, device, queue))
    }
}
