//! Every kernel, as text with its entry point and overrides.

use std::error::Error;

use adamod::low_level::{
    MAX_STATES, RowFeatures, StateAccess, Variant, abi, joint_source, norm_source, prepare_source,
    remap_source, schedule_source,
};
use adamod::{Access, GradientBinding, wgpu};

use crate::gpu::Gpu;

pub struct Kernel {
    pub name: String,
    source: String,
    entry_point: String,
    constants: Vec<(&'static str, f64)>,
}

/// Every variant of every kernel, with everything switched on that an override can switch.
pub fn all() -> Vec<Kernel> {
    let lanes = ("LANES", f64::from(abi::GPU_LANES));
    let control = [("USES_NORM", 1.0), ("SKIPS", 1.0), ("IS_DYNAMIC", 1.0), lanes];
    let mut all = Vec::new();
    let mut add = |name: &str, source: String, constants: &[(&'static str, f64)]| {
        for entry_point in entry_points(&source) {
            let name = if name.is_empty() { entry_point.clone() } else { format!("{entry_point}.{name}") };
            all.push(Kernel { name, source: source.clone(), entry_point, constants: constants.to_vec() });
        }
    };
    for variant in Variant::all() {
        let mut constants = vec![lanes, ("ZERO_GRADIENTS", 1.0)];
        if variant.rows == RowFeatures::On {
            constants.push(("HAS_MASKS", 1.0));
        }
        add(&variant.name(), variant.source(), &constants);
    }
    for access in [StateAccess::Words4, StateAccess::Words1] {
        let constants = [lanes, ("STATES", MAX_STATES as f64)];
        add(access.name(), remap_source(2, access), &constants);
    }
    for access in Access::ALL {
        for gradients in GradientBinding::ALL {
            add(&format!("{access:?}.{gradients:?}"), norm_source(access, gradients), &control);
        }
    }
    for source in [prepare_source(), schedule_source(), joint_source()] {
        add("", source, &control);
    }
    all
}

/// The names of a source's entry points.
fn entry_points(source: &str) -> Vec<String> {
    let name = |text: &str| Some(text.split_once("fn ")?.1.split_once('(')?.0.to_owned());
    source.split("@compute").skip(1).filter_map(name).collect()
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
