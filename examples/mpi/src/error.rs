//! What goes wrong on one rank, as all ranks see it.

use std::path::PathBuf;
use std::time::Duration;

use adamod::wgpu;

/// Why a rank cannot go on. Every rank of a run ends with one of these, and each says which rank is at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another rank failed and said why.
    #[error("rank {rank} failed: {reason}")]
    Rank {
        /// The rank that failed.
        rank: usize,
        /// Its error.
        reason: String,
    },
    /// Another rank has ended its work, while this one still needs it.
    #[error("rank {rank} has ended, expected {awaited} from it")]
    Left {
        /// The rank that ended.
        rank: usize,
        /// What was awaited from it.
        awaited: String,
    },
    /// Other ranks have sent nothing within the time limit, nor that they wait themselves: they are dead, or stuck outside of this crate or
    /// in their devices.
    #[error("rank {} sent nothing for {} s, expected {awaited}", list(ranks), limit.as_secs_f64())]
    Silent {
        /// The ranks: those from which something was awaited, or if they wait themselves, those that they wait for.
        ranks: Vec<usize>,
        /// What was awaited.
        awaited: String,
        /// The time limit.
        limit: Duration,
    },
    /// Ranks have waited for each other for the time limit, because they made other calls.
    #[error(
        "rank {} and this one wait for each other for {} s, expected {awaited}: all ranks make the same calls in the same order",
        list(ranks), limit.as_secs_f64()
    )]
    Deadlock {
        /// The ranks from which something was awaited.
        ranks: Vec<usize>,
        /// What was awaited.
        awaited: String,
        /// The time limit.
        limit: Duration,
    },
    /// A rank sent a message of another length than this one expected: it made another call.
    #[error("rank {rank} sent a message of {found} bytes, expected {expected}")]
    MessageBytes {
        /// The other rank.
        rank: usize,
        /// The bytes of its message.
        found: usize,
        /// The bytes that were expected.
        expected: usize,
    },
    /// MPI reported an error of a message.
    #[error("a message to or from rank {rank} failed: {reason}")]
    Mpi {
        /// The other rank.
        rank: usize,
        /// MPI's text.
        reason: String,
    },
    /// This rank's device has not finished a copy within the time limit.
    #[error("the device did not finish within {} s, expected {awaited}", limit.as_secs_f64())]
    SlowDevice {
        /// What was awaited from it.
        awaited: String,
        /// The time limit.
        limit: Duration,
    },
    /// A rank was built otherwise than rank 0.
    #[error("{what} of rank {rank} is {found}, expected {expected} as on rank 0")]
    Disagreement {
        /// The first rank that differs from rank 0.
        rank: usize,
        /// What differs: a setting, a group, or a parameter with its label.
        what: String,
        /// On that rank.
        found: String,
        /// On rank 0.
        expected: String,
    },
    /// A rank takes another step than rank 0.
    #[error("rank {rank} takes step {found}, expected step {expected} as on rank 0")]
    StepNumber {
        /// The first rank that differs from rank 0.
        rank: usize,
        /// Its step.
        found: u64,
        /// The step of rank 0.
        expected: u64,
    },
    /// The hyperparameters of a rank were changed otherwise than those of rank 0.
    #[error("rank {rank} has other hyperparameters in step {step} than rank 0, expected the same")]
    Hyperparameters {
        /// The first rank that differs from rank 0.
        rank: usize,
        /// The step.
        step: u64,
    },
    /// Gradients of some ranks are infinite or NaN, as they are sent, and the optimizer skips no steps, or it has skipped too many in a
    /// row.
    #[error("the gradients of rank {} are not finite in step {step}, expected finite numbers", list(ranks))]
    NonFinite {
        /// The ranks whose gradients are not finite.
        ranks: Vec<usize>,
        /// The step.
        step: u64,
    },
    /// The gradients of all ranks are finite and their sum overflows f32.
    #[error("the sum of the ranks' gradients overflows f32 in step {step}, expected finite numbers")]
    Overflow {
        /// The step.
        step: u64,
    },
    /// A parameter was added without elements or views, as a shard or with a shadow copy.
    #[error(
        "parameter {label:?} has {found}, expected a whole tensor with views of its values and gradients"
    )]
    Parameter {
        /// Its label.
        label: String,
        /// What it has or lacks.
        found: &'static str,
    },
    /// Another parameter has the label.
    #[error("parameter {label:?} was added before, expected a label that no other parameter has")]
    DuplicateLabel {
        /// The label.
        label: String,
    },
    /// A group does not exist.
    #[error("the group is number {found}, expected one of {groups} groups, counted from 0")]
    Group {
        /// Its number.
        found: usize,
        /// The number of groups.
        groups: usize,
    },
    /// A buffer of a parameter cannot be copied from or to.
    #[error("the {role} buffer of parameter {label:?} has usages {found:?}, expected {expected:?} too")]
    Usage {
        /// The parameter's label.
        label: String,
        /// `values` or `gradients`.
        role: &'static str,
        /// The buffer's usages.
        found: wgpu::BufferUsages,
        /// What it lacks.
        expected: wgpu::BufferUsages,
    },
    /// A view ends behind its buffer.
    #[error(
        "the {role} of parameter {label:?} end at byte {end}, expected at most {size}, the buffer's size"
    )]
    OutOfBounds {
        /// The parameter's label.
        label: String,
        /// `values` or `gradients`.
        role: &'static str,
        /// The byte after the tensor.
        end: u64,
        /// The size of the buffer.
        size: u64,
    },
    /// A bucket is larger than the device's buffers or a message can be.
    #[error("bucket {bucket} takes {found} bytes, expected at most {most}: use smaller buckets or tensors")]
    BucketSize {
        /// The number of the bucket.
        bucket: usize,
        /// Its size in bytes.
        found: u64,
        /// The most that is possible.
        most: u64,
    },
    /// There are more buckets than messages have tags.
    #[error("there are {found} buckets, expected at most {most}: use larger buckets")]
    BucketCount {
        /// The number of buckets.
        found: usize,
        /// The most that is possible.
        most: usize,
    },
    /// A bucket does not exist, or was reduced already in this step.
    #[error(
        "bucket {bucket} is {found}, expected one of {count} buckets that is not reduced in this step yet"
    )]
    Bucket {
        /// The number of the bucket.
        bucket: usize,
        /// What is wrong with it.
        found: &'static str,
        /// The number of buckets.
        count: usize,
    },
    /// A checkpoint cannot be taken or restored while buckets are reduced.
    #[error("a bucket of step {step} was reduced already, expected whole steps around a checkpoint")]
    MidStep {
        /// The step.
        step: u64,
    },
    /// The device refused a copy of a staging buffer, or is lost.
    #[error("the device is lost or could not map a staging buffer: {0}")]
    Map(#[from] wgpu::BufferAsyncError),
    /// The device refused to be polled.
    #[error("the device could not be polled: {0}")]
    Poll(#[from] wgpu::PollError),
    /// A mapped staging buffer could not be read or written.
    #[error("a staging buffer could not be accessed: {0}")]
    MapRange(#[from] wgpu::MapRangeError),
    /// A step failed on this rank.
    #[error(transparent)]
    Optimizer(#[from] adamod::Error),
    /// A rank's file cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] adamod::CheckpointError),
    /// A file operation failed.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error.
        #[source]
        error: std::io::Error,
    },
    /// The manifest of a folder of checkpoints cannot be used.
    #[error("{}: expected a manifest of version {expected}: {found}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
        /// The version that this crate reads.
        expected: u32,
    },
    /// A checkpoint has other parameters than the run.
    #[error("the checkpoint has parameter {label:?} with {found}, expected {expected}")]
    CheckpointParameter {
        /// The label.
        label: String,
        /// In the checkpoint.
        found: String,
        /// In the run.
        expected: String,
    },
    /// The run has ended with an error before.
    #[error("the run has ended with an error before")]
    Ended,
}

fn list(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_rank_and_what_was_expected() {
        let error = Error::Silent {
            ranks: vec![1, 3],
            awaited: "gradients".into(),
            limit: Duration::from_millis(1500),
        };
        assert_eq!(error.to_string(), "rank 1, 3 sent nothing for 1.5 s, expected gradients");
    }
}
