//! Checkpoints: a restored run continues with the same bits, damaged files are refused, and saving never loses the old file.

mod common;

use std::collections::HashMap;
use std::path::Path;

use adamod::custom::{RuleDefinition, Sign};
use adamod::{
    AdaMod, Adam, Checkpoint, CheckpointError, Control, DType, DeviceControl, Formula, Group,
    Hyperparameters, Options, Parameter, Restore, Rule, RuleKind, Sgd, StateFormat, WeightDecay,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use common::{Engine, Kind, Layout, Model, gpu, lay_out, precision, rules, rules_and_kinds};

const LENGTHS: [usize; 4] = [1, 33, 1025, 5000];
const LABELS: [&str; 4] = ["a", "b", "layers.0.weight", "d \"quoted\""];

fn hyperparameters(rule: impl Into<Rule>) -> Hyperparameters {
    Hyperparameters::from(rule.into())
        .with_learning_rate(0.1 + 0.2)
        .with_weight_decay(WeightDecay::Decoupled(0.01))
}

/// Tensors of one kind with these labels. No two have the same length.
fn model_of(rule: impl Into<Rule>, kind: Kind, labels: &[&str]) -> Model {
    let tensors: Vec<_> = LENGTHS.iter().take(labels.len()).map(|&len| (kind, len)).collect();
    let model = Model::of_kinds(hyperparameters(rule), &tensors);
    labelled(model.with_options(Options::new().with_seed(5)), labels)
}

fn labelled(mut model: Model, labels: &[&str]) -> Model {
    assert_eq!(model.tensors.len(), labels.len());
    for (tensor, &label) in model.tensors.iter_mut().zip(labels) {
        tensor.label = label.to_owned();
    }
    model
}

/// AdaMod over f32 tensors with state of this format.
fn model(state: StateFormat) -> Model {
    model_of(AdaMod::new(), Kind { state, ..Kind::f32() }, &LABELS)
}

fn engine(model: &Model) -> Engine<'static> {
    Engine::new(gpu(), model, Layout::TwoPools(256))
}

/// An engine of AdaMod over f32 tensors with f32 state after one step.
fn stepped_engine() -> Engine<'static> {
    let mut engine = engine(&model(StateFormat::F32));
    step(&mut engine, 1);
    engine
}

/// Takes a step. The first tensor misses every third step, so that its step count differs.
fn step(engine: &mut Engine<'_>, seed: usize) {
    let gradients: Vec<Vec<f32>> = engine
        .tensors
        .iter()
        .zip(0..)
        .map(|(tensor, index)| {
            let number = |i: usize| ((i * 7 + seed * 13) as f32 * 0.37).sin() * 1e-2;
            (5120 * index..).take(tensor.len()).map(number).collect()
        })
        .collect();
    let is_present = |index| index > 0 || !seed.is_multiple_of(3);
    let gradients: Vec<_> = gradients
        .iter()
        .enumerate()
        .map(|(index, gradient)| is_present(index).then_some(gradient.as_slice()))
        .collect();
    engine.step(&gradients);
}

fn checkpoint(engine: &Engine<'_>) -> Checkpoint {
    engine.optimizer.checkpoint().wait().unwrap()
}

/// Restores a checkpoint and copies the values, which are not in it.
fn continue_from(engine: &mut Engine<'_>, checkpoint: &Checkpoint, values: &wgpu::Buffer) {
    engine.optimizer.restore(checkpoint).unwrap();
    let words = engine.gpu.read(values);
    engine.gpu.queue.write_buffer(&engine.buffers[0], 0, bytemuck::cast_slice(&words));
}

/// AdaMod with every data type, kind of master weights and state format, and the other rules and formulas with some of them, with step
/// counts on the host and on the device.
fn models() -> Vec<Model> {
    let mut models = Vec::new();
    let controls = [Control::Host, Control::Device(DeviceControl::new())];
    for (index, (rule, kind)) in rules_and_kinds().into_iter().enumerate() {
        for (number, control) in controls.into_iter().enumerate() {
            // A checkpoint does not depend on the data type of gradients, and how steps are counted not on any data type.
            let is_new =
                kind.gradients == kind.values && (control == Control::Host || kind.values == DType::F32);
            let is_chosen = if rule == rules()[0] { is_new } else { index % 2 == number };
            if is_chosen {
                let mut model = model_of(rule, kind, &LABELS);
                model.options.control = control;
                models.push(model);
            }
        }
    }
    models
}

