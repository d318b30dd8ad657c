//! The rule of a group and its hyperparameters, which a trace gives by the names that checkpoints have: `betas[0]` is the first
//! entry of the list `betas`.

use std::collections::BTreeMap;

use adamod::{Formula, Rule, RuleKind};
use serde_json::Value;

use super::{Description, Fields, TraceError};
use crate::names;

/// Hyperparameters that are chosen by name.
const CHOICES: [(&str, &[Formula]); 1] = [("formula", &Formula::ALL)];

/// A field of a rule: one hyperparameter, or several that are a list.
#[derive(Default)]
struct Field {
    /// The hyperparameters in order, with their defaults.
    entries: Vec<(&'static str, f64)>,
    is_list: bool,
}

impl Field {
    /// Options that are off by default, such as PyTorch's `amsgrad`, may be left out. A trace gives all other fields.
    fn is_required(&self, name: &str) -> bool {
        choices(name).is_some() || self.entries.iter().any(|&(_, default)| default != 0.0)
    }
}

fn choices(name: &str) -> Option<&'static [Formula]> {
    CHOICES.iter().find(|(of, _)| *of == name).map(|(_, choices)| *choices)
}

/// The fields of a rule by name.
fn fields_of(kind: RuleKind) -> BTreeMap<&'static str, Field> {
    let mut fields: BTreeMap<_, Field> = BTreeMap::new();
    for (name, default) in kind.with_defaults().hyperparameters() {
        let (field, index) = name.split_once('[').map_or((name, None), |(field, index)| (field, Some(index)));
        let of = fields.entry(field).or_default();
        of.entries.push((name, default));
        of.is_list |= index.is_some();
    }
    fields
}

/// The rules of all groups. A group has to have the hyperparameters of its rule, and no others; those beside the groups are for all
/// groups whose rule has them and that do not have them themselves.
pub fn of_groups(description: &Description) -> Result<Vec<Rule>, TraceError> {
    let Description { groups, hyperparameters: shared, .. } = description;
    check_once("", shared)?;
    let kind_of = |group: usize| groups[group].rule.unwrap_or(description.rule);
    let mut rules = Vec::with_capacity(groups.len());
    for (index, group) in groups.iter().enumerate() {
        let prefix = format!("groups[{index}].");
        check_once(&prefix, &group.hyperparameters)?;
        let (kind, own) = (kind_of(index), &group.hyperparameters.0);
        let fields = fields_of(kind);
        if let Some((name, _)) = own.iter().find(|(name, _)| !fields.contains_key(name.as_str())) {
            let field = format!("{prefix}{name}");
            let fields = fields.keys().copied().collect::<Vec<_>>().join(", ");
            return Err(TraceError::Superfluous { field, rule: kind, fields });
        }
        let mut rule = kind.with_defaults();
        for (name, field) in &fields {
            let find = |fields: &[(String, Value)]| {
                fields
                    .iter()
                    .find(|(of, value)| of == name && !value.is_null())
                    .map(|(_, value)| value.clone())
            };
            let (path, value) = match find(own) {
                Some(value) => (format!("{prefix}{name}"), Some(value)),
                None => ((*name).to_owned(), find(&shared.0)),
            };
            match value {
                Some(value) => set(&mut rule, &path, name, field, &value)?,
                None if field.is_required(name) => {
                    return Err(TraceError::Missing { field: format!("{prefix}{name}"), rule: kind });
                }
                None => {}
            }
        }
        rules.push(rule);
    }
    let is_used = |name: &str| (0..groups.len()).any(|group| fields_of(kind_of(group)).contains_key(name));
    match shared.0.iter().find(|(name, _)| !is_used(name)) {
        Some((name, _)) => Err(TraceError::Unused { field: name.clone() }),
        None => Ok(rules),
    }
}

fn check_once(prefix: &str, Fields(fields): &Fields) -> Result<(), TraceError> {
    for (index, (name, _)) in fields.iter().enumerate() {
        if fields[..index].iter().any(|(other, _)| other == name) {
            return Err(TraceError::GivenTwice { field: format!("{prefix}{name}") });
        }
    }
    Ok(())
}

/// Sets the hyperparameters of a field. Their ranges are checked later.
fn set(rule: &mut Rule, path: &str, name: &str, field: &Field, value: &Value) -> Result<(), TraceError> {
    let wrong = |path: &str, value: &Value, expected: String| TraceError::Value {
        field: path.to_owned(),
        found: value.to_string(),
        expected,
    };
    let single = std::slice::from_ref(value);
    let values = match (value, field.is_list) {
        (Value::Array(values), true) => values.as_slice(),
        (_, true) => return Err(wrong(path, value, format!("a list of {} numbers", field.entries.len()))),
        (_, false) => single,
    };
    if values.len() != field.entries.len() {
        return Err(TraceError::Entries {
            field: path.to_owned(),
            found: values.len(),
            expected: field.entries.len(),
            rule: rule.kind(),
        });
    }
    for (index, (&(hyperparameter, default), value)) in field.entries.iter().zip(values).enumerate() {
        let path = if field.is_list { format!("{path}[{index}]") } else { path.to_owned() };
        // An option that is on or off by default can be given as PyTorch has it.
        let is_switch = [0.0, 1.0].contains(&default);
        let (number, expected) = match (choices(name), value) {
            (Some(all), Value::String(text)) => {
                let found = names::find(all, Formula::name, text).map(|choice| f64::from(choice as u32));
                (found, format!("one of {}", names::list(all, Formula::name)))
            }
            (Some(all), _) => (None, format!("one of {}", names::list(all, Formula::name))),
            (None, Value::Bool(is_on)) if is_switch => (Some(f64::from(*is_on)), String::new()),
            (None, value) => (value.as_f64(), "a number".to_owned()),
        };
        let number = number.ok_or_else(|| wrong(&path, value, expected))?;
        if !rule.set_hyperparameter(hyperparameter, number) {
            return Err(wrong(&path, value, format!("a value of rule {}", rule.kind())));
        }
    }
    Ok(())
}
