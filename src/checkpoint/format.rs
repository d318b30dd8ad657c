//! The content of a checkpoint file.
//!
//! A safetensors file has a tensor `STATE.LABEL` for each state of each parameter, in the parameter's state format: F32, BF16, or U8 codes
//! with their `scales.LABEL`. `master.LABEL` holds the master weights. Everything else is in the metadata, with the numbers of
//! hyperparameters as the hexadecimal digits of their f64.

use std::collections::{BTreeMap, HashMap, HashSet};

use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::CheckpointError;
use super::{Checkpoint, SavedParameter};
use crate::hyperparameters::{Group, Hyperparameters, Objective, WeightDecay};
use crate::kernels::abi;
use crate::rules::RuleKind;
use crate::storage::block::BlockLayout;
use crate::storage::contents::Parts;
use crate::storage::dtype::DType;
use crate::storage::master::MasterWeights;
use crate::storage::state::{Precision, StateFormat};

const METADATA_KEY: &str = "adamod.checkpoint";
const CHECKSUM_KEY: &str = "adamod.checksum";
/// Version 1 had one rule for all groups.
const VERSION: u32 = 2;

/// The JSON of the metadata.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    crate_version: String,
    adapter: String,
    driver: String,
    seed: u64,
    groups: Vec<GroupHeader>,
    parameters: Vec<ParameterHeader>,
    control: Option<ControlHeader>,
}

/// The bits of an f64 as 16 hexadecimal digits.
type Hex = String;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupHeader {
    rule: String,
    learning_rate: Hex,
    /// The hyperparameters that only the rule has, by name.
    hyperparameters: BTreeMap<String, Hex>,
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
    /// The first element and the length of the tensor that it is a part of, if it is not a whole one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shard: Option<(u64, u64)>,
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

impl Header {
    fn read(text: &str) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = json(text)?;
        match version {
            1 => Ok(json::<v1::Header>(text)?.upgraded()),
            VERSION => json(text),
            found => Err(CheckpointError::Version { found, expected: VERSION }),
        }
    }
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, CheckpointError> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text))
        .map_err(|error| wrong(error.to_string()))
}

fn wrong(what: String) -> CheckpointError {
    CheckpointError::Metadata { what }
}

/// The header of version 1, with one rule and one formula for all groups.
mod v1 {
    use serde::Deserialize;

    use super::{ControlHeader, Hex, ParameterHeader, to_hex};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Header {
        #[expect(dead_code, reason = "it was looked at before")]
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

    #[derive(Debug, Deserialize)]
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

    impl Header {
        /// The same in the present version. A rule takes the hyperparameters that it has.
        pub fn upgraded(self) -> super::Header {
            let formula = if self.formula == "authors" { 1.0 } else { 0.0 };
            let group = |group: GroupHeader| {
                let [beta1, beta2, beta3] = group.betas;
                let all = [
                    ("betas[0]", beta1),
                    ("betas[1]", beta2),
                    ("betas[2]", beta3),
                    ("epsilon", group.epsilon),
                    ("momentum", group.momentum),
                    ("formula", to_hex(formula)),
                ];
                let of_rule: &[&str] = match self.rule.as_str() {
                    "adamod" => &["betas[0]", "betas[1]", "betas[2]", "epsilon", "formula"],
                    "adam" => &["betas[0]", "betas[1]", "epsilon"],
                    _ => &["momentum"],
                };
                super::GroupHeader {
                    rule: self.rule.clone(),
                    learning_rate: group.learning_rate,
                    hyperparameters: all
                        .into_iter()
                        .filter(|(name, _)| of_rule.contains(name))
                        .map(|(name, hex)| (name.to_owned(), hex))
                        .collect(),
                    weight_decay: group.weight_decay,
                    weight_decay_value: group.weight_decay_value,
                    maximize: group.maximize,
                    state: group.state,
                    master_weights: group.master_weights,
                    f32_state_below: group.f32_state_below,
                }
            };
            super::Header {
                version: super::VERSION,
                crate_version: self.crate_version,
                adapter: self.adapter,
                driver: self.driver,
                seed: self.seed,
                groups: self.groups.into_iter().map(group).collect(),
                parameters: self.parameters,
                control: self.control,
            }
        }
    }
}

/// Enums whose values have names in files.
trait Named: Sized + Copy + 'static {
    const FIELD: &'static str;
    const ALL: &'static [Self];

    /// The name in files.
    fn of(self) -> &'static str;

    fn from_name(name: &str) -> Result<Self, CheckpointError> {
        let found = Self::ALL.iter().find(|value| value.of() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|value| value.of()).collect();
            wrong(format!("{} is {name:?}, expected one of {}", Self::FIELD, names.join(", ")))
        })
    }
}

impl Named for DType {
    const FIELD: &'static str = "dtype";
    const ALL: &'static [Self] = &Self::ALL;
    fn of(self) -> &'static str {
        self.name()
    }
}

impl Named for StateFormat {
    const FIELD: &'static str = "state";
    const ALL: &'static [Self] = &Self::ALL;
    fn of(self) -> &'static str {
        self.name()
    }
}

