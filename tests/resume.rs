//! Runs that continue from a checkpoint of a run that was not the same, files with values, and files that stay open.
#![cfg(feature = "checkpoint")]

mod common;

use std::collections::HashMap;

use adamod::{
    AdaMod, Adam, Checkpoint, CheckpointError, Control, DType, DeviceControl, ErrorKind, Hyperparameters,
    LossScale, MasterWeights, Options, Parameter, Restore, Sgd, State, StateFormat, View, Views,
};
use safetensors::SafeTensors;

use common::{Engine, Kind, Layout, Model, all, float_bits, gpu};

const LENGTHS: [usize; 4] = [1, 33, 1025, 5000];

/// An engine with tensors of these labels.
fn engine_of(model: &Model, labels: &[&str]) -> Engine<'static> {
    let mut model = model.clone();
    for (tensor, label) in model.tensors.iter_mut().zip(labels) {
        tensor.label = (*label).to_owned();
    }
    Engine::new(gpu(), &model, Layout::TwoPools(256))
}

fn engine(model: &Model) -> Engine<'static> {
    Engine::new(gpu(), model, Layout::TwoPools(256))
}

fn train(engine: &mut Engine<'_>, model: &Model, steps: std::ops::Range<u64>) {
    for step in steps {
        engine.step(&all(&model.gradients(step)));
    }
}

fn checkpoint(engine: &Engine<'_>) -> Checkpoint {
    engine.optimizer.checkpoint().wait().unwrap()
}

fn with_values(engine: &Engine<'_>) -> Checkpoint {
    engine.optimizer.checkpoint_with_values().wait().unwrap()
}

/// Tensors of every kind.
fn model_of_all_kinds() -> Model {
    let kinds: Vec<_> = Kind::all().into_iter().zip(LENGTHS.into_iter().cycle()).collect();
    Model::of_kinds(AdaMod::new(), &kinds).with_options(Options::new().with_seed(3))
}

#[test]
fn one_parameter_of_a_checkpoint_is_as_the_optimizer_reads_it() {
    let model = model_of_all_kinds();
    let mut engine = engine(&model);
    train(&mut engine, &model, 0..3);
    let taken = with_values(&engine);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    taken.save(&path).unwrap();
    for checkpoint in [&taken, &Checkpoint::open(&path).unwrap()] {
        for (index, tensor) in engine.tensors.iter().enumerate() {
            assert_eq!(checkpoint.state(&tensor.label).unwrap(), engine.state(index), "{:?}", tensor.kind);
            let values = checkpoint.values(&tensor.label).unwrap();
            assert_eq!(float_bits(&values), float_bits(&engine.read_values(index)), "{:?}", tensor.kind);
        }
    }
    for error in [taken.state("tensor").unwrap_err(), taken.values("tensor").unwrap_err()] {
        assert_eq!(error.to_string(), "the checkpoint has no parameter \"tensor\"");
    }
    let without = checkpoint(&engine);
    let error = without.values("tensor.1").unwrap_err();
    assert!(matches!(&error, CheckpointError::NoValues { label } if label == "tensor.1"), "{error}");
    assert!(taken.parameters().all(|of| of.has_values) && !without.parameters().any(|of| of.has_values));
}

#[test]
fn a_file_with_values_is_all_that_a_run_needs() {
    let model = model_of_all_kinds();
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let model = model.clone().with_options(Options::new().with_seed(3).with_control(control));
        let mut first = engine(&model);
        train(&mut first, &model, 0..3);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        first.optimizer.save_with_values(&path).unwrap();
        let opened = Checkpoint::open(&path).unwrap();
        assert_eq!(opened, with_values(&first));
        assert_eq!(Checkpoint::from_bytes(&opened.to_bytes().unwrap()).unwrap(), opened);
        assert_eq!(Checkpoint::load(&path).unwrap(), opened);

        // What it did before is forgotten.
        let mut second = engine(&model);
        train(&mut second, &model, 7..9);
        second.optimizer.restore(&opened).unwrap();
        train(&mut first, &model, 3..5);
        train(&mut second, &model, 3..5);
        assert_eq!(first.bits(), second.bits());
        assert_eq!(with_values(&first), with_values(&second));
    }
}

