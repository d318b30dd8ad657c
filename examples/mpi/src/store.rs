//! Checkpoints of all ranks. Each writes a file of its own into a new folder, and a manifest names the folder once all files are there. So
//! whatever rank dies whenever, the manifest names a whole set.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use adamod::{Checkpoint, Restore};
use serde::{Deserialize, Serialize};

use crate::distributed::Distributed;
use crate::error::Error;
use crate::ranks::{Awaited, Incoming, Progress, awaited, poll_all, tag};

const MANIFEST: &str = "checkpoint.json";
const NEW_MANIFEST: &str = "checkpoint.json.new";
const FOLDER_PREFIX: &str = "step-";
const VERSION: u32 = 1;
/// Bytes of the message that names a folder: its step and its number.
const NAME_BYTES: usize = 16;

/// The set of files that a folder of checkpoints has.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    /// Steps, taken or skipped.
    steps: u64,
    /// The folder of the files.
    folder: String,
    files: Vec<String>,
}

/// A checkpoint whose files are being written. It counts once it is [committed](Distributed::commit).
#[derive(Debug)]
#[must_use = "a checkpoint counts once it is committed"]
pub struct Draft {
    root: PathBuf,
    folder: String,
}

impl Distributed {
    /// Saves a checkpoint of all ranks in a folder that all of them share, and removes the one before it. Every rank calls it at the same
    /// step.
    ///
    /// The folder is for checkpoints alone: others in it, whose names start with `step-`, are removed once this one is complete. If one cannot
    /// be removed, rank 0 prints why and goes on.
    ///
    /// Values are in it. Ranks with shards write a file each; of replicated ranks only rank 0 writes one. Until all files are complete,
    /// the checkpoint before it is the one that [`Distributed::restore`] finds.
    ///
    /// # Errors
    /// If a rank's file cannot be written, or another rank fails. The checkpoint before it stays.
    pub fn save(&mut self, root: impl AsRef<Path>) -> Result<(), Error> {
        let draft = self.write(root)?;
        self.commit(draft)
    }

    /// The first half of [`Distributed::save`]: writes this rank's file.
    ///
    /// # Errors
    /// As [`Distributed::save`].
    pub fn write(&mut self, root: impl AsRef<Path>) -> Result<Draft, Error> {
        let root = root.as_ref();
        self.guarded(|this| {
            this.check_between_steps()?;
            let folder = this.name_folder(root)?;
            if this.writes() {
                let path = root.join(&folder).join(file_name(this.messages.rank()));
                this.optimizer.save_with_values(path)?;
            }
            Ok(Draft { root: root.to_owned(), folder })
        })
    }

    /// The second half of [`Distributed::save`]: waits until all ranks have written their files, and names them in the manifest.
    ///
    /// # Errors
    /// As [`Distributed::save`].
    pub fn commit(&mut self, draft: Draft) -> Result<(), Error> {
        let Draft { root, folder } = draft;
        self.guarded(|this| {
            let limit = this.settings.save_limit;
            if this.messages.rank() > 0 {
                this.messages.send(0, tag::SAVE, vec![1]);
                this.messages.receive_within(limit, 0, tag::SAVE, 1, "its manifest")?;
                return Ok(());
            }
            let mut written: Vec<_> = (0..this.messages.size())
                .map(|rank| match rank {
                    0 => Incoming::Empty,
                    _ => Incoming::Awaited(this.messages.receive(rank, tag::SAVE, 1)),
                })
                .collect();
            this.messages.wait(limit, || {
                poll_all(&mut written)?;
                Ok(match awaited(&written) {
                    missing if missing.is_empty() => (Progress::Done(()), None),
                    missing => {
                        (Progress::Stuck, Some(Awaited::Ranks(missing, "its file of a checkpoint".into())))
                    }
                })
            })?;
            let writers = if this.settings.mode.is_sharded() { this.messages.size() } else { 1 };
            let files = (0..writers).map(file_name).collect();
            let manifest = Manifest { version: VERSION, steps: this.steps, folder: folder.clone(), files };
            write_manifest(&root, &manifest)?;
            // The checkpoint counts already.
            if let Err(error) = remove_others(&root, &folder) {
                eprintln!("rank 0: warning: an older checkpoint is left: {error}");
            }
            for rank in this.messages.others() {
                this.messages.send(rank, tag::SAVE, vec![1]);
            }
            Ok(())
        })
    }

