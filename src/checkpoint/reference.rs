//! Checkpoints of the CPU reference, in which runs go from it to an optimizer and back.

use super::Checkpoint;
use super::error::CheckpointError;
use super::saved::{Data, SavedParameter, Segment, Wanted, read};
use crate::reference::Reference;
use crate::storage::block::state_words;
use crate::storage::contents::{Contents, Parts};
use crate::storage::dtype::{DType, narrow};
use crate::storage::master::join;

/// In place of the adapter's name.
const ADAPTER: &str = "CPU reference";

impl Reference<f32> {
    /// Takes a checkpoint with the values of the parameters. The reference or an [`Optimizer`](crate::Optimizer) with the same groups and
    /// parameters continues from it with the same bits.
    ///
    /// ```
    /// use adamod::{AdaMod, reference::{Reference, Storage}};
    ///
    /// let reference = || {
    ///     let mut reference = Reference::<f32>::new();
    ///     let group = reference.add_group(AdaMod::new());
    ///     reference.add_stored_parameter(group, vec![1.0, -2.0], Storage::new().with_label("weight"));
    ///     reference
    /// };
    /// let mut trained = reference();
    /// trained.step(&[Some(&[0.5, 0.25])]);
    /// let checkpoint = trained.checkpoint()?;
    /// assert_eq!(checkpoint.values("weight")?, trained.values(0));
    ///
    /// let mut resumed = reference();
    /// resumed.restore(&checkpoint)?;
    /// assert_eq!(resumed.step_count(0), 1);
    /// # Ok::<(), adamod::CheckpointError>(())
    /// ```
    ///
    /// # Errors
    /// If a parameter has no label or that of another one, is a part of a tensor, or has another seed than the first one.
    pub fn checkpoint(&self) -> Result<Checkpoint, CheckpointError> {
        let seed = self.parameters.first().map_or(0, |parameter| parameter.seed);
        let mut parameters: Vec<SavedParameter> = Vec::with_capacity(self.parameters.len());
        for parameter in &self.parameters {
            let label = &parameter.label;
            if label.is_empty() || parameters.iter().any(|other| other.label == *label) {
                let what = format!(
                    "parameter {} has the label {label:?}, expected one of its own",
                    parameters.len()
                );
                return Err(CheckpointError::Metadata { what });
            }
            same(label, "first element", parameter.first, 0)?;
            same(label, "seed", parameter.seed, seed)?;
            let len = parameter.values.len() as u64;
            let mut zeros = Vec::new();
            let words = if parameter.words.is_empty() {
                zeros.resize(state_words(parameter.layout, len) as usize, 0);
                &zeros
            } else {
                &parameter.words
            };
            let Parts { states, scales, master } =
                Parts::of_blocks(parameter.layout, len, bytemuck::cast_slice(words));
            let rest = [scales, master].into_iter().filter(|part| !part.is_empty());
            let mut tensors: Vec<Vec<u8>> = states.into_iter().chain(rest).collect();
            let bits = parameter.values.iter().map(|value| value.to_bits());
            tensors.push(match parameter.dtype {
                DType::F32 => bits.flat_map(u32::to_le_bytes).collect(),
                // Before the first step the values are numbers of the data type.
                dtype if parameter.narrowed.is_empty() => {
                    bits.flat_map(|bits| (narrow(dtype, bits) as u16).to_le_bytes()).collect()
                }
                _ => parameter.narrowed.iter().flat_map(|&bits| (bits as u16).to_le_bytes()).collect(),
            });
            parameters.push(SavedParameter {
                label: label.clone(),
                len,
                dtype: parameter.dtype,
                group: parameter.group as u32,
                step: parameter.steps,
                first: 0,
                whole: len,
                layout: parameter.layout,
                has_values: true,
                segments: vec![Segment { elements: len, data: Data::Memory(tensors.into()) }],
            });
        }
        Ok(Checkpoint {
            seed,
            groups: self.groups.clone(),
            parameters,
            control: None,
            adapter: ADAPTER.to_owned(),
            driver: String::new(),
        })
    }

