//! The table of `docs/rules.md` has a row for every form of every rule, and says what the library does. Needs no GPU.
#![cfg(feature = "cli")]

#[path = "common/package.rs"]
mod package;

use std::collections::BTreeMap;

use adamod::low_level::coefficient_row;
use adamod::{Group, Hyperparameters, Precision, RuleForm, RuleKind, Sign, StateFormat, WeightDecay};
use safetensors::SafeTensors;
use serde_json::Value;

const DOCUMENT: &str = include_str!("../docs/rules.md");

const COLUMNS: [&str; 9] = [
    "form",
    "options",
    "states",
    "bytes",
    "state formats",
    "rates",
    "device coefficients",
    "results from outside",
    "converter",
];

/// The cells of each row by the name of its form.
fn rows() -> BTreeMap<String, Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = DOCUMENT.lines().skip_while(|line| !line.starts_with("| form |"));
    assert_eq!(cells(lines.next().unwrap()), COLUMNS);
    lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = cells(line);
            assert_eq!(cells.len(), COLUMNS.len(), "{line}");
            assert!(cells.iter().all(|cell| !cell.is_empty()), "{line}");
            (cells[0].trim_matches('`').to_owned(), cells)
        })
        .collect()
}

/// Options, in the order of the rule, that are not those of the default form.
fn options(form: RuleForm) -> String {
    let default = form.rule().with_defaults().hyperparameters();
    let own = form.with_defaults().hyperparameters().into_iter();
    let changed = own.zip(default).filter(|((_, value), (_, default))| value != default);
    let mut names: Vec<_> = changed
        .map(|((name, value), _)| if value == 0.0 { format!("`{name}` 0") } else { format!("`{name}`") })
        .collect();
    names.sort();
    if names.is_empty() { "defaults".to_owned() } else { names.join(", ") }
}

fn states(form: RuleForm) -> String {
    let sign = |sign| match sign {
        Sign::Signed => "±",
        Sign::NonNegative => "≥0",
        Sign::Positive => ">0",
    };
    let states: Vec<_> =
        form.states().iter().map(|state| format!("`{}` {}", state.name, sign(state.sign))).collect();
    if states.is_empty() { "none".to_owned() } else { states.join(", ") }
}

fn formats(form: RuleForm) -> String {
    if form.states().is_empty() {
        return "none needed (2)".to_owned();
    }
    let offered = StateFormat::ALL.into_iter().filter(|&state| form.refusal(state).is_none());
    let names: Vec<_> = offered.map(StateFormat::name).collect();
    if names.len() == StateFormat::ALL.len() { names.join(", ") } else { format!("{} (4)", names.join(", ")) }
}

/// Whether coefficients depend on the step, in the rule with options that let them.
fn has_coefficients_of_steps(form: RuleForm) -> bool {
    let mut rule = form.with_defaults();
    for (name, value) in [("dampening", 0.5), ("lr_decay", 0.5)] {
        rule.set_hyperparameter(name, value);
    }
    let hyperparameters = Hyperparameters::from(rule);
    let row = |t| coefficient_row(&hyperparameters, t).of_rule;
    row(1) != row(2) || row(2) != row(1000)
}

#[test]
fn the_table_has_every_form_and_says_what_the_library_does() {
    let mut rows = rows();
    for form in RuleForm::all() {
        let row =
            rows.remove(&form.to_string()).unwrap_or_else(|| panic!("docs/rules.md has no row of {form}"));
        let computed = if has_coefficients_of_steps(form) { "computed" } else { "constant" };
        let rates = if form.rule().has_element_rates() { "per element" } else { "one" };
        let expected = [
            options(form),
            states(form),
            form.bytes_per_parameter().to_string(),
            formats(form),
            rates.to_owned(),
            computed.to_owned(),
        ];
        assert_eq!(row[1..7], expected, "{form}");
        // What a group allocates in f32 is what the states take.
        let group = Group::from(form.with_defaults()).with_precision(Precision::new(StateFormat::F32));
        let bytes = group.state_bytes(adamod::DType::F32, 1 << 20) >> 20;
        assert_eq!(bytes, 4 * form.states().len() as u64, "{form}");
    }
    assert!(rows.remove("[custom](#rules-of-ones-own)").is_some(), "docs/rules.md has a row of custom rules");
    assert!(rows.is_empty(), "docs/rules.md has rows of no form: {:?}", rows.keys());
}

