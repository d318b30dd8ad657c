//! Recorded gradients: one safetensors file, fully checked before anything runs.
//!
//! - `param.NAME`: initial parameter, f32, any shape;
//! - `grad.T.NAME`: its gradient in step T = 1, 2, …; absent, the parameter is left alone in that step;
//! - `expected.KIND.NAME`: what is expected after the last step, KIND being `param`, `exp_avg`, `exp_avg_sq` or `exp_avg_lr`;
//! - metadata `adamod.trace`: [`Description`] as JSON.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use adamod::{Formula, HyperparameterError, Hyperparameters, WeightDecay};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;
use thiserror::Error;

/// Key of the metadata.
const METADATA_KEY: &str = "adamod.trace";

/// More steps than anybody records: a damaged number must not run for years.
const MOST_STEPS: u64 = 100_000_000;

/// Kinds of tensors that can be expected and are written.
pub const KINDS: [&str; 4] = ["param", "exp_avg", "exp_avg_sq", "exp_avg_lr"];

/// What is wrong with a trace.
#[derive(Debug, Error)]
pub enum TraceError {
    #[error("{path}: cannot be read")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: is no safetensors file, or a truncated one")]
    Format { path: PathBuf, source: safetensors::SafeTensorError },
    #[error("metadata {METADATA_KEY:?} is missing")]
    NoMetadata,
    #[error("metadata {METADATA_KEY:?}, field {}", .0.path())]
    Json(#[from] serde_path_to_error::Error<serde_json::Error>),
    #[error("steps is {0}, needed is at least 0 and at most {MOST_STEPS}")]
    Steps(i64),
    #[error("learning_rates has {found} entries, needed is one a step, {steps}")]
    FewLearningRates { found: usize, steps: u64 },
    #[error("learning_rates[{index}], group {group}: {source}")]
    LearningRate { index: usize, group: usize, source: HyperparameterError },
    #[error("group {group}: betas has {found} entries, needed are 3")]
    Betas { group: usize, found: usize },
    #[error("group {group}: weight_decay has a kind but no value")]
    NoDecayValue { group: usize },
    #[error("group {group}: {source}")]
    Hyperparameter { group: usize, source: HyperparameterError },
    #[error("parameter {name:?} is listed twice in groups")]
    ListedTwice { name: String },
    #[error("group {group} lists parameter {name:?}, but tensor \"param.{name}\" is missing")]
    UnknownListed { group: usize, name: String },
    #[error("tensor \"param.{name}\" is in no group")]
    Unlisted { name: String },
    #[error("tensor {tensor:?} has dtype {found:?}, needed is F32")]
    Dtype { tensor: String, found: Dtype },
    #[error("tensor {tensor:?} has no elements")]
    Empty { tensor: String },
    #[error("tensor {tensor:?} belongs to parameter {name:?}, but tensor \"param.{name}\" is missing")]
    UnknownParameter { tensor: String, name: String },
    #[error("tensor {tensor:?} has shape {found:?}, its parameter has {needed:?}")]
    Shape { tensor: String, found: Vec<usize>, needed: Vec<usize> },
    #[error("tensor {tensor:?} is a gradient of no step: needed is grad.T.NAME with T = 1, 2, …")]
    GradientStep { tensor: String },
    #[error("tensor {tensor:?} is a gradient past the last step, {steps}")]
    GradientPastEnd { tensor: String, steps: u64 },
    #[error(
        "tensor {tensor:?} is none of param.NAME, grad.T.NAME, expected.KIND.NAME with KIND one of param, exp_avg, exp_avg_sq, exp_avg_lr"
    )]
    UnknownTensor { tensor: String },
}

