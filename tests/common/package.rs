//! Where the package's files and its tool are. A kit for machines without Rust (benches/kit) has them in another place than the one in which
//! its tests were built.
#![allow(dead_code, reason = "not every test needs all of them")]

use std::ffi::OsString;
use std::path::PathBuf;

/// The package's folder.
pub fn folder() -> PathBuf {
    std::env::var_os("ADAMOD_PACKAGE").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

/// The tool `adamod`.
#[cfg(feature = "cli")]
pub fn tool() -> OsString {
    std::env::var_os("ADAMOD_TOOL").unwrap_or_else(|| env!("CARGO_BIN_EXE_adamod").into())
}

/// A folder with the layer that makes devices fail, if it is built already.
pub fn built_layer() -> Option<PathBuf> {
    std::env::var_os("ADAMOD_FAULTS_LAYER").map(PathBuf::from)
}
