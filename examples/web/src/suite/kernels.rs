//! Every kernel, as text with its entry point and overrides.

use std::error::Error;

use adamod::low_level::{Variant, abi, norm_source, prepare_source};
use adamod::{Access, GradientBinding, wgpu};

use crate::gpu::Gpu;

pub struct Kernel {
    pub name: String,
    source: String,
    entry_point: &'static str,
    constants: Vec<(&'static str, f64)>,
}

/// Every variant of every kernel, with everything switched on that an override can switch.
pub fn all() -> Vec<Kernel> {
    let lanes = ("LANES", f64::from(abi::GPU_LANES));
    let mut all: Vec<_> = Variant::all()
        .into_iter()
        .map(|variant| Kernel {
            name: variant.name(),
            source: variant.source(),
            entry_point: "update",
            constants: vec![lanes, ("ZERO_GRADIENTS", 1.0)],
        })
        .collect();
    let control = [("USES_NORM", 1.0), ("SKIPS", 1.0), ("IS_DYNAMIC", 1.0), lanes];
    for access in Access::ALL {
        for gradients in GradientBinding::ALL {
            for entry_point in ["norm_of_chunks", "norm_and_prepare"] {
                let name = format!("{entry_point}.{access:?}.{gradients:?}");
                let source = norm_source(access, gradients);
                all.push(Kernel { name, source, entry_point, constants: control.to_vec() });
            }
        }
    }
    for entry_point in ["prepare", "no_norm"] {
        let (name, source) = (entry_point.to_owned(), prepare_source());
        all.push(Kernel { name, source, entry_point, constants: control.to_vec() });
    }
    all
}

/// Compiles a kernel, with `whole` for the adapter, too: the browser checks the text, uniform control flow included, in milliseconds, and a
/// software adapter takes a second for a pipeline. A message of the compiler is an error.
pub async fn compile(gpu: &Gpu, kernel: &Kernel, whole: bool) -> Result<(), Box<dyn Error>> {
    let label = Some(kernel.name.as_str());
    let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let source = wgpu::ShaderSource::Wgsl(kernel.source.as_str().into());
    let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
    if whole {
        let compilation_options = wgpu::PipelineCompilationOptions {
            constants: &kernel.constants,
            zero_initialize_workgroup_memory: false,
        };
        // Only whether it compiles matters.
        let _ = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: None,
            module: &module,
            entry_point: Some(kernel.entry_point),
            compilation_options,
            cache: None,
        });
    }
    let refused = scope.pop();
    let messages = module.get_compilation_info().await.messages;
    if let Some(message) = messages.first() {
        return Err(message.message.clone().into());
    }
    refused.await.map_or(Ok(()), |error| Err(error.to_string().into()))
}
