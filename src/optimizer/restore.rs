//! Which differences a restore allows, and what it has done.

use crate::checkpoint::error::CheckpointError;

/// How a checkpoint is restored into a run that is not the one that it was taken of.
///
/// Without any setting, everything has to be the same ([`Optimizer::restore`](crate::Optimizer::restore)). Each setting allows one difference:
///
/// ```
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// use adamod::{AdaMod, Optimizer, Options, Parameter, Restore};
///
/// # let (device, queue) = doc::gpu();
/// let mut trained = Optimizer::new(&device, &queue, Options::new())?;
/// let group = trained.add_group(AdaMod::new())?;
/// for label in ["module.body", "module.head"] {
///     trained.add_parameter(group, Parameter::new(label, 64))?;
/// }
/// let checkpoint = trained.checkpoint().wait()?.strip_prefix("module.")?;
///
/// // The new run has a head with more classes, and an adapter.
/// let mut optimizer = Optimizer::new(&device, &queue, Options::new().with_seed(7))?;
/// let group = optimizer.add_group(AdaMod::new())?;
/// for (label, len) in [("body", 64), ("head", 96), ("adapter", 8)] {
///     optimizer.add_parameter(group, Parameter::new(label, len))?;
/// }
/// let restore = Restore::new().allow_missing().allow_mismatch().allow_other_seed();
/// let restored = optimizer.restore_with(&checkpoint, &restore)?;
/// assert_eq!(restored.restored, ["body"]);
/// assert_eq!(restored.missing, ["adapter"]);
/// assert_eq!(
///     restored.mismatched[0].to_string(),
///     "the length of parameter \"head\" is 64, expected 96 as in the optimizer"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restore {
    /// Whether the optimizer may have parameters that the checkpoint lacks. They keep their state and step count.
    pub allows_missing: bool,
    /// Whether the checkpoint may have parameters that the optimizer lacks.
    pub allows_extra: bool,
    /// Whether parameters may have another length, data type, group, rule or master weights than in the checkpoint. They keep their state
    /// and step count.
    pub allows_mismatch: bool,
    /// Whether the seeds may differ. The optimizer keeps its own.
    pub allows_other_seed: bool,
    /// Whether loss scale, multiplier and counters start afresh, instead of continuing those of the checkpoint.
    pub has_fresh_control: bool,
    /// Whether groups keep the optimizer's hyperparameters, instead of taking those of the checkpoint.
    pub keeps_hyperparameters: bool,
    /// Whether values that the checkpoint has are left alone.
    pub skips_values: bool,
}

impl Restore {
    /// Everything has to be the same.
    pub const fn new() -> Self {
        Self {
            allows_missing: false,
            allows_extra: false,
            allows_mismatch: false,
            allows_other_seed: false,
            has_fresh_control: false,
            keeps_hyperparameters: false,
            skips_values: false,
        }
    }

    /// Sets [`Restore::allows_missing`].
    pub const fn allow_missing(self) -> Self {
        Self { allows_missing: true, ..self }
    }

    /// Sets [`Restore::allows_extra`].
    pub const fn allow_extra(self) -> Self {
        Self { allows_extra: true, ..self }
    }

    /// Sets [`Restore::allows_mismatch`].
    pub const fn allow_mismatch(self) -> Self {
        Self { allows_mismatch: true, ..self }
    }

    /// Sets [`Restore::allows_other_seed`].
    pub const fn allow_other_seed(self) -> Self {
        Self { allows_other_seed: true, ..self }
    }

    /// Sets [`Restore::has_fresh_control`]: the step counts carry over, and all else of the control is as in a new optimizer. Then the
    /// checkpoint may be one of [`Control::Host`](crate::Control::Host) and the optimizer one of
    /// [`Control::Device`](crate::Control::Device), or the other way round.
    pub const fn with_fresh_control(self) -> Self {
        Self { has_fresh_control: true, ..self }
    }

    /// Sets [`Restore::keeps_hyperparameters`]. Then groups need not correspond to those of the checkpoint; the rule of each parameter has
    /// to be the same. The result is as if the hyperparameters had been set after the restore.
    pub const fn keep_hyperparameters(self) -> Self {
        Self { keeps_hyperparameters: true, ..self }
    }

    /// Sets [`Restore::skips_values`]: only the state is restored.
    pub const fn without_values(self) -> Self {
        Self { skips_values: true, ..self }
    }
}

/// What [`Optimizer::restore_with`](crate::Optimizer::restore_with) has restored, and what it has not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// Labels of the parameters that continue from the checkpoint.
    pub restored: Vec<String>,
    /// Labels of the optimizer's parameters that the checkpoint lacks.
    pub missing: Vec<String>,
    /// Labels of the checkpoint's parameters that the optimizer lacks.
    pub extra: Vec<String>,
    /// Parameters that both have and that do not fit.
    pub mismatched: Vec<Mismatch>,
}

/// Why a parameter of a checkpoint does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {
    /// Label of the parameter.
    pub label: String,
    /// What differs: its length.
    pub what: &'static str,
    /// In the checkpoint.
    pub found: String,
    /// In the optimizer.
    pub expected: String,
}

impl Mismatch {
    fn subject(&self) -> String {
        format!("the {} of parameter {:?}", self.what, self.label)
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { found, expected, .. } = self;
        write!(f, "{} is {found}, expected {expected} as in the optimizer", self.subject())
    }
}

impl From<Mismatch> for CheckpointError {
    fn from(mismatch: Mismatch) -> Self {
        let what = mismatch.subject();
        Self::Mismatch { what, found: mismatch.found, expected: mismatch.expected }
    }
}
