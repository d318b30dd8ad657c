//! Checkpoints: everything a continuation needs to be the same bit for bit, but for the parameters themselves, which are the
//! engine's. In memory, and as a safetensors file.
//!
//! A file has the tensors `exp_avg.NAME`, `exp_avg_sq.NAME`, `exp_avg_lr.NAME` (or `momentum_buffer.NAME`) of each parameter in
//! its format of state: F32, BF16, or U8 codes with `scales.NAME`; and `master.NAME`, what master weights keep besides the
//! parameter. All else is in the metadata, numbers of hyperparameters as the hexadecimal digits of their f64.

#[cfg(not(target_arch = "wasm32"))]
mod file;

use std::collections::{HashMap, HashSet};

use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::blocks::Parts;
use crate::error::CheckpointError;
use crate::format::{BlockLayout, DType, MasterWeights, Precision, StateFormat};
use crate::hyperparameters::{Formula, Hyperparameters, Objective, Rule, WeightDecay};
use crate::layout;

/// State of an optimizer between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub(crate) rule: Rule,
    pub(crate) formula: Formula,
    pub(crate) seed: u64,
    pub(crate) groups: Vec<(Hyperparameters, Precision)>,
    pub(crate) parameters: Vec<SavedParameter>,
    /// What the device keeps, if it prepares steps.
    pub(crate) control: Option<layout::Control>,
    pub(crate) adapter: String,
    pub(crate) driver: String,
}

/// What a checkpoint says of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointParameter<'a> {
    /// Its label.
    pub label: &'a str,
    /// Its elements.
    pub len: u64,
    /// Their type.
    pub dtype: DType,
    /// Its group: an index into [`Checkpoint::groups`].
    pub group: usize,
    /// Steps taken.
    pub step: u64,
}

/// One parameter in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SavedParameter {
    pub label: String,
    pub len: u64,
    pub dtype: DType,
    pub group: u32,
    pub step: u64,
    pub layout: BlockLayout,
    /// Its blocks.
    pub words: Vec<u32>,
}

const METADATA_KEY: &str = "adamod.checkpoint";
const CHECKSUM_KEY: &str = "adamod.checksum";
const VERSION: u32 = 1;

/// The metadata's JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    crate_version: String,
    adapter: String,
    driver: String,
    rule: String,
    formula: String,
    seed: u64,
    groups: Vec<GroupHeader>,
    parameters: Vec<ParameterHeader>,
    control: Option<ControlHeader>,
}

/// f64 as 16 hexadecimal digits of its bits.
type Hex = String;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupHeader {
    learning_rate: Hex,
    betas: [Hex; 3],
    epsilon: Hex,
    momentum: Hex,
    weight_decay: String,
    weight_decay_value: Hex,
    maximize: bool,
    state: String,
    master_weights: String,
    f32_state_below: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParameterHeader {
    name: String,
    len: u64,
    dtype: String,
    group: u32,
    step: u64,
    state: String,
    master_weights: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ControlHeader {
    loss_scale: Hex,
    multiplier: Hex,
    norm: Hex,
    growth_tracker: u32,
    taken: u32,
    skipped: u32,
}

/// Names in files of the values of an enum.
trait Named: Sized + Copy + PartialEq + 'static {
    const FIELD: &'static str;
    const NAMES: &'static [(Self, &'static str)];

    fn name(self) -> String {
        let found = Self::NAMES.iter().find(|(value, _)| *value == self);
        found.map_or("", |(_, name)| name).to_owned()
    }

    fn from_name(name: &str) -> Result<Self, CheckpointError> {
        let found = Self::NAMES.iter().find(|(_, of)| *of == name);
        let names: Vec<_> = Self::NAMES.iter().map(|(_, name)| *name).collect();
        found.map(|(value, _)| *value).ok_or_else(|| CheckpointError::Metadata {
            what: format!("{} is {name:?}, needed is one of {}", Self::FIELD, names.join(", ")),
        })
    }
}

impl Named for Rule {
    const FIELD: &'static str = "rule";
    const NAMES: &'static [(Self, &'static str)] =
        &[(Rule::AdaMod, "adamod"), (Rule::Adam, "adam"), (Rule::Sgd, "sgd")];
}

impl Named for Formula {
    const FIELD: &'static str = "formula";
    const NAMES: &'static [(Self, &'static str)] =
        &[(Formula::Paper, "paper"), (Formula::AuthorsCode, "authors")];
}

