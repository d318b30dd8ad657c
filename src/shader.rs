//! From a variant to its WGSL: the files of `shaders/` joined in one order. No file is written twice for a variant.

use crate::Diagnostics;
use crate::hyperparameters::Rule;

/// How a launch reads and writes its tensors; decided by how they lie in their buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Words of four elements: every view of the launch starts at a multiple of 16 bytes, and the buffers hold the last words
    /// whole.
    Vec4,
    /// Single elements.
    Scalar,
}

/// How a launch binds its gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GradientBinding {
    /// Read-only: they lie in a buffer without parameters of the launch.
    Read,
    /// `read_write`: they lie in the parameters' buffer, too far away for one binding.
    ReadWrite,
    /// None: they lie in the parameters' buffer and are read through its binding.
    Shared,
}

/// Everything that a kernel's structure depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The update rule.
    pub rule: Rule,
    /// How tensors are read and written.
    pub access: Access,
    /// How gradients are bound.
    pub gradients: GradientBinding,
    /// Whether learning rates are counted.
    pub diagnostics: Diagnostics,
}

impl Variant {
    /// Every variant that can be built.
    pub fn all() -> impl Iterator<Item = Self> {
        let rules = [Rule::AdaMod, Rule::Adam, Rule::Sgd];
        let accesses = [Access::Vec4, Access::Scalar];
        let gradients = [GradientBinding::Read, GradientBinding::ReadWrite, GradientBinding::Shared];
        let diagnostics = [Diagnostics::Off, Diagnostics::LearningRates];
        rules.into_iter().flat_map(move |rule| {
            accesses.into_iter().flat_map(move |access| {
                gradients.into_iter().flat_map(move |gradients| {
                    diagnostics.into_iter().filter_map(move |diagnostics| {
                        let counts_sgd = rule == Rule::Sgd && diagnostics != Diagnostics::Off;
                        (!counts_sgd).then_some(Self { rule, access, gradients, diagnostics })
                    })
                })
            })
        })
    }

    /// Name of the variant, for labels: `adamod.vec4.read`.
    pub fn name(&self) -> String {
        let rule = match self.rule {
            Rule::AdaMod => "adamod",
            Rule::Adam => "adam",
            Rule::Sgd => "sgd",
        };
        let access = match self.access {
            Access::Vec4 => "vec4",
            Access::Scalar => "scalar",
        };
        let gradients = match self.gradients {
            GradientBinding::Read => "read",
            GradientBinding::ReadWrite => "read_write",
            GradientBinding::Shared => "shared",
        };
        let diagnostics = match self.diagnostics {
            Diagnostics::Off => "",
            Diagnostics::LearningRates => ".learning_rates",
        };
        format!("{rule}.{access}.{gradients}{diagnostics}")
    }

    /// The kernel's WGSL; its entry point is `update`.
    pub fn source(&self) -> String {
        [
            include_str!("../shaders/tables.wgsl"),
            include_str!("../shaders/arithmetic.wgsl"),
            match self.access {
                Access::Vec4 => include_str!("../shaders/access/vec4.wgsl"),
                Access::Scalar => include_str!("../shaders/access/scalar.wgsl"),
            },
            match self.gradients {
                GradientBinding::Read => include_str!("../shaders/gradients/read.wgsl"),
                GradientBinding::ReadWrite => include_str!("../shaders/gradients/read_write.wgsl"),
                GradientBinding::Shared => include_str!("../shaders/gradients/shared.wgsl"),
            },
            match self.rule {
                Rule::AdaMod => include_str!("../shaders/rules/adamod.wgsl"),
                Rule::Adam => include_str!("../shaders/rules/adam.wgsl"),
                Rule::Sgd => include_str!("../shaders/rules/sgd.wgsl"),
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
