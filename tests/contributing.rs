//! The worked example of CONTRIBUTING.md: its code is added to a copy of the library, which is then built and compared with a loop
//! written by hand.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A test of the copy. The gradients are multiples of 1/8, so that every product is exact in f32.
const TEST: &str = r#"
use adamod::reference::Reference;
use adamod::{Control, DeviceControl, Group, Hyperparameters, Signum, Optimizer, Options, Parameter, Precision, RuleKind};
use adamod::{StateFormat, Step, View, Views, WeightDecay};

mod doc {
    include!("common/doc.rs");
}

#[test]
fn signum_is_the_loop_written_by_hand() {
    assert!(RuleKind::ALL.contains(&RuleKind::from_name("signum").unwrap()));
    let (device, queue) = doc::gpu();
    let (alpha, lambda, beta) = (0.25_f32, 0.5_f32, 0.75_f32);
    let mut signum = Signum::default();
    signum.beta = beta.into();
    let hyperparameters = Hyperparameters::from(signum)
        .with_learning_rate(alpha.into())
        .with_weight_decay(WeightDecay::Decoupled(lambda.into()));
    for control in [Control::Host, Control::Device(DeviceControl::new())] {
        for state in StateFormat::ALL {
            let buffer = doc::buffer(&device, 2048);
            let mut optimizer = Optimizer::new(&device, &queue, Options::new().with_control(control)).unwrap();
            let precision = Precision::new(state).with_f32_state_below(0);
            let group = optimizer.add_group(Group::new(hyperparameters).with_precision(precision)).unwrap();
            let views = Views::new(View::new(&buffer, 0), View::new(&buffer, 1024));
            let id = optimizer.add_parameter(group, Parameter::new("p", 67).with_views(views)).unwrap();
            let mut reference = Reference::<f64>::new();
            let group = reference.add_group(hyperparameters);
            let twin = reference.add_parameter(group, vec![0.0; 67]);
            let (mut theta, mut m) = ([0.0_f32; 67], [0.0_f32; 67]);
            for t in 0..6 {
                let gradient: Vec<f32> = (0..67).map(|i| ((i * 7 + t * 5) % 17 - 8) as f32 / 8.0).collect();
                queue.write_buffer(&buffer, 1024, &gradient.iter().flat_map(|g| g.to_le_bytes()).collect::<Vec<_>>());
                optimizer.submit(&Step::all()).unwrap();
                let gradient64: Vec<f64> = gradient.iter().map(|&g| g.into()).collect();
                reference.step(&[Some(&gradient64)]);
                for i in 0..67 {
                    m[i] = beta * m[i] + (1.0 - beta) * gradient[i];
                    let sign = if m[i] == 0.0 { 0.0 } else { m[i].signum() };
                    theta[i] = theta[i] - alpha * lambda * theta[i] - alpha * sign;
                }
            }
            let truth: Vec<f32> = reference.values(twin).iter().map(|&x| x as f32).collect();
            assert_eq!(truth, theta);
            if state == StateFormat::F32 {
                assert_eq!(optimizer.read_parameter(id).wait().unwrap(), theta);
                assert_eq!(optimizer.read_state(id).wait().unwrap().tensor("exp_avg"), Some(&m[..]));
            }
            let restored = optimizer.checkpoint().wait().unwrap().to_bytes().unwrap();
            optimizer.restore(&adamod::Checkpoint::from_bytes(&restored).unwrap()).unwrap();
            assert_eq!(optimizer.step_count(id), Some(6));
        }
    }
}
"#;

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

/// The block of code that starts with `start`.
fn block<'a>(text: &'a str, start: &str) -> &'a str {
    let from =
        text.find(start).unwrap_or_else(|| panic!("CONTRIBUTING.md has a block that starts with {start:?}"));
    &text[from..from + text[from..].find("```").unwrap()]
}

#[test]
fn the_worked_example_builds_and_steps_as_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("CONTRIBUTING.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for part in ["src", "shaders", "tests/common", "Cargo.lock"] {
        std::fs::create_dir_all(folder.path().join(part).parent().unwrap()).unwrap();
        copy(&root.join(part), &folder.path().join(part));
    }
    // The tool is not part of the example.
    std::fs::remove_dir_all(folder.path().join("src/bin")).unwrap();
    // The manifest without the parts that name files that the copy lacks. Its version is another one, because Cargo names files of the target
    // folder after name and version, and the copy must not replace this library in it.
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let named = ["[workspace]", "[[example]]", "[[bench]]", "[[test]]", "[[bin]]"];
    let mut is_kept = true;
    let mut kept = String::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_kept = !named.contains(&line);
        }
        if is_kept {
            kept.push_str(if line.starts_with("version = ") { r#"version = "0.0.0""# } else { line });
            kept.push('\n');
        }
    }
    std::fs::write(folder.path().join("Cargo.toml"), kept).unwrap();
    let write = |path: &str, content: &str| std::fs::write(folder.path().join(path), content).unwrap();
    write("src/rules/signum.rs", block(&text, "// src/rules/signum.rs\n").split_once('\n').unwrap().1);
    write(
        "shaders/rules/signum.wgsl",
        block(&text, "// shaders/rules/signum.wgsl\n").split_once('\n').unwrap().1,
    );
    let list = folder.path().join("src/rules/mod.rs");
    let rules = std::fs::read_to_string(&list).unwrap();
    let end = rules.trim_end().strip_suffix('}').expect("the list of rules ends the file");
    std::fs::write(&list, format!("{end}{}}}\n", block(&text, "    /// Signum. State"))).unwrap();
    write("tests/signum.rs", TEST);

    // The dependencies are built already, with the features that CI uses, so the same target folder serves.
    let target: PathBuf = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    let output = Command::new(env!("CARGO"))
        .args(["test", "--offline", "--all-features", "--test", "signum"])
        .current_dir(folder.path())
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{errors}");
}