impl Named for DType {
    const FIELD: &'static str = "dtype";
    const NAMES: &'static [(Self, &'static str)] =
        &[(DType::F32, "f32"), (DType::F16, "f16"), (DType::Bf16, "bf16")];
}

impl Named for StateFormat {
    const FIELD: &'static str = "state";
    const NAMES: &'static [(Self, &'static str)] =
        &[(StateFormat::F32, "f32"), (StateFormat::Bf16, "bf16"), (StateFormat::Q8, "q8")];
}

impl Named for MasterWeights {
    const FIELD: &'static str = "master_weights";
    const NAMES: &'static [(Self, &'static str)] = &[
        (MasterWeights::None, "none"),
        (MasterWeights::Split24, "split24"),
        (MasterWeights::Split32, "split32"),
        (MasterWeights::F32, "f32"),
    ];
}

fn to_hex(value: f64) -> Hex {
    format!("{:016x}", value.to_bits())
}

fn from_hex(name: &str, hex: &str) -> Result<f64, CheckpointError> {
    let bits = (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok()).flatten();
    bits.map(f64::from_bits).ok_or_else(|| CheckpointError::Metadata {
        what: format!("{name} is {hex:?}, needed are 16 hexadecimal digits"),
    })
}

impl GroupHeader {
    fn new(hyperparameters: &Hyperparameters, precision: &Precision) -> Self {
        let (kind, value) = match hyperparameters.weight_decay {
            WeightDecay::None => ("none", 0.0),
            WeightDecay::Decoupled(lambda) => ("decoupled", lambda),
            WeightDecay::Coupled(lambda) => ("coupled", lambda),
        };
        Self {
            learning_rate: to_hex(hyperparameters.learning_rate),
            betas: hyperparameters.betas.map(to_hex),
            epsilon: to_hex(hyperparameters.epsilon),
            momentum: to_hex(hyperparameters.momentum),
            weight_decay: kind.to_owned(),
            weight_decay_value: to_hex(value),
            maximize: hyperparameters.objective == Objective::Maximize,
            state: precision.state.name(),
            master_weights: precision.master_weights.name(),
            f32_state_below: precision.f32_state_below,
        }
    }

    fn read(&self) -> Result<(Hyperparameters, Precision), CheckpointError> {
        let lambda = from_hex("weight_decay_value", &self.weight_decay_value)?;
        let weight_decay = match self.weight_decay.as_str() {
            "none" => WeightDecay::None,
            "decoupled" => WeightDecay::Decoupled(lambda),
            "coupled" => WeightDecay::Coupled(lambda),
            other => {
                let what = format!("weight_decay is {other:?}, needed is one of none, decoupled, coupled");
                return Err(CheckpointError::Metadata { what });
            }
        };
        let [beta1, beta2, beta3] = &self.betas;
        let hyperparameters = Hyperparameters {
            learning_rate: from_hex("learning_rate", &self.learning_rate)?,
            betas: [from_hex("betas[0]", beta1)?, from_hex("betas[1]", beta2)?, from_hex("betas[2]", beta3)?],
            epsilon: from_hex("epsilon", &self.epsilon)?,
            momentum: from_hex("momentum", &self.momentum)?,
            weight_decay,
            objective: if self.maximize { Objective::Maximize } else { Objective::Minimize },
        };
        hyperparameters.validate()?;
        let precision = Precision {
            state: StateFormat::from_name(&self.state)?,
            master_weights: MasterWeights::from_name(&self.master_weights)?,
            f32_state_below: self.f32_state_below,
        };
        Ok((hyperparameters, precision))
    }
}

impl SavedParameter {
    /// Names and types of its tensors, in the order of [`Parts`]; parts without bytes have none.
    fn tensors(&self, rule: Rule) -> Vec<(String, Dtype, Vec<usize>)> {
        let shape = vec![self.len as usize];
        let state_dtype = match self.layout.state {
            StateFormat::F32 => Dtype::F32,
            StateFormat::Bf16 => Dtype::BF16,
            StateFormat::Q8 => Dtype::U8,
        };
        let mut tensors: Vec<_> = rule
            .state_names()
            .iter()
            .map(|name| (format!("{name}.{}", self.label), state_dtype, shape.clone()))
            .collect();
        let (_, scale_bytes, _) = Parts::sizes(self.layout, self.len);
        if scale_bytes > 0 {
            tensors.push((format!("scales.{}", self.label), Dtype::U32, vec![scale_bytes as usize / 4]));
        }
        let master = match self.layout.master_weights {
            MasterWeights::None => None,
            MasterWeights::Split24 => Some(Dtype::I8),
            MasterWeights::Split32 => Some(Dtype::I16),
            MasterWeights::F32 => Some(Dtype::I32),
        };
        tensors.extend(master.map(|dtype| (format!("master.{}", self.label), dtype, shape)));
        tensors
    }
}

