//! Files that the tool writes. They are opened before a long run, so that an error comes before it, and written during and after it.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, Write as _};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, anyhow};
use same_file::Handle;

use crate::failure::Failure;

/// An argument that names a file: the option or operand, and its path.
pub type Argument<'a> = (&'static str, &'a Path);

/// A file that is open for writing and has its old content until it is written. One that did not exist is removed again if it is
/// never written.
#[derive(Debug)]
pub struct Output {
    option: &'static str,
    path: PathBuf,
    file: File,
    is_new: bool,
}

impl Output {
    /// Opens all outputs of a command that reads `inputs`.
    ///
    /// # Errors
    /// If an output is an input or another output, under whatever name, or cannot be opened. Nothing has been created then.
    pub fn open_all(inputs: &[Argument<'_>], outputs: &[Argument<'_>]) -> Result<Vec<Self>, Failure> {
        for (index, &(option, path)) in outputs.iter().enumerate() {
            for &(other_option, other_path) in inputs.iter().chain(&outputs[..index]) {
                if is_same(path, other_path) {
                    let path = path.display();
                    return Err(Failure::Input(anyhow!(
                        "{option} is {path}, the same file as {other_option}, expected another file"
                    )));
                }
            }
        }
        outputs.iter().map(|&(option, path)| Self::open(option, path)).collect()
    }

    fn open(option: &'static str, path: &Path) -> Result<Self, Failure> {
        let open = |create_new| {
            OpenOptions::new().write(true).create_new(create_new).create(true).truncate(false).open(path)
        };
        let (opened, is_new) = match open(true) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => (open(false), false),
            opened => (opened, true),
        };
        let file = opened.with_context(|| unwritten(option, path)).map_err(Failure::Input)?;
        Ok(Self { option, path: path.to_owned(), file, is_new })
    }

    /// Replaces the content of the file.
    pub fn write(mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.replace(bytes, true).with_context(|| unwritten(self.option, &self.path)).map_err(Failure::Input)
    }

    /// Replaces the content of the file with what there is so far, in case the run is killed. Devices and pipes get the end alone.
    pub fn write_so_far(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.replace(bytes, false).with_context(|| unwritten(self.option, &self.path)).map_err(Failure::Input)
    }

    fn replace(&mut self, bytes: &[u8], is_end: bool) -> std::io::Result<()> {
        let is_file = self.file.metadata()?.is_file();
        if !is_file && !is_end {
            return Ok(());
        }
        self.is_new = false;
        // Devices and pipes have no position and no length.
        if is_file {
            self.file.rewind()?;
        }
        self.file.write_all(bytes)?;
        self.file.flush()?;
        // The old content is cut off last, so that a run that is killed leaves one or the other.
        if is_file { self.file.set_len(bytes.len() as u64) } else { Ok(()) }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_new {
            // The error that ended the run is the one to report.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn unwritten(option: &str, path: &Path) -> String {
    format!("{option}: {} cannot be written", path.display())
}

/// Whether two paths name one file, which need not exist yet.
fn is_same(one: &Path, other: &Path) -> bool {
    match (Handle::from_path(one), Handle::from_path(other)) {
        // Hard links are one file, too.
        (Ok(one), Ok(other)) => one == other,
        (Err(_), Err(_)) => resolved(one) == resolved(other),
        _ => false,
    }
}

/// Where a file would be created: its folder without links, and the name that a link which leads nowhere yet leads to.
fn resolved(path: &Path) -> PathBuf {
    /// As many links as Linux follows.
    const MOST_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    match (folder.canonicalize(), path.components().next_back()) {
        (Ok(folder), Some(Component::Normal(name))) => folder.join(name),
        _ => path,
    }
}
