//! A checkpoint continues with the same bits.

use std::path::Path;
use std::process::Command;

use adamod_burn::adamod::{Checkpoint, Control, DeviceControl, Group, Options, Precision, StateFormat};
use burn::module::Module;
use burn::store::ModuleRecord;

use crate::common::{Ranks, assert_same, device, optimizer, stored, values};

const LEARNING_RATE: f64 = 2e-3;

fn group() -> Group {
    stored(Precision::new(StateFormat::Q8).with_f32_state_below(64))
}

fn options() -> Options {
    Options::new().with_control(Control::Device(DeviceControl::new())).with_seed(7)
}

/// Takes some steps.
fn train(optimizer: &mut adamod_burn::FusedOptimizer, module: Ranks, steps: std::ops::Range<usize>) -> Ranks {
    steps.fold(module, |module, step| {
        let gradients = module.gradients(step);
        optimizer.step(LEARNING_RATE, module, gradients).expect("a step")
    })
}

#[test]
fn a_new_optimizer_takes_the_identical_next_steps() {
    let mut first = optimizer(options(), group());
    let module = train(&mut first, Ranks::new(&device()), 0..3);
    let checkpoint = first.checkpoint().expect("a checkpoint");
    let checkpoint = Checkpoint::from_bytes(&checkpoint.to_bytes().expect("bytes")).expect("a checkpoint");

    let mut second = optimizer(options(), group());
    second.restore(&checkpoint, &module).expect("the same parameters");
    let found = train(&mut second, module.clone(), 3..6);
    let expected = train(&mut first, module, 3..6);
    assert_same(&values(&found), &values(&expected), "restored");
    let (found, expected) = (second.checkpoint().expect("state"), first.checkpoint().expect("state"));
    assert_eq!(found.to_bytes().expect("bytes").len(), expected.to_bytes().expect("bytes").len());
}

/// Set in the process that continues.
const CHILD: &str = "ADAMOD_BURN_CONTINUES_IN";

#[test]
fn another_process_takes_the_identical_next_steps() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return continue_in(Path::new(&folder));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut optimizer = optimizer(options(), group());
    let module = train(&mut optimizer, Ranks::new(&device()), 0..3);
    optimizer
        .checkpoint()
        .expect("a checkpoint")
        .save(folder.path().join("state.safetensors"))
        .expect("saved");
    module.clone().into_record().save(folder.path().join("module.bpk")).expect("saved");
    let expected = values(&train(&mut optimizer, module, 3..6));

    let name = "checkpoints::another_process_takes_the_identical_next_steps";
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, folder.path())
        .output()
        .expect("a process");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let record = ModuleRecord::load(folder.path().join("after.bpk")).expect("what the child saved");
    let found = values(&Ranks::new(&device()).load_record(record));
    assert_same(&found, &expected, "another process");
}

fn continue_in(folder: &Path) {
    let record = ModuleRecord::load(folder.join("module.bpk")).expect("a module");
    let module = Ranks::new(&device()).load_record(record);
    let mut optimizer = optimizer(options(), group());
    let checkpoint = Checkpoint::load(folder.join("state.safetensors")).expect("a checkpoint");
    optimizer.restore(&checkpoint, &module).expect("the same parameters");
    let module = train(&mut optimizer, module, 3..6);
    module.into_record().save(folder.join("after.bpk")).expect("saved");
}

#[test]
fn one_file_has_values_and_state() {
    let mut first = optimizer(options(), group());
    let module = train(&mut first, Ranks::new(&device()), 0..3);
    let checkpoint = first.checkpoint_with_values(&module).expect("a checkpoint");
    let checkpoint = Checkpoint::from_bytes(&checkpoint.to_bytes().expect("bytes")).expect("a checkpoint");
    for (label, expected) in values(&module) {
        assert_eq!(checkpoint.values(&label).expect("values"), expected, "{label}");
    }
    // Its values are left alone by a restore.
    let mut second = optimizer(options(), group());
    let other = Ranks::new(&device());
    second.restore(&checkpoint, &other).expect("the same parameters");
    second.restore(&checkpoint, &module).expect("the same parameters");
    let found = train(&mut second, module.clone(), 3..6);
    let expected = train(&mut first, module, 3..6);
    assert_same(&values(&found), &values(&expected), "restored");

    let other = burn::nn::LinearConfig::new(2, 3).init(&device());
    let error = first.checkpoint_with_values(&other).expect_err("another module").to_string();
    assert!(error.contains("the module has no parameter"), "{error}");
}
