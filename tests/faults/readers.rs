//! Hostile checkpoints with correct checksums: they are refused by name, or steps can continue from them.

use std::collections::HashMap;
use std::sync::OnceLock;

use adamod::{
    AdaMod, Checkpoint, CheckpointError, Control, DType, DeviceControl, ErrorKind, Formula, Group,
    MasterWeights, Optimizer, Options, Parameter, RuleKind, StateFormat, Step, View, Views,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::common::{gpu, precision};
use crate::errors::{Refused as _, checked};

fn optimizer(control: Control) -> Optimizer {
    let (values, gradients) = (&gpu().buffer(8192), &gpu().buffer(8192));
    let options = Options::new().with_control(control);
    let mut optimizer = Optimizer::new(&gpu().device, &gpu().queue, options).unwrap();
    let group = Group::new(AdaMod::new()).with_precision(precision(StateFormat::Q8));
    let group = optimizer.add_group(group).unwrap();
    for (label, place) in [("a", 0), ("b", 4096)] {
        let views = Views::new(View::new(values, place), View::new(gradients, place));
        optimizer.add_parameter(group, Parameter::new(label, 100).with_views(views)).unwrap();
    }
    optimizer
}

/// The metadata and the tensors of a checkpoint.
#[derive(Clone)]
struct Parts {
    header: Value,
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Parts {
    fn of(control: Control) -> Self {
        let mut optimizer = optimizer(control);
        optimizer.submit(&Step::all()).unwrap();
        let bytes = optimizer.checkpoint().wait().unwrap().to_bytes().unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let header = &metadata.metadata().as_ref().unwrap()["adamod.checkpoint"];
        let file = SafeTensors::deserialize(&bytes).unwrap();
        // In the order in which the checksum covers them.
        let mut tensors = Vec::new();
        for label in ["a", "b"] {
            for what in ["exp_avg", "exp_avg_sq", "exp_avg_lr", "scales"] {
                let name = format!("{what}.{label}");
                let view = file.tensor(&name).unwrap();
                tensors.push((name, view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
        }
        assert_eq!(tensors.len(), file.len());
        Self { header: serde_json::from_str(header).unwrap(), tensors }
    }

    /// Makes the checksums of pieces correct. Each tensor is one piece.
    fn renew_checksums(&mut self) {
        let parameters = self.header["parameters"].as_array_mut().unwrap();
        for (parameter, tensors) in parameters.iter_mut().zip(self.tensors.chunks(4)) {
            let digits = tensors.iter().map(|(.., data)| format!("{:08x}", crc32fast::hash(data)));
            parameter["checksums"] = digits.collect::<String>().into();
        }
    }

    /// A file of these parts with a correct checksum.
    fn bytes(&self) -> Vec<u8> {
        let text = self.header.to_string();
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(text.as_bytes());
        self.tensors.iter().for_each(|(.., data)| checksum.update(data));
        let metadata = HashMap::from([
            ("adamod.checkpoint".to_owned(), text),
            ("adamod.checksum".to_owned(), format!("{:08x}", checksum.finalize())),
        ]);
        let views: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
            .collect();
        safetensors::serialize(views, Some(metadata)).unwrap()
    }
}

fn host() -> &'static Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS.get_or_init(|| Parts::of(Control::Host))
}

fn device() -> &'static Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS.get_or_init(|| Parts::of(Control::Device(DeviceControl::new())))
}

/// Restores a file and steps. Nothing panics, and the optimizer does not change if the file is refused.
fn try_to_go_on(bytes: &[u8], control: Control) -> Result<(), String> {
    let text_of = |error: CheckpointError| checked(error).to_string();
    let checkpoint = Checkpoint::from_bytes(bytes).map_err(text_of)?;
    let mut optimizer = optimizer(control);
    let before = optimizer.checkpoint().wait().unwrap();
    let restored = optimizer.restore(&checkpoint).map_err(text_of);
    if restored.is_err() {
        assert_eq!(optimizer.checkpoint().wait().unwrap(), before);
    }
    optimizer.submit(&Step::all()).unwrap();
    optimizer.checkpoint().wait().unwrap();
    restored
}

#[test]
fn files_put_together_anew_are_read() {
    try_to_go_on(&host().bytes(), Control::Host).unwrap();
    try_to_go_on(&device().bytes(), Control::Device(DeviceControl::new())).unwrap();
    // The checksums of pieces are those that the library computes.
    let mut parts = host().clone();
    parts.renew_checksums();
    assert_eq!(parts.header, host().header);
}

#[test]
fn numbers_that_cannot_be_are_refused_by_name_though_the_checksum_is_right() {
    type Change = fn(&mut Value);
    let cases: &[(Change, &str)] = &[
        (|h| h["parameters"][0]["step"] = json!(u64::MAX), "the step count of parameter \"a\""),
        (|h| h["parameters"][1]["step"] = json!((1_u64 << 53) + 1), "the step count of parameter \"b\""),
        (|h| h["parameters"][0]["step"] = json!(-1), "step"),
        (|h| h["parameters"][0]["step"] = json!(1.5), "step"),
        (|h| h["parameters"][0]["group"] = json!(1), "its group is 1"),
        (|h| h["parameters"][0]["len"] = json!(1_u64 << 40), "\"exp_avg.a\""),
        (|h| h["parameters"][0]["name"] = json!("b"), "\"b\" is listed twice"),
        (|h| h["parameters"][0]["name"] = json!("c"), "\"exp_avg.c\""),
        (|h| h["groups"] = json!([]), "group"),
        (|h| h["groups"][0]["learning_rate"] = json!("7ff8000000000000"), "hyperparameters"),
        (|h| h["seed"] = json!(1), "the seed"),
        (|h| h["version"] = json!(u32::MAX), "version"),
        (|h| h["control"] = json!({}), "control"),
        (|h| h["piece"] = json!(0), "piece"),
        (|h| h["piece"] = json!(33), "piece"),
        (|h| h["piece"] = json!(-1), "piece"),
        (|h| h["piece"] = json!(32), "parameter \"a\": its checksums"),
        (|h| h["parameters"][1]["checksums"] = json!(""), "parameter \"b\": its checksums"),
        (|h| h["parameters"][1]["checksums"] = json!("é".repeat(16)), "parameter \"b\": its checksums"),
        (|h| h["parameters"][1]["checksums"] = json!("0".repeat(32)), "damaged"),
        (
            |h| _ = h["parameters"][0].as_object_mut().unwrap().remove("checksums"),
            "parameter \"a\": its checksums",
        ),
    ];
    for (change, named) in cases {
        let mut parts = host().clone();
        change(&mut parts.header);
        let error = try_to_go_on(&parts.bytes(), Control::Host).unwrap_err();
        assert!(error.contains(named), "{error:?} does not name {named:?}");
    }
    let mut parts = device().clone();
    for scale in ["0000000000000000", "fff0000000000000", "7ff8000000000000", "bff0000000000000"] {
        parts.header["control"]["loss_scale"] = json!(scale);
        let error = try_to_go_on(&parts.bytes(), Control::Device(DeviceControl::new())).unwrap_err();
        assert!(error.contains("loss_scale"), "{error}");
    }
    parts = device().clone();
    parts.header["parameters"][0]["step"] = json!(1_u64 << 32);
    let error = try_to_go_on(&parts.bytes(), Control::Device(DeviceControl::new())).unwrap_err();
    assert!(error.contains("the step count of parameter \"a\""), "{error}");
}

#[test]
fn step_counts_that_nothing_can_go_on_from_are_refused_when_written() {
    for (control, most) in
        [(Control::Host, 1 << 53), (Control::Device(DeviceControl::new()), u64::from(u32::MAX) - 1)]
    {
        let mut optimizer = optimizer(control);
        let id = optimizer.parameter("a").unwrap();
        let mut state = optimizer.read_state(id).wait().unwrap();
        for step in [most + 1, u64::MAX] {
            state.step = step;
            let error = optimizer.write_state(id, &state).refused();
            assert!(matches!(*error.kind(), ErrorKind::Steps { found, .. } if found == step), "{error}");
            assert_eq!(error.label(), Some("a"));
        }
        optimizer.submit(&Step::all()).unwrap();
        assert_eq!(optimizer.read_state(id).wait().unwrap().step, 1);
        state.step = most;
        optimizer.write_state(id, &state).unwrap();
        optimizer.submit(&Step::all()).unwrap();
        let after = optimizer.read_state(id).wait().unwrap();
        assert_eq!(after.step, most + 1);
        let values = optimizer.read_parameter(id).wait().unwrap();
        assert!(
            values.iter().chain(after.tensors.iter().flat_map(|(_, state)| state)).all(|x| x.is_finite())
        );
    }
}

/// A file with this header and a number of bytes of data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

#[test]
fn hostile_headers_are_refused() {
    let tensor = |name: &str, shape: &str, start: u64, end: u64| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}")
    };
    for (what, bytes) in [
        (
            "overlapping tensors",
            raw(&format!("{{{},{}}}", tensor("a", "[2]", 0, 8), tensor("b", "[2]", 4, 12)), 12),
        ),
        ("a hole", raw(&format!("{{{},{}}}", tensor("a", "[2]", 0, 8), tensor("b", "[2]", 12, 20)), 20)),
        ("an overflowing shape", raw(&format!("{{{}}}", tensor("a", "[4294967296,4294967296]", 0, 0)), 0)),
        ("offsets past the end", raw(&format!("{{{}}}", tensor("a", "[2000]", 0, 8000)), 8)),
        ("offsets that run backwards", raw(&format!("{{{}}}", tensor("a", "[2]", 8, 0)), 8)),
        ("a deep header", raw(&"[".repeat(1 << 20), 0)),
        ("deep metadata", raw(&format!("{{\"__metadata__\":{}", "{\"a\":".repeat(100_000)), 0)),
        ("a header as long as the file says", [u64::MAX.to_le_bytes().as_slice(), &[b'{'; 100]].concat()),
        ("a header just past the end", [101_u64.to_le_bytes().as_slice(), &[b' '; 100]].concat()),
    ] {
        let read = Checkpoint::from_bytes(&bytes);
        assert!(read.is_err(), "{what} was read");
        read.refused();
    }
}

/// All names that metadata can have, and others.
fn names() -> Vec<&'static str> {
    let mut names = vec!["decoupled", "coupled", "a", "b", ""];
    names.extend(RuleKind::ALL.iter().map(|of| of.name()));
    names.extend(Formula::ALL.iter().map(|of| of.name()));
    names.extend(DType::ALL.iter().map(|of| of.name()));
    names.extend(StateFormat::ALL.iter().map(|of| of.name()));
    names.extend(MasterWeights::ALL.iter().map(|of| of.name()));
    names
}

