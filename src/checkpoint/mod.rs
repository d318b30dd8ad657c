//! Checkpoints: everything that a continuation needs to be the same bit for bit. The values of the parameters are in them only if the
//! caller asks for it. In memory, and as a safetensors file.

mod edit;
pub mod error;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod file;
mod format;
mod reader;
mod reference;
pub(crate) mod saved;
pub(crate) mod writer;

use saved::SavedParameter;

use crate::hyperparameters::Group;
use crate::kernels::abi;
use crate::storage::dtype::DType;
use crate::storage::master::MasterWeights;
use crate::storage::state::StateFormat;

/// The state of an optimizer between two steps.
///
/// A checkpoint that was [taken](crate::Optimizer::checkpoint) or [loaded](Checkpoint::load) is in memory. The data of one that was
/// [opened](Checkpoint::open) stay in its file, and are read and verified when they are needed. Clones share their data. Comparing
/// checkpoints reads their data; a file that cannot be read equals nothing.
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
#[derive(Clone, Debug)]
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
    /// Format of its state.
    pub state: StateFormat,
    /// Its master weights.
    pub master_weights: MasterWeights,
    /// Whether its values are in the checkpoint, too.
    pub has_values: bool,
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
        self.parameters.iter().map(CheckpointParameter::new)
    }

    /// The parameter with this label.
    pub fn parameter(&self, label: &str) -> Option<CheckpointParameter<'_>> {
        self.saved(label).map(CheckpointParameter::new)
    }

    pub(crate) fn saved(&self, label: &str) -> Option<&SavedParameter> {
        self.parameters.iter().find(|parameter| parameter.label == label)
    }

    /// Adapter and driver that it was made on.
    pub fn made_on(&self) -> (&str, &str) {
        (&self.adapter, &self.driver)
    }
}

impl<'a> CheckpointParameter<'a> {
    fn new(parameter: &'a SavedParameter) -> Self {
        Self {
            label: &parameter.label,
            len: parameter.len,
            dtype: parameter.dtype,
            group: parameter.group as usize,
            step: parameter.step,
            first: parameter.first,
            whole: parameter.whole,
            state: parameter.layout.state,
            master_weights: parameter.layout.master_weights,
            has_values: parameter.has_values,
        }
    }
}

impl PartialEq for Checkpoint {
    fn eq(&self, other: &Self) -> bool {
        let same_head = self.seed == other.seed
            && self.groups == other.groups
            && self.control == other.control
            && self.made_on() == other.made_on();
        same_head && saved::are_equal(&self.parameters, &other.parameters)
    }
}
