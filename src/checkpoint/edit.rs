//! Checkpoints made of others: some of the parameters, under other names, or shards put together.

use std::collections::HashMap;

use super::error::CheckpointError;
use super::saved::{Checksums, Data, SavedParameter, Segment, Stored, Tensor, Wanted, are_equal, read};
use super::{Checkpoint, CheckpointParameter};
use crate::hyperparameters::Group;
use crate::kernels::abi;

impl Checkpoint {
    /// Keeps the parameters for which `keep` is true. Groups stay.
    ///
    /// ```
    /// # use adamod::{AdaMod, Checkpoint, Optimizer, Options, Parameter};
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// # let (device, queue) = doc::gpu();
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// # for label in ["body.weight", "head.weight"] {
    /// #     optimizer.add_parameter(group, Parameter::new(label, 8))?;
    /// # }
    /// let checkpoint = optimizer.checkpoint().wait()?;
    /// let body = checkpoint.filter(|parameter| !parameter.label.starts_with("head."));
    /// assert_eq!(body.parameters().len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn filter(mut self, mut keep: impl FnMut(&CheckpointParameter<'_>) -> bool) -> Self {
        self.parameters.retain(|parameter| keep(&CheckpointParameter::new(parameter)));
        self
    }

    /// Gives every parameter the label that `rename` makes of its old one. Random numbers of stochastic rounding depend on the label, so
    /// steps after a restore draw those of the new label.
    ///
    /// ```
    /// # use adamod::{AdaMod, Checkpoint, Optimizer, Options, Parameter};
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// # let (device, queue) = doc::gpu();
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// # optimizer.add_parameter(group, Parameter::new("encoder.weight", 8))?;
    /// # let checkpoint = optimizer.checkpoint().wait()?;
    /// let renamed = checkpoint.rename(|label| label.replace("encoder.", "backbone."))?;
    /// assert!(renamed.parameter("backbone.weight").is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If two parameters get the same label, or one an empty label.
    pub fn rename(mut self, mut rename: impl FnMut(&str) -> String) -> Result<Self, CheckpointError> {
        let mut old: HashMap<String, String> = HashMap::with_capacity(self.parameters.len());
        for parameter in &mut self.parameters {
            let label = rename(&parameter.label);
            if label.is_empty() {
                let what = format!("parameter {:?} is renamed to \"\", expected a label", parameter.label);
                return Err(CheckpointError::Metadata { what });
            }
            let second = std::mem::replace(&mut parameter.label, label.clone());
            if let Some(first) = old.insert(label.clone(), second.clone()) {
                return Err(CheckpointError::SameLabel { first, second, label });
            }
        }
        Ok(self)
    }

    /// Removes a prefix from all labels that have it: `module.` of PyTorch's `DistributedDataParallel`, `_orig_mod.` of
    /// `torch.compile`.
    ///
    /// # Errors
    /// As [`Checkpoint::rename`].
    pub fn strip_prefix(self, prefix: &str) -> Result<Self, CheckpointError> {
        self.rename(|label| label.strip_prefix(prefix).unwrap_or(label).to_owned())
    }

    /// Adds values of parameters: raw numbers of each parameter's data type, or `None` for a parameter that keeps what it has. For engines
    /// whose parameters have no registered views, so that one file has all that a run needs. Reads the data of an open checkpoint.
    ///
    /// ```
    /// # use adamod::{AdaMod, Checkpoint, Optimizer, Options, Parameter};
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// # let (device, queue) = doc::gpu();
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// # optimizer.add_parameter(group, Parameter::new("weight", 2))?;
    /// let bytes = [0.5_f32, -1.0].map(f32::to_le_bytes).concat();
    /// let checkpoint = optimizer.checkpoint().wait()?.with_values(|_| Some(bytes.clone()))?;
    /// assert_eq!(checkpoint.values("weight")?, [0.5, -1.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the values of a parameter have another number of bytes than its elements, or the checkpoint's file cannot be read.
    pub fn with_values(
        mut self,
        mut values: impl FnMut(&CheckpointParameter<'_>) -> Option<Vec<u8>>,
    ) -> Result<Self, CheckpointError> {
        for parameter in &mut self.parameters {
            let Some(bytes) = values(&CheckpointParameter::new(parameter)) else { continue };
            let (found, expected) =
                (bytes.len() as u64, parameter.bytes_before(Tensor::Values, parameter.len));
            if found != expected {
                return Err(CheckpointError::ValueBytes { label: parameter.label.clone(), found, expected });
            }
            let wanted = Wanted { parameter, elements: 0..parameter.len };
            let mut tensors = read(&[wanted])?.pop().unwrap_or_default();
            if parameter.has_values {
                tensors.pop();
            }
            tensors.push(bytes);
            parameter.has_values = true;
            let data = Data::Memory(tensors.into());
            parameter.segments = vec![Segment { elements: parameter.len, data }];
        }
        Ok(self)
    }

    /// Puts the checkpoints of several ranks together: the shards of each label become one parameter, the whole tensor or a larger
    /// part of it. A parameter that several ranks have whole, with equal state, is there once. Nothing is copied, and nothing is read
    /// from files, unless such parameters have to be compared.
    ///
    /// Each rank then restores its own part, whatever the number of ranks was. A rank reads only its part of each file (whole pieces of
    /// 2^18 elements, which have checksums):
    ///
    /// ```
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// use adamod::{AdaMod, Checkpoint, Optimizer, Options, Parameter, Restore, Shard};
    ///
    /// # let (device, queue) = doc::gpu();
    /// # let folder = std::env::temp_dir();
    /// # let path = |rank: u64| folder.join(format!("adamod-doc-merge-{}-{rank}.safetensors", std::process::id()));
    /// // Two ranks train and save half of a tensor each.
    /// for rank in 0..2 {
    ///     let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    ///     let group = optimizer.add_group(AdaMod::new())?;
    ///     let shard = Shard::new(rank * 512, 1024);
    ///     optimizer.add_parameter(group, Parameter::new("weight", 512).with_shard(shard))?;
    ///     optimizer.save(path(rank))?;
    /// }
    /// // One rank goes on with the whole tensor. A rank of several would have its own shards here.
    /// let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// let group = optimizer.add_group(AdaMod::new())?;
    /// optimizer.add_parameter(group, Parameter::new("weight", 1024))?;
    /// let files = [Checkpoint::open(path(0))?, Checkpoint::open(path(1))?];
    /// // Ranks that do not have every parameter allow those that are left over.
    /// optimizer.restore_with(&Checkpoint::merge(files)?, &Restore::new().allow_extra())?;
    /// # for rank in 0..2 {
    /// #     std::fs::remove_file(path(rank))?;
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If seeds, groups, controls or the parameters that they share differ, if a shard is missing between two others, or if two
    /// checkpoints have the same elements of a tensor. The error names the parameter.
    pub fn merge(checkpoints: impl IntoIterator<Item = Self>) -> Result<Self, CheckpointError> {
        let mut checkpoints = checkpoints.into_iter();
        let mut merged = checkpoints.next().ok_or(CheckpointError::NothingToMerge)?;
        let mut shards: Vec<Vec<SavedParameter>> =
            std::mem::take(&mut merged.parameters).into_iter().map(|parameter| vec![parameter]).collect();
        let mut by_label: HashMap<String, usize> =
            shards.iter().zip(0..).map(|(of, index)| (of[0].label.clone(), index)).collect();
        for (next, number) in checkpoints.zip(1..) {
            check_heads(&merged, &next, number)?;
            for parameter in next.parameters {
                match by_label.get(&parameter.label) {
                    Some(&index) => {
                        check_shards(&shards[index][0], &parameter, number)?;
                        shards[index].push(parameter);
                    }
                    None => {
                        by_label.insert(parameter.label.clone(), shards.len());
                        shards.push(vec![parameter]);
                    }
                }
            }
        }
        merged.parameters = shards.into_iter().map(joined).collect::<Result<_, _>>()?;
        Ok(merged)
    }
}

