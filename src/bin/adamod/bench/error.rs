//! Why a measurement failed.

use adamod::ErrorKind;
use plotters::drawing::DrawingAreaErrorKind;

use crate::failure::{Failure, note};

/// The error of plotters. The picture is drawn into a string, so only its layout can fail.
pub type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// `adamod bench` failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A case did not fit.
    #[error("{case}: the device refused a resource: {error}; use --max-elements for smaller cases")]
    Resource {
        /// Suite and case.
        case: String,
        /// The error of wgpu.
        error: wgpu::Error,
    },
    /// The optimizer failed.
    #[error("the optimizer failed")]
    Optimizer(#[from] adamod::Error),
    /// The device failed while the bench waited for it.
    #[error("waiting for the device failed")]
    Poll(#[from] wgpu::PollError),
    /// A copy could not be mapped.
    #[error("results could not be mapped: the device may be lost")]
    Map,
    /// The adapter has no timestamps.
    #[error("{adapter} has no timestamps, expected --timing wall or no --timing")]
    NoTimestamps {
        /// Name of the adapter.
        adapter: String,
    },
    /// Timestamps went backwards or stood still.
    #[error(
        "the adapter's timestamps cannot be used: a pass of {work} took {ticks} ticks; try --timing wall"
    )]
    Timestamps {
        /// The measured work.
        work: String,
        /// End minus start.
        ticks: i64,
    },
    /// The measured work computed a wrong result.
    #[error("{case}: the result is wrong: {difference}")]
    Wrong {
        /// Suite, case and mode.
        case: String,
        /// The element and its difference.
        difference: String,
    },
    /// A picture was asked for, but not the suite that it shows.
    #[error("--plot draws the suite roofline, expected --suite roofline or no --suite")]
    NothingToPlot,
    /// The picture could not be laid out.
    #[error("the picture could not be drawn: {0}")]
    Draw(DrawError),
    /// The report could not be printed.
    #[error("the report cannot be printed")]
    Report(#[from] std::io::Error),
    /// The report could not be converted to JSON.
    #[error("the report could not be converted to JSON")]
    Json(#[from] serde_json::Error),
}

impl BenchError {
    /// What the device said.
    pub fn reason(&self) -> String {
        match self {
            Self::Resource { error, .. } => error.to_string(),
            Self::Optimizer(error) => error.to_string(),
            _ => self.to_string(),
        }
    }

    /// Whether the device has no room for the case, so that smaller ones may run.
    pub fn is_too_large(&self) -> bool {
        match self {
            Self::Resource { error, .. } => matches!(error, wgpu::Error::OutOfMemory { .. }),
            Self::Optimizer(error) => {
                matches!(error.kind(), ErrorKind::Device(wgpu::Error::OutOfMemory { .. }))
            }
            _ => false,
        }
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Wrong { .. } => {
                note(format_args!("error: {error}"));
                Failure::CheckFailed
            }
            BenchError::NoTimestamps { .. } | BenchError::NothingToPlot => Failure::Input(error.into()),
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
    fn running_out_of_memory_is_told_from_other_failures() {
        assert!(BenchError::from(adamod::Error::from(ErrorKind::Device(out_of_memory()))).is_too_large());
        assert!(!BenchError::from(adamod::Error::from(ErrorKind::Lost)).is_too_large());
        assert!(BenchError::Resource { case: "2^30".into(), error: out_of_memory() }.is_too_large());
        assert!(!BenchError::Map.is_too_large());
        assert!(!BenchError::Wrong { case: "2^30".into(), difference: "0 is 1".into() }.is_too_large());
    }
}