/// Every kind of decay, caution and direction that the table promises is in the traces of every rule.
#[test]
fn traces_have_the_options_of_all_rules() {
    let folder = package::folder().join("tests/traces");
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let text = &metadata.metadata().as_ref().unwrap()["adamod.trace"];
        let description: Value = serde_json::from_str(text).unwrap();
        let rule = description.get("rule").map_or("adamod", |rule| rule.as_str().unwrap());
        let of_rule = found.entry(rule.to_owned()).or_default();
        for group in description["groups"].as_array().unwrap() {
            of_rule.push(group["weight_decay"]["kind"].as_str().unwrap().to_owned());
            for option in ["maximize", "cautious", "cautious_weight_decay"] {
                of_rule.extend((group.get(option) == Some(&Value::Bool(true))).then(|| option.to_owned()));
            }
        }
    }
    let all =
        ["none", "coupled", "decoupled", "fully_decoupled", "maximize", "cautious", "cautious_weight_decay"];
    for kind in RuleKind::ALL {
        for option in all {
            assert!(found[kind.name()].iter().any(|of| of == option), "{kind}: {option}");
        }
    }
}

/// PyTorch's own lists of inputs that its optimizers have to refuse.
fn error_inputs() -> Value {
    serde_json::from_str(include_str!("traces/torch-error-inputs.json")).unwrap()
}

/// A group of a trace as hyperparameters.
fn hyperparameters_of(rule: &str, group: &Value) -> Hyperparameters {
    let mut rule = RuleKind::from_name(rule).unwrap().with_defaults();
    let mut set = |name: &str, value: &Value| {
        assert!(rule.set_hyperparameter(name, value.as_f64().unwrap()), "{name}");
    };
    for (name, value) in group.as_object().unwrap() {
        match (name.as_str(), value) {
            ("learning_rate" | "weight_decay" | "maximize", _) => {}
            (_, Value::Array(values)) => {
                values.iter().enumerate().for_each(|(index, value)| set(&format!("{name}[{index}]"), value))
            }
            _ => set(name, value),
        }
    }
    let decay = &group["weight_decay"];
    assert_ne!(decay["kind"], "decoupled");
    Hyperparameters::from(rule)
        .with_learning_rate(group["learning_rate"].as_f64().unwrap())
        .with_weight_decay(WeightDecay::Coupled(decay["value"].as_f64().unwrap()))
}

#[test]
fn inputs_that_pytorch_refuses_are_refused_by_name() {
    let inputs = error_inputs();
    let refused = inputs["refused"].as_array().unwrap();
    assert!(refused.len() >= 10, "{}", refused.len());
    for input in refused {
        // AdamW's decay is decoupled; its range is the same.
        let mut group = input["group"].clone();
        if group["weight_decay"]["kind"] == "decoupled" {
            group["weight_decay"]["kind"] = "coupled".into();
        }
        let error = hyperparameters_of(input["rule"].as_str().unwrap(), &group).validate().unwrap_err();
        let argument = input["argument"].as_str().unwrap();
        assert!(error.to_string().contains(argument), "{input}: {error}");
    }
}

#[test]
fn inputs_of_pytorch_without_a_counterpart_are_named_in_the_table() {
    let (_, section) = DOCUMENT.split_once("## PyTorch's lists of inputs").unwrap();
    let inputs = error_inputs();
    for list in ["others", "optimizers"] {
        for name in inputs[list].as_array().unwrap() {
            let name = name.as_str().unwrap().replace('\\', "");
            assert!(section.contains(&format!("`{name}`")), "{name}");
        }
    }
}