fn same<T: PartialEq>(
    what: &str,
    checkpoint: usize,
    found: &T,
    expected: &T,
    text: impl Fn(&T) -> String,
) -> Result<(), CheckpointError> {
    if found == expected {
        return Ok(());
    }
    let what = what.to_owned();
    Err(CheckpointError::Merge { what, checkpoint, found: text(found), expected: text(expected) })
}

/// Checks that what holds for all parameters is the same.
fn check_heads(merged: &Checkpoint, next: &Checkpoint, number: usize) -> Result<(), CheckpointError> {
    same("the seed", number, &next.seed, &merged.seed, u64::to_string)?;
    same("the number of groups", number, &next.groups.len(), &merged.groups.len(), usize::to_string)?;
    for (index, (found, expected)) in next.groups.iter().zip(&merged.groups).enumerate() {
        same(&format!("group {index}"), number, found, expected, |group: &Group| format!("{group:?}"))?;
    }
    // Every rank has a norm of its own until they are reduced.
    let control = |checkpoint: &Checkpoint| checkpoint.control.map(|of| abi::Control { norm: 0.0, ..of });
    same("the control", number, &control(next), &control(merged), |control| match control {
        Some(control) => format!("Control::Device with {control:?}"),
        None => "Control::Host".to_owned(),
    })
}

