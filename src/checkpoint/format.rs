//! The metadata of a checkpoint file.
//!
//! A safetensors file has a tensor `STATE.LABEL` for each state of each parameter, in the parameter's state format: F32, BF16, or U8 codes
//! with their `scales.LABEL`. `master.LABEL` holds the master weights, and `param.LABEL` the values if they are saved, in the data type of
//! the parameter. Everything else is in the metadata, with the numbers of hyperparameters as the hexadecimal digits of their f64.
//!
//! Two kinds of checksums, all CRC32, protect a file. `adamod.checksum` covers the metadata, then the tensors of each parameter. The
//! metadata have checksums of pieces of each tensor, so that a part of a file can be read and verified. Older files lack them.

use std::collections::{BTreeMap, HashSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Checkpoint;
use super::error::CheckpointError;
use super::saved::{Checksums, SavedParameter};
use crate::hyperparameters::{Group, Hyperparameters, Objective, WeightDecay};
use crate::kernels::abi;
use crate::options::{LEAST_LOSS_SCALE, MOST_LOSS_SCALE};
use crate::rules::custom::{self, CustomKind};
use crate::rules::{Formula, RuleKind};
use crate::storage::block::{BlockLayout, QUANT_BLOCK_ELEMENTS};
use crate::storage::dtype::DType;
use crate::storage::master::MasterWeights;
use crate::storage::state::{Precision, StateFormat};

pub(super) const METADATA_KEY: &str = "adamod.checkpoint";
pub(super) const CHECKSUM_KEY: &str = "adamod.checksum";
/// Version 1 had one rule for all groups. Version 2 had fewer hyperparameters, and one set of states for each rule.
const VERSION: u32 = 3;
/// The first version that names all hyperparameters, and in which options of a rule choose its states.
const FIRST_WITH_FORMS: u32 = 3;
/// A length that no file can hold would overflow what is computed from it.
const MOST_ELEMENTS: u64 = 1 << 48;

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
    /// Elements of a parameter to which each checksum of a piece belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    piece: Option<u64>,
}

/// The bits of an f64 as 16 hexadecimal digits.
type Hex = String;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupHeader {
    rule: String,
    /// The fingerprint of a custom rule, as 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<Hex>,
    learning_rate: Hex,
    /// The hyperparameters that only the rule has, by name.
    hyperparameters: BTreeMap<String, Hex>,
    weight_decay: String,
    weight_decay_value: Hex,
    /// The learning rate at which fully decoupled decay has its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_learning_rate: Option<Hex>,
    maximize: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    cautious: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    cautious_weight_decay: bool,
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
    /// Whether its values are in the file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    values: bool,
    /// Eight hexadecimal digits for each piece of each tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksums: Option<String>,
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
    #[serde(default)]
    skipped_in_a_row: u32,
}

