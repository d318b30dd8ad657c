//! How numbers are stored: data types, formats of state, master weights, and the block of state that they make.

/// A data type of parameters and gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE binary16: 5 bits of exponent, 10 of fraction.
    F16,
    /// bfloat16: the upper half of an f32.
    Bf16,
}

impl DType {
    /// Bytes of an element.
    pub const fn bytes(self) -> u64 {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How states are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StateFormat {
    /// 4 bytes a state.
    #[default]
    F32,
    /// 2 bytes a state, rounded stochastically. `exp_avg_lr` is kept debiased: `s / (1 - beta3^t)`.
    Bf16,
    /// 1 byte a state and 4 bytes of scales for 32 elements, rounded stochastically: 3.125 bytes a parameter for AdaMod, 2.125
    /// for Adam, 1.125 for SGD. `exp_avg_lr` is kept debiased.
    Q8,
}

impl StateFormat {
    /// Bits of one state of one element, without scales.
    const fn bits(self) -> u32 {
        match self {
            StateFormat::F32 => 32,
            StateFormat::Bf16 => 16,
            StateFormat::Q8 => 8,
        }
    }

    /// Whether `exp_avg_lr` is stored as `s / (1 - beta3^t)`, with the beta3 of the moment.
    pub const fn is_debiased(self) -> bool {
        !matches!(self, StateFormat::F32)
    }
}

/// What is kept of a 16-bit parameter's f32 value besides the parameter. Parameters in f32 need nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MasterWeights {
    /// Nothing. For bf16 only, which is then rounded stochastically: small steps arrive on average.
    #[default]
    None,
    /// For bf16: 8 bits more, in units of 2^-8 of the last place, as in FlashOptim (arXiv 2602.23349). 1 byte a parameter.
    Split24,
    /// For bf16: the 16 bits that the parameter lacks. Together they are exactly the f32 value. 2 bytes a parameter.
    Split32,
    /// For f16 and bf16: all 32 bits. 4 bytes a parameter.
    F32,
}

impl MasterWeights {
    /// Bits an element.
    const fn bits(self) -> u32 {
        match self {
            MasterWeights::None => 0,
            MasterWeights::Split24 => 8,
            MasterWeights::Split32 => 16,
            MasterWeights::F32 => 32,
        }
    }

    /// Whether parameters of this type can have them.
    pub(crate) const fn fit(self, values: DType) -> bool {
        matches!(
            (self, values),
            (_, DType::Bf16) | (MasterWeights::F32, DType::F16) | (MasterWeights::None, DType::F32)
        )
    }
}

/// How the tensors of a group are stored; what does not change between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Precision {
    /// Format of state.
    pub state: StateFormat,
    /// Master weights of the group's 16-bit parameters; f32 ones have none.
    pub master_weights: MasterWeights,
    /// Tensors with fewer elements keep their state in f32: they are biases and norms, which matter more than they weigh.
    /// 4,096 by default, as in bitsandbytes.
    pub f32_state_below: u64,
}

impl Default for Precision {
    fn default() -> Self {
        Self { state: StateFormat::F32, master_weights: MasterWeights::None, f32_state_below: 4096 }
    }
}

/// How one tensor is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Format {
    /// Type of the parameter.
    pub values: DType,
    /// Type of its gradient.
    pub gradients: DType,
    /// Format of its state.
    pub state: StateFormat,
    /// Its master weights.
    pub master_weights: MasterWeights,
    /// Type of the copy of an f32 parameter, f32 for none.
    pub copies: DType,
}

impl Format {
    /// The segment's word; `shaders/format.wgsl` takes it apart.
    pub const fn bits(self) -> u32 {
        self.values as u32
            | (self.gradients as u32) << 2
            | (self.state as u32) << 4
            | (self.master_weights as u32) << 6
            | (self.copies as u32) << 8
    }
}

/// Elements that share the scales of [`StateFormat::Q8`].
pub const GROUP_ELEMENTS: u64 = 32;

