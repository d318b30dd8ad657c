//! Translates every kernel into SPIR-V, HLSL, MSL and GLSL as wgpu does, validates the translations with what validators there are, and
//! prints a table of the kernels that a GPU runs for large aligned tensors.
//!
//! `.ci/translations` runs it and compares the table with the committed one.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Parser;
use indicatif::ProgressIterator as _;

#[path = "../../../examples/common/kernels.rs"]
mod kernels;
mod translate;
mod validators;

use kernels::Kernel;
use translate::Translations;

/// Translates the kernels for all backends and validates the translations.
#[derive(Parser)]
struct Arguments {
    /// Where the translations go. A temporary folder by default.
    #[arg(long)]
    output: Option<PathBuf>,
    /// The library of DXC, libdxcompiler.so.
    #[arg(long, env = "DXC_LIBRARY")]
    dxc: Option<PathBuf>,
    /// Takes each n-th kernel, besides those of the table.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
}

fn main() -> anyhow::Result<()> {
    let Arguments { output, dxc, every } = Arguments::parse();
    let temporary = tempfile::tempdir()?;
    let output = output.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(output)?;
    let validators = validators::Validators::find(dxc)?;
    let chosen: Vec<_> = kernels::all()
        .into_iter()
        .enumerate()
        .filter(|(index, kernel)| is_typical(kernel) || (*index as u64).is_multiple_of(every))
        .map(|(_, kernel)| kernel)
        .collect();
    let mut rows = Vec::new();
    for kernel in chosen.iter().progress() {
        let checked = || {
            let translations = Translations::of(kernel)?;
            translations.write(&output.join(&kernel.name))?;
            ensure_equal_barriers(&translations)?;
            validators.check(kernel, &translations, &output.join(&kernel.name))?;
            anyhow::Ok(translations)
        };
        let translations = checked().with_context(|| kernel.name.clone())?;
        if is_typical(kernel) {
            rows.push(format!("{}\t{}", kernel.name, translations.figures()));
        }
    }
    eprintln!("{} kernels in 4 languages, validated by {}", chosen.len(), validators.names().join(", "));
    println!("kernel\tSPIR-V instructions\tbarriers\tSPIR-V bytes\tHLSL bytes\tMSL bytes\tGLSL bytes");
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

/// The kernels of large aligned tensors in f32, or with 8-bit state, and those that prepare steps.
fn is_typical(kernel: &Kernel) -> bool {
    let name = kernel.name.as_str();
    let is_plain =
        |name: &str| ["vec4.read.words4", "vec4.read.words2.q8"].iter().any(|end| name.ends_with(end));
    if name.starts_with("update.") {
        is_plain(name)
    } else {
        !name.contains('.') || name.ends_with("Vec4.Read")
    }
}

/// A translation that loses a barrier is a data race.
fn ensure_equal_barriers(of: &Translations) -> anyhow::Result<()> {
    // On Direct3D 12 wgpu zeroes workgroup memory whether asked to or not, and waits for it.
    let zeroed = usize::from(of.hlsl.contains("groupshared"));
    let counted = [
        ("HLSL", of.hlsl.matches("GroupMemoryBarrierWithGroupSync()").count() - zeroed),
        ("MSL", of.msl.matches("threadgroup_barrier(").count()),
        ("GLSL", of.glsl.matches("    barrier();").count()),
    ];
    for (language, barriers) in counted {
        ensure!(barriers == of.barriers, "expected {} barriers, got {barriers} in {language}", of.barriers);
    }
    Ok(())
}