impl Header {
    fn read(text: &str) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = json(text)?;
        match version {
            1 => json::<v1::Header>(text)?.upgraded(),
            2 | VERSION => json(text),
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

    use super::{CheckpointError, ControlHeader, Formula, Hex, Named as _, ParameterHeader, to_hex};

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
        /// The same in version 2. A rule takes the hyperparameters that it has.
        pub fn upgraded(self) -> Result<super::Header, CheckpointError> {
            let formula = Formula::from_name(&self.formula)?;
            let group = |group: GroupHeader| {
                let [beta1, beta2, beta3] = group.betas;
                let all = [
                    ("betas[0]", beta1),
                    ("betas[1]", beta2),
                    ("betas[2]", beta3),
                    ("epsilon", group.epsilon),
                    ("momentum", group.momentum),
                    ("formula", to_hex(f64::from(formula as u32))),
                ];
                let of_rule: &[&str] = match self.rule.as_str() {
                    "adamod" => &["betas[0]", "betas[1]", "betas[2]", "epsilon", "formula"],
                    "adam" => &["betas[0]", "betas[1]", "epsilon"],
                    _ => &["momentum"],
                };
                super::GroupHeader {
                    rule: self.rule.clone(),
                    fingerprint: None,
                    learning_rate: group.learning_rate,
                    hyperparameters: all
                        .into_iter()
                        .filter(|(name, _)| of_rule.contains(name))
                        .map(|(name, hex)| (name.to_owned(), hex))
                        .collect(),
                    weight_decay: group.weight_decay,
                    weight_decay_value: group.weight_decay_value,
                    max_learning_rate: None,
                    maximize: group.maximize,
                    cautious: false,
                    cautious_weight_decay: false,
                    state: group.state,
                    master_weights: group.master_weights,
                    f32_state_below: group.f32_state_below,
                }
            };
            Ok(super::Header {
                version: 2,
                crate_version: self.crate_version,
                adapter: self.adapter,
                driver: self.driver,
                seed: self.seed,
                groups: self.groups.into_iter().map(group).collect(),
                parameters: self.parameters,
                control: self.control,
                piece: None,
            })
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

macro_rules! named {
    ($($type:ident: $field:literal = $all:expr;)*) => {$(
        impl Named for $type {
            const FIELD: &'static str = $field;
            const ALL: &'static [Self] = $all;
            fn of(self) -> &'static str {
                self.name()
            }
        }
    )*};
}

named! {
    DType: "dtype" = &DType::ALL;
    StateFormat: "state" = &StateFormat::ALL;
    MasterWeights: "master_weights" = &MasterWeights::ALL;
    Formula: "formula" = &Formula::ALL;
    RuleKind: "rule" = RuleKind::ALL;
}

fn to_hex(value: f64) -> Hex {
    format!("{:016x}", value.to_bits())
}

fn from_hex(name: &str, hex: &str) -> Result<f64, CheckpointError> {
    // A sign would be read as well.
    let has_digits = hex.len() == 16 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    let bits = has_digits.then(|| u64::from_str_radix(hex, 16).ok()).flatten();
    bits.map(f64::from_bits).ok_or_else(|| CheckpointError::Metadata {
        what: format!("{name} is {hex:?}, expected 16 hexadecimal digits"),
    })
}

impl GroupHeader {
    fn new(group: &Group) -> Self {
        let Group { hyperparameters, precision, .. } = group;
        let max_learning_rate = match hyperparameters.weight_decay {
            WeightDecay::FullyDecoupled { max_learning_rate, .. } => Some(to_hex(max_learning_rate)),
            _ => None,
        };
        let rule = &hyperparameters.rule;
        Self {
            rule: rule.kind().name().to_owned(),
            fingerprint: match rule.kind() {
                RuleKind::Custom(kind) => Some(format!("{:016x}", kind.fingerprint())),
                _ => None,
            },
            learning_rate: to_hex(hyperparameters.learning_rate),
            hyperparameters: rule
                .hyperparameters()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), to_hex(value)))
                .collect(),
            weight_decay: hyperparameters.weight_decay.name().to_owned(),
            weight_decay_value: to_hex(hyperparameters.weight_decay.lambda()),
            max_learning_rate,
            maximize: hyperparameters.objective == Objective::Maximize,
            cautious: hyperparameters.cautious,
            cautious_weight_decay: hyperparameters.cautious_weight_decay,
            state: precision.state.name().to_owned(),
            master_weights: precision.master_weights.name().to_owned(),
            f32_state_below: precision.f32_state_below,
        }
    }

    /// The group with this index in a file of this version. Errors name it.
    fn read(&self, group: usize, version: u32) -> Result<Group, CheckpointError> {
        let read = self.parse(group, version).map_err(|error| match error {
            CheckpointError::Metadata { what } => wrong(format!("group {group}: {what}")),
            error => error,
        })?;
        match read.hyperparameters.validate() {
            Ok(()) => Ok(read),
            Err(error) => Err(CheckpointError::Hyperparameters { group, error }),
        }
    }

    /// The rule: one of the library, or a custom one that has been made.
    fn kind(&self, group: usize) -> Result<RuleKind, CheckpointError> {
        let Some(fingerprint) = &self.fingerprint else { return <RuleKind as Named>::from_name(&self.rule) };
        let made = custom::named(&self.rule);
        let has_it = |kind: &CustomKind| format!("{:016x}", kind.fingerprint()) == *fingerprint;
        if let Some(kind) = made.iter().find(|kind| has_it(kind)) {
            return Ok(RuleKind::Custom(*kind));
        }
        let found = format!("{}@{fingerprint}", self.rule);
        let made = made.iter().map(CustomKind::to_string).collect();
        Err(CheckpointError::CustomRule { group, found, made })
    }

    /// The group, whose hyperparameters may be out of range.
    fn parse(&self, group: usize, version: u32) -> Result<Group, CheckpointError> {
        let lambda = from_hex("weight_decay_value", &self.weight_decay_value)?;
        let weight_decay = match self.weight_decay.as_str() {
            "none" => WeightDecay::None,
            "decoupled" => WeightDecay::Decoupled(lambda),
            "coupled" => WeightDecay::Coupled(lambda),
            "fully_decoupled" => {
                let Some(hex) = &self.max_learning_rate else {
                    return Err(wrong(
                        "max_learning_rate of fully decoupled weight decay is missing".to_owned(),
                    ));
                };
                WeightDecay::FullyDecoupled { lambda, max_learning_rate: from_hex("max_learning_rate", hex)? }
            }
            other => {
                return Err(wrong(format!(
                    "weight_decay is {other:?}, expected one of none, decoupled, coupled, fully_decoupled"
                )));
            }
        };
        let mut rule = self.kind(group)?.with_defaults();
        for (name, _) in rule.hyperparameters() {
            let Some(hex) = self.hyperparameters.get(name) else {
                // Options that were added later do by default what was done before.
                if version < FIRST_WITH_FORMS {
                    continue;
                }
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
            .with_objective(objective)
            .with_cautious(self.cautious)
            .with_cautious_weight_decay(self.cautious_weight_decay);
        let precision = Precision::new(StateFormat::from_name(&self.state)?)
            .with_master_weights(MasterWeights::from_name(&self.master_weights)?)
            .with_f32_state_below(self.f32_state_below);
        Ok(Group::new(hyperparameters).with_precision(precision))
    }
}

/// What the metadata say.
pub(super) struct Described {
    /// The parameters have no data yet.
    pub checkpoint: Checkpoint,
    /// Elements of a piece, and the digits of the checksums of each parameter's pieces, if the file has any.
    pub digits: Option<(u64, Vec<String>)>,
}

/// Reads the text of the metadata.
pub(super) fn read(text: &str) -> Result<Described, CheckpointError> {
    let header = Header::read(text)?;
    let version = header.version;
    let groups = header.groups.iter().enumerate().map(|(index, group)| group.read(index, version));
    let groups = groups.collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::with_capacity(header.parameters.len());
    let mut parameters = Vec::with_capacity(header.parameters.len());
    let is_piece =
        |piece: u64| piece > 0 && piece <= MOST_ELEMENTS && piece.is_multiple_of(QUANT_BLOCK_ELEMENTS);
    if let Some(piece) = header.piece.filter(|&piece| !is_piece(piece)) {
        return Err(wrong(format!(
            "piece is {piece}, expected a multiple of {QUANT_BLOCK_ELEMENTS} above 0"
        )));
    }
    for parameter in &header.parameters {
        if !names.insert(parameter.name.clone()) {
            return Err(wrong(format!("parameter {:?} is listed twice", parameter.name)));
        }
        parameters.push(parameter.read(&groups, version)?);
    }
    let control = header.control.as_ref().map(ControlHeader::read).transpose()?;
    let checkpoint = Checkpoint {
        seed: header.seed,
        groups,
        parameters,
        control,
        adapter: header.adapter,
        driver: header.driver,
    };
    let digits = header.parameters.into_iter().map(|parameter| parameter.checksums.unwrap_or_default());
    Ok(Described { checkpoint, digits: header.piece.map(|piece| (piece, digits.collect())) })
}

/// Reads the digits of a parameter's checksums.
pub(super) fn checksums(
    digits: &str,
    piece: u64,
    parameter: &SavedParameter,
) -> Result<Checksums, CheckpointError> {
    let expected = parameter.tensors().len() as u64 * Checksums::pieces(piece, parameter.len);
    let bytes = digits.as_bytes();
    let number = |digits: &[u8]| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let numbers: Option<Vec<u32>> = bytes.chunks(8).map(number).collect();
    match numbers {
        Some(of_pieces) if bytes.len() as u64 == 8 * expected => Ok(Checksums { piece, of_pieces }),
        _ => Err(wrong(format!(
            "parameter {:?}: its checksums have {} characters, expected 8 hexadecimal digits for each of {expected} pieces",
            parameter.label,
            bytes.len()
        ))),
    }
}

/// The text of the metadata of a checkpoint whose parameters have these checksums.
pub(super) fn text(checkpoint: &Checkpoint, checksums: &[&[u32]]) -> Result<String, CheckpointError> {
    serde_json::to_string(&checkpoint.header(checksums)).map_err(|error| wrong(error.to_string()))
}

impl Checkpoint {
    fn header(&self, checksums: &[&[u32]]) -> Header {
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
                .zip(checksums)
                .map(|(parameter, checksums)| ParameterHeader {
                    name: parameter.label.clone(),
                    len: parameter.len,
                    dtype: parameter.dtype.to_string(),
                    group: parameter.group,
                    step: parameter.step,
                    state: parameter.layout.state.name().to_owned(),
                    master_weights: parameter.layout.master_weights.name().to_owned(),
                    shard: (parameter.whole != parameter.len).then_some((parameter.first, parameter.whole)),
                    values: parameter.has_values,
                    checksums: Some(digits(checksums)),
                })
                .collect(),
            control: self.control.map(|control| ControlHeader {
                loss_scale: to_hex(control.loss_scale.into()),
                multiplier: to_hex(control.multiplier.into()),
                norm: to_hex(control.norm.into()),
                growth_tracker: control.growth_tracker,
                taken: control.taken,
                skipped: control.skipped,
                skipped_in_a_row: control.skipped_in_a_row,
            }),
            piece: Some(Checksums::PIECE),
        }
    }
}

