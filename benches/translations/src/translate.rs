//! From WGSL to the languages of wgpu's backends, with the options that wgpu-hal 30 passes to naga.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};

use crate::kernels::Kernel;

/// A kernel in the languages of the backends.
pub struct Translations {
    /// Vulkan.
    pub spirv: Vec<u32>,
    /// Direct3D 12.
    pub hlsl: String,
    /// Metal.
    pub msl: String,
    /// OpenGL ES 3.1.
    pub glsl: String,
    /// Barriers in the kernel's functions.
    pub barriers: usize,
}

impl Translations {
    /// Translates a kernel with its overrides.
    pub fn of(kernel: &Kernel) -> anyhow::Result<Self> {
        let module = naga::front::wgsl::parse_str(&kernel.source)
            .map_err(|error| anyhow!(error.emit_to_string(&kernel.source)))?;
        let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
            .validate(&module)
            .context("validation")?;
        let constants = kernel.constants.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let entry = Some((ShaderStage::Compute, kernel.entry_point.as_str()));
        let (module, info) =
            naga::back::pipeline_constants::process_overrides(&module, &info, entry, &constants)?;
        Ok(Self {
            spirv: spirv(&module, &info, &kernel.entry_point).context("SPIR-V")?,
            hlsl: hlsl(&module, &info, &kernel.entry_point).context("HLSL")?,
            msl: msl(&module, &info, &kernel.entry_point).context("MSL")?,
            glsl: glsl(&module, &info, &kernel.entry_point).context("GLSL")?,
            barriers: barriers(&module),
        })
    }
}

impl Translations {
    /// Writes the translations beside each other, with the extensions that validators expect.
    pub fn write(&self, stem: &Path) -> anyhow::Result<()> {
        let words: Vec<u8> = self.spirv.iter().flat_map(|word| word.to_le_bytes()).collect();
        let files: [(&str, &[u8]); 4] = [
            ("spv", &words),
            ("hlsl", self.hlsl.as_bytes()),
            ("metal", self.msl.as_bytes()),
            ("comp", self.glsl.as_bytes()),
        ];
        for (extension, bytes) in files {
            std::fs::write(file(stem, extension), bytes)?;
        }
        Ok(())
    }

    /// Columns of the table.
    pub fn figures(&self) -> String {
        let sizes = [4 * self.spirv.len(), self.hlsl.len(), self.msl.len(), self.glsl.len()];
        let columns = [self.instructions(), self.barriers].into_iter().chain(sizes);
        columns.map(|column| column.to_string()).collect::<Vec<_>>().join("\t")
    }

    /// Instructions of the SPIR-V in functions, labels and variables included.
    fn instructions(&self) -> usize {
        const HEADER_WORDS: usize = 5;
        const FUNCTION: u32 = 54;
        let mut rest = &self.spirv[HEADER_WORDS..];
        let mut count = 0;
        while let [first, ..] = rest {
            if count > 0 || first & 0xffff == FUNCTION {
                count += 1;
            }
            rest = &rest[(first >> 16) as usize..];
        }
        count
    }
}

/// `stem` with an extension. A kernel's name has dots of its own.
pub fn file(stem: &Path, extension: &str) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    path.push(".");
    path.push(extension);
    path.into()
}

/// Every load or store is checked.
const RESTRICT: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Restrict,
    buffer: BoundsCheckPolicy::Restrict,
    image_load: BoundsCheckPolicy::Restrict,
    binding_array: BoundsCheckPolicy::Unchecked,
};

fn spirv(module: &Module, info: &ModuleInfo, entry_point: &str) -> anyhow::Result<Vec<u32>> {
    let options = spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: RESTRICT,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        fake_missing_bindings: true,
        ..Default::default()
    };
    let pipeline =
        spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry_point.to_owned() };
    Ok(spv::write_vec(module, info, &options, Some(&pipeline))?)
}

fn hlsl(module: &Module, info: &ModuleInfo, entry_point: &str) -> anyhow::Result<String> {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_0,
        // Where naga finds the number of workgroups.
        special_constants_binding: Some(hlsl::BindTarget { space: 1, ..Default::default() }),
        ..Default::default()
    };
    let pipeline =
        hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, entry_point.to_owned())) };
    let mut text = String::new();
    hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None)?;
    Ok(text)
}

fn msl(module: &Module, info: &ModuleInfo, entry_point: &str) -> anyhow::Result<String> {
    let options = msl::Options {
        lang_version: (2, 4),
        bounds_check_policies: RESTRICT,
        zero_initialize_workgroup_memory: false,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, entry_point.to_owned())),
        ..Default::default()
    };
    let (text, _) = msl::write_string(module, info, &options, &pipeline)?;
    Ok(text)
}

fn glsl(module: &Module, info: &ModuleInfo, entry_point: &str) -> anyhow::Result<String> {
    let options = glsl::Options {
        version: glsl::Version::new_gles(310),
        writer_flags: glsl::WriterFlags::empty(),
        zero_initialize_workgroup_memory: false,
        ..Default::default()
    };
    let pipeline = glsl::PipelineOptions {
        shader_stage: ShaderStage::Compute,
        entry_point: entry_point.to_owned(),
        multiview: None,
    };
    let mut text = String::new();
    glsl::Writer::new(&mut text, module, info, &options, &pipeline, RESTRICT)?.write()?;
    Ok(text)
}

/// Barriers in the functions that the entry point calls, those of `workgroupUniformLoad` included: it has one before and one after.
fn barriers(module: &Module) -> usize {
    let of_functions = module.functions.iter().map(|(_, function)| &function.body);
    of_functions.chain(module.entry_points.iter().map(|entry| &entry.function.body)).map(barriers_in).sum()
}

fn barriers_in(block: &naga::Block) -> usize {
    let of_statement = |statement: &naga::Statement| match statement {
        naga::Statement::ControlBarrier(_) => 1,
        naga::Statement::WorkGroupUniformLoad { .. } => 2,
        naga::Statement::Block(block) => barriers_in(block),
        naga::Statement::If { accept, reject, .. } => barriers_in(accept) + barriers_in(reject),
        naga::Statement::Switch { cases, .. } => cases.iter().map(|case| barriers_in(&case.body)).sum(),
        naga::Statement::Loop { body, continuing, .. } => barriers_in(body) + barriers_in(continuing),
        _ => 0,
    };
    block.iter().map(of_statement).sum()
}