/// A model in messages.
fn name(model: &Model) -> String {
    format!("{:?} {:?} {:?}", model.rule(), model.tensors[0].kind, model.options.control)
}

#[test]
fn a_restored_optimizer_goes_on_with_the_same_bits() {
    let models = models();
    // 3 state formats and 8 data types with their master weights, and f32 again with Control::Device.
    assert!(models.len() >= 3 * 9 + 3 * (rules().len() - 2), "{} models", models.len());
    for model in models {
        let name = name(&model);
        let mut first = engine(&model);
        (1..4).for_each(|seed| step(&mut first, seed));
        let saved = checkpoint(&first);
        let read = Checkpoint::from_bytes(&saved.to_bytes().unwrap()).unwrap();
        assert_eq!(read, saved, "{name}");
        let mut second = engine(&model);
        // A restore replaces whatever the optimizer did before.
        step(&mut second, 9);
        continue_from(&mut second, &read, &first.buffers[0]);
        for seed in 4..7 {
            step(&mut first, seed);
            step(&mut second, seed);
        }
        assert!(first.gpu.read(&first.buffers[0]) == second.gpu.read(&second.buffers[0]), "{name}");
        assert_eq!(checkpoint(&first), checkpoint(&second), "{name}");
    }
}

#[test]
fn another_process_goes_on_with_the_same_bits() {
    const FOLDER: &str = "ADAMOD_TEST_CHECKPOINT_FOLDER";
    let mut engine = engine(&model(StateFormat::Q8));
    if let Ok(folder) = std::env::var(FOLDER) {
        let folder = Path::new(&folder);
        engine.optimizer.restore(&Checkpoint::load(folder.join("before")).unwrap()).unwrap();
        (4..7).for_each(|seed| step(&mut engine, seed));
        checkpoint(&engine).save(folder.join("after")).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    (1..4).for_each(|seed| step(&mut engine, seed));
    checkpoint(&engine).save(folder.path().join("before")).unwrap();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process_goes_on_with_the_same_bits"])
        .env(FOLDER, folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    (4..7).for_each(|seed| step(&mut engine, seed));
    assert_eq!(Checkpoint::load(folder.path().join("after")).unwrap(), checkpoint(&engine));
}

#[test]
fn several_checkpoints_are_in_flight_while_training_goes_on() {
    let mut engine = engine(&model(StateFormat::F32));
    let pending: Vec<_> = (1..5)
        .map(|seed| {
            step(&mut engine, seed);
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
    for from in StateFormat::ALL {
        for to in StateFormat::ALL {
            let mut saved = engine(&model(from));
            (1..5).for_each(|seed| step(&mut saved, seed));
            let mut engine = engine(&model(to));
            engine.optimizer.restore(&checkpoint(&saved)).unwrap();
            let relative = match to {
                StateFormat::F32 => 1e-6,
                StateFormat::Bf16 => 1e-2,
                StateFormat::Q8 => 0.08,
                to => panic!("the tolerance of {to:?} is unknown"),
            };
            for index in 0..LENGTHS.len() {
                let (before, after) = (saved.state(index), engine.state(index));
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
    let engine = stepped_engine();
    let bytes = checkpoint(&engine).to_bytes().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["exp_avg", "exp_avg_sq", "exp_avg_lr"] {
        let tensor = file.tensor(&format!("{name}.layers.0.weight")).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[1025][..]));
        let state = engine.state(2);
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data()), state.tensor(name).unwrap());
    }
}

/// The error names what differs, and the optimizer does not change.
#[test]
fn checkpoints_of_another_optimizer_are_refused_and_change_nothing() {
    let mut engine = stepped_engine();
    let before = checkpoint(&engine);
    let other = |change: &dyn Fn(&mut Model)| {
        let mut model = model(StateFormat::F32);
        change(&mut model);
        let mut engine = self::engine(&model);
        step(&mut engine, 1);
        checkpoint(&engine)
    };
    let with_labels = |labels: &[&str]| {
        other(&|model| {
            *model = model_of(AdaMod::new(), Kind::f32(), labels).with_options(model.options.clone())
        })
    };
    let with_rule = |rule: Rule| other(&|model| model.groups[0].hyperparameters.rule = rule);
    let mut cases: Vec<(Checkpoint, &str)> = vec![
        (with_rule(AdaMod::new().with_formula(Formula::AuthorsCode).into()), "the formula of group 0"),
        (other(&|model| model.add_group(Sgd::new(), &[])), "the number of groups"),
        (other(&|model| model.options.seed = 6), "the seed"),
        (other(&|model| model.options.control = Control::Device(DeviceControl::new())), "the control"),
        (
            other(&|model| {
                let kind = Kind { values: DType::Bf16, gradients: DType::Bf16, ..Kind::f32() };
                *model = model_of(AdaMod::new(), kind, &LABELS);
            }),
            "the data type of parameter \"a\"",
        ),
        (with_labels(&LABELS[..3]), "no parameter \"d \\\"quoted\\\"\""),
        (with_labels(&["a", "renamed", "layers.0.weight", "d \"quoted\""]), "\"renamed\""),
        (with_labels(&["b", "a", "layers.0.weight", "d \"quoted\""]), "the length of parameter \"a\""),
    ];
    for kind in RuleKind::ALL.iter().filter(|&&kind| kind != RuleKind::AdaMod) {
        cases.push((with_rule(kind.with_defaults()), "the rule of group 0"));
    }
    for (checkpoint, named) in cases {
        let error = engine.optimizer.restore(&checkpoint).unwrap_err().to_string();
        assert!(error.contains(named), "{error:?} does not name {named:?}");
        assert_eq!(self::checkpoint(&engine), before);
    }
    step(&mut engine, 2);

    // Only the rule has to be the same. The other hyperparameters become those of the checkpoint.
    for rule in [Rule::from(Adam::new().with_betas([0.5, 0.75])), Sgd::new().with_momentum(0.5).into()] {
        let saved = with_rule(rule);
        let mut model = model(StateFormat::F32);
        model.groups[0].hyperparameters.rule = rule.kind().with_defaults();
        let mut engine = self::engine(&model);
        engine.optimizer.restore(&saved).unwrap();
        assert_eq!(engine.optimizer.step_count(engine.ids[0]), Some(1));
        assert_eq!(engine.optimizer.group(engine.groups[0]).unwrap().hyperparameters.rule, rule);
    }
}

/// A, B and C are added and A is removed before C comes. C reuses the slot of A, but it is still the last group.
#[test]
fn groups_keep_the_order_in_which_they_were_added() {
    let [a, b, c] = [1e-3, 1e-2, 1e-1].map(|rate| hyperparameters(AdaMod::new()).with_learning_rate(rate));
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let options = Options::new().with_seed(5).with_control(control);
        let mut fresh_model = Model::new(b, &[1025]).with_options(options);
        fresh_model.add_group(Group::new(c).with_precision(precision(StateFormat::Q8)), &[33, 100]);
        // The same groups and tensors in an optimizer that had another group first.
        let (locations, sizes) = lay_out(&fresh_model.lengths(), Layout::TwoPools(256));
        let mut old = Engine::empty(gpu(), fresh_model.options.clone(), &sizes);
        old.add_group(a);
        old.add_group(fresh_model.groups[0]);
        old.optimizer.remove_group(old.groups[0]).unwrap();
        old.add_group(fresh_model.groups[1]);
        old.groups.remove(0);
        let rates = |engine: &Engine<'_>| -> Vec<f64> {
            engine.optimizer.groups().map(|(_, group)| group.hyperparameters.learning_rate).collect()
        };
        assert_eq!(rates(&old), [1e-2, 1e-1]);
        for (tensor, location) in fresh_model.tensors.iter().zip(locations) {
            old.add_tensor(tensor.clone(), location);
        }
        (1..4).for_each(|seed| step(&mut old, seed));
        let saved = checkpoint(&old);
        assert_eq!(saved.groups(), fresh_model.groups);
        assert_eq!(saved.parameters().map(|parameter| parameter.group).collect::<Vec<_>>(), [0, 1, 1]);

        let mut fresh = engine(&fresh_model);
        for group in fresh.groups.clone() {
            fresh.optimizer.set_learning_rate(group, 0.0).unwrap();
        }
        continue_from(&mut fresh, &saved, &old.buffers[0]);
        assert_eq!(rates(&fresh), [1e-2, 1e-1]);
        for seed in 4..7 {
            step(&mut old, seed);
            step(&mut fresh, seed);
        }
        assert!(old.bits() == fresh.bits(), "{control:?}");
        assert_eq!(checkpoint(&old), checkpoint(&fresh));
        // The optimizer that removed a group restores its checkpoint, too.
        old.optimizer.restore(&saved).unwrap();
        assert_eq!(checkpoint(&old), saved);

        // The order of groups matters.
        let mut swapped =
            Model::new(fresh_model.groups[1], &[33, 100]).with_options(fresh_model.options.clone());
        swapped.add_group(fresh_model.groups[0], &[1025]);
        let swapped = labelled(swapped, &["tensor.1", "tensor.2", "tensor.0"]);
        let error = engine(&swapped).optimizer.restore(&saved).unwrap_err().to_string();
        assert!(error.contains("the group of parameter \"tensor."), "{error}");
    }
}

/// A model with a group of each rule.
fn model_of_all_rules(state: StateFormat, control: Control) -> Model {
    let options = Options::new().with_seed(5).with_control(control);
    let group =
        |kind: &RuleKind| Group::new(hyperparameters(kind.with_defaults())).with_precision(precision(state));
    let mut model = Model::new(group(&RuleKind::ALL[0]), &[33, 1025]).with_options(options);
    for kind in &RuleKind::ALL[1..] {
        model.add_group(group(kind), &[100, 2000]);
    }
    model
}

#[test]
fn groups_of_different_rules_go_on_with_the_same_bits() {
    assert!(RuleKind::ALL.len() >= 3);
    for state in StateFormat::ALL {
        for control in [Control::Host, Control::Device(DeviceControl::new())] {
            let model = model_of_all_rules(state, control);
            let mut first = engine(&model);
            (1..4).for_each(|seed| step(&mut first, seed));
            let saved = Checkpoint::from_bytes(&checkpoint(&first).to_bytes().unwrap()).unwrap();
            assert_eq!(saved.groups(), model.groups);
            let mut second = engine(&model);
            step(&mut second, 9);
            continue_from(&mut second, &saved, &first.buffers[0]);
            for seed in 4..7 {
                step(&mut first, seed);
                step(&mut second, seed);
            }
            assert!(first.bits() == second.bits(), "{state:?} {control:?}");
            assert_eq!(checkpoint(&first), checkpoint(&second), "{state:?} {control:?}");
        }
    }
}

#[test]
fn another_rule_of_any_group_is_refused_and_the_group_is_named() {
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        let model = model_of_all_rules(StateFormat::F32, control);
        let mut saved = engine(&model);
        step(&mut saved, 1);
        let saved = checkpoint(&saved);
        for (number, &theirs) in RuleKind::ALL.iter().enumerate() {
            let ours = RuleKind::ALL[(number + 1) % RuleKind::ALL.len()];
            let mut model = model.clone();
            model.groups[number].hyperparameters.rule = ours.with_defaults();
            let mut engine = engine(&model);
            step(&mut engine, 2);
            let before = checkpoint(&engine);
            let error = engine.optimizer.restore(&saved).unwrap_err();
            let CheckpointError::Mismatch { what, found, expected, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(what, format!("the rule of group {number}"));
            assert_eq!((found.as_str(), expected.as_str()), (theirs.name(), ours.name()));
            assert_eq!(checkpoint(&engine), before);
        }
    }
}

/// SGD with momentum under a name of its own; `scale` is a part of its source.
fn custom(scale: &str) -> Rule {
    let wgsl = "
struct HeavyCoefficients { momentum: f32, step_size: f32 }

fn heavy_coefficients(base: HeavyCoefficients, variant: u32, decay: Decay) -> HeavyCoefficients {
    return base;
}

fn heavy_step(general: General, c: HeavyCoefficients, e: Elements) -> Stepped {
    let g = scaled_gradient(general, e);
    let m = c.momentum * e.state[0] + SCALE * g;
    let rate = vec4(c.step_size);
    return Stepped(apply_step(general, e.theta, g, rate, m), State(m, e.state[1], e.state[2]), rate, rate);
}
";
    let definition = RuleDefinition::new("heavy", wgsl.replace("SCALE", scale))
        .with_states([("momentum_buffer", Sign::Signed)])
        .with_hyperparameters([("momentum", 0.9)])
        .with_coefficients(["momentum", "step_size"], |&[momentum], rate, _t| [momentum, rate]);
    Rule::custom(definition).unwrap()
}

#[test]
fn custom_rules_go_on_with_the_same_bits() {
    let mut rule = custom("1.0");
    assert!(rule.set_hyperparameter("momentum", 0.85));
    for state in StateFormat::ALL {
        for control in [Control::Host, Control::Device(DeviceControl::new())] {
            let mut model = model_of(rule, Kind { state, ..Kind::f32() }, &LABELS);
            model.options.control = control;
            let mut first = engine(&model);
            (1..4).for_each(|seed| step(&mut first, seed));
            let saved = Checkpoint::from_bytes(&checkpoint(&first).to_bytes().unwrap()).unwrap();
            assert_eq!(saved.groups(), model.groups);
            // With other hyperparameters, which are restored.
            model.groups[0].hyperparameters.rule = custom("1.0");
            let mut second = engine(&model);
            step(&mut second, 9);
            continue_from(&mut second, &saved, &first.buffers[0]);
            (4..7).for_each(|seed| [&mut first, &mut second].into_iter().for_each(|of| step(of, seed)));
            assert!(first.bits() == second.bits(), "{state:?} {control:?}");
        }
    }
}

#[test]
fn a_custom_rule_of_another_source_is_refused_by_name() {
    let (rule, other) = (custom("1.0"), custom("2.0"));
    let mut first = engine(&model_of(rule, Kind::f32(), &LABELS));
    step(&mut first, 1);
    let bytes = checkpoint(&first).to_bytes().unwrap();
    let saved = Checkpoint::from_bytes(&bytes).unwrap();
    // Into an optimizer with another source.
    let mut second = engine(&model_of(other, Kind::f32(), &LABELS));
    let error = second.optimizer.restore(&saved).unwrap_err();
    let CheckpointError::Mismatch { what, found, expected } = &error else { panic!("{error}") };
    assert_eq!(what, "the rule of group 0");
    assert_eq!((found, expected), (&rule.kind().to_string(), &other.kind().to_string()));
    let restore = Restore::new().keep_hyperparameters();
    let error = second.optimizer.restore_with(&saved, &restore).unwrap_err();
    assert!(error.to_string().contains(&rule.kind().to_string()), "{error}");
    step(&mut second, 1);
    // In a program that has not made it.
    let mut header = header_of(&bytes);
    assert_eq!(header["groups"][0]["rule"], "heavy");
    header["groups"][0]["fingerprint"] = "0123456789abcdef".into();
    let error = refusal(&header);
    let CheckpointError::CustomRule { group: 0, found, made } = &error else { panic!("{error}") };
    assert_eq!(found, "heavy@0123456789abcdef");
    assert!(made.contains(&rule.kind().to_string()) && made.contains(&other.kind().to_string()), "{made:?}");
    header["groups"][0]["rule"] = "unheard_of".into();
    let text = "the rule of group 0 of the checkpoint is unheard_of@0123456789abcdef, expected one that Rule::custom has made: \
        none of this name";
    assert_eq!(refusal(&header).to_string(), text);
    header["groups"][0].as_object_mut().unwrap().remove("fingerprint");
    assert!(refusal(&header).to_string().contains("expected one of adamod"), "{}", refusal(&header));
}

fn small_checkpoint() -> Vec<u8> {
    let mut engine =
        engine(&model_of(AdaMod::new(), Kind { state: StateFormat::Q8, ..Kind::f32() }, &["a", "b"]));
    step(&mut engine, 1);
    checkpoint(&engine).to_bytes().unwrap()
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
        // Some bits of the header have no meaning: white space at its end, and the case of hexadecimal digits.
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

/// The JSON in the metadata of a checkpoint.
fn header_of(bytes: &[u8]) -> Value {
    let (_, metadata) = SafeTensors::read_metadata(bytes).unwrap();
    serde_json::from_str(&metadata.metadata().as_ref().unwrap()["adamod.checkpoint"]).unwrap()
}

/// The error of a file with this JSON, a wrong checksum and no tensors.
fn refusal(header: &Value) -> CheckpointError {
    let metadata = [("adamod.checkpoint", header.to_string()), ("adamod.checksum", "0".to_owned())];
    let metadata = metadata.each_ref().map(|(key, value)| (*key, value.as_str()));
    Checkpoint::from_bytes(&file(&metadata, &[])).unwrap_err()
}

/// The same JSON in version 1 of the format, which had one rule and one formula for all groups.
fn version_1_of(mut header: Value, formula: &str) -> Value {
    header["version"] = 1.into();
    header.as_object_mut().unwrap().remove("piece");
    for parameter in header["parameters"].as_array_mut().unwrap() {
        parameter.as_object_mut().unwrap().remove("checksums");
    }
    header["rule"] = header["groups"][0]["rule"].clone();
    header["formula"] = formula.into();
    for group in header["groups"].as_array_mut().unwrap() {
        let group = group.as_object_mut().unwrap();
        group.remove("rule");
        let of_rule = group.remove("hyperparameters").unwrap();
        let hyperparameter = |name: &str| match &of_rule[name] {
            Value::Null => "0000000000000000".into(),
            value => value.clone(),
        };
        let betas = ["betas[0]", "betas[1]", "betas[2]"].map(hyperparameter);
        group.insert("betas".to_owned(), betas.to_vec().into());
        for name in ["epsilon", "momentum"] {
            group.insert(name.to_owned(), hyperparameter(name));
        }
    }
    header
}

#[test]
fn metadata_that_cannot_be_are_refused_by_name() {
    let parsed = header_of(&small_checkpoint());
    type Change = fn(&mut Value);
    let cases: &[(Change, &str)] = &[
        (|h| h["version"] = 4.into(), "version 4"),
        (|h| h["version"] = 0.into(), "version 0"),
        (|h| h["groups"][0]["rule"] = "lyon".into(), "group 0: rule is \"lyon\""),
        (|h| h["groups"][0]["state"] = "q4".into(), "group 0: state is \"q4\""),
        (|h| h["groups"][0]["master_weights"] = "f8".into(), "group 0: master_weights is \"f8\""),
        (|h| h["groups"][0]["learning_rate"] = "zz".into(), "group 0: learning_rate is \"zz\""),
        (|h| h["groups"][0]["hyperparameters"]["epsilon"] = "zz".into(), "group 0: epsilon"),
        (
            |h| h["groups"][0]["hyperparameters"]["epsilon"] = "0000000000000000".into(),
            "hyperparameters of group 0 of the checkpoint: epsilon is 0, expected",
        ),
        (|h| h["groups"][0]["weight_decay"] = "l1".into(), "group 0: weight_decay"),
        (|h| h["groups"][0]["more"] = 1.into(), "more"),
        (|h| h["parameters"][0]["group"] = 7.into(), "its group is 7"),
        (|h| h["parameters"][0]["len"] = 0.into(), "its length is 0"),
        (|h| h["parameters"][0]["len"] = u64::MAX.into(), "its length is 18446744073709551615"),
        (|h| h["parameters"][0]["len"] = (-1).into(), "len"),
        (|h| h["parameters"][0]["len"] = (1_u64 << 47).into(), "no tensor \"exp_avg.a\""),
        (|h| h["parameters"][0]["dtype"] = "f64".into(), "dtype is \"f64\""),
        (|h| h["parameters"][0]["state"] = "q4".into(), "state is \"q4\""),
        (|h| h["parameters"][0]["master_weights"] = "split32".into(), "its master weights"),
        (|h| h["parameters"][0]["shard"] = serde_json::json!([1, 1]), "its shard is"),
        (|h| h["parameters"][0]["shard"] = serde_json::json!([u64::MAX, u64::MAX]), "its shard is"),
        (|h| h["parameters"][0]["more"] = 1.into(), "more"),
        (|h| h["rule"] = "adamod".into(), "rule"),
        (|h| *h = "text".into(), "metadata"),
        // Only the checksum is wrong.
        (|h| h["parameters"] = serde_json::json!([]), "checksum"),
        // Version 1.
        (|h| *h = version_1_of(h.take(), "other"), "formula is \"other\""),
        (
            |h| {
                *h = version_1_of(h.take(), "paper");
                h["rule"] = "lyon".into();
            },
            "group 0: rule is \"lyon\"",
        ),
        (
            |h| {
                *h = version_1_of(h.take(), "paper");
                h["groups"][0]["betas"][2] = "zz".into();
            },
            "betas[2] is \"zz\"",
        ),
    ];
    for (change, named) in cases {
        let mut header = parsed.clone();
        change(&mut header);
        let error = refusal(&header).to_string();
        assert!(error.contains(named), "{error:?} does not name {named:?}");
    }
    // Of several groups the wrong one is named.
    for wrong in 0..3 {
        let mut header = parsed.clone();
        let group = header["groups"][0].clone();
        header["groups"] = Value::Array(vec![group; 3]);
        header["groups"][wrong]["weight_decay"] = "l1".into();
        assert!(refusal(&header).to_string().contains(&format!("group {wrong}: weight_decay")));
        header["groups"][wrong]["weight_decay"] = "none".into();
        header["groups"][wrong]["learning_rate"] = "7ff0000000000000".into();
        assert!(matches!(refusal(&header), CheckpointError::Hyperparameters { group, .. } if group == wrong));
    }
    let no_metadata = file(&[("format", "pt")], &[]);
    assert!(
        Checkpoint::from_bytes(&no_metadata).unwrap_err().to_string().contains("not a checkpoint of adamod")
    );
    let deep = "[".repeat(100_000);
    let error = Checkpoint::from_bytes(&file(&[("adamod.checkpoint", &deep), ("adamod.checksum", "0")], &[]));
    assert!(matches!(error, Err(CheckpointError::Metadata { .. })));
}

/// Every hyperparameter of every rule, in the file of an optimizer without parameters.
#[test]
fn hyperparameters_that_a_rule_lacks_needs_or_cannot_have_are_refused_by_name() {
    for &kind in RuleKind::ALL {
        let mut optimizer = gpu().optimizer(Options::new()).unwrap();
        optimizer.add_group(Sgd::new()).unwrap();
        optimizer.add_group(kind.with_defaults()).unwrap();
        let sound = header_of(&optimizer.checkpoint().wait().unwrap().to_bytes().unwrap());
        let of_rule = sound["groups"][1]["hyperparameters"].as_object().unwrap();
        let names: Vec<&String> = of_rule.keys().collect();
        assert!(!names.is_empty(), "{kind}");
        let refused = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
            let mut header = sound.clone();
            change(header["groups"][1]["hyperparameters"].as_object_mut().unwrap());
            refusal(&header)
        };
        let metadata = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| match refused(change) {
            CheckpointError::Metadata { what, .. } => what,
            error => panic!("{kind}: {error}"),
        };
        let one = "3ff0000000000000";
        let what = metadata(&|of_rule| _ = of_rule.insert("mystery".to_owned(), one.into()));
        assert_eq!(what, format!("group 1: rule {kind} has no hyperparameter \"mystery\""));
        for name in names {
            let what = metadata(&|of_rule| _ = of_rule.remove(name));
            assert_eq!(what, format!("group 1: hyperparameter {name:?} of rule {kind} is missing"));
            for hex in ["", "zz", "3ff", "+ff0000000000000", "3ff00000000000000"] {
                let what = metadata(&|of_rule| of_rule[name] = hex.into());
                assert_eq!(what, format!("group 1: {name} is {hex:?}, expected 16 hexadecimal digits"));
            }
            let what = metadata(&|of_rule| of_rule[name] = 1.into());
            assert!(what.contains(&format!("groups[1].hyperparameters.{name}: invalid type")), "{what}");
            // No hyperparameter can be NaN, and no decay rate can be 1.
            let not_a_number = "7ff8000000000000";
            let error = refused(&|of_rule| of_rule[name] = not_a_number.into());
            match &error {
                CheckpointError::Hyperparameters { group, error } => {
                    assert_eq!((*group, error.name), (1, name.as_str()))
                }
                CheckpointError::Metadata { what, .. } => {
                    assert_eq!(
                        *what,
                        format!("group 1: hyperparameter {name:?} of rule {kind} is {not_a_number:?}")
                    );
                    // A choice or an option, which half a one is not either.
                    assert!(!kind.with_defaults().set_hyperparameter(name, 0.5), "{kind} {name}");
                }
                _ => panic!("{error}"),
            }
            if name.starts_with("betas") || name == "momentum" {
                let error = refused(&|of_rule| of_rule[name] = one.into());
                assert!(
                    matches!(&error, CheckpointError::Hyperparameters { group: 1, error } if error.name == name),
                    "{error}"
                );
            }
        }
    }
}

/// Version 1 stored a formula for every rule. Only AdaMod has one.
#[test]
fn files_of_version_1_with_a_rule_that_has_no_formula_are_read_whatever_theirs_is() {
    for rule in [Rule::from(Adam::new().with_betas([0.5, 0.75])), Sgd::new().with_momentum(0.5).into()] {
        let mut optimizer = gpu().optimizer(Options::new()).unwrap();
        optimizer.add_group(hyperparameters(rule)).unwrap();
        let saved = optimizer.checkpoint().wait().unwrap();
        for formula in Formula::ALL {
            let text = version_1_of(header_of(&saved.to_bytes().unwrap()), formula.name()).to_string();
            let checksum = format!("{:08x}", crc32fast::hash(text.as_bytes()));
            let bytes = file(&[("adamod.checkpoint", &text), ("adamod.checksum", &checksum)], &[]);
            assert_eq!(Checkpoint::from_bytes(&bytes).unwrap(), saved);
        }
    }
}

#[test]
fn saving_replaces_the_old_checkpoint_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mut engine = engine(&model(StateFormat::Bf16));
    for seed in 1..4 {
        step(&mut engine, seed);
        let checkpoint = checkpoint(&engine);
        checkpoint.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = checkpoint(&engine).save(folder.path().join("missing/state")).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { action: "create", .. }), "{error}");
    let error = Checkpoint::load(folder.path().join("missing")).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