#[derive(Debug, Deserialize)]
struct Description {
    formula: FormulaName,
    steps: i64,
    learning_rates: Option<Vec<f64>>,
    groups: Vec<GroupDescription>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FormulaName {
    Paper,
    Authors,
}

#[derive(Debug, Deserialize)]
struct GroupDescription {
    learning_rate: f64,
    betas: Vec<f64>,
    epsilon: f64,
    weight_decay: Option<DecayDescription>,
    params: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct DecayDescription {
    kind: DecayKind,
    value: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DecayKind {
    None,
    Decoupled,
    Coupled,
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
    pub formula: Formula,
    pub steps: u64,
    /// Learning rate of each step for all groups, if the trace has them.
    pub learning_rates: Option<Vec<f64>>,
    pub groups: Vec<Hyperparameters>,
    /// In the order of their names.
    pub parameters: Vec<TraceParameter>,
    /// By step (from 1), then by index of the parameter.
    gradients: HashMap<(u64, usize), Vec<f32>>,
    /// By kind, then by index of the parameter.
    expected: BTreeMap<(usize, usize), Vec<f32>>,
}

impl Trace {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let bytes =
            std::fs::read(path).map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
        Self::parse(&bytes, path)
    }

    /// Checks the bytes of a file; `path` is for messages.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, TraceError> {
        let format = |source| TraceError::Format { path: path.to_owned(), source };
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let file = SafeTensors::deserialize(bytes).map_err(format)?;
        let text = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(METADATA_KEY))
            .ok_or(TraceError::NoMetadata)?;
        let mut json = serde_json::Deserializer::from_str(text);
        let description: Description = serde_path_to_error::deserialize(&mut json)?;
        let steps = u64::try_from(description.steps).ok().filter(|&steps| steps <= MOST_STEPS);
        let steps = steps.ok_or(TraceError::Steps(description.steps))?;
        let groups = groups(&description)?;
        check_learning_rates(&description, steps, &groups)?;
        let mut trace = Self {
            formula: match description.formula {
                FormulaName::Paper => Formula::Paper,
                FormulaName::Authors => Formula::AuthorsCode,
            },
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

    /// Gradient of a parameter in a step, if it has one.
    pub fn gradient(&self, step: u64, parameter: usize) -> Option<&[f32]> {
        self.gradients.get(&(step, parameter)).map(Vec::as_slice)
    }

    /// What is expected of a kind (index into [`KINDS`]) for a parameter.
    pub fn expected(&self, kind: usize, parameter: usize) -> Option<&[f32]> {
        self.expected.get(&(kind, parameter)).map(Vec::as_slice)
    }

    /// Hyperparameters of a group in a step.
    pub fn hyperparameters(&self, group: usize, step: u64) -> Hyperparameters {
        let mut hyperparameters = self.groups[group];
        if let Some(rates) = &self.learning_rates {
            hyperparameters.learning_rate = rates[step as usize - 1];
        }
        hyperparameters
    }

    fn take(&mut self, tensor: &str, view: &TensorView<'_>) -> Result<(), TraceError> {
        let unknown = || TraceError::UnknownTensor { tensor: tensor.to_owned() };
        let (what, rest) = tensor.split_once('.').ok_or_else(unknown)?;
        match what {
            "param" => Ok(()),
            "grad" => {
                let no_step = || TraceError::GradientStep { tensor: tensor.to_owned() };
                let (step, name) = rest.split_once('.').ok_or_else(no_step)?;
                // Written otherwise, two tensors could be the gradient of one step.
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
                let kind = KINDS.iter().position(|of| *of == kind).ok_or_else(unknown)?;
                let (parameter, values) = self.values_of(tensor, name, view)?;
                self.expected.insert((kind, parameter), values);
                Ok(())
            }
            _ => Err(unknown()),
        }
    }

    /// The parameter of that name, and the tensor's elements, which must have its shape.
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
        let needed = &self.parameters[index].shape;
        if view.shape() != needed {
            return Err(TraceError::Shape {
                tensor: tensor.to_owned(),
                found: view.shape().to_vec(),
                needed: needed.clone(),
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
    let group = |(group, of): (usize, &GroupDescription)| {
        let betas: [f64; 3] =
            of.betas.as_slice().try_into().map_err(|_| TraceError::Betas { group, found: of.betas.len() })?;
        let no_decay = DecayDescription { kind: DecayKind::None, value: None };
        let DecayDescription { kind, value } = of.weight_decay.as_ref().unwrap_or(&no_decay);
        let value = match (kind, value) {
            (_, Some(value)) => *value,
            (DecayKind::None, None) => 0.0,
            (_, None) => return Err(TraceError::NoDecayValue { group }),
        };
        let mut hyperparameters = Hyperparameters {
            learning_rate: of.learning_rate,
            betas,
            epsilon: of.epsilon,
            weight_decay: WeightDecay::Decoupled(value),
            ..Hyperparameters::default()
        };
        // The value is checked even where the kind says that it is not used.
        hyperparameters.validate().map_err(|source| TraceError::Hyperparameter { group, source })?;
        hyperparameters.weight_decay = match kind {
            DecayKind::None => WeightDecay::None,
            DecayKind::Decoupled => WeightDecay::Decoupled(value),
            DecayKind::Coupled => WeightDecay::Coupled(value),
        };
        Ok(hyperparameters)
    };
    description.groups.iter().enumerate().map(group).collect()
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
            Hyperparameters { learning_rate, ..*hyperparameters }
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
