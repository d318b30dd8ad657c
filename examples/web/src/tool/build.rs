//! From the source to a folder that any web server can serve.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use wasm_bindgen_cli_support::Bindgen;

const TARGET: &str = "wasm32-unknown-unknown";
/// The most that a visitor downloads as code.
const MOST_WASM_BYTES: u64 = 1_000_000;

/// Builds the page, and returns its folder.
pub fn page() -> anyhow::Result<PathBuf> {
    let folder = build("page", &[])?;
    for name in ["check.html", "check.js"] {
        std::fs::remove_file(folder.join(name))?;
    }
    let bytes = std::fs::metadata(folder.join("adamod_web_bg.wasm"))?.len();
    ensure!(bytes < MOST_WASM_BYTES, "the wasm has {bytes} bytes, expected fewer than {MOST_WASM_BYTES}");
    println!("Wrote {}, with {} kB of wasm.", folder.display(), bytes.div_ceil(1000));
    Ok(folder)
}

/// Builds the page with the library's tests, and returns its folder.
pub fn suite() -> anyhow::Result<PathBuf> {
    build("suite", &["--features", "suite"])
}

fn build(name: &str, features: &[&str]) -> anyhow::Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    install_target()?;
    let target = target_folder()?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--package",
        "adamod-web",
        "--lib",
        "--target",
        TARGET,
        "--profile",
        "web",
        "--locked",
    ]);
    run(cargo.args(features).current_dir(package))?;

    let wasm = target.join(TARGET).join("web/adamod_web.wasm");
    let folder = target.join("web").join(name);
    Bindgen::new()
        .input_path(&wasm)
        .web(true)?
        .typescript(false)
        .remove_name_section(true)
        .remove_producers_section(true)
        .generate(&folder)
        .with_context(|| format!("could not make JavaScript of {}", wasm.display()))?;
    for entry in std::fs::read_dir(package.join("page"))? {
        let path = entry?.path();
        let name = path.file_name().context("a file of the page has a name")?;
        std::fs::copy(&path, folder.join(name))
            .with_context(|| format!("could not copy {}", path.display()))?;
    }
    Ok(folder)
}

/// Installs the target with rustup, unless it is there.
fn install_target() -> anyhow::Result<()> {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output()?;
    if Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir() {
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", TARGET]))
        .with_context(|| format!("expected the target {TARGET}, which rustup installs"))
}

/// Cargo's target folder, as it is configured.
fn target_folder() -> anyhow::Result<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--locked"]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("could not read `cargo metadata`")?;
    Ok(metadata.target_directory)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("could not start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
