//! From a variant to its WGSL: the files of `shaders/` joined in one order. No file is written twice for a variant.

use crate::Diagnostics;
use crate::format::StateAccess;
use crate::hyperparameters::Rule;

/// How a launch reads and writes its tensors, four elements at a time; decided by how they lie in their buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Words of 16 bytes: all tensors are f32 and start at multiples of 16 bytes, and the buffers hold the last words whole.
    Vec4,
    /// Words of 8 bytes: some tensors have 16 bits; all start at multiples of 8 bytes, and the buffers hold the words of the last
    /// four elements whole.
    Vec2,
    /// Words of 4 bytes.
    Scalar,
}

/// How a launch binds its gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GradientBinding {
    /// Read-only: they lie in a buffer without parameters of the launch, and are not zeroed.
    Read,
    /// `read_write`: they are zeroed, or lie in the parameters' buffer, too far away for one binding.
    ReadWrite,
    /// None: they lie in the parameters' buffer and are read through its binding.
    Shared,
}

/// Whether a launch writes copies of its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Copies {
    /// No tensor has one.
    Off,
    /// Some tensors have one.
    On,
}

/// Everything that a kernel's text depends on. What else it depends on is in the overrides `LANES`, `FORMAT` and
/// `ZERO_GRADIENTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The update rule.
    pub rule: Rule,
    /// How tensors are read and written.
    pub access: Access,
    /// How gradients are bound.
    pub gradients: GradientBinding,
    /// How state is read and written.
    pub state: StateAccess,
    /// Whether f32 parameters are copied to 16 bits.
    pub copies: Copies,
    /// Whether learning rates are counted.
    pub diagnostics: Diagnostics,
}

impl Variant {
    /// Every variant that can be built.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for rule in [Rule::AdaMod, Rule::Adam, Rule::Sgd] {
            for access in [Access::Vec4, Access::Vec2, Access::Scalar] {
                for gradients in [GradientBinding::Read, GradientBinding::ReadWrite, GradientBinding::Shared]
                {
                    for state in [StateAccess::Words4, StateAccess::Words2, StateAccess::Words1] {
                        for copies in [Copies::Off, Copies::On] {
                            for diagnostics in [Diagnostics::Off, Diagnostics::LearningRates] {
                                all.push(Self { rule, access, gradients, state, copies, diagnostics });
                            }
                        }
                    }
                }
            }
        }
        all.retain(|variant| variant.rule != Rule::Sgd || variant.diagnostics == Diagnostics::Off);
        all
    }

    /// Name of the variant, for labels: `adamod.vec4.read.words4`.
    pub fn name(&self) -> String {
        let rule = match self.rule {
            Rule::AdaMod => "adamod",
            Rule::Adam => "adam",
            Rule::Sgd => "sgd",
        };
        let access = match self.access {
            Access::Vec4 => "vec4",
            Access::Vec2 => "vec2",
            Access::Scalar => "scalar",
        };
        let gradients = match self.gradients {
            GradientBinding::Read => "read",
            GradientBinding::ReadWrite => "read_write",
            GradientBinding::Shared => "shared",
        };
        let state = match self.state {
            StateAccess::Words4 => "words4",
            StateAccess::Words2 => "words2",
            StateAccess::Words1 => "words1",
        };
        let copies = match self.copies {
            Copies::Off => "",
            Copies::On => ".copies",
        };
        let diagnostics = match self.diagnostics {
            Diagnostics::Off => "",
            Diagnostics::LearningRates => ".learning_rates",
        };
        format!("{rule}.{access}.{gradients}.{state}{copies}{diagnostics}")
    }

    /// The kernel's WGSL; its entry point is `update`.
    pub fn source(&self) -> String {
        let (state, quantized) = match self.state {
            StateAccess::Words4 => {
                (include_str!("../shaders/state/words4.wgsl"), include_str!("../shaders/quantized/off.wgsl"))
            }
            StateAccess::Words2 => {
                (include_str!("../shaders/state/words2.wgsl"), include_str!("../shaders/quantized/off.wgsl"))
            }
            StateAccess::Words1 => {
                (include_str!("../shaders/state/words1.wgsl"), include_str!("../shaders/quantized/q8.wgsl"))
            }
        };
        [
            include_str!("../shaders/tables.wgsl"),
            include_str!("../shaders/format.wgsl"),
            include_str!("../shaders/rounding.wgsl"),
            include_str!("../shaders/random.wgsl"),
            include_str!("../shaders/place.wgsl"),
            access(self.access),
            gradients(self.gradients),
            include_str!("../shaders/arithmetic.wgsl"),
            match self.rule {
                Rule::AdaMod => include_str!("../shaders/rules/adamod.wgsl"),
                Rule::Adam => include_str!("../shaders/rules/adam.wgsl"),
                Rule::Sgd => include_str!("../shaders/rules/sgd.wgsl"),
            },
            state,
            include_str!("../shaders/state.wgsl"),
            quantized,
            include_str!("../shaders/master.wgsl"),
            include_str!("../shaders/gradient.wgsl"),
            match self.copies {
                Copies::Off => include_str!("../shaders/copies/off.wgsl"),
                Copies::On => include_str!("../shaders/copies/on.wgsl"),
            },
            match self.diagnostics {
                Diagnostics::Off => include_str!("../shaders/diagnostics/off.wgsl"),
                Diagnostics::LearningRates => {
                    include_str!("../shaders/diagnostics/learning_rates.wgsl")
                }
            },
            include_str!("../shaders/update.wgsl"),
        ]
        .join("\n")
    }
}

/// The WGSL of the kernels that sum squares of gradients; their entry points are `norm_of_chunks` and, for the last launch of a
/// step, `norm_and_prepare`.
pub fn norm_source(tensors: Access, binding: GradientBinding) -> String {
    [
        include_str!("../shaders/tables.wgsl"),
        include_str!("../shaders/format.wgsl"),
        include_str!("../shaders/rounding.wgsl"),
        include_str!("../shaders/place.wgsl"),
        access(tensors),
        gradients(binding),
        include_str!("../shaders/gradient.wgsl"),
        include_str!("../shaders/norm.wgsl"),
        include_str!("../shaders/prepare.wgsl"),
        include_str!("../shaders/norm_of_chunks.wgsl"),
    ]
    .join("\n")
}

/// The WGSL of the kernel that prepares a step without looking at gradients; its entry point is `prepare`.
pub fn prepare_source() -> String {
    [include_str!("../shaders/tables.wgsl"), include_str!("../shaders/prepare.wgsl")].join("\n")
}

fn access(access: Access) -> &'static str {
    match access {
        Access::Vec4 => include_str!("../shaders/access/vec4.wgsl"),
        Access::Vec2 => include_str!("../shaders/access/vec2.wgsl"),
        Access::Scalar => include_str!("../shaders/access/scalar.wgsl"),
    }
}

fn gradients(gradients: GradientBinding) -> &'static str {
    match gradients {
        GradientBinding::Read => include_str!("../shaders/gradients/read.wgsl"),
        GradientBinding::ReadWrite => include_str!("../shaders/gradients/read_write.wgsl"),
        GradientBinding::Shared => include_str!("../shaders/gradients/shared.wgsl"),
    }
}
