//! `adamod bench`: its report is complete and agrees with itself. Nothing here depends on speed.
#![cfg(feature = "cli")]

#[path = "common/package.rs"]
mod package;

use std::process::{Command, Output};

use adamod::{RuleForm, StateFormat};
use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(package::tool()).arg("bench").args(arguments).output().expect("the binary starts")
}

fn report(arguments: &[&str]) -> Value {
    let output = bench(&[arguments, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).expect("one JSON object on stdout")
}

fn number(result: &Value, field: &str) -> f64 {
    result[field].as_f64().unwrap_or_else(|| panic!("{field} is no number in {result}"))
}

fn assert_consistent(report: &Value) {
    for field in ["adapter", "driver", "backend", "device_type", "timing", "cache"] {
        assert!(report[field].is_string(), "{field}");
    }
    let results = report["results"].as_array().expect("results");
    assert!(!results.is_empty());
    for result in results {
        for field in ["suite", "case", "mode"] {
            assert!(result[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {result}");
        }
        let bytes = number(result, "parameters") * number(result, "bytes_per_parameter");
        let expected = bytes / number(result, "ms_median") * 1e-6;
        let gb_per_s = number(result, "gb_per_s");
        assert!((gb_per_s - expected).abs() <= 1e-9 * expected, "{gb_per_s} GB/s, expected {expected}");
        let order = ["ms_min", "ms_lower_quartile", "ms_median", "ms_upper_quartile"];
        assert!(order.windows(2).all(|pair| number(result, pair[0]) <= number(result, pair[1])), "{result}");
        for field in [
            "copy_gb_per_s",
            "stream_gb_per_s",
            "fraction_of_copy",
            "fraction_of_stream",
            "host_us_median",
            "host_record_us_median",
            "verified_elements",
        ] {
            assert!(number(result, field) > 0.0, "{field} in {result}");
        }
        assert!(number(result, "host_record_us_median") <= number(result, "host_us_median"));
        match result["suite"].as_str() {
            Some("host") => assert!(number(result, "host_allocations") >= 1.0, "{result}"),
            _ => assert!(result["host_allocations"].is_null(), "{result}"),
        }
        assert_eq!(result["time_of_default"].is_null(), result["suite"] != "variants", "{result}");
    }
}

#[test]
fn a_report_is_complete_and_agrees_with_itself() {
    // Rules with three, two, one and no states, and one that has its state in f32 only.
    const RULES: [&str; 5] = ["adamod", "adam", "sgd", "sgd-plain", "rmsprop-centered"];
    let rules = RULES.into_iter().flat_map(|rule| ["--rule", rule]);
    let sizes = ["--suite", "roofline", "--max-elements", "2500", "--rounds", "3"];
    let report = report(&sizes.into_iter().chain(rules).collect::<Vec<_>>());
    assert_consistent(&report);
    let results = report["results"].as_array().unwrap();
    let rows: Vec<_> = results
        .iter()
        .map(|result| {
            let text = |field: &str| result[field].as_str().unwrap().to_owned();
            (text("suite"), text("mode"), number(result, "parameters"), number(result, "bytes_per_parameter"))
        })
        .collect();
    let mut expected = Vec::new();
    for parameters in [1_024.0, 2_048.0, 2_500.0] {
        expected.push(("roofline".to_owned(), "adamod-f32".to_owned(), parameters, 36.0));
    }
    for form in RuleForm::all().filter(|form| RULES.contains(&form.to_string().as_str())) {
        // A step reads and writes values and states, and reads gradients.
        let states = form.states().len() as f64;
        let (f32, bf16, q8) = (8.0 * states, 4.0 * states, 2.0 * states + 0.25);
        let mut modes = vec![
            ("f32", 12.0 + f32),
            ("bf16", 12.0 + bf16),
            ("q8", 12.0 + q8),
            ("f32+bf16", 6.0 + f32),
            ("f32+bf16+split24", 8.0 + f32),
            ("f32+bf16+split32", 10.0 + f32),
            ("q8+bf16", 6.0 + q8),
            ("q8+bf16+split24", 8.0 + q8),
            ("q8+bf16+split32", 10.0 + q8),
            ("f32+clip", 16.0 + f32),
            ("f32+copy", 14.0 + f32),
        ];
        if form.rule().has_element_rates() {
            modes.push(("f32+learning-rates", 12.0 + f32));
        }
        // Without states there is one format, and centered RMSprop has one.
        let has_one = form.states().is_empty() || form.refusal(StateFormat::Q8).is_some();
        for (mode, bytes) in modes.into_iter().filter(|(mode, _)| !has_one || mode.starts_with("f32")) {
            expected.push(("modes".to_owned(), format!("{form}-{mode}"), 2_500.0, bytes));
        }
    }
    assert_eq!(rows, expected);
    // The published figures of some modes.
    for (mode, bytes) in [
        ("adamod-f32", 36.0),
        ("adamod-q8", 18.25),
        ("adamod-q8+bf16+split24", 14.25),
        ("adamod-f32+learning-rates", 36.0),
        ("adam-f32", 28.0),
        ("adam-f32+clip", 32.0),
        ("adam-f32+learning-rates", 28.0),
        ("sgd-f32", 20.0),
        ("sgd-q8+bf16", 8.25),
        ("sgd-f32+copy", 22.0),
    ] {
        assert!(rows.contains(&("modes".to_owned(), mode.to_owned(), 2_500.0, bytes)), "{mode}");
    }
    assert!(!rows.iter().any(|(_, mode, ..)| mode == "sgd-f32+learning-rates"));
    assert!(results.iter().all(|result| number(result, "rounds") == 3.0));
}

#[test]
fn many_tensors_and_moving_ones_are_verified() {
    let report = report(&["--suite", "host", "--rounds", "2"]);
    assert_consistent(&report);
    let tensors: Vec<_> =
        report["results"].as_array().unwrap().iter().map(|result| number(result, "tensors")).collect();
    // In pools, in buffers of their own with and without binding arrays, flat, and moving.
    let several = |tensors: f64| [tensors, tensors, tensors, 1.0, tensors];
    assert_eq!(tensors, [&[1.0, 1.0][..], &several(148.0), &several(10_000.0)].concat());
}

#[test]
fn tensors_beyond_a_buffer_lie_in_several_and_are_verified() {
    let sizes = ["--max-elements", "50000", "--max-buffer-bytes", "65536", "--rounds", "2"];
    let report = report(&[&["--suite", "roofline", "--suite", "large"], &sizes[..]].concat());
    assert_consistent(&report);
    let tensors: Vec<_> = report["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| {
            (result["mode"].as_str().unwrap(), number(result, "parameters"), number(result, "tensors"))
        })
        .filter(|&(_, parameters, _)| parameters > 10_000.0)
        .collect();
    // 16,384 elements of f32, or 32,768 of bf16, fit into a buffer.
    let expected = [
        ("adamod-f32", 16_384.0, 1.0),
        ("adamod-f32", 32_768.0, 2.0),
        ("adamod-f32", 50_000.0, 4.0),
        ("sgd-q8+bf16", 50_000.0, 2.0),
        ("adamod-f32", 50_000.0, 4.0),
    ];
    assert_eq!(tensors, expected);
    assert_eq!(report["left_out"], Value::Array(Vec::new()));
}

#[test]
fn variants_are_measured_beside_the_default_and_verified() {
    let sizes = ["--max-elements", "3000", "--rounds", "2"];
    let all = report(&[&["--suite", "variants"], &sizes[..]].concat());
    assert_consistent(&all);
    let rows = |report: &Value| -> Vec<(String, String)> {
        let text = |result: &Value, field: &str| result[field].as_str().unwrap().to_owned();
        let results = report["results"].as_array().unwrap();
        for result in results {
            assert!(number(result, "time_of_default") > 0.0, "{result}");
            let is_default = text(result, "case") == "3000 default";
            assert!(!is_default || number(result, "time_of_default") == 1.0, "{result}");
        }
        results.iter().map(|result| (text(result, "case"), text(result, "mode"))).collect()
    };
    let rows_of_all = rows(&all);
    for (case, mode) in [
        ("3000 default", "adamod-f32"),
        ("3000 two-quads", "adamod-f32"),
        ("3000 traffic", "traffic-f32"),
        ("3000 32-lanes", "adamod-q8+bf16"),
        ("3000 rare-paths-inline", "adamod-bf16+bf16"),
        ("3000 separate-norm", "adamod-f32+clip"),
    ] {
        assert!(rows_of_all.contains(&(case.to_owned(), mode.to_owned())), "{case}, {mode}: {rows_of_all:?}");
    }
    let one = report(&[&["--variant", "32-lanes"], &sizes[..]].concat());
    let mode = |case: &str, mode: &str| (format!("3000 {case}"), mode.to_owned());
    let expected = ["adamod-q8+bf16", "adamod-q8+bf16+split24"]
        .into_iter()
        .flat_map(|of| [mode("default", of), mode("32-lanes", of)]);
    assert_eq!(rows(&one), expected.collect::<Vec<_>>());
}

#[test]
fn the_wall_clock_serves_where_there_are_no_timestamps() {
    let arguments = ["--suite", "roofline", "--max-elements", "1024", "--rounds", "2", "--timing", "wall"];
    let report = report(&arguments);
    assert_consistent(&report);
    assert_eq!(report["timing"], "wall");
}

#[test]
fn tables_name_the_adapter_and_every_case() {
    let output = bench(&["--suite", "roofline", "--max-elements", "2048", "--rounds", "1"]);
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    for part in ["time: ", "roofline", "2^10", "2^11", "of copy", "agree with the f64 reference"] {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
}

#[test]
fn the_table_of_the_host_suite_counts_allocations() {
    let output =
        bench(&["--suite", "roofline", "--suite", "host", "--max-elements", "1024", "--rounds", "1"]);
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    let (roofline, host) = table.split_once("\nhost\n").expect("suites in the order in which they run");
    assert!(!roofline.contains("allocations") && host.contains("allocations"), "{table}");
    let mut rows = host.lines().take_while(|line| !line.is_empty());
    let header = rows.next().unwrap();
    assert!(rows.all(|row| row.len() == header.len()), "{table}");
}

#[test]
fn a_plot_shows_every_mode_and_both_ceilings_of_the_roofline() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roofline.svg");
    // What is there is replaced.
    std::fs::write(&path, "x".repeat(1 << 20)).unwrap();
    let plot = path.to_str().unwrap();
    let json = folder.path().join("report.json");
    let report = report(&[
        "--suite",
        "roofline",
        "--rule",
        "sgd",
        "--max-elements",
        "4096",
        "--rounds",
        "1",
        "--plot",
        plot,
        "--json-file",
        json.to_str().unwrap(),
    ]);
    // One run gives all three.
    let file: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(file, report);
    let svg = std::fs::read_to_string(&path).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    let texts = ["copy kernel", "stream kernel", "adamod-f32", "2¹⁰", "2¹²", "parameters", "GB/s"];
    let machine = ["driver", "backend"].map(|field| report[field].as_str().unwrap());
    for text in texts.into_iter().chain(machine) {
        assert!(svg.contains(text), "{text:?} is not in {svg}");
    }
    assert!(!svg.contains("sgd-f32"), "the modes of another suite");
    // Three sizes of one mode and of both ceilings.
    assert_eq!(svg.matches("<circle").count(), 3 * 3, "{svg}");
}

#[test]
fn files_that_cannot_be_written_are_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let unwritable = folder.path().join("no such folder").join("roofline.svg");
    let written = folder.path().join("roofline.svg");
    for (suite, option, path, named) in [
        ("roofline", "--plot", &unwritable, "no such folder"),
        ("modes", "--plot", &written, "--suite roofline"),
        ("modes", "--json-file", &unwritable, "no such folder"),
    ] {
        let output = bench(&["--suite", suite, option, path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(option) && stderr.contains(named), "{stderr}");
        assert!(output.stdout.is_empty());
        assert!(!path.exists());
    }
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    for (arguments, named) in [
        (["--max-elements", "10"], "--max-elements"),
        (["--rounds", "0"], "--rounds"),
        (["--seconds", "0"], "--seconds"),
        (["--suite", "speed"], "roofline"),
        (["--variant", "speed"], "two-quads"),
        (["--rule", "sgdm"], "sgd-plain"),
        (["--max-buffer-bytes", "4096"], "--max-buffer-bytes"),
        (["--adapter", "no such adapter"], "no such adapter"),
    ] {
        let output = bench(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(named) && !stderr.contains("panicked"), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_bench_that_is_killed_leaves_what_it_has_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let mut bench = Command::new(package::tool())
        .args(["bench", "--suite", "modes", "--max-elements", "1024", "--rounds", "7", "--json-file"])
        .arg(&file)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Once there is a measurement, another one takes a while.
    while std::fs::metadata(&file).map_or(0, |file| file.len()) == 0 {
        assert!(bench.try_wait().unwrap().is_none(), "the bench ended without a measurement");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    bench.kill().unwrap();
    bench.wait().unwrap();
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_consistent(&report);
}
