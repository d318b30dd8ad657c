//! How parameters and the optimizer's state are stored.

use std::fmt::{Display, Formatter};

use adamod::{DType, MasterWeights, Precision, StateFormat};
use clap::ValueEnum;

/// Format of the optimizer's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// 32-bit floats
    #[default]
    F32,
    /// bfloat16, rounded stochastically
    Bf16,
    /// 8-bit floats below a scale that 32 elements share, rounded stochastically
    Q8,
}

/// Data type of the parameters, and their master weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// 32-bit floats
    #[default]
    F32,
    /// bfloat16 without master weights, rounded stochastically
    Bf16,
    /// bfloat16, and 8 more bits for the optimizer
    Split24,
    /// bfloat16, and the other 16 bits of an f32 for the optimizer
    Split32,
}

/// Both formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Formats {
    pub state: State,
    pub weights: Weights,
}

impl Formats {
    /// Tensors with fewer elements keep f32 state: biases and norm weights. The networks are small, so this is below the library's 4,096.
    const F32_STATE_BELOW: u64 = 256;

    pub fn precision(self) -> Precision {
        let state = match self.state {
            State::F32 => StateFormat::F32,
            State::Bf16 => StateFormat::Bf16,
            State::Q8 => StateFormat::Q8,
        };
        let master_weights = match self.weights {
            Weights::F32 | Weights::Bf16 => MasterWeights::None,
            Weights::Split24 => MasterWeights::Split24,
            Weights::Split32 => MasterWeights::Split32,
        };
        Precision::new(state).with_master_weights(master_weights).with_f32_state_below(Self::F32_STATE_BELOW)
    }

    /// Data type of parameters and gradients.
    pub fn dtype(self) -> DType {
        if self.weights == Weights::F32 { DType::F32 } else { DType::Bf16 }
    }
}

impl Display for Formats {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let state = match self.state {
            State::F32 => "f32",
            State::Bf16 => "bf16",
            State::Q8 => "q8",
        };
        let weights = match self.weights {
            Weights::F32 => "f32",
            Weights::Bf16 => "bf16",
            Weights::Split24 => "bf16 (split24)",
            Weights::Split32 => "bf16 (split32)",
        };
        write!(f, "state {state}, weights {weights}")
    }
}
