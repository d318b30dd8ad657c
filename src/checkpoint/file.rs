//! Checkpoint files, which are written whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Error, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::Checkpoint;
use super::error::CheckpointError;
use super::reader::{Found, find};
use super::saved::{BATCH_BYTES, Data, SavedParameter, Segment, Source, Stored, batches, read_batch};
use super::writer::Sink;

impl Checkpoint {
    /// Writes the checkpoint to a file. The data go to a temporary file in the same folder, which then replaces the file. Whatever happens
    /// meanwhile, the file is the old checkpoint or the new one. File and folder are synced. The new file has the mode of the one that it
    /// replaces. A process that is killed meanwhile leaves the temporary file, whose name ends in `.tmp`.
    ///
    /// # Errors
    /// If the file system refuses an operation. The error names the path and the operation.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CheckpointError> {
        let file = NewFile::create(path.as_ref())?;
        self.write_to(file)?.replace()
    }

    /// Reads a file that [`Checkpoint::save`] or [`Optimizer::save`](crate::Optimizer::save) wrote.
    ///
    /// # Errors
    /// As [`Checkpoint::from_bytes`], or if the file cannot be read. The error names the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self::open(path)?;
        let empty = |parameter: &SavedParameter| -> Vec<Vec<u8>> {
            let size = |tensor| parameter.bytes_before(tensor, parameter.len) as usize;
            parameter.tensors().into_iter().map(|tensor| Vec::with_capacity(size(tensor))).collect()
        };
        let mut data: Vec<_> = checkpoint.parameters.iter().map(empty).collect();
        for batch in batches(&checkpoint.parameters, BATCH_BYTES) {
            for ((index, _), tensors) in batch.iter().zip(read_batch(&checkpoint.parameters, &batch)?) {
                for (all, more) in data[*index].iter_mut().zip(tensors) {
                    all.extend(more);
                }
            }
        }
        for (parameter, data) in checkpoint.parameters.iter_mut().zip(data) {
            parameter.segments = vec![Segment { elements: parameter.len, data: Data::Memory(data.into()) }];
        }
        Ok(checkpoint)
    }

    /// Opens a file that [`Checkpoint::save`] or [`Optimizer::save`](crate::Optimizer::save) wrote. Reads and verifies its header. The
    /// data stay in the file. They are read when they are needed, for example by a restore, and verified then. The file stays open as long
    /// as the checkpoint or a clone needs it; another file may replace it meanwhile.
    ///
    /// A file without checksums of pieces, which another program has written, is read once as a whole to verify it.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let io = |error| CheckpointError::Io { path: path.to_owned(), action: "read", error };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let stored = StoredFile { path: path.to_owned(), file: Mutex::new(file) };
        let read_at = |offset, to: &mut [u8]| stored.read_at(offset, to);
        let found = find(bytes, &read_at).map_err(|error| stored.named(error))?;
        let Found { mut checkpoint, places } = found;
        let source: Arc<dyn Source> = Arc::new(stored);
        for (parameter, (offsets, checksums)) in checkpoint.parameters.iter_mut().zip(places) {
            let data = Data::Stored(Arc::new(Stored { source: source.clone(), offsets, checksums }));
            parameter.segments = vec![Segment { elements: parameter.len, data }];
        }
        Ok(checkpoint)
    }
}

/// An open file.
#[derive(Debug)]
struct StoredFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl Source for StoredFile {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), CheckpointError> {
        // A panic while the file was locked cannot have spoiled it: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(to));
        read.map_err(|error| CheckpointError::Io { path: self.path.clone(), action: "read", error })
    }

    fn named(&self, error: CheckpointError) -> CheckpointError {
        match error {
            CheckpointError::Io { .. } | CheckpointError::File { .. } => error,
            error => CheckpointError::File { path: self.path.clone(), error: Box::new(error) },
        }
    }
}

/// A file that replaces another one when it is complete.
pub(crate) struct NewFile {
    path: PathBuf,
    folder: PathBuf,
    temporary: Temporary,
    file: File,
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(Error) -> CheckpointError + use<'a> {
    move |error| CheckpointError::Io { path: path.to_owned(), action, error }
}

impl NewFile {
    /// Creates a temporary file in the folder of `path`.
    pub fn create(path: &Path) -> Result<Self, CheckpointError> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let name = path
            .file_name()
            .ok_or_else(|| io("save", path)(Error::new(ErrorKind::InvalidInput, "it has no file name")))?;
        let (temporary, file) =
            Temporary::create(folder, name).map_err(|(path, error)| io("create", &path)(error))?;
        Ok(Self { path: path.to_owned(), folder: folder.to_owned(), temporary, file })
    }

    /// Puts the file in the place of the old one.
    pub fn replace(self) -> Result<(), CheckpointError> {
        let Self { path, folder, temporary, file } = self;
        if let Ok(replaced) = std::fs::metadata(&path) {
            file.set_permissions(replaced.permissions()).map_err(io("set the mode of", &temporary.path))?;
        }
        file.sync_all().map_err(io("sync", &temporary.path))?;
        drop(file);
        std::fs::rename(&temporary.path, &path).map_err(io("replace", &path))?;
        temporary.forget();
        // The new name is durable once the folder is synced. Only Unix can open a folder for that.
        if cfg!(unix) {
            let folder_file = File::open(&folder).map_err(io("open", &folder))?;
            folder_file.sync_all().map_err(io("sync", &folder))?;
        }
        Ok(())
    }
}

impl Sink for NewFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let written = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        written.map_err(io("write", &self.temporary.path))
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
