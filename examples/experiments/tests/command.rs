//! The command as a whole: runs that are broken, spread over processes and resumed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs of a tiny Transformer with dropout.
const TRANSLATION: &str = "translation --device=cpu --steps=4 --seeds=2 --sentences=30 --test-sentences=3 --validation-sentences=2 \
    --layers=1 --width=8 --heads=2 --feed-forward=8 --dropout=0.2 --merges=0 --batch=4 --learning-rates=0.01 --other-beta3=0.9 \
    --formats=q8/split24";

fn experiments(arguments: &str, output: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adamod-experiments"));
    command.args(arguments.split_whitespace()).arg("--output").arg(output).output().unwrap()
}

fn succeeds(arguments: &str, output: &Path) -> String {
    let result = experiments(arguments, output);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    String::from_utf8(result.stdout).unwrap()
}

fn fails(arguments: &str, output: &Path) -> String {
    let result = experiments(arguments, output);
    assert!(!result.status.success(), "{arguments}");
    String::from_utf8(result.stderr).unwrap()
}

fn read(folder: &Path, file: &str) -> String {
    std::fs::read_to_string(folder.join(file)).unwrap()
}

/// Folders of runs.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = all.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn assert_same(one: &Path, other: &Path) {
    for file in [
        "losses.csv",
        "validation_losses.csv",
        "beta3.csv",
        "formats.csv",
        "learning_rates.svg",
        "formats.svg",
    ] {
        assert!(read(one, file) == read(other, file), "{file}");
    }
}

#[test]
fn broken_runs_in_several_processes_have_the_numbers_of_whole_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let report = succeeds(TRANSLATION, &whole);
    assert!(!report.contains("not finished") && report.contains("Took"), "{report}");

    // Each call takes one step, and each of its processes.
    let report = succeeds(&format!("{TRANSLATION} --hours=0"), &broken);
    assert!(report.contains("**12 of 12 runs are not finished**") && !report.contains("BLEU"), "{report}");
    succeeds(&format!("{TRANSLATION} --hours=0 --resume"), &broken);
    succeeds(&format!("{TRANSLATION} --hours=0 --resume --jobs=3"), &broken);
    let report = succeeds(&format!("{TRANSLATION} --resume --jobs=2"), &broken);
    assert!(!report.contains("not finished") && report.contains("BLEU"), "{report}");
    assert_same(&whole, &broken);

    // A report of what is finished, and of more runs later.
    let report =
        succeeds(&format!("{TRANSLATION} --resume --seeds=3 --hours=0").replace("--seeds=2 ", ""), &broken);
    assert!(report.contains("**6 of 18 runs are not finished**") && report.contains("BLEU"), "{report}");
    succeeds(&format!("{TRANSLATION} --resume"), &broken);
    assert_same(&whole, &broken);
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let small = TRANSLATION.replace("--seeds=2", "--seeds=1");
    succeeds(&format!("{small} --hours=0 --resume"), folder.path());
    let runs = folder.path().join("runs");
    let (report, all_runs) = (read(folder.path(), "report.md"), entries(&runs));
    let error = fails(&small, folder.path());
    assert!(error.contains("--resume goes on with them, --restart deletes them"), "{error}");
    let error = fails(&format!("{small} --resume").replace("--width=8", "--width=16"), folder.path());
    assert!(error.contains("--width is \"16\", expected \"8\""), "{error}");
    let error =
        fails(&format!("{small} --resume").replace("--sentences=30", "--sentences=31"), folder.path());
    assert!(error.contains("--sentences is \"31\", expected \"30\""), "{error}");
    let gpu = small.replace("--device=cpu", "--device=gpu").replace("q8/split24", "q8");
    let error = fails(&format!("{gpu} --resume"), folder.path());
    assert!(error.contains("device is \"gpu\", expected \"cpu\""), "{error}");
    // A refused call leaves the report and the runs as they are.
    assert!(read(folder.path(), "report.md") == report && entries(&runs) == all_runs);
    let error = fails(&format!("{small} --restart").replace("--batch=4", "--batch=40"), folder.path());
    assert!(error.contains("expected at least 40 for training"), "{error}");
    assert!(entries(&runs) == all_runs);
    let lock = std::fs::File::open(all_runs[0].join("lock")).unwrap();
    lock.lock().unwrap();
    let error = fails(&format!("{small} --restart"), folder.path());
    assert!(error.contains("is in use by another process") && entries(&runs) == all_runs, "{error}");
    drop(lock);

    // A damaged run fails in every process.
    let has_record = |entry: &PathBuf| entry.join("run.json").exists();
    let run = all_runs.into_iter().find(has_record).unwrap();
    std::fs::write(run.join("run.json"), "{}").unwrap();
    for jobs in ["", " --jobs=2"] {
        let error = fails(&format!("{small} --resume{jobs}"), folder.path());
        assert!(error.contains("run.json is damaged"), "{error}");
    }
    assert!(error_of_no_hours().contains("hours"));
    let report = succeeds(&format!("{small} --restart"), folder.path());
    assert!(!report.contains("not finished"), "{report}");
}

