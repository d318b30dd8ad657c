//! `adamod replay`: recorded traces pass on both backends, and errors name what is wrong with a trace.
#![cfg(feature = "cli")]

#[path = "common/package.rs"]
mod package;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use adamod::{Rule, RuleForm, RuleKind, Sign, StateFormat, StateTensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

/// A trace in memory, which tests change and write.
#[derive(Clone)]
struct Trace {
    description: Value,
    tensors: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Trace {
    /// AdaMod with three parameters in two groups and three steps.
    fn good() -> Self {
        Self::of(json!({
            "formula": "paper",
            "steps": 3,
            "groups": [
                {"learning_rate": 1e-3, "betas": [0.9, 0.999, 0.999], "epsilon": 1e-8,
                 "weight_decay": {"kind": "none", "value": 0.0}, "params": ["a", "b.weight"]},
                {"learning_rate": 1e-2, "betas": [0.9, 0.98, 0.9999], "epsilon": 1e-9,
                 "weight_decay": {"kind": "decoupled", "value": 1e-2}, "params": ["c"]},
            ],
        }))
    }

    /// The same with Adam.
    fn adam() -> Self {
        Self::of(json!({
            "rule": "adam",
            "steps": 3,
            "groups": [
                {"learning_rate": 1e-3, "betas": [0.9, 0.999], "epsilon": 1e-8,
                 "weight_decay": {"kind": "coupled", "value": 1e-2}, "params": ["a", "b.weight"]},
                {"learning_rate": 1e-2, "betas": [0.9, 0.98], "epsilon": 1e-9, "maximize": true,
                 "params": ["c"]},
            ],
        }))
    }

    /// The same with SGD.
    fn sgd() -> Self {
        Self::of(json!({
            "rule": "sgd",
            "made_by": "hand",
            "steps": 3,
            "groups": [
                {"learning_rate": 1e-3, "momentum": 0.9, "params": ["a", "b.weight"]},
                {"learning_rate": 1e-2, "momentum": 0.0, "maximize": true,
                 "weight_decay": {"kind": "decoupled", "value": 1e-2}, "params": ["c"]},
            ],
        }))
    }

    /// A rule for each group.
    fn mixed() -> Self {
        Self::of(json!({
            "steps": 3,
            "formula": "authors",
            "groups": [
                {"rule": "sgd", "learning_rate": 1e-3, "momentum": 0.9, "params": ["a"]},
                {"learning_rate": 1e-3, "betas": [0.9, 0.999, 0.999], "epsilon": 1e-8, "params": ["b.weight"]},
                {"rule": "adam", "learning_rate": 1e-2, "betas": [0.9, 0.98], "epsilon": 1e-9,
                 "weight_decay": {"kind": "coupled", "value": 1e-2}, "params": ["c"]},
            ],
        }))
    }

    /// The same with 16-bit tensors: bf16 and f16 parameters, and an f32 parameter with f16 gradients.
    fn halves() -> Self {
        let mut trace = Self::mixed();
        for (name, dtype, gradients) in [
            ("a", Dtype::BF16, Dtype::BF16),
            ("b.weight", Dtype::F16, Dtype::F32),
            ("c", Dtype::F32, Dtype::F16),
        ] {
            trace.convert(&format!("param.{name}"), dtype);
            (1..=3).for_each(|step| trace.convert(&format!("grad.{step}.{name}"), gradients));
        }
        trace
    }

    fn all() -> [Self; 5] {
        [Self::good(), Self::adam(), Self::sgd(), Self::mixed(), Self::halves()]
    }

    fn of(description: Value) -> Self {
        let mut trace = Self { description, tensors: HashMap::new() };
        for (name, shape) in [("a", vec![2, 3]), ("b.weight", vec![5]), ("c", vec![])] {
            let elements: usize = shape.iter().product();
            trace.set(&format!("param.{name}"), &shape, &vec![1.0; elements]);
            for step in 1..=3 {
                let gradient: Vec<f32> = (0..elements).map(|i| (i + step) as f32 - 2.5).collect();
                trace.set(&format!("grad.{step}.{name}"), &shape, &gradient);
            }
        }
        trace
    }

    fn set(&mut self, tensor: &str, shape: &[usize], elements: &[f32]) {
        let bytes = bytemuck::cast_slice(elements).to_vec();
        self.tensors.insert(tensor.to_owned(), (Dtype::F32, shape.to_vec(), bytes));
    }

    /// Rounds the elements of a tensor in f32 to another type.
    fn convert(&mut self, tensor: &str, to: Dtype) {
        let (dtype, _, bytes) = self.tensors.get_mut(tensor).unwrap();
        let elements: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
        *bytes = match to {
            Dtype::F16 => elements.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => elements.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => return,
        };
        *dtype = to;
    }

    /// What is compared of a parameter.
    fn kinds(&self, name: &str) -> Vec<&'static str> {
        let groups = self.description["groups"].as_array().unwrap();
        let group = groups.iter().find(|group| group["params"].as_array().unwrap().contains(&json!(name)));
        let group = group.unwrap();
        let mut rule = rule_of(&self.description, group).with_defaults();
        // Without momentum SGD has no state.
        if let Some(momentum) = group["momentum"].as_f64() {
            assert!(rule.set_hyperparameter("momentum", momentum));
        }
        ["param"].into_iter().chain(rule.state_names()).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let metadata = HashMap::from([("adamod.trace".to_owned(), self.description.to_string())]);
        safetensors::serialize(views, Some(metadata)).unwrap()
    }
}

/// A folder for the files of one test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn replay(trace: &Path, arguments: &[&str]) -> Output {
    Command::new(package::tool()).arg("replay").arg(trace).args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("no signal")
}

