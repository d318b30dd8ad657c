//! Validators of other people: SPIR-V Tools, glslang and DXC.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use hassle_rs::{Dxc, DxcCompiler, DxcLibrary};

use crate::kernels::Kernel;
use crate::translate::{Translations, file};

/// The validators that this machine has.
pub struct Validators {
    has_spirv_val: bool,
    has_glslang: bool,
    dxc: Option<DirectX>,
}

struct DirectX {
    compiler: DxcCompiler,
    library: DxcLibrary,
    // Last, because the others are functions of this library.
    _loaded: Dxc,
}

impl Validators {
    /// Looks for the programs on the path, and loads DXC's library from `dxc`.
    pub fn find(dxc: Option<PathBuf>) -> anyhow::Result<Self> {
        let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
        let dxc = dxc.map(|path| {
            let loaded = Dxc::new(Some(path))?;
            anyhow::Ok(DirectX {
                compiler: loaded.create_compiler()?,
                library: loaded.create_library()?,
                _loaded: loaded,
            })
        });
        Ok(Self {
            has_spirv_val: is_there("spirv-val"),
            has_glslang: is_there("glslangValidator"),
            dxc: dxc.transpose().context("DXC")?,
        })
    }

    /// Their names.
    pub fn names(&self) -> Vec<&'static str> {
        let all = [
            (self.has_spirv_val, "spirv-val"),
            (self.has_glslang, "glslangValidator"),
            (self.dxc.is_some(), "dxc"),
        ];
        all.into_iter().filter(|(is_there, _)| *is_there).map(|(_, name)| name).collect()
    }

    /// Validates the translations of a kernel, which lie in `files` without an extension.
    pub fn check(&self, kernel: &Kernel, of: &Translations, files: &Path) -> anyhow::Result<()> {
        if self.has_spirv_val {
            run(Command::new("spirv-val").args(["--target-env", "vulkan1.1"]).arg(file(files, "spv")))?;
        }
        if self.has_glslang {
            run(Command::new("glslangValidator").args(["-S", "comp"]).arg(file(files, "comp")))?;
        }
        if let Some(dxc) = &self.dxc {
            let blob = dxc.library.create_blob_with_encoding_from_str(&of.hlsl)?;
            // As wgpu-hal.
            let arguments = ["-HV", "2018", "-no-warnings"];
            let compiled = dxc.compiler.compile(
                &blob,
                &kernel.name,
                &kernel.entry_point,
                "cs_6_0",
                &arguments,
                None,
                &[],
            );
            if let Err((result, _)) = compiled {
                let message = result.get_error_buffer()?;
                bail!("dxc: {}", dxc.library.get_blob_as_string(&message.into())?);
            }
        }
        Ok(())
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    ensure!(output.status.success(), "{:?}: {}", command.get_program(), text.concat());
    Ok(())
}
