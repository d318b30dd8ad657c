//! Recorded gradients: one safetensors file, which is checked completely before anything runs.
//!
//! | tensor (f32) | contents |
//! |---|---|
//! | `param.NAME` | the initial values of a parameter, of any shape |
//! | `grad.T.NAME` | its gradient in step T = 1, 2, …; a step without one leaves the parameter alone |
//! | `expected.KIND.NAME` | the expected result of the last step; KIND is `param` or one of the rule's states, such as `exp_avg` |
//!
//! The metadata has a JSON object under the key `adamod.trace`. Fields that are not listed here are refused.
//!
//! | field | value |
//! |---|---|
//! | `rule` | name of the update rule; `adamod` by default |
//! | `formula` | `paper` or `authors`; only with `adamod`, which requires it |
//! | `steps` | number of steps |
//! | `learning_rates` | the learning rate of each step, for all groups; optional |
//! | `made_by` | text for people; optional |
//! | `groups[i].learning_rate` | the group's learning rate |
//! | `groups[i].betas` | as many numbers as the rule has betas: three with `adamod`, two with `adam` |
//! | `groups[i].epsilon` | with rules that have it |
//! | `groups[i].momentum` | with `sgd` and `rmsprop` |
//! | `groups[i].hyperparameters` | an object with the rule's other hyperparameters by name, options as 0 or 1: `{"amsgrad": 1}`; optional, and those that it lacks have their defaults |
//! | `groups[i].weight_decay` | `{"kind": "none" \| "decoupled" \| "coupled", "value": 0.1}`, or `{"kind": "fully_decoupled", "value": 1e-4, "max_learning_rate": 1e-3}`; optional |
//! | `groups[i].maximize` | PyTorch's `maximize`; `false` by default |
//! | `groups[i].cautious`, `groups[i].cautious_weight_decay` | cautious updates and cautious decay; `false` by default |
//! | `groups[i].params` | the names of its parameters |

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use adamod::{Formula, Hyperparameters, Objective, OutOfRange, Rule, RuleKind, Sign, WeightDecay};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::names;

/// Key of the metadata.
const METADATA_KEY: &str = "adamod.trace";

/// More steps than anybody records. A damaged number must not run for years.
const MOST_STEPS: u64 = 100_000_000;

