//! Every kernel, compiled.

use std::error::Error;

use adamod::wgpu;

use crate::gpu::Gpu;

#[path = "../../../common/kernels.rs"]
mod list;

pub use list::{Kernel, all};

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
            entry_point: Some(&kernel.entry_point),
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