    /// Goes on from the last checkpoint in a folder, which any number of ranks in any mode has saved. Every rank calls it.
    ///
    /// # Errors
    /// If there is no checkpoint, its files cannot be read, it is of other parameters, or another rank fails.
    pub fn restore(&mut self, root: impl AsRef<Path>) -> Result<(), Error> {
        let root = root.as_ref();
        self.guarded(|this| {
            this.check_between_steps()?;
            let manifest = read_manifest(root)?;
            let open = |file: &String| Checkpoint::open(root.join(&manifest.folder).join(file));
            let files = manifest.files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            let checkpoint = Checkpoint::merge(files)?;
            this.check_parameters(&checkpoint)?;
            // A rank may have no part of a tensor.
            this.optimizer.restore_with(&checkpoint, &Restore::new().allow_extra())?;
            this.steps = manifest.steps;
            // Some ranks take longer than others to read.
            let limit = this.settings.save_limit;
            this.messages.all_gather(limit, tag::SAVE, "that it has restored a checkpoint", Vec::new())?;
            if this.settings.mode.is_sharded() {
                this.gather()?;
            }
            Ok(())
        })
    }

    fn check_between_steps(&self) -> Result<(), Error> {
        if self.is_between_steps() { Ok(()) } else { Err(Error::MidStep { step: self.steps + 1 }) }
    }

    fn writes(&self) -> bool {
        self.settings.mode.is_sharded() || self.messages.rank() == 0
    }

    /// Creates a new folder on rank 0, and returns its name on all ranks.
    fn name_folder(&self, root: &Path) -> Result<String, Error> {
        let name = |bytes: &[u8]| {
            let number = |index: usize| bytemuck::pod_read_unaligned::<u64>(&bytes[8 * index..8 * index + 8]);
            format!("{FOLDER_PREFIX}{:09}.{}", number(0), number(1))
        };
        if self.messages.rank() > 0 {
            let message = self.messages.receive_within(
                self.settings.save_limit,
                0,
                tag::SAVE,
                NAME_BYTES,
                "the name of a checkpoint",
            )?;
            return Ok(name(&message));
        }
        if !root.is_dir() {
            fs::create_dir_all(root).map_err(in_file(root))?;
            root.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_folder)?;
        }
        for number in 0_u64.. {
            let message = [self.steps, number].map(u64::to_le_bytes).concat();
            let folder = name(&message);
            let path = root.join(&folder);
            match fs::create_dir(&path) {
                Ok(()) => {
                    for rank in self.messages.others() {
                        self.messages.send(rank, tag::SAVE, message.clone());
                    }
                    return Ok(folder);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(in_file(&path)(error)),
            }
        }
        unreachable!("a folder has fewer than 2^64 entries")
    }

    /// Checks that the checkpoint has every parameter of the run and no other.
    fn check_parameters(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let differs = |label: &str, found: String, expected: String| {
            Err(Error::CheckpointParameter { label: label.to_owned(), found, expected })
        };
        for tensor in &self.tensors {
            let found = checkpoint.parameter(&tensor.label).map(|of| (of.first, of.len));
            if found != Some((0, tensor.len)) {
                let found =
                    found.map_or("nothing".into(), |(first, len)| format!("{len} elements from {first} on"));
                return differs(&tensor.label, found, format!("{} elements", tensor.len));
            }
        }
        for parameter in checkpoint.parameters() {
            if !self.tensors.iter().any(|tensor| tensor.label == parameter.label) {
                return differs(parameter.label, format!("{} elements", parameter.len), "nothing".to_owned());
            }
        }
        Ok(())
    }
}

/// Whether a folder has a checkpoint that [`Distributed::restore`] takes. A save that did not end leaves none behind.
pub fn has_checkpoint(root: impl AsRef<Path>) -> bool {
    root.as_ref().join(MANIFEST).exists()
}

fn file_name(rank: usize) -> String {
    format!("rank-{rank:04}.safetensors")
}

fn in_file(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |error| Error::Io { path, error }
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(in_file(path))
}

/// Replaces the manifest in one step, once everything that it names is on disk: ranks have synced their files, and the folder that has them.
fn write_manifest(root: &Path, manifest: &Manifest) -> Result<(), Error> {
    sync_folder(root)?;
    let (new, path) = (root.join(NEW_MANIFEST), root.join(MANIFEST));
    let text = serde_json::to_vec_pretty(manifest).expect("a manifest is JSON");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()
    };
    write().map_err(in_file(&new))?;
    fs::rename(&new, &path).map_err(in_file(&path))?;
    sync_folder(root)
}

fn read_manifest(root: &Path) -> Result<Manifest, Error> {
    let path = root.join(MANIFEST);
    let text = fs::read(&path).map_err(in_file(&path))?;
    let refused = |found: String| Error::Manifest { path: path.clone(), found, expected: VERSION };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?;
    if manifest.version != VERSION {
        return Err(refused(format!("version {}", manifest.version)));
    }
    Ok(manifest)
}

/// Removes the folders of other checkpoints.
fn remove_others(root: &Path, folder: &str) -> Result<(), Error> {
    for entry in fs::read_dir(root).map_err(in_file(root))? {
        let entry = entry.map_err(in_file(root))?;
        let name = entry.file_name();
        let is_other = name.to_str().is_some_and(|name| name.starts_with(FOLDER_PREFIX) && name != folder);
        if is_other {
            fs::remove_dir_all(entry.path()).map_err(in_file(&entry.path()))?;
        }
    }
    Ok(())
}