/// What is wrong with a trace.
#[derive(Debug, Error)]
pub enum TraceError {
    #[error("the file cannot be read")]
    Read(#[from] std::io::Error),
    #[error("the file is not a complete safetensors file: {0}")]
    Format(safetensors::SafeTensorError),
    #[error("metadata {METADATA_KEY:?} is missing")]
    NoMetadata,
    #[error("metadata {METADATA_KEY:?}: {0}")]
    Json(serde_path_to_error::Error<serde_json::Error>),
    #[error("steps is {0}, expected at least 0 and at most {MOST_STEPS}")]
    Steps(i64),
    #[error("learning_rates has {found} entries, expected at least {steps}, one per step")]
    FewLearningRates { found: usize, steps: u64 },
    #[error("learning_rates[{index}], group {group}")]
    LearningRate { index: usize, group: usize, source: OutOfRange },
    #[error("{field} is missing, expected one with rule {rule}")]
    Missing { field: String, rule: RuleKind },
    #[error("{field} is given, expected none with rule {rule}")]
    Superfluous { field: String, rule: RuleKind },
    #[error("group {group}: betas has {found} entries, expected {expected} with rule {rule}")]
    Betas { group: usize, found: usize, expected: usize, rule: RuleKind },
    #[error("group {group}: weight_decay has a kind but no value")]
    NoDecayValue { group: usize },
    #[error(
        "group {group}: weight_decay.max_learning_rate is given or missing, expected one with fully_decoupled alone"
    )]
    DecayLearningRate { group: usize },
    #[error("group {group}")]
    Hyperparameter { group: usize, source: OutOfRange },
    #[error("parameter {name:?} is listed twice in groups")]
    ListedTwice { name: String },
    #[error("group {group} lists parameter {name:?}, but tensor \"param.{name}\" is missing")]
    UnknownListed { group: usize, name: String },
    #[error("tensor \"param.{name}\" is in no group")]
    Unlisted { name: String },
    #[error("tensor {tensor:?} has dtype {found:?}, expected F32")]
    Dtype { tensor: String, found: Dtype },
    #[error("tensor {tensor:?} has no elements")]
    Empty { tensor: String },
    #[error("tensor {tensor:?} belongs to parameter {name:?}, but tensor \"param.{name}\" is missing")]
    UnknownParameter { tensor: String, name: String },
    #[error("tensor {tensor:?} has shape {found:?}, expected {expected:?}, the shape of its parameter")]
    Shape { tensor: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor {tensor:?} is a gradient of no step, expected grad.T.NAME with T = 1, 2, …")]
    GradientStep { tensor: String },
    #[error("tensor {tensor:?} is a gradient past the last step, {steps}")]
    GradientPastEnd { tensor: String, steps: u64 },
    #[error(
        "tensor {tensor:?} is unknown, expected param.NAME, grad.T.NAME, or expected.KIND.NAME with KIND one of {kinds}"
    )]
    UnknownTensor { tensor: String, kinds: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    #[serde(default = "default_rule", deserialize_with = "rule_by_name")]
    rule: RuleKind,
    #[serde(default, deserialize_with = "formula_by_name")]
    formula: Option<Formula>,
    steps: i64,
    learning_rates: Option<Vec<f64>>,
    groups: Vec<GroupDescription>,
    #[serde(rename = "made_by")]
    _made_by: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupDescription {
    learning_rate: f64,
    betas: Option<Vec<f64>>,
    epsilon: Option<f64>,
    momentum: Option<f64>,
    #[serde(default)]
    hyperparameters: BTreeMap<String, f64>,
    weight_decay: Option<DecayDescription>,
    #[serde(default)]
    maximize: bool,
    #[serde(default)]
    cautious: bool,
    #[serde(default)]
    cautious_weight_decay: bool,
    params: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DecayDescription {
    kind: DecayKind,
    value: Option<f64>,
    max_learning_rate: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DecayKind {
    None,
    Decoupled,
    Coupled,
    FullyDecoupled,
}

fn default_rule() -> RuleKind {
    RuleKind::AdaMod
}

fn rule_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RuleKind, D::Error> {
    by_name(deserializer, RuleKind::ALL, RuleKind::name)
}

fn formula_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Formula>, D::Error> {
    by_name(deserializer, &Formula::ALL, Formula::name).map(Some)
}

fn by_name<'de, D: Deserializer<'de>, T: Copy>(
    deserializer: D,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    names::find(all, name, &text).ok_or_else(|| {
        D::Error::custom(format_args!("got {text:?}, expected one of {}", names::list(all, name)))
    })
}

/// What is compared of a parameter: its values, or one of its states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// `param`, or the name of the state.
    pub name: &'static str,
    /// The range of the state; `None` for the values.
    pub sign: Option<Sign>,
}

/// A parameter of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceParameter {
    pub name: String,
    pub group: usize,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A checked trace.
#[derive(Debug, PartialEq)]
pub struct Trace {
    /// The values and the states of all groups.
    pub kinds: Vec<Kind>,
    pub steps: u64,
    /// The learning rate of each step for all groups, if the trace has them.
    pub learning_rates: Option<Vec<f64>>,
    pub groups: Vec<Hyperparameters>,
    /// In the order of their names.
    pub parameters: Vec<TraceParameter>,
    /// By step (from 1), then by index of the parameter.
    gradients: HashMap<(u64, usize), Vec<f32>>,
    /// By index of the kind, then by index of the parameter.
    expected: BTreeMap<(usize, usize), Vec<f32>>,
}

impl Trace {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        Self::parse(&std::fs::read(path)?)
    }

    /// Checks the bytes of a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, TraceError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(TraceError::Format)?;
        let file = SafeTensors::deserialize(bytes).map_err(TraceError::Format)?;
        let text = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(METADATA_KEY))
            .ok_or(TraceError::NoMetadata)?;
        let mut json = serde_json::Deserializer::from_str(text);
        let description: Description =
            serde_path_to_error::deserialize(&mut json).map_err(TraceError::Json)?;
        let steps = u64::try_from(description.steps).ok().filter(|&steps| steps <= MOST_STEPS);
        let steps = steps.ok_or(TraceError::Steps(description.steps))?;
        let groups = groups(&description)?;
        check_learning_rates(&description, steps, &groups)?;
        let mut kinds = vec![Kind { name: "param", sign: None }];
        // Options choose the states of a group. Without groups there are those of the default options.
        let of_groups = groups.iter().flat_map(|group| group.rule.states());
        let of_rule = description.rule.states().iter().filter(|_| groups.is_empty());
        for state in of_groups.chain(of_rule) {
            if kinds.iter().all(|kind| kind.name != state.name) {
                kinds.push(Kind { name: state.name, sign: Some(state.sign) });
            }
        }
        let mut trace = Self {
            kinds,
            steps,
            groups,
            parameters: parameters(&description, &file)?,
            learning_rates: description.learning_rates,
            gradients: HashMap::new(),
            expected: BTreeMap::new(),
        };
        for (tensor, view) in file.tensors() {
            trace.take(&tensor, &view)?;
        }
        Ok(trace)
    }

    /// The gradient of a parameter in a step, if it has one.
    pub fn gradient(&self, step: u64, parameter: usize) -> Option<&[f32]> {
        self.gradients.get(&(step, parameter)).map(Vec::as_slice)
    }

    /// The expected values or state (index into [`Trace::kinds`]) of a parameter, if the trace has them.
    pub fn expected(&self, kind: usize, parameter: usize) -> Option<&[f32]> {
        self.expected.get(&(kind, parameter)).map(Vec::as_slice)
    }

    /// Values and states of a parameter, sorted by kind from the order of its rule. Kinds that it does not have are empty.
    pub fn by_kind(&self, parameter: usize, values: Vec<f64>, states: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let names = self.groups[self.parameters[parameter].group].rule.state_names();
        let mut named: HashMap<_, _> = names.zip(states).chain([("param", values)]).collect();
        self.kinds.iter().map(|kind| named.remove(kind.name).unwrap_or_default()).collect()
    }

    /// The hyperparameters of a group in a step.
    pub fn hyperparameters(&self, group: usize, step: u64) -> Hyperparameters {
        let hyperparameters = self.groups[group];
        match &self.learning_rates {
            Some(rates) => hyperparameters.with_learning_rate(rates[step as usize - 1]),
            None => hyperparameters,
        }
    }

    fn take(&mut self, tensor: &str, view: &TensorView<'_>) -> Result<(), TraceError> {
        let kinds = &self.kinds;
        let unknown = || TraceError::UnknownTensor {
            tensor: tensor.to_owned(),
            kinds: kinds.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", "),
        };
        let (what, rest) = tensor.split_once('.').ok_or_else(unknown)?;
        match what {
            "param" => Ok(()),
            "grad" => {
                let no_step = || TraceError::GradientStep { tensor: tensor.to_owned() };
                let (step, name) = rest.split_once('.').ok_or_else(no_step)?;
                // With leading zeros, two tensors could be the gradient of one step.
                let is_plain = step.bytes().all(|digit| digit.is_ascii_digit()) && !step.starts_with('0');
                let step: u64 = step.parse().ok().filter(|_| is_plain).ok_or_else(no_step)?;
                if step > self.steps {
                    return Err(TraceError::GradientPastEnd { tensor: tensor.to_owned(), steps: self.steps });
                }
                let (parameter, values) = self.values_of(tensor, name, view)?;
                self.gradients.insert((step, parameter), values);
                Ok(())
            }
            "expected" => {
                let (kind, name) = rest.split_once('.').ok_or_else(unknown)?;
                let kind = kinds.iter().position(|of| of.name == kind).ok_or_else(unknown)?;
                let (parameter, values) = self.values_of(tensor, name, view)?;
                let mut names = self.groups[self.parameters[parameter].group].rule.state_names();
                if kind > 0 && names.all(|of| of != kinds[kind].name) {
                    return Err(unknown());
                }
                self.expected.insert((kind, parameter), values);
                Ok(())
            }
            _ => Err(unknown()),
        }
    }

    /// The parameter with this name, and the elements of the tensor, which must have its shape.
    fn values_of(
        &self,
        tensor: &str,
        name: &str,
        view: &TensorView<'_>,
    ) -> Result<(usize, Vec<f32>), TraceError> {
        let index = self
            .parameters
            .binary_search_by(|parameter| parameter.name.as_str().cmp(name))
            .map_err(|_| TraceError::UnknownParameter { tensor: tensor.to_owned(), name: name.to_owned() })?;
        let expected = &self.parameters[index].shape;
        if view.shape() != expected {
            return Err(TraceError::Shape {
                tensor: tensor.to_owned(),
                found: view.shape().to_vec(),
                expected: expected.clone(),
            });
        }
        Ok((index, elements(tensor, view)?))
    }
}

