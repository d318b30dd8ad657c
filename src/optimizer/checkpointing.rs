//! Checkpoints of an [`Optimizer`] are taken and saved.

use std::collections::HashMap;

use super::Optimizer;
use super::device_steps::DeviceSteps;
use super::handles::{GroupId, State};
use super::readback::Readback;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::saved::{Data, SavedParameter, Segment, Wanted, read};
use crate::device::readback::Source;
use crate::error::Error;
use crate::kernels::abi;
use crate::storage::block::{BlockLayout, CHUNK_ELEMENTS, WORD_BYTES, state_words};
use crate::storage::contents::{Contents, Parts};
use crate::storage::dtype::DType;
use crate::storage::master::join;

/// Copies of parts of parameters that one submit takes.
#[derive(Default)]
struct Window {
    sources: Vec<Source>,
    items: Vec<Item>,
    bytes: u64,
}

/// Elements of a parameter in a window.
struct Item {
    /// Position of the parameter in the checkpoint.
    parameter: usize,
    elements: u64,
    /// The source of its blocks, and the byte there at which they start. Without blocks, before the first step, they are zero.
    blocks: Option<(usize, usize)>,
    /// The source of its values.
    values: Option<usize>,
}

impl Optimizer {
    /// Bytes that a save or a streamed restore stages at once.
    pub(super) const WINDOW_BYTES: u64 = 32 << 20;

    /// Takes a checkpoint: everything that a continuation needs to be the same bit for bit, apart from the values of the parameters.
    /// Submits a copy, so all recorded steps have to be submitted before. Training may go on while the copy is read.
    ///
    /// The copy takes as many bytes as the state, on the device and again on the host. [`Optimizer::save`] takes less.
    ///
    /// # Errors
    /// The read-back fails if the device fails.
    pub fn checkpoint(&self) -> Readback<Checkpoint> {
        self.take(false)
    }

    /// Takes a checkpoint with the values of the parameters at their registered views, as raw numbers of their data types. State and
    /// values are those of the same moment, so one file has all that a run needs.
    ///
    /// ```
    /// # use adamod::{AdaMod, Optimizer, Options, Parameter, View, Views};
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// # let (device, queue) = doc::gpu();
    /// # let buffer = doc::buffer(&device, 8192);
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// # let views = Views::new(View::new(&buffer, 0), View::new(&buffer, 4096));
    /// # let weight = optimizer.add_parameter(group, Parameter::new("weight", 1024).with_views(views))?;
    /// optimizer.write_parameter(weight, &[0.5; 1024])?;
    /// let checkpoint = optimizer.checkpoint_with_values().wait()?;
    /// assert_eq!(checkpoint.values("weight")?, [0.5; 1024]);
    ///
    /// optimizer.write_parameter(weight, &[9.0; 1024])?;
    /// optimizer.restore(&checkpoint)?;
    /// assert_eq!(optimizer.read_parameter(weight).wait()?, [0.5; 1024]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The read-back fails if a parameter has no registered views, the buffer of its values lacks COPY_SRC, or the device fails.
    pub fn checkpoint_with_values(&self) -> Readback<Checkpoint> {
        self.take(true)
    }

    fn take(&self, has_values: bool) -> Readback<Checkpoint> {
        let mut checkpoint = self.head(has_values);
        let windows = match self.windows(has_values, u64::MAX) {
            Ok(windows) => windows,
            Err(error) => return Readback::failed(error),
        };
        let Window { mut sources, items, .. } = windows.into_iter().next().unwrap_or_default();
        let control = self.control_source();
        let has_control = control.is_some();
        sources.extend(control);
        let indices = self.indices();
        self.read(sources, false, None, move |contents| {
            let control = contents.last().filter(|_| has_control);
            set_control(&mut checkpoint, control.map(Vec::as_slice), &indices);
            let mut data: Vec<Vec<Vec<u8>>> = vec![Vec::new(); checkpoint.parameters.len()];
            for item in items {
                let tensors = item.tensors(&checkpoint.parameters[item.parameter], &contents);
                let all = &mut data[item.parameter];
                if all.is_empty() {
                    *all = tensors;
                } else {
                    all.iter_mut().zip(tensors).for_each(|(all, more)| all.extend(more));
                }
            }
            for (parameter, data) in checkpoint.parameters.iter_mut().zip(data) {
                let data = Data::Memory(data.into());
                parameter.segments = vec![Segment { elements: parameter.len, data }];
            }
            checkpoint
        })
    }

