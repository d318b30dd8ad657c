//! Checkpoints of the CPU reference: runs go from it to an optimizer and back with the same bits.

mod common;

use adamod::reference::{Reference, Storage};
use adamod::{
    AdaMod, Adam, Checkpoint, Control, DType, DeviceControl, Options, Precision, Rule, RuleKind, StateFormat,
};

use common::{Engine, Kind, Layout, Model, all, gpu, rules_and_kinds};

const LENGTHS: [usize; 3] = [1, 33, 1030];
const SEED: u64 = 5;

/// Bits of all values in their types, after some more steps.
fn later(model: &Model, mut step: impl FnMut(&[Option<&[f32]>]) -> Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    let mut bits = Vec::new();
    for seed in 10..12 {
        bits = step(&all(&model.gradients(seed)));
    }
    bits
}

fn of_optimizer(model: &Model, engine: &mut Engine<'_>) -> Vec<Vec<u32>> {
    later(model, |gradients| {
        engine.step(gradients);
        (0..LENGTHS.len()).map(|index| engine.value_bits(index)).collect()
    })
}

fn of_reference(model: &Model, reference: &mut Reference<f32>) -> Vec<Vec<u32>> {
    later(model, |gradients| {
        reference.step(gradients);
        (0..LENGTHS.len()).map(|index| reference.narrowed(index).to_vec()).collect()
    })
}

/// AdaMod in every format of bf16 and f32 parameters, and every other rule in f32.
fn pairs() -> Vec<(Rule, Kind)> {
    let all = rules_and_kinds().into_iter().filter(|(_, kind)| {
        kind.gradients == kind.values && kind.shadow.is_none() && kind.values != DType::F16
    });
    let adamod = all.filter(|(rule, _)| *rule == Rule::from(AdaMod::new()));
    let others = RuleKind::ALL.iter().filter(|kind| **kind != RuleKind::AdaMod);
    adamod.chain(others.map(|kind| (kind.with_defaults(), Kind::f32()))).collect()
}

#[test]
fn a_run_goes_from_the_reference_to_an_optimizer_and_back() {
    for (rule, kind) in pairs() {
        let model = Model::of_kinds(rule, &LENGTHS.map(|len| (kind, len)));
        let model = model.with_options(Options::new().with_seed(SEED));
        let (mut engine, mut twin) = (Engine::new(gpu(), &model, Layout::OnePool(4)), model.twin::<f32>());
        for steps in [0, 3] {
            for seed in 0..steps {
                let gradients = model.gradients(seed);
                engine.step(&all(&gradients));
                twin.step(&all(&gradients));
            }
            let what = format!("{rule:?}, {kind:?}, after {steps} steps");
            let of_twin = through_a_file(&twin.checkpoint().unwrap());
            let of_gpu = engine.optimizer.checkpoint_with_values().wait().unwrap();
            for (index, tensor) in model.tensors.iter().enumerate() {
                let parameter = of_twin.parameter(&tensor.label).unwrap();
                assert_eq!(Some(parameter), of_gpu.parameter(&tensor.label), "{what}");
                if gpu().is_exact() {
                    let label = &tensor.label;
                    assert_eq!(of_twin.values(label).unwrap(), of_gpu.values(label).unwrap(), "{what}");
                    assert_eq!(of_twin.state(label).unwrap(), of_gpu.state(label).unwrap(), "{what}");
                }
                assert_eq!(of_twin.values(&tensor.label).unwrap(), twin.values(index), "{what}");
            }
            let mut to_gpu = Engine::new(gpu(), &model, Layout::OnePool(4));
            to_gpu.optimizer.restore(&of_twin).unwrap();
            let mut to_twin = model.twin::<f32>();
            to_twin.restore(&of_gpu).unwrap();
            let mut from_twin = model.twin::<f32>();
            from_twin.restore(&of_twin).unwrap();
            let expected = of_reference(&model, &mut twin.clone());
            assert!(of_reference(&model, &mut from_twin) == expected, "{what}");
            if gpu().is_exact() {
                assert!(of_optimizer(&model, &mut to_gpu) == expected, "{what}");
                assert!(of_reference(&model, &mut to_twin) == expected, "{what}");
            }
        }
    }
}

fn through_a_file(checkpoint: &Checkpoint) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.safetensors");
    checkpoint.save(&path).unwrap();
    let read = Checkpoint::load(&path).unwrap();
    assert_eq!(read.made_on(), ("CPU reference", ""));
    assert!(read == *checkpoint);
    read
}

