//! Which adapter the tool runs on.

use adamod::wgpu;
use anyhow::{Context as _, anyhow};
use clap::Args;

use crate::Failure;

/// How to get a software adapter, for messages.
pub const NO_ADAPTER: &str =
    "no GPU adapter was found; on Debian or Ubuntu the package mesa-vulkan-drivers gives a software one";

/// The option that subcommands share.
#[derive(Clone, Debug, Default, Args)]
pub struct AdapterChoice {
    /// Part of an adapter's name, in any case; `adamod info` lists them [default: the fastest kind there is]
    #[arg(long, value_name = "NAME", env = "WGPU_ADAPTER_NAME")]
    adapter: Option<String>,
}

impl AdapterChoice {
    /// All adapters, the one to be used first; none only if there is none. An adapter that is named and not there is an error.
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
            let there_are = names.join(", ");
            return Err(Failure::Input(anyhow!(
                "--adapter {part:?} is part of no adapter's name; there are: {there_are}"
            )));
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

    /// A device on the adapter to be used, with all of its limits and what of `features` it has.
    pub fn open(
        &self,
        features: wgpu::Features,
    ) -> Result<(wgpu::Adapter, wgpu::Device, wgpu::Queue), Failure> {
        let adapter = self.sorted()?.into_iter().next().context(NO_ADAPTER).map_err(Failure::Machine)?;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("adamod"),
            required_features: features & adapter.features(),
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .with_context(|| format!("adapter {:?} gave no device", adapter.get_info().name))
            .map_err(Failure::Machine)?;
        Ok((adapter, device, queue))
    }
}