/// The traces but for PyTorch's lists of inputs, which have nothing that these do not have.
fn own_traces() -> Vec<PathBuf> {
    committed_traces()
        .into_iter()
        .filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with("torch-inputs-"))
        .collect()
}

fn committed_traces() -> Vec<PathBuf> {
    let folder = package::folder().join("tests/traces");
    let mut traces: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    traces.sort();
    traces
}

/// A committed trace with its description changed.
fn changed(trace: &Path, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let bytes = std::fs::read(trace).unwrap();
    let mut description = description(trace);
    change(&mut description);
    let metadata = HashMap::from([("adamod.trace".to_owned(), description.to_string())]);
    safetensors::serialize(SafeTensors::deserialize(&bytes).unwrap().tensors(), Some(metadata)).unwrap()
}

fn description(trace: &Path) -> Value {
    let bytes = std::fs::read(trace).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&metadata.metadata().as_ref().unwrap()["adamod.trace"]).unwrap()
}

/// The rule of a group: its own one, or that of the trace.
fn rule_of(description: &Value, group: &Value) -> RuleKind {
    let name = group.get("rule").or(description.get("rule")).and_then(Value::as_str);
    name.map_or(RuleKind::AdaMod, |name| RuleKind::from_name(name).unwrap())
}

/// The kinds of which a trace expects something.
fn expected_kinds(trace: &Path) -> BTreeSet<String> {
    let bytes = std::fs::read(trace).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let names = file.names().into_iter();
    names.filter_map(|name| Some(name.strip_prefix("expected.")?.split('.').next()?.to_owned())).collect()
}

/// The numbers that a group gives besides those that every rule or most of them have.
fn options_of(group: &Value) -> Vec<(&str, f64)> {
    let common = ["learning_rate", "epsilon", "momentum"];
    let fields = group.as_object().unwrap().iter().filter(|(name, _)| !common.contains(&name.as_str()));
    fields.filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?))).collect()
}

/// The rule of a group with the hyperparameters that choose its states.
fn rule_of_group(description: &Value, group: &Value) -> Rule {
    let mut of = rule_of(description, group).with_defaults();
    let momentum = group.get("momentum").map(|value| ("momentum", value.as_f64().unwrap()));
    for (name, value) in options_of(group).into_iter().chain(momentum) {
        assert!(of.set_hyperparameter(name, value), "{name}");
    }
    of
}

/// Every rule with every option has a trace, which has all of its states.
#[test]
fn every_form_of_every_rule_has_a_trace() {
    let mut missing: BTreeSet<_> = RuleForm::all().map(|form| form.to_string()).collect();
    for trace in committed_traces() {
        let description = description(&trace);
        let kinds = expected_kinds(&trace);
        for group in description["groups"].as_array().unwrap() {
            let of = rule_of_group(&description, group);
            if of.state_names().all(|name| kinds.contains(name)) {
                missing.remove(&of.form().to_string());
            }
        }
    }
    assert_eq!(missing, BTreeSet::new());
}

#[test]
fn traces_of_pytorch_of_the_authors_optimizer_and_of_algorithm_2_pass_on_both_backends() {
    let traces = committed_traces();
    for maker in ["authors", "paper", "torch-adam-", "torch-adamw-", "torch-sgd-", "torch-inputs-", "family-"]
    {
        let starts = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(maker);
        let least = if maker.starts_with("torch") { 2 } else { 3 };
        assert!(traces.iter().filter(|path| starts(path)).count() >= least, "{maker}");
    }
    for trace in traces {
        for backend in ["gpu", "cpu"] {
            let output = replay(&trace, &["--backend", backend, "--json"]);
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(code(&output), 0, "{} on {backend}: {text}", trace.display());
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["passed"], true);
            let kinds = report["kinds"].as_array().unwrap().iter().map(|kind| kind["kind"].as_str().unwrap());
            assert_eq!(
                kinds.collect::<BTreeSet<_>>(),
                expected_kinds(&trace).iter().map(String::as_str).collect()
            );
        }
    }
}

