//! Why a measurement was given up.

use std::error::Error;
use std::path::PathBuf;

use adamod::{CreateError, EncodeError, HyperparameterError, ReadError, RegisterError};

use super::plot::DrawError;
use crate::Failure;

/// `adamod bench` failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Something did not fit.
    #[error("{case}: the device refused a resource; --max-elements makes cases smaller")]
    Resource {
        /// Suite and case.
        case: String,
        /// What wgpu says.
        source: wgpu::Error,
    },
    /// The optimizer was refused.
    #[error("the optimizer could not be made")]
    Create(#[from] CreateError),
    /// A group was refused.
    #[error("a group was refused")]
    Hyperparameters(#[from] HyperparameterError),
    /// A parameter was refused.
    #[error("a parameter was refused")]
    Register(#[from] RegisterError),
    /// A step could not be recorded.
    #[error("a step could not be recorded")]
    Encode(#[from] EncodeError),
    /// State could not be read back.
    #[error("state could not be read back")]
    Read(#[from] ReadError),
    /// The device failed while it was waited for.
    #[error("waiting for the device failed")]
    Poll(#[from] wgpu::PollError),
    /// A copy could not be mapped.
    #[error("results could not be mapped: the device may be lost")]
    Map,
    /// Timestamps were asked of an adapter without.
    #[error("{adapter} has no timestamps: leave --timing out, or give --timing wall")]
    NoTimestamps {
        /// Its name.
        adapter: String,
    },
    /// Timestamps went backwards or stood still.
    #[error(
        "the adapter's timestamps cannot be used: a pass of {work} took {ticks} ticks; try --timing wall"
    )]
    Timestamps {
        /// What was timed.
        work: String,
        /// End minus start.
        ticks: i64,
    },
    /// What was timed is wrong.
    #[error("{case}: what was timed is wrong: {difference}")]
    Wrong {
        /// Suite, case and mode.
        case: String,
        /// Where, and by how much.
        difference: String,
    },
    /// A picture was asked for of a suite that is not run.
    #[error("--plot draws the suite roofline: give --suite roofline, too, or leave --suite out")]
    NothingToPlot,
    /// A file for the results could not be written.
    #[error("{option}: {} cannot be written", path.display())]
    File {
        /// What asked for it.
        option: &'static str,
        /// As it was given.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The picture could not be laid out.
    #[error("the picture could not be drawn")]
    Draw(#[from] DrawError),
    /// The report could not be written.
    #[error("the report could not be written")]
    Report(#[from] std::io::Error),
    /// The report could not be put into JSON.
    #[error("the report could not be put into JSON")]
    Json(#[from] serde_json::Error),
}

impl BenchError {
    /// Whether the device has no room for the case: smaller ones may run.
    pub fn is_too_large(&self) -> bool {
        let mut causes = std::iter::successors(Some(self as &dyn Error), |&error| error.source());
        matches!(self, Self::Resource { .. })
            || causes.any(|cause| {
                matches!(cause.downcast_ref::<wgpu::Error>(), Some(wgpu::Error::OutOfMemory { .. }))
            })
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Wrong { .. } => {
                eprintln!("error: {error}");
                Failure::CheckFailed
            }
            BenchError::NoTimestamps { .. } | BenchError::NothingToPlot | BenchError::File { .. } => {
                Failure::Input(error.into())
            }
            _ => Failure::Machine(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out_of_memory() -> wgpu::Error {
        wgpu::Error::OutOfMemory { source: "no room".into() }
    }

    #[test]
    fn memory_that_runs_out_anywhere_is_told_from_other_failures() {
        assert!(BenchError::Encode(EncodeError::Device(out_of_memory())).is_too_large());
        assert!(BenchError::Read(ReadError::Device(out_of_memory())).is_too_large());
        assert!(BenchError::Resource { case: "2^30".into(), source: out_of_memory() }.is_too_large());
        assert!(!BenchError::Map.is_too_large());
        assert!(!BenchError::Wrong { case: "2^30".into(), difference: "0 is 1".into() }.is_too_large());
    }
}