/// Checks that two parameters can be parts of one tensor.
fn check_shards(
    parameter: &SavedParameter,
    next: &SavedParameter,
    number: usize,
) -> Result<(), CheckpointError> {
    let of = |what: &str| format!("the {what} of parameter {:?}", parameter.label);
    same(&of("length"), number, &next.whole, &parameter.whole, u64::to_string)?;
    same(&of("data type"), number, &next.dtype, &parameter.dtype, ToString::to_string)?;
    same(&of("group"), number, &next.group, &parameter.group, u32::to_string)?;
    same(&of("step count"), number, &next.step, &parameter.step, u64::to_string)?;
    same(&of("state format"), number, &next.layout.state, &parameter.layout.state, |of| {
        of.name().to_owned()
    })?;
    let master = |of: &SavedParameter| of.layout.master_weights;
    same(&of("master weights"), number, &master(next), &master(parameter), |of| of.name().to_owned())?;
    let values = |&has_values: &bool| if has_values { "in it" } else { "not in it" }.to_owned();
    same(
        &format!("values of parameter {:?}", parameter.label),
        number,
        &next.has_values,
        &parameter.has_values,
        values,
    )
}

/// The parameter that consists of these shards.
fn joined(mut shards: Vec<SavedParameter>) -> Result<SavedParameter, CheckpointError> {
    shards.sort_by_key(|shard| shard.first);
    let mut shards = shards.into_iter();
    let Some(mut joined) = shards.next() else { return Err(CheckpointError::NothingToMerge) };
    // The range of the last shard, of which there may be copies.
    let mut last = joined.clone();
    for shard in shards {
        let label = || joined.label.clone();
        if shard.first == last.first && shard.len == last.len {
            if !is_copy(&shard, &last) {
                return Err(CheckpointError::Overlap { label: label(), first: last.first, end: last.end() });
            }
            continue;
        }
        if shard.first < last.end() {
            let end = shard.end().min(last.end());
            return Err(CheckpointError::Overlap { label: label(), first: shard.first, end });
        }
        if shard.first > last.end() {
            return Err(CheckpointError::Gap { label: label(), first: last.end(), end: shard.first });
        }
        joined.len += shard.len;
        joined.segments.extend(shard.segments.iter().cloned());
        last = shard;
    }
    Ok(joined)
}

/// Whether two parameters have the same data.
fn is_copy(one: &SavedParameter, other: &SavedParameter) -> bool {
    if let ([Segment { data: Data::Stored(one), .. }], [Segment { data: Data::Stored(other), .. }]) =
        (one.segments.as_slice(), other.segments.as_slice())
    {
        let Stored { checksums: Checksums { piece, .. }, .. } = &**one;
        if *piece == other.checksums.piece {
            return one.checksums == other.checksums;
        }
    }
    are_equal(std::slice::from_ref(one), std::slice::from_ref(other))
}