/// Another formula, direction or kind of weight decay than the trace's does not pass: the comparison is not vacuous.
#[test]
fn other_arithmetic_does_not_pass() {
    let folder = Folder::new();
    let mut swaps = 0;
    for trace in own_traces() {
        let original = description(&trace);
        let groups = original["groups"].as_array().unwrap().len();
        let mut variants = Vec::new();
        if let Some(formula) = original.get("formula") {
            let other = if formula == "paper" { "authors" } else { "paper" };
            variants.push(("formula", changed(&trace, |of| of["formula"] = json!(other))));
        }
        let maximizes = original["groups"][0]["maximize"] == true;
        let flip = |of: &mut Value| of["groups"][0]["maximize"] = json!(!maximizes);
        variants.push(("maximize", changed(&trace, flip)));
        let decays = |group: usize| {
            let decay = &original["groups"][group]["weight_decay"];
            decay["value"].as_f64().unwrap() > 0.0 && decay["kind"] != "none"
        };
        if let Some(group) = (0..groups).find(|&group| decays(group)) {
            swaps += 1;
            let kind = &original["groups"][group]["weight_decay"]["kind"];
            let other = if kind == "coupled" { "decoupled" } else { "coupled" };
            let swap = |of: &mut Value| of["groups"][group]["weight_decay"]["kind"] = json!(other);
            variants.push(("weight_decay", changed(&trace, swap)));
        }
        // Each option and each other hyperparameter that a group names, and caution.
        for group in 0..groups {
            let of = &original["groups"][group];
            for (name, value) in options_of(of) {
                let other = match value {
                    0.0 | 1.0 => 1.0 - value,
                    // Half as much is still next to nothing.
                    _ if name == "momentum_decay" => 1.0,
                    _ => 0.5 * value,
                };
                let change = |of: &mut Value| of["groups"][group][name] = json!(other);
                // Another number of states is refused, and some options have no effect beside others.
                let is_nesterov = of.get("nesterov") == Some(&json!(1.0));
                let has_none = name == "dampening" && (of["momentum"] == 0.0 || is_nesterov);
                let is_far = name == "momentum_decay" && of["betas"][0] == 0.0;
                let changes_states =
                    ["amsgrad", "amsbound", "centered", "initial_accumulator_value", "nesterov"];
                if !(changes_states.contains(&name) || has_none || is_far) {
                    variants.push((name, changed(&trace, change)));
                }
            }
            for name in ["cautious", "cautious_weight_decay"] {
                // Without an average of gradients a step has the gradient's sign.
                let is_average =
                    |state: &&StateTensor| state.sign == Sign::Signed && state.name != "grad_avg";
                let has_average =
                    rule_of_group(&original, of).states().iter().any(|state| is_average(&state));
                if of.get(name).is_some() && (has_average || name == "cautious_weight_decay") {
                    variants.push((name, changed(&trace, |of| of["groups"][group][name] = json!(false))));
                }
            }
        }
        for (what, bytes) in variants {
            let output = replay(&folder.write("changed.safetensors", &bytes), &["--backend", "cpu"]);
            assert_eq!(code(&output), 1, "{what} of {}", trace.display());
        }
    }
    assert!(swaps >= 14, "{swaps}");
}