    /// Saves a checkpoint to a file, a part at a time: at most some 100 MiB are in memory at once, on the host and the device together.
    /// Blocks until the file is complete. It makes the same promises as [`Checkpoint::save`](crate::Checkpoint::save).
    ///
    /// The device copies each part on its own. So all recorded steps have to be submitted before, and none may be submitted meanwhile.
    /// To train on meanwhile, [take](Optimizer::checkpoint) a checkpoint and save that.
    ///
    /// ```
    /// # use adamod::{AdaMod, Checkpoint, Optimizer, Options, Parameter};
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// # let (device, queue) = doc::gpu();
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// # optimizer.add_parameter(group, Parameter::new("weight", 1024))?;
    /// # let path = std::env::temp_dir().join(format!("adamod-doc-save-{}.safetensors", std::process::id()));
    /// optimizer.save(&path)?;
    /// // Later. An open checkpoint is read a part at a time, too.
    /// optimizer.restore(&Checkpoint::open(&path)?)?;
    /// # std::fs::remove_file(&path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the device fails or does not finish a part in time, or the file system refuses an operation. The old file stays then.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<(), CheckpointError> {
        self.save_to(path.as_ref(), false)
    }

    /// Saves a checkpoint with the values of the parameters to a file: [`Optimizer::save`], with what
    /// [`Optimizer::checkpoint_with_values`] adds.
    ///
    /// # Errors
    /// As [`Optimizer::save`] and [`Optimizer::checkpoint_with_values`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save_with_values(&self, path: impl AsRef<std::path::Path>) -> Result<(), CheckpointError> {
        self.save_to(path.as_ref(), true)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn save_to(&self, path: &std::path::Path, has_values: bool) -> Result<(), CheckpointError> {
        use crate::checkpoint::file::NewFile;
        use crate::checkpoint::writer::Writer;

        let mut checkpoint = self.head(has_values);
        let windows = self.windows(has_values, Self::WINDOW_BYTES)?;
        if let Some(source) = self.control_source() {
            let contents = self.read(vec![source], false, None, |contents| contents).wait()?;
            set_control(&mut checkpoint, contents.first().map(Vec::as_slice), &self.indices());
        }
        let mut writer = Writer::new(&checkpoint, NewFile::create(path)?)?;
        for Window { sources, items, .. } in windows {
            let contents = self.read(sources, false, None, |contents| contents).wait()?;
            for item in items {
                let tensors = item.tensors(&checkpoint.parameters[item.parameter], &contents);
                writer.write(item.parameter, item.elements, &tensors)?;
            }
        }
        writer.finish()?.replace()
    }

    /// The checkpoint without data, and with the step counts that the host has.
    fn head(&self, has_values: bool) -> Checkpoint {
        let groups = self.registry.groups_in_order();
        let numbers = numbers_of(&groups.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        let wgpu::AdapterInfo { name, driver, driver_info, .. } = self.gpu.device.adapter_info();
        let mut parameters = Vec::with_capacity(self.registry.len());
        parameters.extend(self.registry.parameters().map(|(id, record)| SavedParameter {
            label: record.label.clone(),
            len: record.len,
            dtype: record.dtype,
            group: numbers[&record.group],
            step: self.registry.steps(id),
            first: record.shard.first,
            whole: record.shard.whole,
            layout: record.layout,
            has_values,
            segments: Vec::new(),
        }));
        Checkpoint {
            seed: self.options.seed,
            parameters,
            groups: groups.into_iter().map(|(_, group)| *group).collect(),
            control: None,
            adapter: name,
            driver: format!("{driver} {driver_info}").trim().to_owned(),
        }
    }

    /// The index of each parameter, in the order of a checkpoint.
    fn indices(&self) -> Vec<usize> {
        self.registry.parameters().map(|(id, _)| id.key.index()).collect()
    }

    /// The control buffer up to the last step count, if the device counts.
    fn control_source(&self) -> Option<Source> {
        let steps = self.recorder.source().device()?;
        let bytes = DeviceSteps::step_count_offset(self.registry.end());
        Some(Source { buffer: steps.control().clone(), offset: 0, bytes })
    }

    /// Divides all parameters into windows of at most `most` bytes. Parts start at whole chunks.
    fn windows(&self, has_values: bool, most: u64) -> Result<Vec<Window>, Error> {
        let chunk = u64::from(CHUNK_ELEMENTS);
        let mut windows = Vec::new();
        let mut window = Window::default();
        for (parameter, (id, record)) in self.registry.parameters().enumerate() {
            let values = has_values
                .then(|| self.values_of(id, None, wgpu::BufferUsages::COPY_SRC).map(|(_, view)| view))
                .transpose()?;
            let value_bytes = if has_values { record.dtype.bytes() } else { 0 };
            // Bytes of a whole chunk, of which a window holds at least one.
            let chunk_bytes = state_words(record.layout, chunk) * WORD_BYTES + value_bytes * chunk;
            let extents = self.memory.extents(id.key.index());
            let runs: Vec<_> = if extents.is_empty() {
                vec![(None, record.len)]
            } else {
                extents.iter().map(|extent| (Some(extent), extent.elements)).collect()
            };
            let mut first = 0;
            for (extent, elements) in runs {
                let mut done = 0;
                while done < elements {
                    let fits = (most.saturating_sub(window.bytes) / chunk_bytes).saturating_mul(chunk);
                    if fits < (elements - done).min(chunk) && !window.items.is_empty() {
                        windows.push(std::mem::take(&mut window));
                        continue;
                    }
                    let taken = (elements - done).min(fits.max(chunk));
                    let blocks = extent.map(|extent| {
                        let place = u64::from(extent.state) + state_words(record.layout, done);
                        window.add(Source {
                            buffer: self.memory.buffer(extent.buffer).clone(),
                            offset: place * WORD_BYTES,
                            bytes: state_words(record.layout, taken) * WORD_BYTES,
                        })
                    });
                    let values = values.map(|view| {
                        window.sources.push(Source {
                            buffer: view.buffer.clone(),
                            offset: view.offset + first * value_bytes,
                            bytes: (taken * value_bytes).next_multiple_of(WORD_BYTES),
                        });
                        window.sources.len() - 1
                    });
                    window.bytes += state_words(record.layout, taken) * WORD_BYTES + taken * value_bytes;
                    window.items.push(Item { parameter, elements: taken, blocks, values });
                    done += taken;
                    first += taken;
                }
            }
        }
        windows.push(window);
        Ok(windows)
    }
}