impl Named for MasterWeights {
    const FIELD: &'static str = "master_weights";
    const ALL: &'static [Self] = &Self::ALL;
    fn of(self) -> &'static str {
        self.name()
    }
}

impl Named for RuleKind {
    const FIELD: &'static str = "rule";
    const ALL: &'static [Self] = Self::ALL;
    fn of(self) -> &'static str {
        self.name()
    }
}

fn to_hex(value: f64) -> Hex {
    format!("{:016x}", value.to_bits())
}

fn from_hex(name: &str, hex: &str) -> Result<f64, CheckpointError> {
    let bits = (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok()).flatten();
    bits.map(f64::from_bits).ok_or_else(|| CheckpointError::Metadata {
        what: format!("{name} is {hex:?}, expected 16 hexadecimal digits"),
    })
}

impl GroupHeader {
    fn new(group: &Group) -> Self {
        let Group { hyperparameters, precision, .. } = group;
        let (kind, value) = match hyperparameters.weight_decay {
            WeightDecay::None => ("none", 0.0),
            WeightDecay::Decoupled(lambda) => ("decoupled", lambda),
            WeightDecay::Coupled(lambda) => ("coupled", lambda),
        };
        let rule = &hyperparameters.rule;
        Self {
            rule: rule.kind().name().to_owned(),
            learning_rate: to_hex(hyperparameters.learning_rate),
            hyperparameters: rule
                .hyperparameters()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), to_hex(value)))
                .collect(),
            weight_decay: kind.to_owned(),
            weight_decay_value: to_hex(value),
            maximize: hyperparameters.objective == Objective::Maximize,
            state: precision.state.name().to_owned(),
            master_weights: precision.master_weights.name().to_owned(),
            f32_state_below: precision.f32_state_below,
        }
    }

    fn read(&self) -> Result<Group, CheckpointError> {
        let lambda = from_hex("weight_decay_value", &self.weight_decay_value)?;
        let weight_decay = match self.weight_decay.as_str() {
            "none" => WeightDecay::None,
            "decoupled" => WeightDecay::Decoupled(lambda),
            "coupled" => WeightDecay::Coupled(lambda),
            other => {
                return Err(wrong(format!(
                    "weight_decay is {other:?}, expected one of none, decoupled, coupled"
                )));
            }
        };
        let mut rule = <RuleKind as Named>::from_name(&self.rule)?.with_defaults();
        for (name, _) in rule.hyperparameters() {
            let Some(hex) = self.hyperparameters.get(name) else {
                return Err(wrong(format!("hyperparameter {name:?} of rule {} is missing", self.rule)));
            };
            if !rule.set_hyperparameter(name, from_hex(name, hex)?) {
                return Err(wrong(format!("hyperparameter {name:?} of rule {} is {hex:?}", self.rule)));
            }
        }
        let known = rule.hyperparameters();
        if let Some(name) = self.hyperparameters.keys().find(|name| known.iter().all(|(of, _)| of != name)) {
            return Err(wrong(format!("rule {} has no hyperparameter {name:?}", self.rule)));
        }
        let objective = if self.maximize { Objective::Maximize } else { Objective::Minimize };
        let hyperparameters = Hyperparameters::from(rule)
            .with_learning_rate(from_hex("learning_rate", &self.learning_rate)?)
            .with_weight_decay(weight_decay)
            .with_objective(objective);
        hyperparameters.validate()?;
        let precision = Precision::new(StateFormat::from_name(&self.state)?)
            .with_master_weights(MasterWeights::from_name(&self.master_weights)?)
            .with_f32_state_below(self.f32_state_below);
        Ok(Group::new(hyperparameters).with_precision(precision))
    }
}