impl Checkpoint {
    /// The update rule it was made with.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// The formula of AdaMod.
    pub fn formula(&self) -> Formula {
        self.formula
    }

    /// The seed of stochastic rounding.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Its groups, in order of registration.
    pub fn groups(&self) -> &[(Hyperparameters, Precision)] {
        &self.groups
    }

    /// Its parameters, in order of registration.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = CheckpointParameter<'_>> {
        self.parameters.iter().map(|parameter| CheckpointParameter {
            label: &parameter.label,
            len: parameter.len,
            dtype: parameter.dtype,
            group: parameter.group as usize,
            step: parameter.step,
        })
    }

    /// Adapter and driver that it was made on.
    pub fn made_on(&self) -> (&str, &str) {
        (&self.adapter, &self.driver)
    }

    /// The file's content.
    ///
    /// # Errors
    /// If there are too many parameters: with labels of 20 characters more than some 200,000.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let parts: Vec<_> = self
            .parameters
            .iter()
            .map(|parameter| Parts::of_words(parameter.layout, parameter.len, &parameter.words))
            .collect();
        let mut views = Vec::new();
        let mut checksum = crc32fast::Hasher::new();
        let header = serde_json::to_string(&self.header())
            .map_err(|error| CheckpointError::Metadata { what: error.to_string() })?;
        checksum.update(header.as_bytes());
        for (parameter, parts) in self.parameters.iter().zip(&parts) {
            let data = parts.states.iter().chain([&parts.scales, &parts.master]).filter(|d| !d.is_empty());
            for ((name, dtype, shape), data) in parameter.tensors(self.rule).into_iter().zip(data) {
                checksum.update(data);
                views.push((name, TensorView::new(dtype, shape, data)?));
            }
        }
        let metadata = HashMap::from([
            (METADATA_KEY.to_owned(), header),
            (CHECKSUM_KEY.to_owned(), format!("{:08x}", checksum.finalize())),
        ]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| match error {
            SafeTensorError::HeaderTooLarge => {
                CheckpointError::HeaderTooLarge { parameters: self.parameters.len() }
            }
            error => error.into(),
        })
    }

    fn header(&self) -> Header {
        Header {
            version: VERSION,
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
            adapter: self.adapter.clone(),
            driver: self.driver.clone(),
            rule: self.rule.name(),
            formula: self.formula.name(),
            seed: self.seed,
            groups: self.groups.iter().map(|(h, precision)| GroupHeader::new(h, precision)).collect(),
            parameters: self
                .parameters
                .iter()
                .map(|parameter| ParameterHeader {
                    name: parameter.label.clone(),
                    len: parameter.len,
                    dtype: parameter.dtype.to_string(),
                    group: parameter.group,
                    step: parameter.step,
                    state: parameter.layout.state.name(),
                    master_weights: parameter.layout.master_weights.name(),
                })
                .collect(),
            control: self.control.map(|control| ControlHeader {
                loss_scale: to_hex(control.loss_scale.into()),
                multiplier: to_hex(control.multiplier.into()),
                norm: to_hex(control.norm.into()),
                growth_tracker: control.growth_tracker,
                taken: control.taken,
                skipped: control.skipped,
            }),
        }
    }

    /// Reads a file's content. Everything is checked: structure, names, sizes, and the checksum of metadata and data.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let header_bytes = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
        if header_bytes.is_none_or(|length| length > bytes.len() as u64) {
            return Err(CheckpointError::Truncated { bytes: bytes.len() as u64 });
        }
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let file = SafeTensors::deserialize(bytes)?;
        let (text, checksum) = (entry(&metadata, METADATA_KEY)?, entry(&metadata, CHECKSUM_KEY)?);
        let header: Header = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text))
            .map_err(|error| CheckpointError::Metadata { what: error.to_string() })?;
        if header.version != VERSION {
            return Err(CheckpointError::Version { found: header.version, needed: VERSION });
        }
        let rule = Rule::from_name(&header.rule)?;
        let formula = Formula::from_name(&header.formula)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(text.as_bytes());
        let groups = header.groups.iter().map(GroupHeader::read).collect::<Result<Vec<_>, _>>()?;
        let mut parameters = Vec::with_capacity(header.parameters.len());
        let mut tensors = 0;
        let mut names = HashSet::new();
        for parameter in &header.parameters {
            if !names.insert(&parameter.name) {
                let what = format!("parameter {:?} is listed twice", parameter.name);
                return Err(CheckpointError::Metadata { what });
            }
            let (read, count) = parameter.read(rule, groups.len(), &file, &mut hasher)?;
            tensors += count;
            parameters.push(read);
        }
        if file.len() != tensors {
            return Err(CheckpointError::Metadata {
                what: format!("the file has {} tensors, its parameters have {tensors}", file.len()),
            });
        }
        let found = format!("{:08x}", hasher.finalize());
        if found != *checksum {
            return Err(CheckpointError::Checksum { found, needed: checksum.clone() });
        }
        let control = header.control.as_ref().map(ControlHeader::read).transpose()?;
        Ok(Self {
            rule,
            formula,
            seed: header.seed,
            groups,
            parameters,
            control,
            adapter: header.adapter,
            driver: header.driver,
        })
    }
}

