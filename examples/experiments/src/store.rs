//! The folder of a run: what it has done so far, and what it continues from.
//!
//! `run.json` says where the run is; its model and optimizer are in the checkpoint that it names. It is replaced as a whole once the
//! checkpoint is there, so that a run that is killed continues from one or the other. `lock` is locked while a process has the run.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use adamod::Checkpoint;
use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::learner::LearnerState;

/// Format of the files.
const VERSION: u32 = 1;
const FILE: &str = "run.json";
const CHECKSUM: &str = "crc32";

/// What is known of a run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    name: String,
    /// Steps taken.
    step: u64,
    /// Time that they took in all.
    milliseconds: u64,
    stage: Stage,
}

/// Where a run is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
enum Stage {
    /// The results.
    Finished(Value),
    /// Name of the checkpoint file, state of the learner, and of what the experiment keeps.
    Training { checkpoint: String, learner: LearnerState, progress: Value },
}

/// What a run continues from.
pub struct Saved<P> {
    /// Steps taken.
    pub step: u64,
    pub checkpoint: Checkpoint,
    pub learner: LearnerState,
    /// What the experiment keeps.
    pub progress: P,
}

/// A run as its folder has it.
pub enum Found<O, P> {
    /// With its results and the time that it took.
    Finished { outcome: O, milliseconds: u64 },
    /// Another process has it.
    Busy,
    /// The run can be started or resumed. The caller holds the lock of its folder.
    Open(Folder, Option<Box<Saved<P>>>),
}

/// The folder of a run that this process has. Dropping it lets others have it.
pub struct Folder {
    path: PathBuf,
    name: String,
    milliseconds: u64,
    _lock: File,
}

/// The results of a run and the time that it took in milliseconds, if it is finished. Other processes may have the run meanwhile.
///
/// # Errors
/// If what the folder has is damaged or of another run.
pub fn finished<O: DeserializeOwned>(runs: &Path, name: &str) -> anyhow::Result<Option<(O, u64)>> {
    let path = runs.join(slug(name));
    match read_record(&path, name)? {
        Some(Record { stage: Stage::Finished(outcome), milliseconds, .. }) => {
            Ok(Some((read_value(outcome, &path)?, milliseconds)))
        }
        _ => Ok(None),
    }
}

/// What a record has of the experiment.
fn read_value<T: DeserializeOwned>(value: Value, folder: &Path) -> anyhow::Result<T> {
    let damaged = || format!("{} is not what this experiment writes", folder.join(FILE).display());
    serde_json::from_value(value).with_context(damaged)
}

/// Opens the folder of a run, and creates it if it is missing.
///
/// # Errors
/// If what the folder has is damaged or of another run.
pub fn open<O: DeserializeOwned, P: DeserializeOwned>(
    runs: &Path,
    name: &str,
) -> anyhow::Result<Found<O, P>> {
    if let Some((outcome, milliseconds)) = finished(runs, name)? {
        return Ok(Found::Finished { outcome, milliseconds });
    }
    let path = runs.join(slug(name));
    std::fs::create_dir_all(&path).with_context(|| format!("could not create {}", path.display()))?;
    let Some(file) = locked(&path.join("lock"))? else { return Ok(Found::Busy) };
    let Some(Record { step, milliseconds, stage, .. }) = read_record(&path, name)? else {
        return Ok(Found::Open(Folder { path, name: name.to_owned(), milliseconds: 0, _lock: file }, None));
    };
    match stage {
        Stage::Finished(outcome) => {
            Ok(Found::Finished { outcome: read_value(outcome, &path)?, milliseconds })
        }
        Stage::Training { checkpoint, learner, progress } => {
            let progress = read_value(progress, &path)?;
            let file_name = path.join(checkpoint);
            let read = Checkpoint::load(&file_name);
            let checkpoint = read.with_context(|| format!("could not read {}", file_name.display()))?;
            let folder = Folder { path, name: name.to_owned(), milliseconds, _lock: file };
            Ok(Found::Open(folder, Some(Box::new(Saved { step, checkpoint, learner, progress }))))
        }
    }
}