/// Raw values in their own type under the name that the tools of this crate know.
#[test]
fn values_are_tensors_of_their_type() {
    let kind = Kind { values: DType::Bf16, gradients: DType::Bf16, ..Kind::f32() };
    let model = Model::of_kinds(AdaMod::new(), &[(kind, 33), (Kind::f32(), 5)]);
    let mut engine = engine(&model);
    train(&mut engine, &model, 0..1);
    let bytes = with_values(&engine).to_bytes().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (index, dtype) in [(0, safetensors::Dtype::BF16), (1, safetensors::Dtype::F32)] {
        let tensor = file.tensor(&format!("param.tensor.{index}")).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[engine.tensors[index].len()][..]));
        let of = engine.tensors[index].kind.values;
        assert_eq!(common::bits_of(of, tensor.data()), engine.value_bits(index));
    }
}

#[test]
fn values_without_a_place_are_refused_by_name_unless_they_are_skipped() {
    let model = Model::new(AdaMod::new(), &[64]);
    let mut engine = engine(&model);
    train(&mut engine, &model, 0..2);
    let saved = with_values(&engine);
    let gpu = gpu();
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let read_only = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 512,
        usage,
        mapped_at_creation: false,
    });
    let views = Views::new(View::new(&read_only, 0), View::new(&read_only, 256));
    for (views, named) in [(None, "no registered views"), (Some(views), "COPY_DST")] {
        let mut optimizer = gpu.optimizer(Options::new()).unwrap();
        let group = optimizer.add_group(AdaMod::new()).unwrap();
        let mut parameter = Parameter::new("tensor.0", 64);
        parameter.views = views;
        let id = optimizer.add_parameter(group, parameter).unwrap();
        let error = optimizer.restore(&saved).unwrap_err().to_string();
        assert!(error.contains("\"tensor.0\"") && error.contains(named), "{error}");
        assert_eq!(optimizer.step_count(id), Some(0));
        optimizer.restore_with(&saved, &Restore::new().without_values()).unwrap();
        assert_eq!(optimizer.read_state(id).wait().unwrap(), engine.state(0));
    }
    // Nothing to copy from.
    let mut optimizer = gpu.optimizer(Options::new()).unwrap();
    let group = optimizer.add_group(AdaMod::new()).unwrap();
    optimizer.add_parameter(group, Parameter::new("tensor.0", 64)).unwrap();
    let error = optimizer.checkpoint_with_values().wait().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoViews) && error.label() == Some("tensor.0"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = optimizer.save_with_values(folder.path().join("state")).unwrap_err().to_string();
    assert!(error.contains("no registered views"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn prefixes_and_other_names_are_changed_and_parameters_are_chosen() {
    let model = Model::new(AdaMod::new(), &[40, 50, 60]);
    let mut wrapped = engine_of(&model, &["module.a", "module.b", "head"]);
    train(&mut wrapped, &model, 0..3);
    let saved = checkpoint(&wrapped);
    let labels =
        |checkpoint: &Checkpoint| checkpoint.parameters().map(|of| of.label.to_owned()).collect::<Vec<_>>();
    let stripped = saved.clone().strip_prefix("module.").unwrap();
    assert_eq!(labels(&stripped), ["a", "b", "head"]);
    let names = HashMap::from([("a", "x"), ("b", "y")]);
    let renamed =
        stripped.clone().rename(|label| names.get(label).copied().unwrap_or(label).to_owned()).unwrap();
    assert_eq!(labels(&renamed), ["x", "y", "head"]);
    assert_eq!(renamed.state("y").unwrap(), wrapped.state(1));
    let body = renamed.clone().filter(|of| of.label != "head");
    assert_eq!(labels(&body), ["x", "y"]);

    let mut plain = engine_of(&model, &["x", "y", "head"]);
    plain.optimizer.restore(&renamed).unwrap();
    for index in 0..3 {
        assert_eq!(plain.state(index), wrapped.state(index));
    }
    let error = saved.clone().rename(|_| "same".to_owned()).unwrap_err().to_string();
    assert_eq!(
        error,
        "parameters \"module.a\" and \"module.b\" of the checkpoint are both renamed to \"same\""
    );
    let error = saved.clone().strip_prefix("head").unwrap_err().to_string();
    assert!(error.contains("\"head\" is renamed to \"\""), "{error}");
    // Labels may be swapped.
    let swapped = stripped.rename(|label| if label == "a" { "b" } else { "a" }.to_owned());
    assert!(matches!(swapped, Err(CheckpointError::SameLabel { .. })), "three parameters, two labels");
}

#[test]
fn what_fits_is_restored_and_the_rest_is_listed() {
    let model = Model::new(AdaMod::new(), &[40, 50, 60, 70]);
    let mut saved = engine_of(&model, &["same", "longer", "left", "typed"]);
    train(&mut saved, &model, 0..3);
    let checkpoint = checkpoint(&saved);
    let mut other = Model::new(AdaMod::new(), &[40, 51, 70, 60]);
    other.tensors[2].kind.values = DType::Bf16;
    other.tensors[2].kind.gradients = DType::Bf16;
    let mut engine = engine_of(&other, &["same", "longer", "typed", "new"]);
    train(&mut engine, &other, 0..1);
    let before = self::checkpoint(&engine);

    let allow: [(Restore, &str); 4] = [
        (Restore::new(), "\"left\""),
        (Restore::new().allow_extra(), "the length of parameter \"longer\""),
        (Restore::new().allow_extra().allow_mismatch(), "no parameter \"new\""),
        (Restore::new().allow_missing().allow_mismatch(), "\"left\""),
    ];
    for (restore, named) in allow {
        let error = engine.optimizer.restore_with(&checkpoint, &restore).unwrap_err().to_string();
        assert!(error.contains(named), "{error:?} does not name {named:?}");
        assert_eq!(self::checkpoint(&engine), before);
    }
    let restore = Restore::new().allow_missing().allow_extra().allow_mismatch();
    let restored = engine.optimizer.restore_with(&checkpoint, &restore).unwrap();
    assert_eq!(restored.restored, ["same"]);
    assert_eq!(restored.missing, ["new"]);
    assert_eq!(restored.extra, ["left"]);
    let mismatched: Vec<_> = restored.mismatched.iter().map(ToString::to_string).collect();
    assert_eq!(
        mismatched,
        [
            "the length of parameter \"longer\" is 50, expected 51 as in the optimizer",
            "the data type of parameter \"typed\" is f32, expected bf16 as in the optimizer",
        ]
    );
    assert_eq!(engine.state(0), saved.state(0));
    for index in 1..4 {
        assert_eq!(engine.state(index), before.state(&engine.tensors[index].label).unwrap());
        assert_eq!(engine.optimizer.step_count(engine.ids[index]), Some(1));
    }
    train(&mut engine, &other, 1..2);
    assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(4));
}

/// A run that was counted on the host, as one of PyTorch is, goes on with clip and loss scale on the device; and the other way round.
#[test]
fn a_fresh_control_takes_the_step_counts_and_nothing_else() {
    let scale =
        LossScale::Dynamic { initial: 512.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2 };
    let on_device = Control::Device(DeviceControl::new().with_max_norm(1.0).with_loss_scale(scale));
    for (from, to) in [(Control::Host, on_device), (on_device, Control::Host), (on_device, on_device)] {
        let model =
            |control| Model::new(AdaMod::new(), &LENGTHS).with_options(Options::new().with_control(control));
        let mut saved = engine(&model(from));
        train(&mut saved, &model(from), 0..3);
        let checkpoint = checkpoint(&saved);
        let mut engine = engine(&model(to));
        train(&mut engine, &model(to), 0..1);
        if from != to {
            let error = engine.optimizer.restore(&checkpoint).unwrap_err().to_string();
            assert!(error.starts_with("the control of the checkpoint is Control::"), "{error}");
        }
        engine.optimizer.restore_with(&checkpoint, &Restore::new().with_fresh_control()).unwrap();
        for index in 0..LENGTHS.len() {
            assert_eq!(engine.state(index), saved.state(index));
            assert_eq!(engine.optimizer.step_count(engine.ids[index]), Some(3));
        }
        if to != Control::Host {
            let progress = engine.optimizer.read_progress().wait().unwrap();
            assert_eq!((progress.taken, progress.skipped, progress.loss_scale), (0, 0, 512.0));
        }
        train(&mut engine, &model(to), 3..4);
        assert_eq!(engine.state(0).step, 4);
    }
}

#[test]
fn another_seed_is_accepted_where_it_is_allowed() {
    let model = |seed| Model::new(AdaMod::new(), &LENGTHS).with_options(Options::new().with_seed(seed));
    let mut saved = engine(&model(1));
    train(&mut saved, &model(1), 0..2);
    let mut engine = engine(&model(2));
    let error = engine.optimizer.restore(&checkpoint(&saved)).unwrap_err().to_string();
    assert_eq!(error, "the seed of the checkpoint is 1, expected 2 as in the optimizer");
    engine.optimizer.restore_with(&checkpoint(&saved), &Restore::new().allow_other_seed()).unwrap();
    assert_eq!(engine.state(3), saved.state(3));
    assert_eq!(checkpoint(&engine).seed(), 2);
}

#[test]
fn hyperparameters_and_groups_are_the_checkpoints_or_stay() {
    let lengths = [40, 50];
    let rate = |rate: f64| Hyperparameters::from(AdaMod::new()).with_learning_rate(rate);
    let model = Model::new(rate(0.1), &lengths);
    let mut saved = engine(&model);
    train(&mut saved, &model, 0..2);
    let checkpoint = checkpoint(&saved);
    let rates = |engine: &Engine<'_>| {
        engine.optimizer.groups().map(|(_, group)| group.hyperparameters.learning_rate).collect::<Vec<_>>()
    };
    let mut same = engine(&Model::new(rate(0.5), &lengths));
    let keep = Restore::new().keep_hyperparameters();
    same.optimizer.restore_with(&checkpoint, &keep).unwrap();
    assert_eq!(rates(&same), [0.5]);
    same.optimizer.restore(&checkpoint).unwrap();
    assert_eq!(rates(&same), [0.1]);

    // Other groups.
    let mut split = Model::new(rate(0.2), &lengths[..1]);
    split.add_group(rate(0.3), &lengths[1..]);
    let mut split = engine(&split);
    let error = split.optimizer.restore(&checkpoint).unwrap_err().to_string();
    assert_eq!(error, "the number of groups of the checkpoint is 1, expected 2 as in the optimizer");
    split.optimizer.restore_with(&checkpoint, &keep).unwrap();
    assert_eq!(rates(&split), [0.2, 0.3]);
    assert_eq!((split.state(0), split.state(1)), (saved.state(0), saved.state(1)));

    // Another rule.
    let mut adam = Model::new(Hyperparameters::from(Adam::new()), &lengths[..1]);
    adam.add_group(Hyperparameters::from(AdaMod::new()), &lengths[1..]);
    let mut adam = engine(&adam);
    let restored = adam.optimizer.restore_with(&checkpoint, &keep.allow_mismatch()).unwrap();
    assert_eq!(restored.restored, ["tensor.1"]);
    assert_eq!(
        restored.mismatched[0].to_string(),
        "the rule of parameter \"tensor.0\" is adamod, expected adam as in the optimizer"
    );
}

/// Files as older versions and other programs write them: without checksums of pieces.
#[test]
fn files_without_checksums_of_pieces_are_read_and_verified() {
    let model = model_of_all_kinds();
    let mut engine = engine(&model);
    train(&mut engine, &model, 0..2);
    let checkpoint = with_values(&engine);
    let bytes = checkpoint.to_bytes().unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entries = metadata.metadata().clone().unwrap();
    let mut header: serde_json::Value = serde_json::from_str(&entries["adamod.checkpoint"]).unwrap();
    header.as_object_mut().unwrap().remove("piece").unwrap();
    let mut names = Vec::new();
    for parameter in header["parameters"].as_array_mut().unwrap() {
        parameter.as_object_mut().unwrap().remove("checksums").unwrap();
        let name = parameter["name"].as_str().unwrap();
        for part in ["exp_avg", "exp_avg_sq", "exp_avg_lr", "scales", "master", "param"] {
            names.push(format!("{part}.{name}"));
        }
    }
    let text = header.to_string();
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(text.as_bytes());
    for name in &names {
        if let Ok(tensor) = file.tensor(name) {
            checksum.update(tensor.data());
        }
    }
    let checksum = format!("{:08x}", checksum.finalize());
    // The whole checksum of a new file means the same.
    let mut expected = crc32fast::Hasher::new();
    expected.update(entries["adamod.checkpoint"].as_bytes());
    names.iter().filter_map(|name| file.tensor(name).ok()).for_each(|tensor| expected.update(tensor.data()));
    assert_eq!(entries["adamod.checksum"], format!("{:08x}", expected.finalize()));

    let entries =
        HashMap::from([("adamod.checkpoint".to_owned(), text), ("adamod.checksum".to_owned(), checksum)]);
    let mut old = safetensors::serialize(file.tensors(), Some(entries)).unwrap();
    assert_eq!(Checkpoint::from_bytes(&old).unwrap(), checkpoint);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old");
    std::fs::write(&path, &old).unwrap();
    let opened = Checkpoint::open(&path).unwrap();
    assert_eq!(opened, checkpoint);
    let mut restored = self::engine(&model);
    restored.optimizer.restore(&opened).unwrap();
    assert_eq!(with_values(&restored), checkpoint);
    // Damage shows when it is opened, and damage after that when it is read.
    let last = old.len() - 1;
    old[last] ^= 1;
    std::fs::write(&path, &old).unwrap();
    let error = restored.optimizer.restore(&opened).unwrap_err();
    assert!(matches!(&error, CheckpointError::File { .. }), "{error}");
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("old: the checkpoint is damaged"), "{error}");
    assert_eq!(with_values(&restored), checkpoint);
}