fn elements(tensor: &str, view: &TensorView<'_>) -> Result<Vec<f32>, TraceError> {
    if view.dtype() != Dtype::F32 {
        return Err(TraceError::Dtype { tensor: tensor.to_owned(), found: view.dtype() });
    }
    if view.data().is_empty() {
        return Err(TraceError::Empty { tensor: tensor.to_owned() });
    }
    Ok(bytemuck::pod_collect_to_vec(view.data()))
}

fn groups(description: &Description) -> Result<Vec<Hyperparameters>, TraceError> {
    let formula = formula(description)?;
    let group = |(group, of): (usize, &GroupDescription)| {
        let no_decay = DecayDescription { kind: DecayKind::None, value: None, max_learning_rate: None };
        let DecayDescription { kind, value, max_learning_rate } =
            of.weight_decay.as_ref().unwrap_or(&no_decay);
        let value = match (kind, value) {
            (_, Some(value)) => *value,
            (DecayKind::None, None) => 0.0,
            (_, None) => return Err(TraceError::NoDecayValue { group }),
        };
        let objective = if of.maximize { Objective::Maximize } else { Objective::Minimize };
        let hyperparameters = Hyperparameters::from(rule(description.rule, formula, group, of)?)
            .with_learning_rate(of.learning_rate)
            .with_objective(objective)
            .with_cautious(of.cautious);
        if matches!(kind, DecayKind::FullyDecoupled) != max_learning_rate.is_some() {
            return Err(TraceError::DecayLearningRate { group });
        }
        // The value is checked even if the kind does not use it.
        hyperparameters
            .with_weight_decay(WeightDecay::Decoupled(value))
            .validate()
            .map_err(|source| TraceError::Hyperparameter { group, source })?;
        let weight_decay = match (kind, *max_learning_rate) {
            (DecayKind::None, _) => WeightDecay::None,
            (DecayKind::Coupled, _) => WeightDecay::Coupled(value),
            (DecayKind::FullyDecoupled, Some(max_learning_rate)) => {
                WeightDecay::FullyDecoupled { lambda: value, max_learning_rate }
            }
            (DecayKind::Decoupled | DecayKind::FullyDecoupled, _) => WeightDecay::Decoupled(value),
        };
        let hyperparameters = hyperparameters
            .with_weight_decay(weight_decay)
            .with_cautious_weight_decay(of.cautious_weight_decay);
        hyperparameters.validate().map_err(|source| TraceError::Hyperparameter { group, source })?;
        Ok(hyperparameters)
    };
    description.groups.iter().enumerate().map(group).collect()
}

