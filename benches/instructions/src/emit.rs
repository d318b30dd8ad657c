//! From a mode of the bench to the SPIR-V that wgpu hands to Vulkan drivers.

use adamod::low_level::{BlockLayout, Buffers, Format, Quantized, RowFeatures, Shadow, Variant, abi};
use adamod::{Access, DType, GradientBinding, StateFormat};
use anyhow::{Context as _, anyhow};
use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::mode::Mode;

/// The update kernel of a launch of one large aligned tensor.
pub struct Kernel {
    source: String,
    constants: Vec<(&'static str, f64)>,
    /// Elements that a thread updates.
    pub elements_per_lane: u32,
}

/// The kernel that a step of this mode dispatches on a GPU.
pub fn kernel(mode: Mode) -> Kernel {
    let Mode { form, state, values, master_weights, diagnostics, shadow, .. } = mode;
    let layout = BlockLayout::new(form.states(), state, master_weights);
    let variant = Variant {
        form,
        access: if values == DType::F32 { Access::Vec4 } else { Access::Vec2 },
        gradients: GradientBinding::Read,
        buffers: Buffers::One,
        state: layout.access(abi::CHUNK_ELEMENTS.into()),
        quantized: if layout.state == StateFormat::Q8 { Quantized::Shared } else { Quantized::Off },
        shadow: if shadow { Shadow::On } else { Shadow::Off },
        diagnostics,
        rows: RowFeatures::Off,
    };
    let shadow = if shadow { DType::Bf16 } else { DType::F32 };
    let format = Format { values, gradients: values, state, master_weights, shadow };
    let elements_per_lane = variant.quantized.lane_elements();
    let lanes = abi::GPU_LANES.min(abi::CHUNK_ELEMENTS / elements_per_lane);
    let constants = vec![
        ("ZERO_GRADIENTS", 0.0),
        ("LANES", lanes.into()),
        ("FORMAT", format.bits().into()),
        ("WHOLE", 1.0),
        ("CAUTION", 0.0),
    ];
    Kernel { source: variant.source(), constants, elements_per_lane }
}

impl Kernel {
    /// SPIR-V with the options of wgpu-hal 30 on drivers with `robustBufferAccess2`.
    pub fn spirv(&self) -> anyhow::Result<Vec<u32>> {
        let module = naga::front::wgsl::parse_str(&self.source)
            .map_err(|error| anyhow!(error.emit_to_string(&self.source)))?;
        let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
            .validate(&module)
            .context("validation")?;
        let constants = self.constants.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let entry = Some((naga::ShaderStage::Compute, "update"));
        let (module, info) =
            naga::back::pipeline_constants::process_overrides(&module, &info, entry, &constants)?;
        let options = spv::Options {
            lang_version: (1, 3),
            flags: spv::WriterFlags::empty(),
            bounds_check_policies: BoundsCheckPolicies {
                index: BoundsCheckPolicy::Restrict,
                buffer: BoundsCheckPolicy::Unchecked,
                ..Default::default()
            },
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            fake_missing_bindings: true,
            ..Default::default()
        };
        let pipeline = spv::PipelineOptions {
            shader_stage: naga::ShaderStage::Compute,
            entry_point: "update".to_owned(),
        };
        Ok(spv::write_vec(&module, &info, &options, Some(&pipeline))?)
    }
}