/// Runs by packages, for which a script stands in.
#[test]
fn steps_of_packages_are_beside_those_of_the_library() {
    const MODEL: &str = "language-model --device=cpu --steps=3 --seeds=1 --lines=50 --layers=1 --hidden=8 --learning-rates=0.01 \
        --formats=q8 --packages=bitsandbytes";
    let stand_in = concat!("--python=", env!("CARGO_MANIFEST_DIR"), "/packages/stand_in.py");
    let with_python = format!("{MODEL} {stand_in}");
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let report = succeeds(&with_python, &whole);
    assert!(
        report.contains("stand-in 1") && report.contains("| f32/f32 | q8/f32 | bitsandbytes |"),
        "{report}"
    );
    for _ in 0..3 {
        succeeds(&format!("{with_python} --hours=0 --resume"), &broken);
    }
    succeeds(&format!("{with_python} --resume --jobs=2"), &broken);
    for file in ["test.csv", "training.csv", "packages.svg"] {
        assert!(read(&whole, file) == read(&broken, file), "{file}");
    }

    // Runs of another version are not reported as those of this one.
    let record = broken.join("runs/arguments.json");
    let earlier = std::fs::read_to_string(&record).unwrap().replace("stand-in 1", "stand-in 0");
    std::fs::write(&record, earlier).unwrap();
    let error = fails(&format!("{with_python} --resume"), &broken);
    assert!(error.contains("package bitsandbytes is \"stand-in 1\", expected \"stand-in 0\""), "{error}");

    // A Python without the packages deletes nothing, and leaves nothing behind.
    let runs = entries(&whole.join("runs"));
    let without = format!("{MODEL} --python=/nowhere/python");
    let error = fails(&format!("{without} --restart"), &whole);
    assert!(
        error.contains("could not start /nowhere/python") && entries(&whole.join("runs")) == runs,
        "{error}"
    );
    fails(&without, &folder.path().join("new"));
    assert!(!folder.path().join("new").exists());
    // Pictures need none.
    let drawn = read(&whole, "packages.svg");
    std::fs::remove_file(whole.join("packages.svg")).unwrap();
    let mut redraw = Command::new(env!("CARGO_BIN_EXE_adamod-experiments"));
    redraw.args(without.split_whitespace()).arg("--redraw").arg(&whole);
    assert!(redraw.output().unwrap().status.success() && read(&whole, "packages.svg") == drawn);
}

fn error_of_no_hours() -> String {
    fails(&format!("{TRANSLATION} --hours=-1"), Path::new("unused"))
}

/// One short run by the kernels in each experiment.
#[test]
fn experiments_train_on_wgpu() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = TRANSLATION
        .split_once("--steps=4")
        .unwrap()
        .1
        .replace("--formats=q8/split24", "--formats=q8")
        .replace("--seeds=2", "--seeds=1");
    let output = |name: &str| folder.path().join(name);
    succeeds(&format!("translation --device=gpu --steps=1 {sizes}"), &output("translation"));
    succeeds(
        "language-model --device=gpu --steps=1 --seeds=1 --lines=50 --layers=1 --learning-rates=0.003",
        &output("language-model"),
    );
    let report = succeeds(
        "classification --device=gpu --seeds=1 --epochs=1 --batch=700 --networks=resnet,resnet --channels=2 --learning-rates=0.01 \
         --no-other-beta3",
        &output("classification"),
    );
    assert_eq!(report.matches("ResNet of ").count(), 1, "{report}");
    assert!(
        entries(&output("classification").join("runs")).len() == 3 && !report.contains("beta3:"),
        "{report}"
    );
    let error = fails(&format!("translation --device=gpu --steps=1 {sizes}/bf16"), &output("narrow"));
    assert!(error.contains("--device cpu") && !output("narrow").exists(), "{error}");
}