/// The parts of a chunk's block of state: one for each state, the scales of quantized ones, what master weights need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockLayout {
    /// The rule's number of states.
    pub states: u32,
    /// Their format.
    pub state: StateFormat,
    /// Master weights.
    pub master_weights: MasterWeights,
}

impl BlockLayout {
    /// Bits of one state of one element.
    #[cfg(feature = "checkpoint")]
    pub fn state_bits(&self) -> u64 {
        self.state.bits().into()
    }

    /// Bits of one element's master weights.
    #[cfg(feature = "checkpoint")]
    pub fn master_bits(&self) -> u64 {
        self.master_weights.bits().into()
    }

    /// Words of 32 bits of one state's part.
    pub fn part_words(&self, elements: u64) -> u64 {
        elements.next_multiple_of(4) * u64::from(self.state.bits()) / 32
    }

    /// Words of the scales.
    pub fn scale_words(&self, elements: u64) -> u64 {
        match self.state {
            StateFormat::Q8 => elements.div_ceil(GROUP_ELEMENTS),
            StateFormat::F32 | StateFormat::Bf16 => 0,
        }
    }

    /// Word at which the master weights' part starts.
    pub fn master_start(&self, elements: u64) -> u64 {
        u64::from(self.states) * self.part_words(elements) + self.scale_words(elements)
    }

    /// Words of a block of so many elements: whole words of 16 bytes.
    pub fn words(&self, elements: u64) -> u64 {
        let master = elements.next_multiple_of(4) * u64::from(self.master_weights.bits()) / 32;
        (self.master_start(elements) + master).next_multiple_of(4)
    }

    /// Bytes of the widest accesses that suit all parts, four elements at a time.
    pub fn access(&self) -> StateAccess {
        let least =
            [self.state.bits(), self.master_weights.bits()].into_iter().filter(|&bits| bits > 0).min();
        match least {
            Some(32) => StateAccess::Words4,
            Some(16) => StateAccess::Words2,
            _ => StateAccess::Words1,
        }
    }

    /// Bytes that a step reads and writes of it for each element, without what rounding to whole words adds.
    pub fn bytes_per_parameter(&self) -> f64 {
        let scales = match self.state {
            StateFormat::Q8 => 4.0 / GROUP_ELEMENTS as f64,
            StateFormat::F32 | StateFormat::Bf16 => 0.0,
        };
        let bits = self.states * self.state.bits() + self.master_weights.bits();
        f64::from(bits) / 8.0 + scales
    }
}

/// How a launch reads and writes state; the least of its tensors decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StateAccess {
    /// Words of 4 bytes.
    Words1,
    /// Words of 8 bytes.
    Words2,
    /// Words of 16 bytes.
    Words4,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_state_are_what_the_formats_promise() {
        let bytes = |states, state, master_weights| {
            let layout = BlockLayout { states, state, master_weights };
            assert_eq!(layout.words(1024) as f64 * 4.0 / 1024.0, layout.bytes_per_parameter());
            layout.bytes_per_parameter()
        };
        assert_eq!(bytes(3, StateFormat::F32, MasterWeights::None), 12.0);
        assert_eq!(bytes(3, StateFormat::Bf16, MasterWeights::None), 6.0);
        assert_eq!(bytes(3, StateFormat::Q8, MasterWeights::None), 3.125);
        assert_eq!(bytes(2, StateFormat::Q8, MasterWeights::Split24), 3.125);
        assert_eq!(bytes(1, StateFormat::Q8, MasterWeights::Split32), 3.125);
    }

    #[test]
    fn parts_follow_each_other_whatever_the_length() {
        for state in [StateFormat::F32, StateFormat::Bf16, StateFormat::Q8] {
            for elements in [1_u64, 3, 4, 5, 31, 32, 33, 1023, 1024] {
                let layout = BlockLayout { states: 3, state, master_weights: MasterWeights::Split24 };
                let padded = elements.next_multiple_of(4);
                assert_eq!(layout.part_words(elements) * 32, padded * u64::from(state.bits()));
                let end = layout.master_start(elements) + padded / 4;
                assert_eq!(layout.words(elements), end.next_multiple_of(4));
            }
        }
    }
}