#[test]
fn expectations_that_are_off_or_nan_fail_with_1() {
    let folder = Folder::new();
    let output_path = folder.0.path().join("out.safetensors");
    for good in Trace::all() {
        let good_path = folder.write("good.safetensors", &good.bytes());
        for backend in ["gpu", "cpu"] {
            let arguments = ["--backend", backend, "--output", output_path.to_str().unwrap()];
            assert_eq!(code(&replay(&good_path, &arguments)), 0);
            let bytes = std::fs::read(&output_path).unwrap();
            let outcome = SafeTensors::deserialize(&bytes).unwrap();
            let mut names: Vec<_> = outcome.names().into_iter().map(str::to_owned).collect();
            names.sort();
            let mut expected: Vec<_> = ["a", "b.weight", "c"]
                .into_iter()
                .flat_map(|name| good.kinds(name).into_iter().map(move |kind| format!("{kind}.{name}")))
                .collect();
            // Its group has no momentum.
            expected.retain(|name| name != "momentum_buffer.c");
            expected.sort();
            assert_eq!(names, expected);
            assert_eq!(outcome.tensor(&format!("{}.a", good.kinds("a")[1])).unwrap().shape(), [2, 3]);
            assert_eq!(outcome.tensor("param.c").unwrap().shape(), [0; 0]);

            // The results are expected of the next run; then one element of them is changed.
            let mut trace = good.clone();
            for (name, view) in outcome.tensors() {
                let entry = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                trace.tensors.insert(format!("expected.{name}"), entry);
            }
            let path = folder.write("expected.safetensors", &trace.bytes());
            assert_eq!(code(&replay(&path, &["--backend", backend])), 0);
            for kind in good.kinds("b.weight") {
                for change in [|x: f32| x * 1.001 + 1e-4, |_| f32::NAN, |_| f32::INFINITY] {
                    let tensor = format!("expected.{kind}.b.weight");
                    let mut changed = trace.clone();
                    let bytes = &mut changed.tensors.get_mut(&tensor).unwrap().2;
                    let mut elements: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
                    elements[3] = change(elements[3]);
                    *bytes = bytemuck::cast_slice(&elements).to_vec();
                    let path = folder.write("changed.safetensors", &changed.bytes());
                    let output = replay(&path, &["--backend", backend]);
                    assert_eq!(code(&output), 1, "{kind}");
                    let text = String::from_utf8_lossy(&output.stdout);
                    assert!(text.contains(&format!("{tensor}[3]")), "{text}");
                }
            }
        }
    }
}

#[test]
fn traces_without_steps_and_with_missing_gradients_run() {
    let folder = Folder::new();
    let mut trace = Trace::good();
    trace.tensors.retain(|name, _| !name.starts_with("grad."));
    trace.set("expected.param.a", &[2, 3], &[1.0; 6]);
    trace.set("expected.exp_avg_lr.a", &[2, 3], &[0.0; 6]);
    let path = folder.write("no_gradients.safetensors", &trace.bytes());
    assert_eq!(code(&replay(&path, &[])), 0);
    trace.description["steps"] = json!(0);
    let path = folder.write("no_steps.safetensors", &trace.bytes());
    assert_eq!(code(&replay(&path, &[])), 0);
}