impl SavedParameter {
    /// Names and types of its tensors, in the order of [`Parts`]; parts without bytes have none.
    fn tensors(&self) -> Vec<(String, Dtype, Vec<usize>)> {
        let shape = vec![self.len as usize];
        let state_dtype = match self.layout.state {
            StateFormat::F32 => Dtype::F32,
            StateFormat::Bf16 => Dtype::BF16,
            StateFormat::Q8 => Dtype::U8,
        };
        let states = self.layout.states.iter();
        let mut tensors: Vec<_> = states
            .map(|state| (format!("{}.{}", state.name, self.label), state_dtype, shape.clone()))
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
    /// The content of the file.
    ///
    /// # Errors
    /// If there are too many parameters for a safetensors header: more than some 200,000 with labels of 20 characters.
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
            for ((name, dtype, shape), data) in parameter.tensors().into_iter().zip(data) {
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
            seed: self.seed,
            groups: self.groups.iter().map(GroupHeader::new).collect(),
            parameters: self
                .parameters
                .iter()
                .map(|parameter| ParameterHeader {
                    name: parameter.label.clone(),
                    len: parameter.len,
                    dtype: parameter.dtype.to_string(),
                    group: parameter.group,
                    step: parameter.step,
                    state: parameter.layout.state.name().to_owned(),
                    master_weights: parameter.layout.master_weights.name().to_owned(),
                    shard: (parameter.whole != parameter.len).then_some((parameter.first, parameter.whole)),
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

    /// Reads the content of a file of this version or an older one. Checks its structure, names, sizes, and the checksum of metadata and
    /// data.
    ///
    /// # Errors
    /// If anything is wrong with the content. The error says what and where.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let header_bytes = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
        if header_bytes.is_none_or(|length| length > bytes.len() as u64) {
            return Err(CheckpointError::Truncated { bytes: bytes.len() as u64 });
        }
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let file = SafeTensors::deserialize(bytes)?;
        let (text, checksum) = (entry(&metadata, METADATA_KEY)?, entry(&metadata, CHECKSUM_KEY)?);
        let header = Header::read(text)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(text.as_bytes());
        let groups = header.groups.iter().map(GroupHeader::read).collect::<Result<Vec<_>, _>>()?;
        let mut parameters = Vec::with_capacity(header.parameters.len());
        let mut tensors = 0;
        let mut names = HashSet::new();
        for parameter in &header.parameters {
            if !names.insert(&parameter.name) {
                return Err(wrong(format!("parameter {:?} is listed twice", parameter.name)));
            }
            let (read, count) = parameter.read(&groups, &file, &mut hasher)?;
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
            return Err(CheckpointError::Checksum { found, expected: checksum.clone() });
        }
        let control = header.control.as_ref().map(ControlHeader::read).transpose()?;
        Ok(Self {
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
        what: format!("the file has no metadata {key:?}: it is not a checkpoint of adamod"),
    })
}

impl ParameterHeader {
    /// The parameter, and how many tensors it has.
    fn read(
        &self,
        groups: &[Group],
        file: &SafeTensors<'_>,
        checksum: &mut crc32fast::Hasher,
    ) -> Result<(SavedParameter, usize), CheckpointError> {
        let wrong = |what: String| wrong(format!("parameter {:?}: {what}", self.name));
        let Some(group) = groups.get(self.group as usize) else {
            return Err(wrong(format!("its group is {}, expected less than {}", self.group, groups.len())));
        };
        let dtype = DType::from_name(&self.dtype)?;
        let layout = BlockLayout {
            states: group.hyperparameters.rule.kind().states(),
            state: StateFormat::from_name(&self.state)?,
            master_weights: MasterWeights::from_name(&self.master_weights)?,
        };
        if !layout.master_weights.fit(dtype) {
            return Err(wrong(format!(
                "its master weights {} do not fit its data type {dtype}",
                self.master_weights
            )));
        }
        // A length that no file can hold would overflow what is computed from it.
        if self.len == 0 || self.len > 1 << 48 {
            return Err(wrong(format!("its length is {}", self.len)));
        }
        let (first, whole) = self.shard.unwrap_or((0, self.len));
        if first.checked_add(self.len).is_none_or(|end| end > whole) {
            return Err(wrong(format!("its shard is {:?}, expected a range within the tensor", self.shard)));
        }
        let mut parameter = SavedParameter {
            label: self.name.clone(),
            len: self.len,
            dtype,
            group: self.group,
            step: self.step,
            first,
            whole,
            layout,
            words: Vec::new(),
        };
        let tensors = parameter.tensors();
        let mut data = Vec::with_capacity(tensors.len());
        for (name, dtype, shape) in &tensors {
            let tensor =
                file.tensor(name).map_err(|_| CheckpointError::MissingTensor { name: name.clone() })?;
            if tensor.dtype() != *dtype || tensor.shape() != shape {
                return Err(CheckpointError::Tensor {
                    name: name.clone(),
                    found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
                    expected: format!("{dtype:?} {shape:?}"),
                });
            }
            checksum.update(tensor.data());
            data.push(tensor.data().to_vec());
        }
        let mut data = data.into_iter();
        let (_, scale_bytes, master_bytes) = Parts::sizes(layout, self.len);
        let parts = Parts {
            states: data.by_ref().take(layout.states.len()).collect(),
            scales: if scale_bytes > 0 { data.next().unwrap_or_default() } else { Vec::new() },
            master: if master_bytes > 0 { data.next().unwrap_or_default() } else { Vec::new() },
        };
        parameter.words = parts.to_words(layout, self.len);
        Ok((parameter, tensors.len()))
    }
}

impl ControlHeader {
    fn read(&self) -> Result<abi::Control, CheckpointError> {
        let loss_scale = from_hex("loss_scale", &self.loss_scale)? as f32;
        if !(loss_scale.is_finite() && loss_scale > 0.0) {
            return Err(wrong(format!("loss_scale is {loss_scale}, expected a finite number above 0")));
        }
        Ok(abi::Control {
            loss_scale,
            multiplier: from_hex("multiplier", &self.multiplier)? as f32,
            norm: from_hex("norm", &self.norm)? as f32,
            growth_tracker: self.growth_tracker,
            taken: self.taken,
            skipped: self.skipped,
        })
    }
}