    /// Continues from a checkpoint with values, of a reference or of an [`Optimizer`](crate::Optimizer) with
    /// [`Control::Host`](crate::Control::Host): values, state, step counts and hyperparameters are the checkpoint's.
    ///
    /// # Errors
    /// If the checkpoint and the reference differ: in the rules of the groups, in the labels, lengths, data types, groups or formats of the
    /// parameters, or in the seed. If the checkpoint has no values, or its file cannot be read. Nothing has changed then.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let mismatch = |what: String, found: String, expected: String| {
            if found == expected { Ok(()) } else { Err(CheckpointError::Mismatch { what, found, expected }) }
        };
        let control = |on_device| if on_device { "Control::Device" } else { "Control::Host" }.to_owned();
        mismatch("the control".to_owned(), control(checkpoint.control.is_some()), control(false))?;
        let (found, expected) = (checkpoint.groups.len(), self.groups.len());
        mismatch("the number of groups".to_owned(), found.to_string(), expected.to_string())?;
        for (number, (saved, group)) in checkpoint.groups.iter().zip(&self.groups).enumerate() {
            let (saved, rule) = (saved.hyperparameters.rule, group.hyperparameters.rule);
            mismatch(
                format!("the rule of group {number}"),
                saved.form().to_string(),
                rule.form().to_string(),
            )?;
            let (found, expected) = (saved.variant().to_string(), rule.variant().to_string());
            mismatch(format!("the formula of group {number}"), found, expected)?;
        }
        for saved in &checkpoint.parameters {
            if !self.parameters.iter().any(|parameter| parameter.label == saved.label) {
                return Err(CheckpointError::ExtraParameter { label: saved.label.clone() });
            }
        }
        let mut restored = self.clone();
        for parameter in &mut restored.parameters {
            let label = &parameter.label;
            let missing = || CheckpointError::MissingParameter { label: label.clone() };
            let saved = checkpoint.saved(label).ok_or_else(missing)?;
            same(label, "seed", checkpoint.seed, parameter.seed)?;
            same(label, "first element", saved.first, parameter.first)?;
            same(label, "length", saved.len, parameter.values.len() as u64)?;
            same(label, "data type", saved.dtype, parameter.dtype)?;
            same(label, "group", saved.group as usize, parameter.group)?;
            same(label, "state format", saved.layout.state.name(), parameter.layout.state.name())?;
            let master_weights = parameter.layout.master_weights;
            same(label, "master weights", saved.layout.master_weights.name(), master_weights.name())?;
            if !saved.has_values {
                return Err(CheckpointError::NoValues { label: label.clone() });
            }
            let tensors =
                read(&[Wanted { parameter: saved, elements: 0..saved.len }])?.pop().unwrap_or_default();
            let mut tensors = tensors.into_iter();
            let states = tensors.by_ref().take(saved.layout.states.len()).collect();
            let mut next_if =
                |is_there: bool| if is_there { tensors.next().unwrap_or_default() } else { Vec::new() };
            let scales = next_if(saved.layout.scale_words(1) > 0);
            let master = next_if(saved.layout.master_bits() > 0);
            let values = next_if(true);
            parameter.words = Parts { states, scales, master }.to_words(saved.layout, saved.len);
            let contents = Contents::decode(saved.layout, saved.len, &parameter.words);
            parameter.narrowed = match parameter.dtype {
                DType::F32 => bytemuck::pod_collect_to_vec(&values),
                DType::F16 | DType::Bf16 => {
                    let halves: Vec<u16> = bytemuck::pod_collect_to_vec(&values);
                    halves.into_iter().map(u32::from).collect()
                }
            };
            let joined = parameter.narrowed.iter().zip(&contents.differences);
            parameter.values = joined
                .map(|(&narrowed, &difference)| join(parameter.dtype, master_weights, narrowed, difference))
                .collect();
            parameter.states = contents.states;
            parameter.steps = saved.step;
        }
        for (group, saved) in restored.groups.iter_mut().zip(&checkpoint.groups) {
            group.hyperparameters = saved.hyperparameters;
        }
        *self = restored;
        Ok(())
    }
}

/// Checks that two things of a parameter are equal.
fn same<T: PartialEq + std::fmt::Display>(
    label: &str,
    what: &str,
    found: T,
    expected: T,
) -> Result<(), CheckpointError> {
    if found == expected {
        return Ok(());
    }
    Err(CheckpointError::Mismatch {
        what: format!("the {what} of parameter {label:?}"),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}