/// A process that saves two checkpoints in turn is killed at different moments. The file is always one of the two.
#[cfg(unix)]
#[test]
fn a_process_killed_while_it_saves_leaves_a_whole_checkpoint() {
    const FILE: &str = "ADAMOD_TEST_SAVE_FILE";
    let two = || {
        let mut engine = engine(&model(StateFormat::F32));
        [1, 2].map(|seed| {
            step(&mut engine, seed);
            checkpoint(&engine)
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
            // The temporary file of the save that was killed.
            unfinished += 1;
            std::fs::remove_file(entry).unwrap();
        }
    }
    println!("40 kills: {seen:?} of the two, {unfinished} within a save");
    assert!(unfinished > 0, "no kill hit a save");
}

/// A limit of 4 KiB per file stands for a full file system.
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
    let engine = stepped_engine();
    checkpoint(&engine).save(&path).unwrap();
    // With the signal ignored, the write fails instead. The limit does not apply to the pipe that the child prints to.
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_is_an_error_and_the_old_checkpoint_stays"])
        .env(FILE, &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    std::fs::remove_file(path.with_extension("done")).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint(&engine));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something is left over");
}

/// In a container, a process often has the same number as the one that was killed before it.
#[test]
fn what_a_killed_save_left_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let left =
        |save: u64| folder.path().join(format!(".state.safetensors.{}.{save}.tmp", std::process::id()));
    (0..2000).for_each(|save| std::fs::write(left(save), "left").unwrap());
    let engine = stepped_engine();
    checkpoint(&engine).save(&path).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint(&engine));
    assert!((0..2000).all(|save| std::fs::read(left(save)).unwrap() == b"left"));
}