/// The formula, which AdaMod requires and no other rule has.
fn formula(description: &Description) -> Result<Formula, TraceError> {
    let (field, rule) = ("formula".to_owned(), description.rule);
    match (rule == RuleKind::AdaMod, description.formula) {
        (true, None) => Err(TraceError::Missing { field, rule }),
        (false, Some(_)) => Err(TraceError::Superfluous { field, rule }),
        (_, formula) => Ok(formula.unwrap_or_default()),
    }
}

/// The rule of a group. The description has to have all of its hyperparameters, and no others.
fn rule(kind: RuleKind, formula: Formula, group: usize, of: &GroupDescription) -> Result<Rule, TraceError> {
    let field = |name: &str| format!("group {group}: {name}");
    let missing = |name| TraceError::Missing { field: field(name), rule: kind };
    let mut rule = kind.with_defaults();
    let names: Vec<_> = rule.hyperparameters().into_iter().map(|(name, _)| name).collect();
    let betas = names.iter().filter(|name| name.starts_with("betas[")).count();
    let given = [
        ("betas", of.betas.is_some(), betas > 0),
        ("epsilon", of.epsilon.is_some(), names.contains(&"epsilon")),
        ("momentum", of.momentum.is_some(), names.contains(&"momentum")),
    ];
    let is_other =
        |name: &str| !(["epsilon", "momentum", "formula"].contains(&name) || name.starts_with("betas["));
    if let Some(name) =
        of.hyperparameters.keys().find(|name| !(names.contains(&name.as_str()) && is_other(name)))
    {
        return Err(TraceError::Superfluous { field: field(&format!("hyperparameters.{name}")), rule: kind });
    }
    if let Some((name, ..)) = given.into_iter().find(|(_, is_given, is_used)| *is_given && !is_used) {
        return Err(TraceError::Superfluous { field: field(name), rule: kind });
    }
    if let Some((name, ..)) = given.into_iter().find(|(_, is_given, is_used)| !is_given && *is_used) {
        return Err(missing(name));
    }
    let given_betas = of.betas.as_deref().unwrap_or_default();
    if given_betas.len() != betas {
        return Err(TraceError::Betas { group, found: given_betas.len(), expected: betas, rule: kind });
    }
    let mut next_beta = given_betas.iter().copied();
    for name in names {
        let value = match name {
            "epsilon" => of.epsilon,
            "momentum" => of.momentum,
            "formula" => Some(f64::from(formula as u32)),
            _ if name.starts_with("betas[") => next_beta.next(),
            _ => match of.hyperparameters.get(name) {
                Some(value) => Some(*value),
                None => continue,
            },
        };
        let value = value.ok_or_else(|| missing(name))?;
        if !rule.set_hyperparameter(name, value) {
            return Err(missing(name));
        }
    }
    Ok(rule)
}