/// Any JSON value.
fn any_json() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u64..4).prop_map(Value::from),
        any::<f64>().prop_map(|x| json!(x)),
        "[0-9a-f]{16}".prop_map(Value::from),
        prop::sample::select(names()).prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
    ]
}

/// JSON pointers to all values in a header.
fn places(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| places(value, format!("{at}/{name}"), found));
        }
        Value::Array(entries) => {
            entries.iter().enumerate().for_each(|(i, value)| places(value, format!("{at}/{i}"), found));
        }
        _ => {}
    }
    found.push(at);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_value_anywhere_in_the_metadata_is_refused_or_gone_on_from(
        on_device in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..3),
    ) {
        let (parts, control) = match on_device {
            false => (host(), Control::Host),
            true => (device(), Control::Device(DeviceControl::new())),
        };
        let mut parts = parts.clone();
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&parts.header, String::new(), &mut all);
            *parts.header.pointer_mut(&all[place.index(all.len())]).unwrap() = value;
        }
        // Both results are right. A panic is not.
        let _ = try_to_go_on(&parts.bytes(), control);
    }

    /// Any bytes are state. Some are NaN.
    #[test]
    fn any_bytes_of_state_are_gone_on_from(data in prop::collection::vec(any::<u8>(), 64)) {
        let mut parts = host().clone();
        for (.., bytes) in &mut parts.tensors {
            bytes.iter_mut().zip(data.iter().cycle()).for_each(|(byte, with)| *byte = *with);
        }
        parts.renew_checksums();
        try_to_go_on(&parts.bytes(), Control::Host).unwrap();
    }
}
