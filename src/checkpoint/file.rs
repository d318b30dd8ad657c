//! Checkpoint files, which are written whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Error, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Checkpoint;
use super::error::CheckpointError;

impl Checkpoint {
    /// Writes the checkpoint to a file. The data go to a temporary file in the same folder, which then replaces the file. Whatever happens
    /// meanwhile, the file is the old checkpoint or the new one. File and folder are synced. The new file has the mode of the one that it
    /// replaces. A process that is killed meanwhile leaves the temporary file, whose name ends in `.tmp`.
    ///
    /// # Errors
    /// If the file system refuses an operation. The error names the path and the operation.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CheckpointError> {
        let path = path.as_ref();
        let bytes = self.to_bytes()?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or_else(|| {
            let error = Error::new(ErrorKind::InvalidInput, "it has no file name");
            CheckpointError::Io { path: path.to_owned(), action: "save", error }
        })?;
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |error| CheckpointError::Io { path, action, error }
        };
        let (temporary, mut file) =
            Temporary::create(folder, name).map_err(|(path, error)| io("create", &path)(error))?;
        file.write_all(&bytes).map_err(io("write", &temporary.path))?;
        if let Ok(replaced) = std::fs::metadata(path) {
            file.set_permissions(replaced.permissions()).map_err(io("set the mode of", &temporary.path))?;
        }
        file.sync_all().map_err(io("sync", &temporary.path))?;
        drop(file);
        std::fs::rename(&temporary.path, path).map_err(io("replace", path))?;
        temporary.forget();
        // The new name is durable once the folder is synced. Only Unix can open a folder for that.
        if cfg!(unix) {
            let folder_file = File::open(folder).map_err(io("open", folder))?;
            folder_file.sync_all().map_err(io("sync", folder))?;
        }
        Ok(())
    }

    /// Reads a file that [`Checkpoint::save`] wrote.
    ///
    /// # Errors
    /// As [`Checkpoint::from_bytes`], or if the file cannot be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| CheckpointError::Io {
            path: path.to_owned(),
            action: "read",
            error,
        })?;
        Self::from_bytes(&bytes)
    }
}

/// A file that is removed unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Creates a file with a name that no other save uses, from the number of the process and of the save. An existing file is left alone:
    /// a killed process may have left it, or a process with the same number elsewhere may be writing it.
    fn create(folder: &Path, name: &OsStr) -> Result<(Self, File), (PathBuf, Error)> {
        static SAVES: AtomicU64 = AtomicU64::new(0);
        loop {
            let save = SAVES.fetch_add(1, Ordering::Relaxed);
            let mut temporary = OsString::from(".");
            temporary.push(name);
            temporary.push(format!(".{}.{save}.tmp", std::process::id()));
            let path = folder.join(temporary);
            match File::create_new(&path) {
                Ok(file) => return Ok((Self { path }, file)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err((path, error)),
            }
        }
    }

    /// Keeps the file, because it was renamed.
    fn forget(mut self) {
        self.path.clear();
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        // The caller already has an error to report.
        let _ = std::fs::remove_file(&self.path);
    }
}
