//! Checkpoints on a file system: written whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Error, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Checkpoint;
use crate::error::CheckpointError;

impl Checkpoint {
    /// Writes it to a file. The data go to a temporary file in the same folder, which then takes the file's place: whatever
    /// happens meanwhile, there is the old checkpoint or the new one. File and folder are synced. The file has the mode of the one
    /// it replaces. A process that is killed meanwhile leaves the temporary file, whose name ends in `.tmp`.
    ///
    /// # Errors
    /// If the file system refuses; the path and what was being done are named.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CheckpointError> {
        let path = path.as_ref();
        let bytes = self.to_bytes()?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or_else(|| {
            let source = Error::new(ErrorKind::InvalidInput, "it has no file name");
            CheckpointError::Io { path: path.to_owned(), action: "save", source }
        })?;
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| CheckpointError::Io { path, action, source }
        };
        let (temporary, mut file) =
            Temporary::create(folder, name).map_err(|(path, source)| io("create", &path)(source))?;
        file.write_all(&bytes).map_err(io("write", &temporary.path))?;
        if let Ok(replaced) = std::fs::metadata(path) {
            file.set_permissions(replaced.permissions()).map_err(io("set the mode of", &temporary.path))?;
        }
        file.sync_all().map_err(io("sync", &temporary.path))?;
        drop(file);
        std::fs::rename(&temporary.path, path).map_err(io("replace", path))?;
        temporary.forget();
        // The new name lasts once the folder is on disk; only Unix can open one for that.
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
        let bytes = std::fs::read(path).map_err(|source| CheckpointError::Io {
            path: path.to_owned(),
            action: "read",
            source,
        })?;
        Self::from_bytes(&bytes)
    }
}

/// A file that is removed unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// A new file with a name that no other save uses: by process, and by save within it. A process that was killed may have left
    /// one of the same name, and another one with the same number may run elsewhere: so what is there is left alone.
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

    /// It was renamed: what has its name from now on is another save's.
    fn forget(mut self) {
        self.path.clear();
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        // The error that led here is the one to be told.
        let _ = std::fs::remove_file(&self.path);
    }
}
