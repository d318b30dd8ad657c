//! `adamod replay`: recorded traces pass on both backends, and whatever is wrong with a trace is named.
#![cfg(feature = "cli")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

/// A trace in memory, to be changed and written.
#[derive(Clone)]
struct Trace {
    description: Value,
    tensors: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Trace {
    /// Three parameters in two groups, three steps.
    fn good() -> Self {
        let mut trace = Self {
            description: json!({
                "formula": "paper",
                "steps": 3,
                "groups": [
                    {"learning_rate": 1e-3, "betas": [0.9, 0.999, 0.999], "epsilon": 1e-8,
                     "weight_decay": {"kind": "none", "value": 0.0}, "params": ["a", "b.weight"]},
                    {"learning_rate": 1e-2, "betas": [0.9, 0.98, 0.9999], "epsilon": 1e-9,
                     "weight_decay": {"kind": "decoupled", "value": 1e-2}, "params": ["c"]},
                ],
            }),
            tensors: HashMap::new(),
        };
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

    fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let metadata = HashMap::from([("adamod.trace".to_owned(), self.description.to_string())]);
        safetensors::serialize(views, Some(metadata)).unwrap()
    }
}

/// A folder for one test's files.
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
    Command::new(env!("CARGO_BIN_EXE_adamod")).arg("replay").arg(trace).args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("no signal")
}

fn committed_traces() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let mut traces: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    traces.sort();
    traces
}

#[test]
fn traces_of_the_authors_optimizer_and_of_algorithm_2_pass_on_both_backends() {
    let traces = committed_traces();
    for formula in ["authors", "paper"] {
        let starts = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(formula);
        assert!(traces.iter().filter(|path| starts(path)).count() >= 3, "{formula}");
    }
    for trace in traces {
        for backend in ["gpu", "cpu"] {
            let output = replay(&trace, &["--backend", backend, "--json"]);
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(code(&output), 0, "{} on {backend}: {text}", trace.display());
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["passed"], true);
            assert_eq!(report["kinds"].as_array().unwrap().len(), 4, "every kind was compared");
        }
    }
}

/// A formula that is not the trace's is told apart: the comparison is not vacuous.
#[test]
fn the_other_formula_does_not_pass() {
    for trace in committed_traces() {
        let bytes = std::fs::read(&trace).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let text = metadata.metadata().as_ref().unwrap()["adamod.trace"].clone();
        let swapped = if text.contains("\"authors\"") {
            text.replace("\"authors\"", "\"paper\"")
        } else {
            text.replace("\"paper\"", "\"authors\"")
        };
        let metadata = HashMap::from([("adamod.trace".to_owned(), swapped)]);
        let changed = safetensors::serialize(file.tensors(), Some(metadata)).unwrap();
        let path = Folder::new();
        let output = replay(&path.write("swapped.safetensors", &changed), &["--backend", "cpu"]);
        assert_eq!(code(&output), 1, "{}", trace.display());
    }
}

#[test]
fn expectations_that_are_off_or_nan_fail_with_1() {
    let folder = Folder::new();
    let good = folder.write("good.safetensors", &Trace::good().bytes());
    let output_path = folder.0.path().join("out.safetensors");
    for backend in ["gpu", "cpu"] {
        let arguments = ["--backend", backend, "--output", output_path.to_str().unwrap()];
        assert_eq!(code(&replay(&good, &arguments)), 0);
        let bytes = std::fs::read(&output_path).unwrap();
        let outcome = SafeTensors::deserialize(&bytes).unwrap();
        let mut names: Vec<_> = outcome.names().into_iter().map(str::to_owned).collect();
        names.sort();
        let kinds = ["exp_avg", "exp_avg_lr", "exp_avg_sq", "param"];
        let expected: Vec<_> = kinds
            .iter()
            .flat_map(|kind| ["a", "b.weight", "c"].map(|name| format!("{kind}.{name}")))
            .collect();
        assert_eq!(names, expected);
        assert_eq!(outcome.tensor("exp_avg.a").unwrap().shape(), [2, 3]);
        assert_eq!(outcome.tensor("param.c").unwrap().shape(), [0; 0]);

        // What came out is expected of the next run; then one element of it is changed.
        let mut trace = Trace::good();
        for (name, view) in outcome.tensors() {
            let entry = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            trace.tensors.insert(format!("expected.{name}"), entry);
        }
        let path = folder.write("expected.safetensors", &trace.bytes());
        assert_eq!(code(&replay(&path, &["--backend", backend])), 0);
        for kind in ["param", "exp_avg", "exp_avg_sq", "exp_avg_lr"] {
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
        ("missing field `steps`", |t| {
            t.description.as_object_mut().unwrap().remove("steps");
        }),
        ("steps is -1", |t| t.description["steps"] = json!(-1)),
        ("learning_rates has 2 entries", |t| t.description["learning_rates"] = json!([1e-3, 1e-3])),
        ("learning_rates[1]", |t| t.description["learning_rates"] = json!([1e-3, -1e-3, 1e-3])),
        ("learning_rate is -1", |t| t.description["groups"][1]["learning_rate"] = json!(-1)),
        ("group 1", |t| t.description["groups"][1]["learning_rate"] = json!(-1)),
        ("groups[0].learning_rate", |t| t.description["groups"][0]["learning_rate"] = json!(null)),
        ("betas has 2 entries", |t| t.description["groups"][0]["betas"] = json!([0.9, 0.999])),
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
        ("\"expected.mystery.a\"", |t| t.set("expected.mystery.a", &[2, 3], &[0.0; 6])),
        ("\"stray\"", |t| t.set("stray", &[1], &[0.0])),
        ("\"grad.1.a\" has dtype F64", |t| {
            t.tensors.insert("grad.1.a".to_owned(), (Dtype::F64, vec![2, 3], vec![0; 48]));
        }),
    ];
    let folder = Folder::new();
    for (culprit, change) in cases {
        let mut trace = Trace::good();
        change(&mut trace);
        let path = folder.write("malformed.safetensors", &trace.bytes());
        assert_refused(&path, culprit);
    }
}

/// Every trace in the formats of state with fewer bits, within what is documented for them.
#[test]
fn traces_pass_in_every_format_of_state() {
    let mut traces = 0;
    for entry in std::fs::read_dir("tests/traces").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        traces += 1;
        for state in ["bf16", "q8"] {
            let output = replay(&path, &["--state", state]);
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(code(&output), 0, "{} in {state}: {text}", path.display());
        }
    }
    assert!(traces >= 7);
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
    let output = Command::new(env!("CARGO_BIN_EXE_adamod")).args(["info", "--json"]).output().unwrap();
    assert_eq!(code(&output), 0);
    let reports: Value = serde_json::from_slice(&output.stdout).unwrap();
    let chosen = &reports[0];
    assert_eq!(chosen["chosen"], true);
    assert!(chosen["modes"].as_array().unwrap().iter().all(|mode| mode[1].is_null()), "{chosen}");
    let folder = Folder::new();
    let good = folder.write("good.safetensors", &Trace::good().bytes());
    let report: Value = serde_json::from_slice(&replay(&good, &["--json"]).stdout).unwrap();
    assert_eq!(report["adapter"], chosen["name"]);
    let text = Command::new(env!("CARGO_BIN_EXE_adamod")).arg("info").output().unwrap().stdout;
    assert!(String::from_utf8_lossy(&text).contains("max_storage_buffer_binding_size"));
}
