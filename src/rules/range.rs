//! Ranges of hyperparameters.

/// A number is not finite or not in its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {found}, expected {expected}")]
#[non_exhaustive]
pub struct OutOfRange {
    /// The hyperparameter, or the expression of several: `betas[0]`, `learning_rate * weight_decay`.
    pub name: &'static str,
    /// The value.
    pub found: f64,
    /// The accepted range.
    pub expected: &'static str,
}

/// Checks a number; `holds` says whether it is in its range.
///
/// # Errors
/// If it is not, or the number is not finite.
pub fn in_range(
    name: &'static str,
    found: f64,
    expected: &'static str,
    holds: bool,
) -> Result<(), OutOfRange> {
    if found.is_finite() && holds { Ok(()) } else { Err(OutOfRange { name, found, expected }) }
}