#[test]
fn malformed_traces_are_refused_with_2_and_the_culprit_is_named() {
    type Change = fn(&mut Trace);
    let cases: &[(&str, Change)] = &[
        ("formula", |t| t.description["formula"] = json!("secret")),
        ("groups[0].weight_decay.kind", |t| {
            t.description["groups"][0]["weight_decay"]["kind"] = json!("secret")
        }),
        ("groups[0].formula is missing", |t| {
            t.description.as_object_mut().unwrap().remove("formula");
        }),
        ("formula is \"secret\", expected one of paper, authors", |t| {
            t.description["formula"] = json!("secret")
        }),
        ("groups[0].momentum is given", |t| t.description["groups"][0]["momentum"] = json!(0.9)),
        ("groups[0].betas is missing", |t| t.description["groups"][0]["betas"] = json!(null)),
        ("groups[1].epsilon is missing", |t| t.description["groups"][1]["epsilon"] = json!(null)),
        ("missing field `steps`", |t| {
            t.description.as_object_mut().unwrap().remove("steps");
        }),
        ("steps is -1", |t| t.description["steps"] = json!(-1)),
        ("learning_rates has 2 entries", |t| t.description["learning_rates"] = json!([1e-3, 1e-3])),
        ("learning_rates[1]", |t| t.description["learning_rates"] = json!([1e-3, -1e-3, 1e-3])),
        ("learning_rate is -1", |t| t.description["groups"][1]["learning_rate"] = json!(-1)),
        ("groups[1]", |t| t.description["groups"][1]["learning_rate"] = json!(-1)),
        ("groups[0].learning_rate", |t| t.description["groups"][0]["learning_rate"] = json!(null)),
        ("groups[0].betas has 2 entries, expected 3 with rule adamod", |t| {
            t.description["groups"][0]["betas"] = json!([0.9, 0.999])
        }),
        ("betas[2] is 1", |t| t.description["groups"][0]["betas"] = json!([0.9, 0.999, 1.0])),
        ("epsilon is 0", |t| t.description["groups"][0]["epsilon"] = json!(0.0)),
        ("weight_decay is -0.5", |t| t.description["groups"][1]["weight_decay"]["value"] = json!(-0.5)),
        ("weight_decay is -0.5", |t| t.description["groups"][0]["weight_decay"]["value"] = json!(-0.5)),
        ("\"a\" is listed twice", |t| t.description["groups"][1]["params"] = json!(["c", "a"])),
        ("\"param.c\" is in no group", |t| t.description["groups"][1]["params"] = json!([])),
        ("\"ghost\"", |t| t.description["groups"][1]["params"] = json!(["c", "ghost"])),
        ("\"grad.1.ghost\"", |t| t.set("grad.1.ghost", &[1], &[0.0])),
        ("\"grad.2.a\" has shape [3, 2]", |t| t.set("grad.2.a", &[3, 2], &[0.0; 6])),
        ("\"param.a\" has no elements", |t| t.set("param.a", &[0, 3], &[])),
        ("\"grad.4.a\" is a gradient past the last step, 3", |t| t.set("grad.4.a", &[2, 3], &[0.0; 6])),
        ("\"grad.0.a\"", |t| t.set("grad.0.a", &[2, 3], &[0.0; 6])),
        ("\"grad.01.a\"", |t| t.set("grad.01.a", &[2, 3], &[0.0; 6])),
        ("\"grad.x.a\"", |t| t.set("grad.x.a", &[2, 3], &[0.0; 6])),
        ("\"expected.param.a\" has shape [6]", |t| t.set("expected.param.a", &[6], &[0.0; 6])),
        ("\"expected.momentum_buffer.a\"", |t| t.set("expected.momentum_buffer.a", &[2, 3], &[0.0; 6])),
        ("\"expected.mystery.a\"", |t| t.set("expected.mystery.a", &[2, 3], &[0.0; 6])),
        ("\"stray\"", |t| t.set("stray", &[1], &[0.0])),
        ("groups[0].betas is 0.9, expected a list of 3 numbers", |t| {
            t.description["groups"][0]["betas"] = json!(0.9)
        }),
        ("groups[1].betas[2] is \"0.9\", expected a number", |t| {
            t.description["groups"][1]["betas"][2] = json!("0.9")
        }),
        ("groups[0].epsilon is true, expected a number", |t| {
            t.description["groups"][0]["epsilon"] = json!(true)
        }),
        ("groups[1].formula is 1, expected one of paper, authors", |t| {
            t.description["groups"][1]["formula"] = json!(1)
        }),
        ("groups[0].weight_decay.max_learning_rate is given", |t| {
            t.description["groups"][0]["weight_decay"]["max_learning_rate"] = json!(1e-3)
        }),
        ("groups[1].weight_decay.max_learning_rate is missing", |t| {
            t.description["groups"][1]["weight_decay"]["kind"] = json!("fully_decoupled")
        }),
        ("cautious_weight_decay is 1, expected 0 (false) with coupled weight decay", |t| {
            t.description["groups"][1]["weight_decay"]["kind"] = json!("coupled");
            t.description["groups"][1]["cautious_weight_decay"] = json!(true);
        }),
        ("groups[1].rule: got \"adagrad2\"", |t| t.description["groups"][1]["rule"] = json!("adagrad2")),
        ("groups[1].betas has 3 entries, expected 2 with rule adam", |t| {
            t.description["groups"][1]["rule"] = json!("adam")
        }),
        ("\"grad.1.a\" has dtype F64, expected F32, F16 or BF16", |t| {
            t.tensors.insert("grad.1.a".to_owned(), (Dtype::F64, vec![2, 3], vec![0; 48]));
        }),
    ];
    let of_adam: &[(&str, Change)] = &[
        ("groups[0].betas has 3 entries, expected 2 with rule adam", |t| {
            t.description["groups"][0]["betas"] = json!([0.9, 0.999, 0.999])
        }),
        ("groups[1].epsilon is missing", |t| {
            t.description["groups"][1].as_object_mut().unwrap().remove("epsilon");
        }),
        ("groups[0].momentum is given", |t| t.description["groups"][0]["momentum"] = json!(0.9)),
        ("formula is given, expected none", |t| t.description["formula"] = json!("paper")),
        ("\"expected.exp_avg_lr.a\"", |t| t.set("expected.exp_avg_lr.a", &[2, 3], &[0.0; 6])),
        ("\"expected.momentum_buffer.a\"", |t| t.set("expected.momentum_buffer.a", &[2, 3], &[0.0; 6])),
    ];
    let of_sgd: &[(&str, Change)] = &[
        ("momentum is 1", |t| t.description["groups"][0]["momentum"] = json!(1.0)),
        ("groups[1].momentum is missing", |t| {
            t.description["groups"][1].as_object_mut().unwrap().remove("momentum");
        }),
        ("groups[0].betas is given", |t| t.description["groups"][0]["betas"] = json!([])),
        ("groups[1].epsilon is given", |t| t.description["groups"][1]["epsilon"] = json!(1e-8)),
        ("formula is given", |t| t.description["formula"] = json!("authors")),
        ("\"expected.exp_avg.a\"", |t| t.set("expected.exp_avg.a", &[2, 3], &[0.0; 6])),
    ];
    let of_mixed: &[(&str, Change)] = &[
        (
            "\"expected.exp_avg.a\" is unknown, expected param.NAME, grad.T.NAME, or expected.KIND.NAME with KIND one of param, momentum_buffer",
            |t| t.set("expected.exp_avg.a", &[2, 3], &[0.0; 6]),
        ),
        ("\"expected.exp_avg_lr.c\"", |t| t.set("expected.exp_avg_lr.c", &[], &[0.0])),
        ("groups[1].formula is missing", |t| {
            t.description.as_object_mut().unwrap().remove("formula");
        }),
    ];
    let of_halves: &[(&str, Change)] = &[
        ("\"grad.3.a\" is f32, expected bf16 as other gradients of its parameter", |t| {
            t.set("grad.3.a", &[2, 3], &[0.0; 6])
        }),
        ("\"expected.param.a\" has dtype F16, expected bf16, or F32", |t| {
            t.set("expected.param.a", &[2, 3], &[0.0; 6]);
            t.convert("expected.param.a", Dtype::F16);
        }),
        ("\"expected.momentum_buffer.a\" has dtype BF16, expected F32", |t| {
            t.set("expected.momentum_buffer.a", &[2, 3], &[0.0; 6]);
            t.convert("expected.momentum_buffer.a", Dtype::BF16);
        }),
    ];
    let folder = Folder::new();
    for (good, cases) in Trace::all().into_iter().zip([cases, of_adam, of_sgd, of_mixed, of_halves]) {
        let path = folder.write("good.safetensors", &good.bytes());
        assert_eq!(code(&replay(&path, &["--backend", "cpu"])), 0);
        for (culprit, change) in cases {
            let mut trace = good.clone();
            change(&mut trace);
            let path = folder.write("malformed.safetensors", &trace.bytes());
            assert_refused(&path, culprit);
        }
    }
}