fn check_learning_rates(
    description: &Description,
    steps: u64,
    groups: &[Hyperparameters],
) -> Result<(), TraceError> {
    let Some(rates) = &description.learning_rates else { return Ok(()) };
    if (rates.len() as u64) < steps {
        return Err(TraceError::FewLearningRates { found: rates.len(), steps });
    }
    for (index, &learning_rate) in rates.iter().enumerate() {
        for (group, hyperparameters) in groups.iter().enumerate() {
            hyperparameters
                .with_learning_rate(learning_rate)
                .validate()
                .map_err(|source| TraceError::LearningRate { index, group, source })?;
        }
    }
    Ok(())
}

/// Parameters in the order of their names, each in exactly one group.
fn parameters(description: &Description, file: &SafeTensors<'_>) -> Result<Vec<TraceParameter>, TraceError> {
    let mut group_of = HashMap::new();
    for (group, of) in description.groups.iter().enumerate() {
        for name in &of.params {
            if group_of.insert(name.as_str(), group).is_some() {
                return Err(TraceError::ListedTwice { name: name.clone() });
            }
        }
    }
    let mut parameters = Vec::new();
    for (tensor, view) in file.tensors() {
        if let Some(name) = tensor.strip_prefix("param.") {
            let group =
                group_of.remove(name).ok_or_else(|| TraceError::Unlisted { name: name.to_owned() })?;
            parameters.push(TraceParameter {
                name: name.to_owned(),
                group,
                shape: view.shape().to_vec(),
                values: elements(&tensor, &view)?,
            });
        }
    }
    if let Some((name, group)) = group_of.into_iter().min() {
        return Err(TraceError::UnknownListed { group, name: name.to_owned() });
    }
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(parameters)
}

#[cfg(test)]
mod tests;
