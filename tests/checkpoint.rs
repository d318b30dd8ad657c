//! Checkpoints: the same bits go on, files are whole or refused, and the old one or the new one is always there.

mod common;

use std::collections::HashMap;
use std::path::Path;

use adamod::{
    Checkpoint, CheckpointError, Control, DType, DeviceControl, Hyperparameters, MasterWeights, Optimizer,
    Options, Parameter, ParameterId, Precision, Rule, StateFormat, View, Views, WeightDecay,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use common::{Gpu, gpu, rules};

const LENGTHS: [u64; 4] = [1, 33, 1025, 5000];

/// An engine with tensors of one kind.
struct Engine {
    gpu: &'static Gpu,
    optimizer: Optimizer,
    ids: Vec<ParameterId>,
    values: wgpu::Buffer,
    gradients: wgpu::Buffer,
    dtype: DType,
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    options: Options,
    dtype: DType,
    precision: Precision,
}

impl Kind {
    fn new(state: StateFormat) -> Self {
        let precision = Precision { state, f32_state_below: 0, ..Precision::default() };
        Self { options: Options { seed: 5, ..Options::default() }, dtype: DType::F32, precision }
    }
}

fn hyperparameters() -> Hyperparameters {
    Hyperparameters {
        learning_rate: 0.1 + 0.2,
        weight_decay: WeightDecay::Decoupled(0.01),
        ..Hyperparameters::default()
    }
}

const STRIDE: u64 = 4 * 5120;

impl Engine {
    fn new(kind: Kind) -> Self {
        Self::with_labels(kind, &["a", "b", "layers.0.weight", "d \"quoted\""])
    }

    fn with_labels(kind: Kind, labels: &[&str]) -> Self {
        let gpu = gpu();
        let (values, gradients) = (gpu.buffer(4 * STRIDE), gpu.buffer(4 * STRIDE));
        let mut optimizer = Optimizer::new(&gpu.device, &gpu.queue, kind.options).unwrap();
        let group = optimizer.add_group_with(hyperparameters(), kind.precision).unwrap();
        let ids = labels
            .iter()
            .zip(LENGTHS)
            .zip(0..)
            .map(|((label, len), index)| {
                let view = |buffer| View::new(buffer, index * STRIDE).with_dtype(kind.dtype);
                let views = Some(Views::new(view(&values), view(&gradients)));
                let parameter = Parameter { dtype: kind.dtype, views, ..Parameter::new(label, len) };
                optimizer.add_parameter(group, parameter).unwrap()
            })
            .collect();
        Self { gpu, optimizer, ids, values, gradients, dtype: kind.dtype }
    }

    fn step(&mut self, seed: u32) {
        let elements = self.gradients.size() / self.dtype.bytes();
        let numbers = (0..elements as u32).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin() * 1e-2);
        let bytes: Vec<u8> = match self.dtype {
            DType::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
            DType::F16 => numbers.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
            DType::Bf16 => numbers.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        };
        self.gpu.queue.write_buffer(&self.gradients, 0, &bytes);
        // A parameter that misses steps has a count of its own.
        let present: Vec<_> = self.ids.iter().copied().skip(usize::from(seed.is_multiple_of(3))).collect();
        let mut encoder = self.gpu.encoder();
        self.optimizer.encode_present(&mut encoder, &present).unwrap();
        self.gpu.submit(encoder);
    }

    fn checkpoint(&self) -> Checkpoint {
        self.optimizer.checkpoint_blocking().unwrap()
    }
}

/// Every rule, formula, type, master weights and format of state, with step counts on the host and on the device.
fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for (rule, formula) in rules() {
        for state in [StateFormat::F32, StateFormat::Bf16, StateFormat::Q8] {
            for (dtype, master_weights) in [
                (DType::F32, MasterWeights::None),
                (DType::F16, MasterWeights::F32),
                (DType::Bf16, MasterWeights::None),
                (DType::Bf16, MasterWeights::Split24),
                (DType::Bf16, MasterWeights::Split32),
            ] {
                for control in [Control::Host, Control::Device(DeviceControl::default())] {
                    // Who counts steps has nothing to do with types.
                    if control != Control::Host && dtype != DType::F32 {
                        continue;
                    }
                    let mut kind = Kind::new(state);
                    kind.options = Options { rule, formula, control, ..kind.options };
                    kind.dtype = dtype;
                    kind.precision.master_weights = master_weights;
                    kinds.push(kind);
                }
            }
        }
    }
    kinds
}

