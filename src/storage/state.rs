//! Formats of optimizer state, and what an update rule declares about each of its states.

use super::dtype::DType;
use super::master::MasterWeights;

/// How optimizer state is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StateFormat {
    /// 4 bytes per state and element.
    #[default]
    F32,
    /// 2 bytes per state and element, rounded stochastically. `exp_avg_lr` is stored debiased, as `s / (1 - beta3^t)`.
    Bf16,
    /// 1 byte per state and element plus 4 bytes of scales per 32 elements, rounded stochastically: 3.125 bytes per element for
    /// AdaMod, 2.125 for Adam and 1.125 for SGD. `exp_avg_lr` is stored debiased, as `s / (1 - beta3^t)`.
    Q8,
}

impl StateFormat {
    /// All formats, in the order of their codes in WGSL.
    pub const ALL: [Self; 3] = [StateFormat::F32, StateFormat::Bf16, StateFormat::Q8];

    /// The format's name: `f32`, `bf16` or `q8`.
    pub const fn name(self) -> &'static str {
        match self {
            StateFormat::F32 => "f32",
            StateFormat::Bf16 => "bf16",
            StateFormat::Q8 => "q8",
        }
    }

    /// Bits of one state of one element, without scales.
    pub(crate) const fn bits(self) -> u32 {
        match self {
            StateFormat::F32 => 32,
            StateFormat::Bf16 => 16,
            StateFormat::Q8 => 8,
        }
    }

    /// Whether states that declare a decay rate ([`StateTensor`]) are stored debiased.
    pub const fn is_debiased(self) -> bool {
        !matches!(self, StateFormat::F32)
    }
}

/// The range of a state's values. The 8-bit codes of a state depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sign {
    /// Any number.
    Signed,
    /// At least 0, and 0 is stored exactly.
    NonNegative,
    /// Above 0 after the first step.
    Positive,
}

/// One state of an update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct StateTensor {
    /// The state's name in checkpoints; PyTorch's name where PyTorch has the state.
    pub name: &'static str,
    /// The range of its values.
    pub sign: Sign,
    /// For a moving average that starts at 0 without bias correction: the index of its decay rate. Formats below 32 bits store
    /// such an average debiased, as `s / (1 - beta^t)`, because its first steps would span too many octaves.
    pub debiased_by: Option<usize>,
}

impl StateTensor {
    pub(crate) const fn new(name: &'static str, sign: Sign) -> Self {
        Self { name, sign, debiased_by: None }
    }

    pub(crate) const fn debiased_by(self, decay_rate: usize) -> Self {
        Self { debiased_by: Some(decay_rate), ..self }
    }
}

/// The most states that an update rule can have.
pub const MAX_STATES: usize = 3;

/// How the tensors of a group are stored. Fixed for the life of the group.
///
/// ```
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// use adamod::{AdaMod, DType, Group, MasterWeights, Optimizer, Options, Parameter, Precision, StateFormat};
///
/// # let (device, queue) = doc::gpu();
/// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
/// let precision = Precision::new(StateFormat::Q8).with_master_weights(MasterWeights::Split24);
/// let group = optimizer.add_group(Group::from(AdaMod::new()).with_precision(precision))?;
/// let parameter = Parameter::new("wte.weight", 1 << 20).with_dtype(DType::Bf16);
/// let weight = optimizer.add_parameter(group, parameter)?;
/// // 3.125 bytes of state and 1 byte of master weights per element.
/// assert_eq!(optimizer.state_bytes_of(weight), Some((1 << 20) * 33 / 8));
/// # Ok::<(), adamod::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Precision {
    /// Format of the state.
    pub state: StateFormat,
    /// Master weights of the group's 16-bit parameters. f32 parameters have none.
    pub master_weights: MasterWeights,
    /// Parameters with fewer elements keep f32 state. Biases and norm weights are small and sensitive. 4,096 by default, as in
    /// bitsandbytes.
    pub f32_state_below: u64,
}

impl Default for Precision {
    fn default() -> Self {
        Self { state: StateFormat::F32, master_weights: MasterWeights::None, f32_state_below: 4096 }
    }
}

impl Precision {
    /// The given state format, no master weights, and f32 state for parameters below 4,096 elements.
    pub fn new(state: StateFormat) -> Self {
        Self { state, ..Self::default() }
    }

    /// Sets [`Precision::master_weights`].
    pub fn with_master_weights(self, master_weights: MasterWeights) -> Self {
        Self { master_weights, ..self }
    }

    /// The state format of a tensor of `len` elements.
    pub(crate) fn state_format(&self, len: u64) -> StateFormat {
        if len < self.f32_state_below { StateFormat::F32 } else { self.state }
    }

    /// The master weights of parameters of a data type.
    pub(crate) fn master_weights_of(&self, dtype: DType) -> MasterWeights {
        match dtype {
            DType::F32 => MasterWeights::None,
            DType::F16 | DType::Bf16 => self.master_weights,
        }
    }

    /// Sets [`Precision::f32_state_below`], in elements.
    pub fn with_f32_state_below(self, elements: u64) -> Self {
        Self { f32_state_below: elements, ..self }
    }
}

/// How one tensor is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Format {
    /// Data type of the parameter.
    pub values: DType,
    /// Data type of its gradient.
    pub gradients: DType,
    /// Format of its state.
    pub state: StateFormat,
    /// Its master weights.
    pub master_weights: MasterWeights,
    /// Data type of the shadow copy of an f32 parameter; f32 means no shadow copy.
    pub shadow: DType,
}

impl Format {
    /// The segment's `format` word, which `shaders/lib/format.wgsl` takes apart.
    pub const fn bits(self) -> u32 {
        self.values as u32
            | (self.gradients as u32) << 2
            | (self.state as u32) << 4
            | (self.master_weights as u32) << 6
            | (self.shadow as u32) << 8
    }
}