impl Window {
    /// Adds a source, or extends the last one that it continues. Returns the source, and the byte there at which it starts.
    fn add(&mut self, source: Source) -> (usize, usize) {
        if let Some(last) = self.sources.last_mut()
            && last.buffer == source.buffer
            && last.offset + last.bytes == source.offset
        {
            let start = last.bytes as usize;
            last.bytes += source.bytes;
            return (self.sources.len() - 1, start);
        }
        self.sources.push(source);
        (self.sources.len() - 1, 0)
    }
}

impl Item {
    /// The bytes of each tensor.
    fn tensors(&self, parameter: &SavedParameter, contents: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let layout = parameter.layout;
        let mut tensors = match self.blocks {
            Some((source, start)) => {
                let bytes = (state_words(layout, self.elements) * WORD_BYTES) as usize;
                let blocks = &contents[source][start..start + bytes];
                let Parts { states, scales, master } = Parts::of_blocks(layout, self.elements, blocks);
                let rest = [scales, master].into_iter().filter(|part| !part.is_empty());
                states.into_iter().chain(rest).collect()
            }
            None => {
                let has_values = usize::from(parameter.has_values);
                let tensors = parameter.tensors();
                let zeros = |&tensor: &_| vec![0; parameter.bytes_before(tensor, self.elements) as usize];
                tensors[..tensors.len() - has_values].iter().map(zeros).collect::<Vec<_>>()
            }
        };
        if let Some(source) = self.values {
            // Without the half after an odd number of halves.
            tensors.push(contents[source][..(self.elements * parameter.dtype.bytes()) as usize].to_vec());
        }
        tensors
    }
}