/// Deletes the folder with the folders of all runs, if there is one.
///
/// # Errors
/// If another process has one of the runs. Then nothing is deleted.
pub fn delete(runs: &Path) -> anyhow::Result<()> {
    if !runs.exists() {
        return Ok(());
    }
    let reading = || format!("could not read {}", runs.display());
    let mut locks = Vec::new();
    for entry in std::fs::read_dir(runs).with_context(reading)? {
        let lock = entry.with_context(reading)?.path().join("lock");
        if lock.exists() {
            let file = locked(&lock)?;
            locks.push(file.with_context(|| format!("{} is in use by another process", runs.display()))?);
        }
    }
    // Not every system deletes files that are open.
    drop(locks);
    std::fs::remove_dir_all(runs).with_context(|| format!("could not delete {}", runs.display()))
}

/// Locks a file, and creates it if it is missing. `None` if another process has locked it.
fn locked(path: &Path) -> anyhow::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file.with_context(|| format!("could not open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("could not lock {}", path.display()))
        }
    }
}

impl Folder {
    /// Saves a run in the middle, with the time since it was last saved.
    pub fn save<P: Serialize>(&mut self, saved: &Saved<P>, milliseconds: u64) -> anyhow::Result<()> {
        let checkpoint = format!("{}.safetensors", saved.step);
        saved.checkpoint.save(self.path.join(&checkpoint))?;
        let progress = serde_json::to_value(&saved.progress)?;
        let stage =
            Stage::Training { checkpoint: checkpoint.clone(), learner: saved.learner.clone(), progress };
        self.write(saved.step, milliseconds, stage)?;
        self.remove_checkpoints(Some(&checkpoint))
    }

    /// Saves the results of a run.
    pub fn finish<O: Serialize>(mut self, steps: u64, outcome: &O, milliseconds: u64) -> anyhow::Result<()> {
        self.write(steps, milliseconds, Stage::Finished(serde_json::to_value(outcome)?))?;
        self.remove_checkpoints(None)
    }

    /// Time that the run has taken as of its last save.
    pub fn milliseconds(&self) -> u64 {
        self.milliseconds
    }

    fn write(&mut self, step: u64, milliseconds: u64, stage: Stage) -> anyhow::Result<()> {
        self.milliseconds += milliseconds;
        let record = Record {
            version: VERSION,
            name: self.name.clone(),
            step,
            milliseconds: self.milliseconds,
            stage,
        };
        let mut value = serde_json::to_value(record)?;
        let checksum = checksum(&value);
        value[CHECKSUM] = checksum.into();
        replace(&self.path.join(FILE), value.to_string().as_bytes())
    }

    fn remove_checkpoints(&self, but: Option<&str>) -> anyhow::Result<()> {
        let is_checkpoint = |name: &str| name.ends_with(".safetensors") && Some(name) != but;
        // What saves leave that were killed before their end. No other process saves this run.
        let is_unfinished =
            |name: &str| name.ends_with(".new") || name.contains(".safetensors.") && name.ends_with(".tmp");
        let old = |name: &str| is_checkpoint(name) || is_unfinished(name);
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(old) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Replaces a file as a whole.
pub fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("could not write {}", path.display()))
}

fn read_record(folder: &Path, name: &str) -> anyhow::Result<Option<Record>> {
    let path = folder.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("could not read {}", path.display())),
    };
    let read = || -> anyhow::Result<Record> {
        let mut value: Value = serde_json::from_str(&text)?;
        let Some(found) = value.as_object_mut().and_then(|object| object.remove(CHECKSUM)) else {
            bail!("it has no checksum");
        };
        ensure!(found == checksum(&value), "its checksum is {found}, expected \"{}\"", checksum(&value));
        let record: Record = serde_json::from_value(value)?;
        ensure!(record.version == VERSION, "it has version {}, expected {VERSION}", record.version);
        ensure!(record.name == name, "it is of the run {:?}, expected {name:?}", record.name);
        Ok(record)
    };
    let damaged =
        || format!("{} is damaged or of something else; remove it to start the run anew", path.display());
    read().with_context(damaged).map(Some)
}

/// CRC32 of a JSON value without the checksum. Keys are sorted.
fn checksum(value: &Value) -> String {
    format!("{:08x}", crc32fast::hash(value.to_string().as_bytes()))
}

