//! What is measured: the mode of a step, and where its tensors lie.

use adamod::low_level::BlockLayout;
use adamod::{DType, Diagnostics, MasterWeights, RuleForm, RuleKind, StateFormat};

/// What a step computes, and how its tensors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// The update rule, with its states.
    pub form: RuleForm,
    pub state: StateFormat,
    /// Data type of parameters and gradients: f32 or bf16.
    pub values: DType,
    pub master_weights: MasterWeights,
    pub diagnostics: Diagnostics,
    pub gradients: Gradients,
    /// Whether f32 parameters have a shadow copy in bf16.
    pub shadow: bool,
}

/// What happens to gradients before the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradients {
    AsTheyAre,
    /// Clipped to a global norm, in steps that the device prepares.
    Clipped,
}

impl Mode {
    /// AdaMod in f32.
    pub const ADAMOD: Self = Self::f32(RuleKind::AdaMod.default_form());

    /// A rule in f32, without anything else.
    pub const fn f32(form: RuleForm) -> Self {
        Self {
            form,
            state: StateFormat::F32,
            values: DType::F32,
            master_weights: MasterWeights::None,
            diagnostics: Diagnostics::Off,
            gradients: Gradients::AsTheyAre,
            shadow: false,
        }
    }

    /// Its name: the rule and the format of its state, then everything that differs from f32: `adamod-q8+bf16+split24`.
    pub fn name(self) -> String {
        // Without the fingerprint of a custom rule.
        let (rule, form) = (self.form.rule().name(), self.form.name());
        let hyphen = if form.is_empty() { "" } else { "-" };
        let mut name = format!("{rule}{hyphen}{form}-{}", self.state.name());
        let mut add = |part: &str| {
            name.push('+');
            name.push_str(part);
        };
        if self.values != DType::F32 {
            add(self.values.name());
        }
        match self.master_weights {
            MasterWeights::None => {}
            // `+f32` alone would not say of what.
            MasterWeights::F32 => add("master-f32"),
            of => add(of.name()),
        }
        if self.diagnostics == Diagnostics::RateHistograms {
            add("learning-rates");
        }
        if self.gradients == Gradients::Clipped {
            add("clip");
        }
        if self.shadow {
            add("copy");
        }
        name
    }

    /// Bytes per element that a step has to read and write: parameter and state twice, the gradient once, and once more for its norm,
    /// the shadow copy once.
    pub fn bytes_per_parameter(self) -> f64 {
        let Self { form, state, master_weights, .. } = self;
        let layout = BlockLayout::new(form.states(), state, master_weights);
        let reads = match self.gradients {
            Gradients::AsTheyAre => 1,
            Gradients::Clipped => 2,
        };
        let shadow = if self.shadow { DType::Bf16.bytes() } else { 0 };
        (self.values.bytes() * (2 + reads) + shadow) as f64 + 2.0 * layout.bytes_per_parameter()
    }

    /// Whether every stored number is an f32.
    pub fn is_exact(self) -> bool {
        self.state == StateFormat::F32 && self.values == DType::F32
    }
}

/// Where tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All values in one buffer, all gradients in another.
    TwoPools,
    /// The same, with tensors that start between multiples of 16 bytes.
    Unaligned,
    /// Values and gradients in turn in one buffer.
    OnePool,
    /// Two buffers for each tensor.
    OwnBuffers,
    /// Two pools. Gradients lie elsewhere in every other step, and each step gets its views.
    Moving,
}