/// A field that this version does not know may change what the trace means, so no trace runs without it.
#[test]
fn unknown_fields_are_refused_with_2_by_name() {
    let folder = Folder::new();
    for good in Trace::all() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change); 6] = [
            ("no_such_option", |of| of["no_such_option"] = json!(true)),
            ("groups[0].no_such_option", |of| of["groups"][0]["no_such_option"] = json!(true)),
            ("groups[1].gamma", |of| of["groups"][1]["gamma"] = json!(0)),
            ("groups[0].weight_decay.until", |of| {
                of["groups"][0]["weight_decay"] = json!({"kind": "none", "until": 7})
            }),
            ("rule: got \"lyon\", expected one of adamod, adam, sgd", |of| of["rule"] = json!("lyon")),
            ("groups[0].maximize", |of| of["groups"][0]["maximize"] = json!("yes")),
        ];
        for (culprit, change) in cases {
            let mut trace = good.clone();
            change(&mut trace.description);
            assert_refused(&folder.write("unknown.safetensors", &trace.bytes()), culprit);
        }
    }
}

/// A field that is given twice may have been meant once in each way.
#[test]
fn fields_that_are_given_twice_are_refused_with_2_by_name() {
    let folder = Folder::new();
    let good = Trace::mixed();
    let text = good.description.to_string();
    for (once, culprit) in [
        ("\"momentum\":0.9", "groups[0].momentum"),
        ("\"formula\":\"authors\"", "formula"),
        ("\"learning_rate\":0.01", "learning_rate"),
        ("\"steps\":3", "steps"),
    ] {
        let twice = text.replacen(once, &format!("{once},{once}"), 1);
        assert_ne!(text, twice);
        let views = good.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let metadata = HashMap::from([("adamod.trace".to_owned(), twice)]);
        let bytes = safetensors::serialize(views, Some(metadata)).unwrap();
        assert_refused(&folder.write("twice.safetensors", &bytes), culprit);
    }
}