/// A file may be replaced while an older one is open, and what was opened stays what it was.
#[test]
fn an_open_checkpoint_outlives_its_file() {
    let model = Model::new(Sgd::new(), &LENGTHS);
    let mut engine = engine(&model);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    train(&mut engine, &model, 0..1);
    engine.optimizer.save(&path).unwrap();
    let expected = checkpoint(&engine);
    let opened = Checkpoint::open(&path).unwrap();
    train(&mut engine, &model, 1..2);
    engine.optimizer.save(&path).unwrap();
    assert_eq!(opened, expected);
    // It can be saved in the place of its own file, too.
    opened.save(&path).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), expected);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A restore that is streamed in several parts: tensors larger than a part, in all formats, and values.
#[test]
fn large_tensors_are_saved_and_restored_in_parts() {
    const LEN: usize = 5_000_005;
    for state in StateFormat::ALL {
        let kind = Kind {
            values: DType::Bf16,
            gradients: DType::Bf16,
            state,
            master_weights: MasterWeights::Split24,
            ..Kind::f32()
        };
        let model = Model::of_kinds(AdaMod::new(), &[(kind, 77), (kind, LEN)]);
        let mut saved = engine(&model);
        train(&mut saved, &model, 0..1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        saved.optimizer.save_with_values(&path).unwrap();
        let opened = Checkpoint::open(&path).unwrap();
        assert_eq!(opened, with_values(&saved));
        let mut restored = engine(&model);
        restored.optimizer.restore(&opened).unwrap();
        assert_eq!(with_values(&restored), opened);
        // Converted in parts.
        let to = if state == StateFormat::F32 { StateFormat::Q8 } else { StateFormat::F32 };
        let model = Model::of_kinds(
            AdaMod::new(),
            &[(Kind { state: to, ..kind }, 77), (Kind { state: to, ..kind }, LEN)],
        );
        let [mut at_once, mut in_parts] = [engine(&model), engine(&model)];
        at_once.optimizer.restore(&Checkpoint::load(&path).unwrap()).unwrap();
        in_parts.optimizer.restore(&opened).unwrap();
        assert_eq!(with_values(&in_parts), with_values(&at_once));
        // The last element is damaged, so nothing of it is restored.
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        train(&mut restored, &Model::of_kinds(AdaMod::new(), &[(kind, 77), (kind, LEN)]), 1..2);
        let before = with_values(&restored);
        let error = restored.optimizer.restore(&Checkpoint::open(&path).unwrap()).unwrap_err();
        assert!(matches!(error, CheckpointError::File { .. }), "{error}");
        assert_eq!(with_values(&restored), before);
    }
}

/// A file that changes after its data were verified, when a part of them is already on the device.
#[test]
fn a_restore_whose_file_changes_halfway_says_that_it_was_interrupted() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    const LENGTHS: [usize; 3] = [2_000_003; 3];
    let own = gpu().sibling();
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let model = Model::new(AdaMod::new(), &LENGTHS).with_options(Options::new().with_control(control));
        let train = |engine: &mut Engine<'_>, steps: std::ops::Range<u64>| {
            steps.for_each(|step| engine.step(&all(&model.gradients(step))));
        };
        let mut saved = Engine::new(&own, &model, Layout::TwoPools(256));
        train(&mut saved, 0..1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        saved.optimizer.save(&path).unwrap();
        let opened = Checkpoint::open(&path).unwrap();

        let mut restored = Engine::new(&own, &model, Layout::TwoPools(256));
        train(&mut restored, 1..3);
        let group = restored.groups[0];
        restored.optimizer.set_learning_rate(group, 0.5).unwrap();
        let before = checkpoint(&restored);
        let last = *std::fs::read(&path).unwrap().last().unwrap();
        let write_last = {
            let path = path.clone();
            move |byte: u8| {
                let mut file = std::fs::File::options().write(true).open(&path).unwrap();
                file.seek(SeekFrom::End(-1)).unwrap();
                file.write_all(&[byte]).unwrap();
            }
        };
        // The device calls back in the next submit, which is that of the first part: nothing else uses this device.
        own.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let damage = write_last.clone();
        own.queue.on_submitted_work_done(move || damage(!last));
        let error = restored.optimizer.restore(&opened).unwrap_err();
        let CheckpointError::Interrupted(cause) = &error else { panic!("{error}") };
        let CheckpointError::File { error: cause, .. } = &**cause else { panic!("{error}") };
        assert!(
            matches!(&**cause, CheckpointError::TensorChecksum { name, .. } if name == "exp_avg_lr.tensor.2"),
            "{error}"
        );
        assert!(error.to_string().contains("stopped after a part of the state was written"), "{error}");
        // The first tensor has the checkpoint's state, the end of the last one its own. Counts and hyperparameters are as they were.
        let mixed = checkpoint(&restored);
        let state = |of: &Checkpoint, label: &str| of.state(label).unwrap().tensors;
        assert!(state(&mixed, "tensor.0") == state(&opened, "tensor.0"));
        for ((_, mixed), (_, before)) in state(&mixed, "tensor.2").iter().zip(state(&before, "tensor.2")) {
            assert_eq!(mixed[LENGTHS[2] - 1000..], before[LENGTHS[2] - 1000..]);
        }
        assert!(mixed.parameters().all(|parameter| parameter.step == 2));
        assert_eq!(restored.optimizer.group(group).unwrap().hyperparameters.learning_rate, 0.5);
        // A whole checkpoint makes it whole again.
        write_last(last);
        restored.optimizer.restore(&opened).unwrap();
        assert_eq!(checkpoint(&restored), opened);
    }
}

/// State that was never allocated is saved as zeros.
#[test]
fn parameters_before_their_first_step_are_saved() {
    let model = Model::new(AdaMod::new(), &LENGTHS);
    let engine = engine(&model);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    engine.optimizer.save(&path).unwrap();
    let loaded = Checkpoint::load(&path).unwrap();
    assert_eq!(loaded, checkpoint(&engine));
    let zeros = vec![0.0; LENGTHS[3]];
    let expected =
        State::new(0, ["exp_avg", "exp_avg_sq", "exp_avg_lr"].map(|name| (name, zeros.clone())).to_vec());
    assert_eq!(loaded.state("tensor.3").unwrap(), expected);
    // And an optimizer without parameters.
    let empty = gpu().optimizer(Options::new()).unwrap();
    empty.save(&path).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap(), empty.checkpoint().wait().unwrap());
}