#[test]
fn a_folder_in_the_place_of_a_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    std::fs::create_dir(&path).unwrap();
    let engine = stepped_engine();
    let error = checkpoint(&engine).save(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { action: "replace", .. }), "{error}");
    let error = Checkpoint::load(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { action: "read", .. }), "{error}");
    let error = checkpoint(&engine).save("..").unwrap_err();
    assert!(matches!(error, CheckpointError::Io { action: "save", .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A new file has the mode that any new file of the process has. A file that replaces another has the mode of the other.
#[cfg(unix)]
#[test]
fn saved_files_have_the_mode_of_the_process_or_of_what_they_replace() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let engine = stepped_engine();
    checkpoint(&engine).save(&path).unwrap();
    let other = folder.path().join("other");
    std::fs::write(&other, "").unwrap();
    assert_eq!(mode(&path), mode(&other));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    checkpoint(&engine).save(&path).unwrap();
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

    /// A file with some bytes overwritten is refused, or the bytes have no meaning.
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
    let mut optimizer = gpu().optimizer(Options::new()).unwrap();
    let group = optimizer.add_group(AdaMod::new()).unwrap();
    let long = "x".repeat(10_000);
    for index in 0..3_000 {
        optimizer.add_parameter(group, Parameter::new(&format!("{index}.{long}"), 1)).unwrap();
    }
    let error = optimizer.checkpoint().wait().unwrap().to_bytes().unwrap_err();
    assert!(matches!(error, CheckpointError::HeaderTooLarge { parameters: 3_000 }), "{error}");
}
