//! Recorded gradients: one safetensors file, which is checked completely before anything runs. `docs/replay.md` has the format.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use adamod::{DType, Hyperparameters, Objective, OutOfRange, RuleKind, StateTensor, WeightDecay};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::names;

mod rule;

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
    #[error("{field} is given, expected none with rule {rule}, whose hyperparameters are {fields}")]
    Superfluous { field: String, rule: RuleKind, fields: String },
    #[error("{field} is given, expected none: no group has a rule with this hyperparameter")]
    Unused { field: String },
    #[error("{field} is given twice")]
    GivenTwice { field: String },
    #[error("{field} has {found} entries, expected {expected} with rule {rule}")]
    Entries { field: String, found: usize, expected: usize, rule: RuleKind },
    #[error("{field} is {found}, expected {expected}")]
    Value { field: String, found: String, expected: String },
    #[error("groups[{group}].weight_decay has a kind but no value")]
    NoDecayValue { group: usize },
    #[error(
        "groups[{group}].weight_decay.max_learning_rate is missing, expected one with kind fully_decoupled"
    )]
    NoMaxLearningRate { group: usize },
    #[error(
        "groups[{group}].weight_decay.max_learning_rate is given, expected none without kind fully_decoupled"
    )]
    MaxLearningRate { group: usize },
    #[error("groups[{group}]")]
    Hyperparameter { group: usize, source: OutOfRange },
    #[error("parameter {name:?} is listed twice in groups")]
    ListedTwice { name: String },
    #[error("groups[{group}] lists parameter {name:?}, but tensor \"param.{name}\" is missing")]
    UnknownListed { group: usize, name: String },
    #[error("tensor \"param.{name}\" is in no group")]
    Unlisted { name: String },
    #[error("tensor {tensor:?} has dtype {found:?}, expected F32, F16 or BF16")]
    Dtype { tensor: String, found: Dtype },
    #[error("tensor {tensor:?} has dtype {found:?}, expected F32, as states have")]
    StateDtype { tensor: String, found: Dtype },
    #[error("tensor {tensor:?} has dtype {found:?}, expected {expected}, or F32")]
    ValueDtype { tensor: String, found: Dtype, expected: DType },
    #[error("tensor {tensor:?} is {found}, expected {expected} as other gradients of its parameter")]
    GradientDtype { tensor: String, found: DType, expected: DType },
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
struct Description {
    #[serde(default = "default_rule", deserialize_with = "rule_by_name")]
    rule: RuleKind,
    steps: i64,
    learning_rates: Option<Vec<f64>>,
    groups: Vec<GroupDescription>,
    #[serde(rename = "made_by")]
    _made_by: Option<String>,
    /// Hyperparameters of all groups whose rule has them.
    #[serde(flatten)]
    hyperparameters: Fields,
}

#[derive(Debug, Deserialize)]
struct GroupDescription {
    #[serde(default, deserialize_with = "some_rule_by_name")]
    rule: Option<RuleKind>,
    learning_rate: f64,
    weight_decay: Option<DecayDescription>,
    #[serde(default)]
    maximize: bool,
    #[serde(default)]
    cautious: bool,
    #[serde(default)]
    cautious_weight_decay: bool,
    params: Vec<String>,
    /// The hyperparameters that only the rule has.
    #[serde(flatten)]
    hyperparameters: Fields,
}

/// All fields that have no meaning for every rule, in their order.
#[derive(Debug)]
struct Fields(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("hyperparameters by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DecayDescription {
    kind: DecayKind,
    value: Option<f64>,
    /// Only with fully decoupled decay.
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
    let text = String::deserialize(deserializer)?;
    names::find(RuleKind::ALL, RuleKind::name, &text).ok_or_else(|| {
        let all = names::list(RuleKind::ALL, RuleKind::name);
        D::Error::custom(format_args!("got {text:?}, expected one of {all}"))
    })
}

fn some_rule_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RuleKind>, D::Error> {
    rule_by_name(deserializer).map(Some)
}

/// The name of what is compared of a parameter besides its states: its values.
pub const VALUES: &str = "param";

/// The elements of a tensor, widened to f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    pub dtype: DType,
    pub elements: Vec<f32>,
}

