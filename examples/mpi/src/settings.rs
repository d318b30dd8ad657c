//! How a run is distributed.

use std::time::Duration;

use adamod::DType;

/// What each rank holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Everything. Gradients are averaged, and every rank takes the whole step: PyTorch's `DistributedDataParallel`.
    #[default]
    Replicated,
    /// All values and gradients, and the state of its own shards, which it steps. The values are gathered afterwards: ZeRO-1.
    ShardedState,
    /// All values, and the averaged gradients and the state of its own shards: ZeRO-2. Once a bucket is reduced, its gradients may be
    /// overwritten, so an engine needs memory for the gradients of one bucket only.
    ShardedGradients,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Replicated, Self::ShardedState, Self::ShardedGradients];

    /// Whether each rank steps its own shards.
    pub const fn is_sharded(self) -> bool {
        !matches!(self, Self::Replicated)
    }
}

/// How a run is distributed. The same on all ranks.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// What each rank holds.
    pub mode: Mode,
    /// Data type of f32 gradients on their way. Gradients that are stored in 16 bits are sent as they are.
    ///
    /// With 16 bits, each rank's gradients are rounded to the nearest before they are summed, its own included. The sum is taken in f32,
    /// and the average is rounded once more. So all modes have the same bits.
    pub wire: DType,
    /// The most bytes of gradients that are exchanged together. A larger tensor is a bucket of its own.
    pub bucket_bytes: u64,
    /// How many steps in a row may be skipped because of gradients that are not finite before the run ends with an error that names the
    /// ranks; any number if `None`.
    pub most_skips: Option<u32>,
    /// How long all ranks together may take to write or to restore a checkpoint.
    pub save_limit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            wire: DType::F32,
            bucket_bytes: 25 << 20,
            most_skips: None,
            save_limit: Duration::from_secs(600),
        }
    }
}

impl Settings {
    /// Settings of this mode: gradients sent in f32, buckets of 25 MiB as in PyTorch, ten minutes for a checkpoint.
    pub fn new(mode: Mode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Sets [`Settings::wire`].
    pub fn with_wire(self, wire: DType) -> Self {
        Self { wire, ..self }
    }

    /// Sets [`Settings::bucket_bytes`].
    pub fn with_bucket_bytes(self, bucket_bytes: u64) -> Self {
        Self { bucket_bytes, ..self }
    }

    /// Sets [`Settings::most_skips`].
    pub fn with_most_skips(self, most_skips: u32) -> Self {
        Self { most_skips: Some(most_skips), ..self }
    }

    /// Sets [`Settings::save_limit`].
    pub fn with_save_limit(self, save_limit: Duration) -> Self {
        Self { save_limit, ..self }
    }
}