fn entry<'a>(metadata: &'a Metadata, key: &'static str) -> Result<&'a String, CheckpointError> {
    let entries = metadata.metadata().as_ref();
    entries.and_then(|entries| entries.get(key)).ok_or_else(|| CheckpointError::Metadata {
        what: format!("the file has no metadata {key:?}: it is no checkpoint of adamod"),
    })
}

impl ParameterHeader {
    /// The parameter, and how many tensors it has.
    fn read(
        &self,
        rule: Rule,
        groups: usize,
        file: &SafeTensors<'_>,
        checksum: &mut crc32fast::Hasher,
    ) -> Result<(SavedParameter, usize), CheckpointError> {
        let wrong =
            |what: String| CheckpointError::Metadata { what: format!("parameter {:?}: {what}", self.name) };
        if self.group as usize >= groups {
            return Err(wrong(format!("its group is {}, there are {groups}", self.group)));
        }
        let dtype = DType::from_name(&self.dtype)?;
        let layout = BlockLayout {
            states: rule.states(),
            state: StateFormat::from_name(&self.state)?,
            master_weights: MasterWeights::from_name(&self.master_weights)?,
        };
        if !layout.master_weights.fit(dtype) {
            return Err(wrong(format!("its master weights are {}, its type {dtype}", self.master_weights)));
        }
        // A length that no file can hold would overflow what is computed from it.
        if self.len == 0 || self.len > 1 << 48 {
            return Err(wrong(format!("its length is {}", self.len)));
        }
        let mut parameter = SavedParameter {
            label: self.name.clone(),
            len: self.len,
            dtype,
            group: self.group,
            step: self.step,
            layout,
            words: Vec::new(),
        };
        let tensors = parameter.tensors(rule);
        let mut data = Vec::with_capacity(tensors.len());
        for (name, dtype, shape) in &tensors {
            let tensor =
                file.tensor(name).map_err(|_| CheckpointError::MissingTensor { name: name.clone() })?;
            if tensor.dtype() != *dtype || tensor.shape() != shape {
                return Err(CheckpointError::Tensor {
                    name: name.clone(),
                    found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
                    needed: format!("{dtype:?} {shape:?}"),
                });
            }
            checksum.update(tensor.data());
            data.push(tensor.data().to_vec());
        }
        let mut data = data.into_iter();
        let (_, scale_bytes, master_bytes) = Parts::sizes(layout, self.len);
        let parts = Parts {
            states: data.by_ref().take(layout.states as usize).collect(),
            scales: if scale_bytes > 0 { data.next().unwrap_or_default() } else { Vec::new() },
            master: if master_bytes > 0 { data.next().unwrap_or_default() } else { Vec::new() },
        };
        parameter.words = parts.to_words(layout, self.len);
        Ok((parameter, tensors.len()))
    }
}

impl ControlHeader {
    fn read(&self) -> Result<layout::Control, CheckpointError> {
        let loss_scale = from_hex("loss_scale", &self.loss_scale)? as f32;
        if !(loss_scale.is_finite() && loss_scale > 0.0) {
            let what = format!("loss_scale is {loss_scale}, needed is a finite number above 0");
            return Err(CheckpointError::Metadata { what });
        }
        Ok(layout::Control {
            loss_scale,
            multiplier: from_hex("multiplier", &self.multiplier)? as f32,
            norm: from_hex("norm", &self.norm)? as f32,
            growth_tracker: self.growth_tracker,
            taken: self.taken,
            skipped: self.skipped,
        })
    }
}