/// A parameter of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceParameter {
    pub name: String,
    pub group: usize,
    pub shape: Vec<usize>,
    /// The initial values, in the parameter's data type.
    pub values: Numbers,
    /// The data type of its gradients, if it has any.
    pub gradients: Option<DType>,
}

/// A checked trace.
#[derive(Debug, PartialEq)]
pub struct Trace {
    pub steps: u64,
    /// The learning rate of each step for all groups, if the trace has them.
    pub learning_rates: Option<Vec<f64>>,
    pub groups: Vec<Hyperparameters>,
    /// In the order of their names.
    pub parameters: Vec<TraceParameter>,
    /// By step (from 1), then by index of the parameter.
    gradients: HashMap<(u64, usize), Vec<f32>>,
    /// By what is expected, `param` or the name of a state, and by index of the parameter.
    expected: BTreeMap<(&'static str, usize), Numbers>,
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
        let mut trace = Self {
            steps,
            groups,
            parameters: parameters(&description, &file)?,
            learning_rates: description.learning_rates,
            gradients: HashMap::new(),
            expected: BTreeMap::new(),
        };
        // By name, so that of several errors the same one is named each time.
        let tensors: BTreeMap<_, _> = file.tensors().into_iter().collect();
        for (tensor, view) in &tensors {
            trace.take(tensor, view)?;
        }
        Ok(trace)
    }

    /// The states of a parameter, in the order of its rule.
    pub fn states(&self, parameter: &TraceParameter) -> &'static [StateTensor] {
        self.groups[parameter.group].rule.states()
    }

    /// What is compared: `param`, then the states of all rules in the order of the groups.
    pub fn kinds(&self) -> Vec<&'static str> {
        let mut kinds = vec![VALUES];
        for name in self.groups.iter().flat_map(|group| group.rule.state_names()) {
            if !kinds.contains(&name) {
                kinds.push(name);
            }
        }
        kinds
    }

    /// The gradient of a parameter in a step, if it has one.
    pub fn gradient(&self, step: u64, parameter: usize) -> Option<&[f32]> {
        self.gradients.get(&(step, parameter)).map(Vec::as_slice)
    }

    /// What is expected of a parameter, if the trace has it: its values, or the state of this name.
    pub fn expected(&self, kind: &'static str, parameter: usize) -> Option<&Numbers> {
        self.expected.get(&(kind, parameter))
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
        let unknown =
            |kinds: &[&str]| TraceError::UnknownTensor { tensor: tensor.to_owned(), kinds: kinds.join(", ") };
        let (what, rest) = tensor.split_once('.').ok_or_else(|| unknown(&self.kinds()))?;
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
                let (parameter, Numbers { dtype, elements }) = self.numbers_of(tensor, name, view)?;
                let expected = *self.parameters[parameter].gradients.get_or_insert(dtype);
                if dtype != expected {
                    let (tensor, found) = (tensor.to_owned(), dtype);
                    return Err(TraceError::GradientDtype { tensor, found, expected });
                }
                self.gradients.insert((step, parameter), elements);
                Ok(())
            }
            "expected" => {
                let (kind, name) = rest.split_once('.').ok_or_else(|| unknown(&self.kinds()))?;
                let index = self.index_of(tensor, name)?;
                let parameter = &self.parameters[index];
                let states = self.states(parameter).iter().map(|state| state.name);
                let kinds: Vec<_> = [VALUES].into_iter().chain(states).collect();
                let kind = kinds.iter().copied().find(|&of| of == kind).ok_or_else(|| unknown(&kinds))?;
                let (_, numbers) = self.numbers_of(tensor, name, view)?;
                let (tensor, found, expected) = (tensor.to_owned(), view.dtype(), parameter.values.dtype);
                if kind != VALUES && numbers.dtype != DType::F32 {
                    return Err(TraceError::StateDtype { tensor, found });
                }
                if ![DType::F32, expected].contains(&numbers.dtype) {
                    return Err(TraceError::ValueDtype { tensor, found, expected });
                }
                self.expected.insert((kind, index), numbers);
                Ok(())
            }
            _ => Err(unknown(&self.kinds())),
        }
    }

    fn index_of(&self, tensor: &str, name: &str) -> Result<usize, TraceError> {
        self.parameters
            .binary_search_by(|parameter| parameter.name.as_str().cmp(name))
            .map_err(|_| TraceError::UnknownParameter { tensor: tensor.to_owned(), name: name.to_owned() })
    }

    /// The parameter with this name, and the elements of the tensor, which must have its shape.
    fn numbers_of(
        &self,
        tensor: &str,
        name: &str,
        view: &TensorView<'_>,
    ) -> Result<(usize, Numbers), TraceError> {
        let index = self.index_of(tensor, name)?;
        let expected = &self.parameters[index].shape;
        if view.shape() != expected {
            return Err(TraceError::Shape {
                tensor: tensor.to_owned(),
                found: view.shape().to_vec(),
                expected: expected.clone(),
            });
        }
        Ok((index, numbers(tensor, view)?))
    }
}

