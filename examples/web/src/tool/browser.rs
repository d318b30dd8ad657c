//! Chromium without a window, with a software adapter for WebGPU.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// Chromium and its relatives, as systems call them.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A running browser. It ends when this is dropped.
pub struct Browser {
    process: Child,
    /// Its settings, which go with it.
    _profile: TempDir,
}

impl Browser {
    /// Opens a page.
    pub fn open(address: &str) -> anyhow::Result<Self> {
        let profile = tempfile::tempdir()?;
        let process = Command::new(program()?)
            .args(["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run"])
            // The software adapter that comes with Chromium, so that every machine has one, and all have the same.
            .args(["--enable-unsafe-webgpu", "--enable-features=Vulkan", "--use-webgpu-adapter=swiftshader"])
            .arg("--window-size=1100,1400")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(address)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("could not start Chromium")?;
        Ok(Self { process, _profile: profile })
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // If it has ended already there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> anyhow::Result<String> {
    let named = std::env::var("CHROMIUM").ok();
    let candidates = named.into_iter().chain(NAMES.map(str::to_owned));
    for program in candidates {
        let mut version = Command::new(&program);
        version.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::null());
        if version.status().is_ok_and(|status| status.success()) {
            return Ok(program);
        }
    }
    bail!(
        "expected Chromium: on Debian it is the package chromium, and .ci/with-chromium installs it; CHROMIUM names another program"
    )
}
