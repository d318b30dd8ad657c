//! The errors of definitions.

use crate::rules::range::OutOfRange;

/// A definition was refused by [`Rule::custom`](crate::Rule::custom). Lines count from 1 in the WGSL of the definition.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CustomRuleError {
    /// A name is empty, has characters that it cannot have, or is reserved.
    #[error("{what} is named {found:?}, expected {expected}")]
    Name {
        /// What has the name: the rule, a state.
        what: &'static str,
        /// The name.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Two of a kind have the same name.
    #[error("{what} {name:?} is declared twice, expected names that differ")]
    Duplicate {
        /// What has the name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// There are too many or too few of something.
    #[error("the definition has {found} {what}, expected {expected}")]
    Count {
        /// What is counted: states, coefficients, hyperparameters of the function of coefficients.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        expected: String,
    },
    /// A name refers to nothing.
    #[error("{what} is {found:?}, expected one of {expected}")]
    Unknown {
        /// What the name should be: a decay rate, a coefficient that is proportional to the learning rate.
        what: &'static str,
        /// The name.
        found: String,
        /// The names that there are.
        expected: String,
    },
    /// A coefficient is said to be proportional to the learning rate and is not, or is and is not said to be.
    #[error(
        "coefficient {name:?} of step {t} is {one:e} at learning rate 0.01 and {three:e} at 0.03, expected {expected}"
    )]
    Proportion {
        /// Its name.
        name: String,
        /// The step.
        t: u64,
        /// At learning rate 0.01.
        one: f64,
        /// At learning rate 0.03.
        three: f64,
        /// Three times as much, or as much.
        expected: &'static str,
    },
    /// The default hyperparameters are not in their ranges.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// The WGSL is not valid.
    #[error("line {line} of the WGSL: {message}: {text:?}")]
    Source {
        /// The line, or the last one if the text ends too early.
        line: usize,
        /// Its text.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// The WGSL declares something that a rule cannot have.
    #[error("line {line} of the WGSL declares {found}, expected {expected}")]
    Declaration {
        /// The line.
        line: usize,
        /// What it declares.
        found: String,
        /// What a rule may declare.
        expected: String,
    },
    /// The WGSL lacks a declaration.
    #[error("the WGSL does not declare {expected}")]
    Missing {
        /// The declaration.
        expected: String,
    },
}