fn reference<'a>(labels: &[&'a str], len: usize, storage: Storage<'a>) -> Reference<f32> {
    let mut reference = Reference::new();
    let group = reference.add_group(AdaMod::new());
    for label in labels {
        reference.add_stored_parameter(group, vec![0.5; len], storage.with_label(label));
    }
    reference
}

#[test]
fn references_without_labels_of_their_own_have_no_checkpoint() {
    for (labels, storage, expected) in [
        (&["", "b"][..], Storage::new(), "parameter 0 has the label \"\""),
        (&["a", "a"], Storage::new(), "parameter 1 has the label \"a\""),
        (&["a"], Storage::new().with_first(4), "first element of parameter \"a\""),
    ] {
        let error = reference(labels, 8, storage).checkpoint().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut two = reference(&["a"], 8, Storage::new());
    two.add_stored_parameter(0, vec![0.0], Storage::new().with_label("b").with_seed(1));
    assert!(two.checkpoint().unwrap_err().to_string().contains("seed of parameter \"b\""));
}

#[test]
fn a_checkpoint_of_something_else_is_refused_and_nothing_changes() {
    let make = |labels: &[&str], len, storage| {
        let mut reference = reference(labels, len, storage);
        let gradient = vec![0.25; len];
        reference.step(&vec![Some(&gradient[..]); labels.len()]);
        reference
    };
    let mut own = make(&["a", "b"], 8, Storage::new());
    let mut adam = Reference::new();
    adam.add_group(Adam::new());
    let narrow = Storage::new().with_dtype(DType::Bf16);
    let mut checkpoints = vec![
        (make(&["a"], 8, Storage::new()).checkpoint().unwrap(), "no parameter \"b\""),
        (make(&["a", "b", "c"], 8, Storage::new()).checkpoint().unwrap(), "parameter \"c\""),
        (make(&["a", "b"], 9, Storage::new()).checkpoint().unwrap(), "length of parameter \"a\""),
        (make(&["a", "b"], 8, narrow).checkpoint().unwrap(), "data type of parameter \"a\""),
        (make(&["a", "b"], 8, Storage::new().with_seed(3)).checkpoint().unwrap(), "seed of parameter \"a\""),
        (
            make(&["a", "b"], 8, Storage::new().with_state(StateFormat::Q8)).checkpoint().unwrap(),
            "state format of parameter \"a\"",
        ),
        (adam.checkpoint().unwrap(), "rule of group 0"),
        (Reference::new().checkpoint().unwrap(), "number of groups"),
    ];
    let model = Model::new(AdaMod::new(), &[8]);
    let engine = |options| Engine::new(gpu(), &model.clone().with_options(options), Layout::OnePool(4));
    let control = Control::Device(DeviceControl::new());
    let of_device = engine(Options::new().with_control(control)).optimizer.checkpoint().wait().unwrap();
    checkpoints.push((of_device, "the control"));
    let rename = |checkpoint: Checkpoint| checkpoint.rename(|_| "a".to_owned()).unwrap();
    let without_values = rename(engine(Options::new()).optimizer.checkpoint().wait().unwrap());
    let values = |of: &Reference<f32>| (of.values(0).to_vec(), of.words(0).to_vec(), of.step_count(0));
    let before = values(&own);
    for (checkpoint, expected) in checkpoints {
        let error = own.restore(&checkpoint).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, expected {expected}");
        assert_eq!(values(&own), before);
    }
    let mut one = reference(&["a"], 8, Storage::new());
    let error = one.restore(&without_values).unwrap_err().to_string();
    assert!(error.contains("\"a\""), "{error}");
    // Values that an engine adds.
    let bytes: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let error = without_values.clone().with_values(|_| Some(bytes[4..].to_vec())).unwrap_err();
    assert_eq!(error.to_string(), "the values of parameter \"a\" have 28 bytes, expected 32");
    let with_values = without_values.with_values(|_| Some(vec![0; 32])).unwrap();
    let with_values =
        with_values.with_values(|_| Some(bytes.clone())).unwrap().with_values(|_| None).unwrap();
    one.restore(&with_values).unwrap();
    assert_eq!(one.values(0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn a_precision_says_how_a_reference_stores() {
    let precision = Precision::new(StateFormat::Q8).with_f32_state_below(100);
    let of = |len| Storage::new().with_precision(&precision, len).state;
    assert_eq!((of(99), of(100)), (StateFormat::F32, StateFormat::Q8));
}