/// The name of a run's folder.
fn slug(name: &str) -> String {
    let parts =
        name.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner::saved_for_tests;

    fn saved(step: u64) -> Saved<f64> {
        let (checkpoint, learner) = saved_for_tests();
        Saved { step, checkpoint, learner, progress: 0.5 }
    }

    fn opened(runs: &Path) -> anyhow::Result<Found<f64, f64>> {
        open(runs, "Adam, alpha 0.1, seed 0")
    }

    fn error(runs: &Path) -> String {
        format!("{:#}", opened(runs).err().expect("an error"))
    }

    #[test]
    fn a_run_goes_on_where_it_was_saved_last() {
        let runs = tempfile::tempdir().unwrap();
        let Found::Open(mut folder, None) = opened(runs.path()).unwrap() else { panic!("a new run") };
        folder.save(&saved(3), 10).unwrap();
        folder.save(&saved(5), 20).unwrap();
        assert!(matches!(opened(runs.path()).unwrap(), Found::Busy));
        drop(folder);
        let path = runs.path().join("adam-alpha-0.1-seed-0");
        assert!(!path.join("3.safetensors").exists() && path.join("5.safetensors").exists());
        // A save that was killed before its end changes nothing.
        let left = ["run.17.new", "7.safetensors", ".8.safetensors.17.0.tmp"].map(|name| path.join(name));
        left.iter().for_each(|file| std::fs::write(file, "{").unwrap());
        let Found::Open(folder, Some(saved)) = opened(runs.path()).unwrap() else { panic!("a saved run") };
        assert_eq!((saved.step, saved.progress, folder.milliseconds()), (5, 0.5, 30));
        folder.finish(6, &1.5, 30).unwrap();
        assert!(!path.join("5.safetensors").exists() && !left.iter().any(|file| file.exists()));
        let Found::Finished { outcome, milliseconds } = opened(runs.path()).unwrap() else {
            panic!("its results")
        };
        assert_eq!((outcome, milliseconds), (1.5, 60));
        // Also while another process has the lock, and without anything that is new.
        let lock = locked(&path.join("lock")).unwrap().expect("nobody has it");
        assert!(matches!(opened(runs.path()).unwrap(), Found::Finished { .. }));
        drop(lock);
        let name = "Adam, alpha 0.1, seed 0";
        assert_eq!(finished::<f64>(runs.path(), name).unwrap(), Some((1.5, 60)));
        assert_eq!(finished::<f64>(runs.path(), "SGD, seed 0").unwrap(), None);
        assert_eq!(std::fs::read_dir(runs.path()).unwrap().count(), 1);
    }

    #[test]
    fn damaged_and_foreign_folders_are_refused() {
        let runs = tempfile::tempdir().unwrap();
        let Found::Open(mut folder, None) = opened(runs.path()).unwrap() else { panic!("a new run") };
        folder.save(&saved(3), 10).unwrap();
        drop(folder);
        let path = runs.path().join("adam-alpha-0.1-seed-0");
        let (file, checkpoint) = (path.join(FILE), path.join("3.safetensors"));
        let whole = std::fs::read_to_string(&file).unwrap();
        let bytes = std::fs::read(&checkpoint).unwrap();

        for (text, expected) in [
            (whole.replace("\"step\":3", "\"step\":4"), "its checksum is"),
            (whole[..whole.len() / 2].to_owned(), "run.json is damaged"),
            (whole.replace("\"crc32\"", "\"crc\""), "it has no checksum"),
            ("[]".to_owned(), "it has no checksum"),
        ] {
            assert_ne!(text, whole);
            std::fs::write(&file, text).unwrap();
            assert!(error(runs.path()).contains(expected), "{}", error(runs.path()));
        }
        std::fs::write(&file, &whole).unwrap();
        std::fs::write(&checkpoint, &bytes[..bytes.len() - 1]).unwrap();
        assert!(error(runs.path()).contains("3.safetensors"));
        std::fs::remove_file(&checkpoint).unwrap();
        assert!(error(runs.path()).contains("3.safetensors"));
        std::fs::write(&checkpoint, &bytes).unwrap();
        assert!(opened(runs.path()).is_ok());

        // Of another run, and of an experiment that keeps something else.
        let other = runs.path().join("sgd-seed-0");
        std::fs::create_dir(&other).unwrap();
        std::fs::copy(&file, other.join(FILE)).unwrap();
        let found = open::<f64, f64>(runs.path(), "SGD, seed 0").err().unwrap();
        assert!(format!("{found:#}").contains("\"SGD, seed 0\""), "{found:#}");
        let found = open::<f64, String>(runs.path(), "Adam, alpha 0.1, seed 0").err().unwrap();
        assert!(format!("{found:#}").contains("not what this experiment writes"), "{found:#}");
    }
}
