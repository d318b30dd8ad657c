//! Checkpoints: everything that a continuation needs to be the same bit for bit, apart from the values of the parameters, which the
//! engine keeps. In memory, and as a safetensors file.

pub mod error;
#[cfg(not(target_arch = "wasm32"))]
mod file;
mod format;

use crate::hyperparameters::Group;
use crate::kernels::abi;
use crate::storage::block::BlockLayout;
use crate::storage::dtype::DType;

/// The state of an optimizer between two steps.
///
/// ```
/// # use adamod::{AdaMod, Checkpoint, Optimizer, Options, Parameter, Step, View, Views};
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// # let (device, queue) = doc::gpu();
/// # let buffer = doc::buffer(&device, 8192);
/// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
/// # let group = optimizer.add_group(AdaMod::new())?;
/// # let views = Views::new(View::new(&buffer, 0), View::new(&buffer, 4096));
/// # let weight = optimizer.add_parameter(group, Parameter::new("weight", 1024).with_views(views))?;
/// # let path = std::env::temp_dir().join(format!("adamod-doc-{}.safetensors", std::process::id()));
/// optimizer.submit(&Step::all())?;
/// optimizer.checkpoint().wait()?.save(&path)?;
///
/// // Later, in an optimizer with the same groups and parameters:
/// optimizer.restore(&Checkpoint::load(&path)?)?;
/// assert_eq!(optimizer.step_count(weight), Some(1));
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub(crate) seed: u64,
    pub(crate) groups: Vec<Group>,
    pub(crate) parameters: Vec<SavedParameter>,
    /// The control buffer's start, if the device counts steps.
    pub(crate) control: Option<abi::Control>,
    pub(crate) adapter: String,
    pub(crate) driver: String,
}

/// A parameter of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointParameter<'a> {
    /// Its label.
    pub label: &'a str,
    /// Its number of elements.
    pub len: u64,
    /// Their data type.
    pub dtype: DType,
    /// Its group, an index into [`Checkpoint::groups`].
    pub group: usize,
    /// Steps taken.
    pub step: u64,
    /// Its first element in the tensor that it is a part of; 0 for a whole tensor.
    pub first: u64,
    /// Number of elements of that tensor.
    pub whole: u64,
}

/// A parameter of a checkpoint with its state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SavedParameter {
    pub label: String,
    pub len: u64,
    pub dtype: DType,
    pub group: u32,
    pub step: u64,
    /// Its first element in a tensor of `whole` elements.
    pub first: u64,
    pub whole: u64,
    pub layout: BlockLayout,
    /// The words of its blocks.
    pub words: Vec<u32>,
}

impl Checkpoint {
    /// The seed of stochastic rounding.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The groups, in the order in which they were added.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The parameters, in the order of registration.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = CheckpointParameter<'_>> {
        self.parameters.iter().map(|parameter| CheckpointParameter {
            label: &parameter.label,
            len: parameter.len,
            dtype: parameter.dtype,
            group: parameter.group as usize,
            step: parameter.step,
            first: parameter.first,
            whole: parameter.whole,
        })
    }

    /// Adapter and driver that it was made on.
    pub fn made_on(&self) -> (&str, &str) {
        (&self.adapter, &self.driver)
    }
}