fn digits(checksums: &[u32]) -> String {
    use std::fmt::Write as _;
    let mut digits = String::with_capacity(8 * checksums.len());
    for checksum in checksums {
        // Writing to a string does not fail.
        let _ = write!(digits, "{checksum:08x}");
    }
    digits
}

impl ParameterHeader {
    /// The parameter without its data, with the states that a file of this version has.
    fn read(&self, groups: &[Group], version: u32) -> Result<SavedParameter, CheckpointError> {
        let wrong = |what: String| wrong(format!("parameter {:?}: {what}", self.name));
        let Some(group) = groups.get(self.group as usize) else {
            return Err(wrong(format!("its group is {}, expected less than {}", self.group, groups.len())));
        };
        let dtype = DType::from_name(&self.dtype)?;
        let rule = group.hyperparameters.rule;
        let states = if version < FIRST_WITH_FORMS { rule.kind().states() } else { rule.states() };
        let master_weights = MasterWeights::from_name(&self.master_weights)?;
        let layout = BlockLayout::new(states, StateFormat::from_name(&self.state)?, master_weights);
        if !layout.master_weights.fit(dtype) {
            return Err(wrong(format!(
                "its master weights {} do not fit its data type {dtype}",
                self.master_weights
            )));
        }
        if self.len == 0 || self.len > MOST_ELEMENTS {
            return Err(wrong(format!("its length is {}", self.len)));
        }
        let (first, whole) = self.shard.unwrap_or((0, self.len));
        let Some(end) = first.checked_add(self.len).filter(|&end| end <= whole) else {
            return Err(wrong(format!("its shard is {:?}, expected a range within the tensor", self.shard)));
        };
        let is_within_scales = |&place: &u64| place != whole && !place.is_multiple_of(QUANT_BLOCK_ELEMENTS);
        if layout.state == StateFormat::Q8
            && let Some(place) = [first, end].iter().find(|place| is_within_scales(place))
        {
            return Err(wrong(format!(
                "its shard has a boundary at element {place}, expected a multiple of {QUANT_BLOCK_ELEMENTS}"
            )));
        }
        Ok(SavedParameter {
            label: self.name.clone(),
            len: self.len,
            dtype,
            group: self.group,
            step: self.step,
            first,
            whole,
            layout,
            has_values: self.values,
            segments: Vec::new(),
        })
    }
}

impl ControlHeader {
    fn read(&self) -> Result<abi::Control, CheckpointError> {
        let loss_scale = from_hex("loss_scale", &self.loss_scale)? as f32;
        if !(loss_scale.is_finite() && loss_scale > 0.0) {
            return Err(wrong(format!("loss_scale is {loss_scale}, expected a finite number above 0")));
        }
        Ok(abi::Control {
            loss_scale: loss_scale.clamp(LEAST_LOSS_SCALE, MOST_LOSS_SCALE),
            multiplier: from_hex("multiplier", &self.multiplier)? as f32,
            norm: from_hex("norm", &self.norm)? as f32,
            growth_tracker: self.growth_tracker,
            taken: self.taken,
            skipped: self.skipped,
            skipped_in_a_row: self.skipped_in_a_row,
        })
    }
}