/// Every rule runs with its hyperparameters given by name, whatever they are, and each of them is taken: without it the trace is
/// refused, or the rule has its default.
#[test]
fn every_rule_is_described_by_the_names_of_its_hyperparameters() {
    let folder = Folder::new();
    for kind in RuleKind::ALL {
        let mut group = json!({"rule": kind.name(), "learning_rate": 1e-3, "params": ["a", "b.weight", "c"]});
        for (name, value) in kind.with_defaults().hyperparameters() {
            let value = if name == "formula" { json!("paper") } else { json!(value) };
            match name.split_once('[') {
                Some((list, _)) => {
                    let list = group.as_object_mut().unwrap().entry(list).or_insert(json!([]));
                    list.as_array_mut().unwrap().push(value);
                }
                None => group[name] = value,
            }
        }
        let trace = Trace::of(json!({"steps": 3, "groups": [group]}));
        let path = folder.write("rule.safetensors", &trace.bytes());
        for backend in ["gpu", "cpu"] {
            let output = replay(&path, &["--backend", backend]);
            assert_eq!(code(&output), 0, "{kind}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let is_own = |field: &&String| !["rule", "learning_rate", "params"].contains(&field.as_str());
        for field in group.as_object().unwrap().keys().filter(is_own) {
            let mut changed = trace.clone();
            changed.description["groups"][0][field] = json!("nonsense");
            let path = folder.write("changed.safetensors", &changed.bytes());
            assert_refused(&path, &format!("groups[0].{field} is \"nonsense\""));
        }
    }
}

/// Cautious steps and decay that follows the schedule alone are other arithmetic.
#[test]
fn every_field_of_a_group_is_taken() {
    let folder = Folder::new();
    let plain = Trace::good();
    let results = |trace: &Trace, name: &str| {
        let path = folder.write("trace.safetensors", &trace.bytes());
        let output = folder.0.path().join(name);
        let arguments = ["--backend", "cpu", "--output", output.to_str().unwrap()];
        assert_eq!(code(&replay(&path, &arguments)), 0, "{name}");
        std::fs::read(output).unwrap()
    };
    let expected = results(&plain, "plain");
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 7] = [
        ("learning_rate", |group| group["learning_rate"] = json!(0.02)),
        ("maximize", |group| group["maximize"] = json!(true)),
        ("cautious", |group| group["cautious"] = json!(true)),
        ("cautious_weight_decay", |group| group["cautious_weight_decay"] = json!(true)),
        ("fully_decoupled", |group| {
            group["weight_decay"] =
                json!({"kind": "fully_decoupled", "value": 1e-2, "max_learning_rate": 0.1})
        }),
        ("formula", |group| group["formula"] = json!("authors")),
        ("rule", |group| {
            group["rule"] = json!("adam");
            group["betas"] = json!([0.9, 0.98]);
        }),
    ];
    for (name, change) in cases {
        let mut trace = plain.clone();
        change(&mut trace.description["groups"][1]);
        assert_ne!(results(&trace, name), expected, "{name}");
    }
}

/// An output that is the trace, by whatever name, would destroy it.
#[test]
fn an_output_that_is_the_trace_is_refused_with_2_before_anything_is_written() {
    let folder = Folder::new();
    let bytes = Trace::good().bytes();
    let trace = folder.write("trace.safetensors", &bytes);
    std::fs::create_dir(folder.0.path().join("sub")).unwrap();
    let mut same = vec![trace.clone(), folder.0.path().join("sub/../trace.safetensors")];
    let hard_link = folder.0.path().join("hard.safetensors");
    std::fs::hard_link(&trace, &hard_link).unwrap();
    same.push(hard_link);
    #[cfg(unix)]
    {
        let (link, chain) = (folder.0.path().join("link"), folder.0.path().join("chain"));
        std::os::unix::fs::symlink("trace.safetensors", &link).unwrap();
        std::os::unix::fs::symlink("link", &chain).unwrap();
        same.extend([link, chain]);
    }
    for output in same {
        let found = replay(&trace, &["--backend", "cpu", "--output", output.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&found.stderr);
        assert_eq!(code(&found), 2, "{}: {text}", output.display());
        assert!(text.contains("--output") && text.contains("the same file as the trace"), "{text}");
        assert_eq!(std::fs::read(&trace).unwrap(), bytes, "{}", output.display());
        assert!(found.stdout.is_empty());
    }
    // Relative to the current folder, which is another one.
    let output = Command::new(package::tool())
        .args(["replay", "trace.safetensors", "--backend", "cpu", "--output", "./trace.safetensors"])
        .current_dir(folder.0.path())
        .output()
        .unwrap();
    assert_eq!(code(&output), 2);
    assert_eq!(std::fs::read(&trace).unwrap(), bytes);
    // A longer file of another name is replaced as a whole.
    let other = folder.write("other", &vec![7; 1 << 20]);
    assert_eq!(code(&replay(&trace, &["--backend", "cpu", "--output", other.to_str().unwrap()])), 0);
    SafeTensors::deserialize(&std::fs::read(other).unwrap()).unwrap();
}

/// A run that fails leaves no file behind, and an existing one as it was.
#[test]
fn a_run_that_fails_leaves_outputs_as_they_were() {
    let folder = Folder::new();
    let trace = folder.write("trace.safetensors", &Trace::good().bytes());
    let (new, old) = (folder.0.path().join("new"), folder.write("old", b"old"));
    for output in [&new, &old] {
        let arguments = ["--adapter", "no such adapter", "--output", output.to_str().unwrap()];
        assert_eq!(code(&replay(&trace, &arguments)), 2);
    }
    assert!(!new.exists());
    assert_eq!(std::fs::read(old).unwrap(), b"old");
}

/// Every trace passes in the state formats below 32 bits, within the tolerances that are documented for them.
#[test]
fn traces_pass_in_every_format_of_state() {
    let traces = own_traces();
    assert!(traces.len() >= 19);
    for path in traces {
        for state in StateFormat::ALL.map(StateFormat::name) {
            let output = replay(&path, &["--state", state, "--json"]);
            let text = String::from_utf8_lossy(&output.stdout);
            if path.to_str().unwrap().contains("centered") && state != StateFormat::F32.name() {
                let text = String::from_utf8_lossy(&output.stderr);
                assert_eq!(code(&output), 2, "{text}");
                assert!(text.contains("rmsprop-centered of group 0") && text.contains("grad_avg"), "{text}");
                continue;
            }
            assert_eq!(code(&output), 0, "{} in {state}: {text}", path.display());
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["state"], state);
        }
    }
    // The reference has no formats.
    let folder = Folder::new();
    let good = folder.write("good.safetensors", &Trace::good().bytes());
    let output = replay(&good, &["--state", "q8", "--backend", "cpu"]);
    assert_eq!(code(&output), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--backend gpu"));
}

fn assert_refused(path: &Path, culprit: &str) {
    for backend in ["gpu", "cpu"] {
        let output = replay(path, &["--backend", backend]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(code(&output), 2, "{culprit}: {text}");
        assert!(text.contains(culprit), "{culprit} is not in: {text}");
        assert!(!text.contains("panicked"), "{text}");
        // No message prints its cause twice.
        let mut causes: Vec<_> = text.trim().split(": ").filter(|cause| cause.len() > 8).collect();
        let count = causes.len();
        causes.sort_unstable();
        causes.dedup();
        assert_eq!(causes.len(), count, "{text}");
    }
}

#[test]
fn unreadable_files_are_refused_with_2() {
    let folder = Folder::new();
    let good = Trace::good().bytes();
    assert_refused(&folder.0.path().join("absent.safetensors"), "absent.safetensors");
    assert_refused(&folder.write("empty.safetensors", &[]), "empty.safetensors");
    for length in [7, 8, 100, good.len() / 2, good.len() - 1] {
        let path = folder.write("truncated.safetensors", &good[..length]);
        assert_refused(&path, "truncated.safetensors");
    }
    let mut huge_header = good.clone();
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_refused(&folder.write("huge.safetensors", &huge_header), "huge.safetensors");
    let without_metadata =
        safetensors::serialize([("param.a", TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap())], None)
            .unwrap();
    assert_refused(&folder.write("plain.safetensors", &without_metadata), "adamod.trace");
    let bad_json = safetensors::serialize(
        [("param.a", TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap())],
        Some(HashMap::from([("adamod.trace".to_owned(), "{".repeat(10_000))])),
    )
    .unwrap();
    assert_refused(&folder.write("json.safetensors", &bad_json), "adamod.trace");
}

#[test]
fn unknown_arguments_are_refused_with_2() {
    let folder = Folder::new();
    let good = folder.write("good.safetensors", &Trace::good().bytes());
    for arguments in [["--state", "q3"], ["--backend", "tpu"], ["--adapter", "no such adapter"]] {
        let output = replay(&good, &arguments);
        assert_eq!(code(&output), 2);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(arguments[1]), "{text}");
    }
}

#[test]
fn info_lists_the_adapter_that_replay_runs_on() {
    let output = Command::new(package::tool()).args(["info", "--json"]).output().unwrap();
    assert_eq!(code(&output), 0);
    let reports: Value = serde_json::from_slice(&output.stdout).unwrap();
    let chosen = &reports[0];
    assert_eq!(chosen["chosen"], true);
    let modes = chosen["modes"].as_array().unwrap();
    assert!(modes.iter().all(|mode| mode[1].is_null()), "{chosen}");
    for rule in RuleKind::ALL {
        for state in StateFormat::ALL {
            let name = format!("{rule}-{}", state.name());
            assert!(modes.iter().any(|mode| mode[0] == name.as_str()), "{name}: {chosen}");
        }
    }
    let folder = Folder::new();
    let good = folder.write("good.safetensors", &Trace::good().bytes());
    let report: Value = serde_json::from_slice(&replay(&good, &["--json"]).stdout).unwrap();
    assert_eq!(report["adapter"], chosen["name"]);
    let text = Command::new(package::tool()).arg("info").output().unwrap().stdout;
    assert!(String::from_utf8_lossy(&text).contains("max_storage_buffer_binding_size"));
}