/// Takes control and step counts from the start of a control buffer.
fn set_control(checkpoint: &mut Checkpoint, control: Option<&[u8]>, indices: &[usize]) {
    let Some(bytes) = control else { return };
    checkpoint.control = Some(bytemuck::pod_read_unaligned(&bytes[..size_of::<abi::Control>()]));
    for (parameter, &index) in checkpoint.parameters.iter_mut().zip(indices) {
        let count = &bytes[DeviceSteps::step_count_offset(index) as usize..][..4];
        parameter.step = bytemuck::pod_read_unaligned::<u32>(count).into();
    }
}

/// The number of each group, in the order in which they were added.
pub(super) fn numbers_of(groups: &[GroupId]) -> HashMap<GroupId, u32> {
    groups.iter().copied().zip(0..).collect()
}

/// The parts of blocks, and the bytes of the values, among the bytes of a parameter's tensors.
pub(super) fn parts_of(layout: BlockLayout, tensors: Vec<Vec<u8>>) -> (Parts, Option<Vec<u8>>) {
    let has_scales = layout.scale_words(1) > 0;
    let mut tensors = tensors.into_iter();
    let states = tensors.by_ref().take(layout.states.len()).collect();
    let mut next_if = |is_there: bool| if is_there { tensors.next().unwrap_or_default() } else { Vec::new() };
    let (scales, master) = (next_if(has_scales), next_if(layout.master_bits() > 0));
    (Parts { states, scales, master }, tensors.next())
}

impl Checkpoint {
    /// The state of a parameter as f32, as [`Optimizer::read_state`] gives it.
    ///
    /// ```
    /// # use adamod::{AdaMod, Optimizer, Options, Parameter};
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// # let (device, queue) = doc::gpu();
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// # optimizer.add_parameter(group, Parameter::new("weight", 2))?;
    /// let state = optimizer.checkpoint().wait()?.state("weight")?;
    /// assert_eq!(state.tensor("exp_avg"), Some(&[0.0, 0.0][..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the checkpoint has no parameter with this label, or its file cannot be read.
    pub fn state(&self, label: &str) -> Result<State, CheckpointError> {
        let (parameter, mut contents, _) = self.contents(label)?;
        let rule = self.groups[parameter.group as usize].hyperparameters.rule;
        if parameter.layout.state.is_debiased() {
            contents.scale_states(&rule.debiased_scales(parameter.step));
        }
        Ok(State::new(parameter.step, rule.state_names().zip(contents.states).collect()))
    }

    /// The values of a parameter, as [`Optimizer::read_parameter`] gives them: master weights are taken into account.
    ///
    /// # Errors
    /// If the checkpoint has no parameter with this label or no values, or its file cannot be read.
    pub fn values(&self, label: &str) -> Result<Vec<f32>, CheckpointError> {
        let (parameter, contents, values) = self.contents(label)?;
        let values = values.ok_or_else(|| CheckpointError::NoValues { label: label.to_owned() })?;
        if parameter.dtype == DType::F32 {
            return Ok(bytemuck::pod_collect_to_vec(&values));
        }
        let halves: Vec<u16> = bytemuck::pod_collect_to_vec(&values);
        let master_weights = parameter.layout.master_weights;
        let join =
            |(half, difference): (u16, u32)| join(parameter.dtype, master_weights, half.into(), difference);
        Ok(halves.into_iter().zip(contents.differences).map(join).collect())
    }

    /// A parameter, its contents, and the bytes of its values.
    fn contents(&self, label: &str) -> Result<(&SavedParameter, Contents, Option<Vec<u8>>), CheckpointError> {
        let missing = || CheckpointError::MissingParameter { label: label.to_owned() };
        let parameter = self.saved(label).ok_or_else(missing)?;
        let tensors = read(&[Wanted { parameter, elements: 0..parameter.len }])?.pop().unwrap_or_default();
        let (parts, values) = parts_of(parameter.layout, tensors);
        let words = parts.to_words(parameter.layout, parameter.len);
        Ok((parameter, Contents::decode(parameter.layout, parameter.len, &words), values))
    }
}