#[test]
fn a_restored_optimizer_goes_on_with_the_same_bits() {
    for kind in kinds() {
        let mut first = Engine::new(kind);
        (1..4).for_each(|seed| first.step(seed));
        let checkpoint = first.checkpoint();
        let read = Checkpoint::from_bytes(&checkpoint.to_bytes().unwrap()).unwrap();
        assert_eq!(read, checkpoint, "{kind:?}");
        let mut second = Engine::new(kind);
        // What it did before is forgotten.
        second.step(9);
        second.optimizer.restore(&read).unwrap();
        let words = first.gpu.read(&first.values);
        second.gpu.queue.write_buffer(&second.values, 0, bytemuck::cast_slice(&words));
        for seed in 4..7 {
            first.step(seed);
            second.step(seed);
        }
        assert!(first.gpu.read(&first.values) == second.gpu.read(&second.values), "{kind:?}");
        assert_eq!(first.checkpoint(), second.checkpoint(), "{kind:?}");
    }
}

#[test]
fn another_process_goes_on_with_the_same_bits() {
    const FOLDER: &str = "ADAMOD_TEST_CHECKPOINT_FOLDER";
    let kind = Kind::new(StateFormat::Q8);
    if let Ok(folder) = std::env::var(FOLDER) {
        let folder = Path::new(&folder);
        let mut engine = Engine::new(kind);
        engine.optimizer.restore(&Checkpoint::load(folder.join("before")).unwrap()).unwrap();
        (4..7).for_each(|seed| engine.step(seed));
        engine.checkpoint().save(folder.join("after")).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut engine = Engine::new(kind);
    (1..4).for_each(|seed| engine.step(seed));
    engine.checkpoint().save(folder.path().join("before")).unwrap();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process_goes_on_with_the_same_bits"])
        .env(FOLDER, folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    (4..7).for_each(|seed| engine.step(seed));
    assert_eq!(Checkpoint::load(folder.path().join("after")).unwrap(), engine.checkpoint());
}

#[test]
fn several_checkpoints_are_in_flight_while_training_goes_on() {
    let mut engine = Engine::new(Kind::new(StateFormat::F32));
    let pending: Vec<_> = (1..5)
        .map(|seed| {
            engine.step(seed);
            engine.optimizer.checkpoint()
        })
        .collect();
    engine.gpu.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let steps: Vec<_> = pending
        .into_iter()
        .map(|checkpoint| pollster::block_on(checkpoint).unwrap().parameters().last().unwrap().step)
        .collect();
    assert_eq!(steps, [1, 2, 3, 4]);
}

#[test]
fn state_is_converted_between_formats() {
    for from in [StateFormat::F32, StateFormat::Bf16, StateFormat::Q8] {
        for to in [StateFormat::F32, StateFormat::Bf16, StateFormat::Q8] {
            let mut saved = Engine::new(Kind::new(from));
            (1..5).for_each(|seed| saved.step(seed));
            let mut engine = Engine::new(Kind::new(to));
            engine.optimizer.restore(&saved.checkpoint()).unwrap();
            let relative = match to {
                StateFormat::F32 => 1e-6,
                StateFormat::Bf16 => 1e-2,
                StateFormat::Q8 => 0.08,
            };
            for (&from_id, &to_id) in saved.ids.iter().zip(&engine.ids) {
                let before = saved.optimizer.read_state_blocking(from_id).unwrap();
                let after = engine.optimizer.read_state_blocking(to_id).unwrap();
                assert_eq!(before.step, after.step);
                for ((name, before), (_, after)) in before.tensors.iter().zip(&after.tensors) {
                    let largest = before.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                    for (before, after) in before.iter().zip(after) {
                        let allowed = relative * before.abs() + 1e-4 * relative * largest;
                        assert!(
                            (before - after).abs() <= allowed,
                            "{name} {from:?} to {to:?}: {before} {after}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_file_is_readable_as_safetensors_by_pytorchs_names() {
    let mut engine = Engine::new(Kind::new(StateFormat::F32));
    engine.step(1);
    let bytes = engine.checkpoint().to_bytes().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["exp_avg", "exp_avg_sq", "exp_avg_lr"] {
        let tensor = file.tensor(&format!("{name}.layers.0.weight")).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[1025][..]));
        let state = engine.optimizer.read_state_blocking(engine.ids[2]).unwrap();
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data()), state.tensor(name).unwrap());
    }
}

/// What does not fit is refused by name, and the optimizer goes on as if nothing had been asked.
#[test]
fn checkpoints_of_another_optimizer_are_refused_and_change_nothing() {
    let kind = Kind::new(StateFormat::F32);
    let mut engine = Engine::new(kind);
    engine.step(1);
    let before = engine.checkpoint();
    let labels = ["a", "b", "layers.0.weight", "d \"quoted\""];
    let other = |change: &dyn Fn(&mut Kind), labels: &[&str]| {
        let mut kind = kind;
        change(&mut kind);
        let mut engine = Engine::with_labels(kind, labels);
        engine.step(1);
        engine.checkpoint()
    };
    let cases: Vec<(Checkpoint, &str)> = vec![
        (other(&|k| k.options.rule = Rule::Adam, &labels), "the rule"),
        (other(&|k| k.options.formula = adamod::Formula::AuthorsCode, &labels), "the formula"),
        (other(&|k| k.options.seed = 6, &labels), "the seed"),
        (other(&|k| k.options.control = Control::Device(DeviceControl::default()), &labels), "the control"),
        (other(&|k| k.dtype = DType::Bf16, &labels), "the type of parameter \"a\""),
        (other(&|_| {}, &labels[..3]), "no parameter \"d \\\"quoted\\\"\""),
        (other(&|_| {}, &["a", "renamed", "layers.0.weight", "d \"quoted\""]), "\"renamed\""),
        (other(&|_| {}, &["b", "a", "layers.0.weight", "d \"quoted\""]), "the length of parameter \"a\""),
    ];
    for (checkpoint, named) in cases {
        let error = engine.optimizer.restore(&checkpoint).unwrap_err().to_string();
        assert!(error.contains(named), "{error:?} does not name {named:?}");
        assert_eq!(engine.checkpoint(), before);
    }
    engine.step(2);

    // Adam and SGD have one formula, whatever the options say.
    for rule in [Rule::Adam, Rule::Sgd] {
        let saved =
            other(&|k| (k.options.rule, k.options.formula) = (rule, adamod::Formula::AuthorsCode), &labels);
        let mut engine = Engine::new(Kind { options: Options { rule, ..kind.options }, ..kind });
        engine.optimizer.restore(&saved).unwrap();
        assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(1));
    }
}

fn small_checkpoint() -> Vec<u8> {
    let mut engine = Engine::with_labels(Kind::new(StateFormat::Q8), &["a", "b"]);
    engine.step(1);
    engine.checkpoint().to_bytes().unwrap()
}

#[test]
fn truncated_files_are_refused_wherever_they_end() {
    let bytes = small_checkpoint();
    for end in 0..bytes.len() {
        assert!(Checkpoint::from_bytes(&bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
    }
    Checkpoint::from_bytes(&bytes).unwrap();
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut bytes = small_checkpoint();
    let whole = Checkpoint::from_bytes(&bytes).unwrap();
    for bit in 0..8 * bytes.len() {
        bytes[bit / 8] ^= 1 << (bit % 8);
        // Some bits of the header do not matter: white space at its end, and digits that are the same in another case.
        if let Ok(read) = Checkpoint::from_bytes(&bytes) {
            assert!(read == whole, "bit {bit} was flipped, and another checkpoint read");
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// A file with this metadata and these tensors.
fn file(metadata: &[(&str, &str)], tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

#[test]
fn metadata_that_cannot_be_are_refused_by_name() {
    let bytes = small_checkpoint();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let header = metadata.metadata().as_ref().unwrap()["adamod.checkpoint"].clone();
    let parsed: serde_json::Value = serde_json::from_str(&header).unwrap();
    let read = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut header = parsed.clone();
        change(&mut header);
        let text = header.to_string();
        Checkpoint::from_bytes(&file(&[("adamod.checkpoint", &text), ("adamod.checksum", "0")], &[]))
            .unwrap_err()
            .to_string()
    };
    type Change = fn(&mut serde_json::Value);
    let cases: &[(Change, &str)] = &[
        (|h| h["version"] = 2.into(), "version 2"),
        (|h| h["rule"] = "lion".into(), "rule is \"lion\""),
        (|h| h["formula"] = "other".into(), "formula"),
        (|h| h["groups"][0]["epsilon"] = "zz".into(), "epsilon"),
        (|h| h["groups"][0]["epsilon"] = "0000000000000000".into(), "hyperparameters"),
        (|h| h["groups"][0]["weight_decay"] = "l1".into(), "weight_decay"),
        (|h| h["parameters"][0]["group"] = 7.into(), "its group is 7"),
        (|h| h["parameters"][0]["len"] = 0.into(), "its length is 0"),
        (|h| h["parameters"][0]["len"] = u64::MAX.into(), "its length is 18446744073709551615"),
        (|h| h["parameters"][0]["len"] = (-1).into(), "len"),
        (|h| h["parameters"][0]["len"] = (1_u64 << 47).into(), "no tensor \"exp_avg.a\""),
        (|h| h["parameters"][0]["dtype"] = "f64".into(), "dtype is \"f64\""),
        (|h| h["parameters"][0]["state"] = "q4".into(), "state is \"q4\""),
        (|h| h["parameters"][0]["master_weights"] = "split32".into(), "its master weights"),
        (|h| h["parameters"][0]["more"] = 1.into(), "more"),
        (|h| *h = "text".into(), "metadata"),
        (|h| h["parameters"] = serde_json::json!([]), "adamod.checksum"),
    ];
    for (change, named) in &cases[..cases.len() - 1] {
        let error = read(change);
        assert!(error.contains(named), "{error:?} does not name {named:?}");
    }
    // Nothing but a checksum that is wrong.
    let error = read(&cases[cases.len() - 1].0);
    assert!(error.contains("checksum"), "{error}");
    let no_metadata = file(&[("format", "pt")], &[]);
    assert!(
        Checkpoint::from_bytes(&no_metadata).unwrap_err().to_string().contains("no checkpoint of adamod")
    );
    let deep = "[".repeat(100_000);
    let error = Checkpoint::from_bytes(&file(&[("adamod.checkpoint", &deep), ("adamod.checksum", "0")], &[]));
    assert!(matches!(error, Err(CheckpointError::Metadata { .. })));
}

#[test]
fn saving_replaces_the_old_checkpoint_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mut engine = Engine::new(Kind::new(StateFormat::Bf16));
    for seed in 1..4 {
        engine.step(seed);
        let checkpoint = engine.checkpoint();
        checkpoint.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = engine.checkpoint().save(folder.path().join("missing/state")).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { action: "create", .. }), "{error}");
    let error = Checkpoint::load(folder.path().join("missing")).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

/// A process that saves two checkpoints in turn is killed at any moment: the file is always one of them, whole.
#[cfg(unix)]
#[test]
fn a_process_killed_while_it_saves_leaves_a_whole_checkpoint() {
    const FILE: &str = "ADAMOD_TEST_SAVE_FILE";
    let two = || {
        let mut engine = Engine::new(Kind::new(StateFormat::F32));
        [1, 2].map(|seed| {
            engine.step(seed);
            engine.checkpoint()
        })
    };
    if let Ok(path) = std::env::var(FILE) {
        for checkpoint in two().iter().cycle() {
            checkpoint.save(&path).unwrap();
        }
    }
    let two = two();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mut seen = [0; 2];
    let mut unfinished = 0;
    for kill in 0..40_u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_killed_while_it_saves_leaves_a_whole_checkpoint"])
            .env(FILE, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let before = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
        let is_saving = || std::fs::metadata(&path).and_then(|m| m.modified()).ok() != before;
        while !is_saving() {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_micros(1_370 * kill % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let read = Checkpoint::load(&path).unwrap();
        let which = two.iter().position(|checkpoint| *checkpoint == read);
        seen[which.expect("one of the two")] += 1;
        let entries = std::fs::read_dir(folder.path()).unwrap();
        for entry in entries.map(|entry| entry.unwrap().path()).filter(|entry| *entry != path) {
            // What a killed save had written so far.
            unfinished += 1;
            std::fs::remove_file(entry).unwrap();
        }
    }
    println!("40 kills: {seen:?} of the two, {unfinished} within a save");
    assert!(unfinished > 0, "no kill hit a save");
}

/// The file system has no room for a new one: here, no file may be longer than 4 KiB.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_the_old_checkpoint_stays() {
    const FILE: &str = "ADAMOD_TEST_FULL_DISK";
    if let Ok(path) = std::env::var(FILE) {
        let checkpoint = Checkpoint::load(&path).unwrap();
        let error = checkpoint.save(&path).unwrap_err();
        assert!(matches!(error, CheckpointError::Io { action: "write" | "sync", .. }), "{error}");
        std::fs::write(Path::new(&path).with_extension("done"), "").unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mut engine = Engine::new(Kind::new(StateFormat::F32));
    engine.step(1);
    engine.checkpoint().save(&path).unwrap();
    // With the signal ignored, the write fails instead. What the child prints goes to a pipe, which has no length.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_is_an_error_and_the_old_checkpoint_stays"])
        .env(FILE, &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    std::fs::remove_file(path.with_extension("done")).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), engine.checkpoint());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something is left over");
}

/// A process that was killed had the same number: in a container it often has.
#[test]
fn what_a_killed_save_left_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let left =
        |save: u64| folder.path().join(format!(".state.safetensors.{}.{save}.tmp", std::process::id()));
    (0..2000).for_each(|save| std::fs::write(left(save), "left").unwrap());
    let mut engine = Engine::new(Kind::new(StateFormat::F32));
    engine.step(1);
    engine.checkpoint().save(&path).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), engine.checkpoint());
    assert!((0..2000).all(|save| std::fs::read(left(save)).unwrap() == b"left"));
}

#[test]
fn a_folder_in_the_place_of_a_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    std::fs::create_dir(&path).unwrap();
    let mut engine = Engine::new(Kind::new(StateFormat::F32));
    engine.step(1);
    let error = engine.checkpoint().save(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { action: "replace", .. }), "{error}");
    let error = Checkpoint::load(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { action: "read", .. }), "{error}");
    let error = engine.checkpoint().save("..").unwrap_err();
    assert!(matches!(error, CheckpointError::Io { action: "save", .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// As any other file of the process: others may read it if the process's mask allows; and one that is replaced stays as it was.
#[cfg(unix)]
#[test]
fn saved_files_have_the_mode_of_the_process_or_of_what_they_replace() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let mut engine = Engine::new(Kind::new(StateFormat::F32));
    engine.step(1);
    engine.checkpoint().save(&path).unwrap();
    let other = folder.path().join("other");
    std::fs::write(&other, "").unwrap();
    assert_eq!(mode(&path), mode(&other));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    engine.checkpoint().save(&path).unwrap();
    assert_eq!(mode(&path), 0o640);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Hostile files give errors, never a panic or a huge allocation.
    #[test]
    fn arbitrary_bytes_are_refused(
        length in prop_oneof![any::<u64>(), 0_u64..200],
        text in "[\\[\\]{}\":,a-z0-9_.]{0,200}",
        data in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend(data);
        prop_assert!(Checkpoint::from_bytes(&bytes).is_err());
    }

    /// A whole file with some bytes overwritten reads as it was, or is refused.
    #[test]
    fn overwritten_files_are_refused(at in 0_usize..2000, with in prop::collection::vec(any::<u8>(), 1..40)) {
        use std::sync::OnceLock;
        static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
        let whole = WHOLE.get_or_init(small_checkpoint);
        let mut bytes = whole.clone();
        let at = at % bytes.len();
        for (byte, with) in bytes[at..].iter_mut().zip(with) {
            *byte = with;
        }
        if let Ok(read) = Checkpoint::from_bytes(&bytes) {
            prop_assert_eq!(read, Checkpoint::from_bytes(whole).unwrap());
        }
    }
}

#[test]
fn names_too_long_for_a_header_are_an_error_of_their_own() {
    let mut optimizer = Optimizer::new(&gpu().device, &gpu().queue, Options::default()).unwrap();
    let group = optimizer.add_group(Hyperparameters::default()).unwrap();
    let long = "x".repeat(10_000);
    for index in 0..3_000 {
        optimizer.add_parameter(group, Parameter::new(&format!("{index}.{long}"), 1)).unwrap();
    }
    let error = optimizer.checkpoint_blocking().unwrap().to_bytes().unwrap_err();
    assert!(matches!(error, CheckpointError::HeaderTooLarge { parameters: 3_000 }), "{error}");
}