fn numbers(tensor: &str, view: &TensorView<'_>) -> Result<Numbers, TraceError> {
    let data = view.data();
    let halves = || data.chunks_exact(2).map(|half| u16::from_le_bytes([half[0], half[1]]));
    let (dtype, elements) = match view.dtype() {
        Dtype::F32 => (DType::F32, bytemuck::pod_collect_to_vec(data)),
        Dtype::F16 => (DType::F16, halves().map(|bits| f16::from_bits(bits).to_f32()).collect()),
        Dtype::BF16 => (DType::Bf16, halves().map(|bits| bf16::from_bits(bits).to_f32()).collect()),
        found => return Err(TraceError::Dtype { tensor: tensor.to_owned(), found }),
    };
    if data.is_empty() {
        return Err(TraceError::Empty { tensor: tensor.to_owned() });
    }
    Ok(Numbers { dtype, elements })
}

fn groups(description: &Description) -> Result<Vec<Hyperparameters>, TraceError> {
    let rules = rule::of_groups(description)?;
    let group = |(group, (of, rule)): (usize, (&GroupDescription, adamod::Rule))| {
        let no_decay = DecayDescription { kind: DecayKind::None, value: None, max_learning_rate: None };
        let decay = of.weight_decay.as_ref().unwrap_or(&no_decay);
        let lambda = match (decay.kind, decay.value) {
            (_, Some(lambda)) => lambda,
            (DecayKind::None, None) => 0.0,
            (_, None) => return Err(TraceError::NoDecayValue { group }),
        };
        let weight_decay = match (decay.kind, decay.max_learning_rate) {
            (DecayKind::FullyDecoupled, Some(max_learning_rate)) => {
                WeightDecay::FullyDecoupled { lambda, max_learning_rate }
            }
            (DecayKind::FullyDecoupled, None) => return Err(TraceError::NoMaxLearningRate { group }),
            (_, Some(_)) => return Err(TraceError::MaxLearningRate { group }),
            (DecayKind::Coupled, None) => WeightDecay::Coupled(lambda),
            (DecayKind::None | DecayKind::Decoupled, None) => WeightDecay::Decoupled(lambda),
        };
        let objective = if of.maximize { Objective::Maximize } else { Objective::Minimize };
        let hyperparameters = Hyperparameters::from(rule)
            .with_learning_rate(of.learning_rate)
            .with_objective(objective)
            .with_cautious(of.cautious)
            .with_cautious_weight_decay(of.cautious_weight_decay)
            .with_weight_decay(weight_decay);
        // The value is checked even if the kind does not use it.
        hyperparameters.validate().map_err(|source| TraceError::Hyperparameter { group, source })?;
        Ok(match decay.kind {
            DecayKind::None => hyperparameters.with_weight_decay(WeightDecay::None),
            _ => hyperparameters,
        })
    };
    description.groups.iter().zip(rules).enumerate().map(group).collect()
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
                values: numbers(&tensor, &view)?,
                gradients: None,
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
