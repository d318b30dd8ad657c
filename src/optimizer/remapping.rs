//! State follows its rows: [`Optimizer::remap`].

use super::Optimizer;
use super::device_steps::DeviceSteps;
use super::handles::ParameterId;
use super::memory::Reservation;
use super::registry::Record;
use super::remap::{Remap, Source};
use crate::device::gpu::binding;
use crate::error::{Error, ErrorKind, Role};
use crate::kernels::abi;
use crate::kernels::bindings;
use crate::kernels::pipeline::{Kernel, RemapPart};
use crate::options::FreshRows;
use crate::plan::allocator::Extent;
use crate::plan::limits::grid;
use crate::storage::block::{BlockLayout, CHUNK_ELEMENTS, StateAccess, WORD_BYTES};
use crate::storage::master::MasterWeights;
use crate::storage::rows::{bands_of, rates_of, remap_key};
use crate::storage::state::{Format, MAX_STATES};

/// A dispatch that is ready to be recorded.
struct Dispatch {
    kernel: Kernel,
    bind_group: wgpu::BindGroup,
    workgroups: u32,
}

/// The old and the new rows of a parameter.
#[derive(Clone, Copy)]
struct Rows {
    len: u64,
    old: u64,
    new: u64,
}

impl Rows {
    /// Elements afterwards.
    fn elements(&self) -> u64 {
        self.new * self.len
    }
}

impl Optimizer {
    /// The most state buffers of a parameter that a kernel reads besides the one that it writes. Tables, source rows, step counts, means
    /// and that one take five bindings.
    const MOST_OLD_BUFFERS: u32 = 16;

    /// Records that the state of a parameter follows its rows, in the engine's encoder: the parameter is `rows * row_len` elements long
    /// from then on, and state and master weights of each row continue those of the old row that [`Remap`] names. The step count stays.
    ///
    /// Values and gradients are the engine's, which moves them itself. Steps recorded before see the parameter as it was, later ones
    /// as it is, whether in this encoder or in another that is submitted after it. [`Remap::with_views`] gives the places of the new values
    /// and gradients. A parameter that has not stepped yet has no state that could move, so only its length and views change.
    ///
    /// State in f32 and bf16, and master weights, move bit for bit. 8-bit state moves as it is where 32 elements of the new tensor that
    /// share scales continue 32 such elements of the old one, as all do where rows are multiples of 32 elements. Elsewhere it is decoded
    /// and encoded again, rounded stochastically. The state format stays, also where
    /// [`Precision::f32_state_below`](crate::Precision::f32_state_below) would give a new parameter of that length another one. Master
    /// weights of fresh rows are the values that the engine puts there, and those of copied rows keep their distance from the values.
    ///
    /// New state is written beside the old one, whose memory is free afterwards: for the time of the call a parameter takes both. One
    /// dispatch moves all rows, after two small ones that compute means if there are any to compute ([`FreshRows::Mean`]).
    ///
    /// The encoder has to be submitted before a method that submits work of its own, as [`Optimizer::remove_parameter`],
    /// [`Optimizer::write_state`], [`Optimizer::read_state`] and [`Optimizer::restore`](crate::Optimizer::restore) do. If it is dropped,
    /// the state of the parameter and of parameters that are registered later is undefined;
    /// [`Optimizer::restore`](crate::Optimizer::restore) of a checkpoint defines it again.
    ///
    /// ```
    /// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
    /// use adamod::{AdaMod, Optimizer, Options, Parameter, Remap, Step, View, Views};
    ///
    /// # let (device, queue) = doc::gpu();
    /// # let (positions, gradients) = (doc::buffer(&device, 4096), doc::buffer(&device, 4096));
    /// # let (new_positions, new_gradients) = (doc::buffer(&device, 4096), doc::buffer(&device, 4096));
    /// # let rows = doc::buffer(&device, 1024);
    /// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
    /// # let group = optimizer.add_group(AdaMod::new())?;
    /// // 100 splats with a position of three numbers each.
    /// let views = Views::new(View::new(&positions, 0), View::new(&gradients, 0));
    /// let position = optimizer.add_parameter(group, Parameter::new("position", 300).with_views(views))?;
    /// optimizer.submit(&Step::all())?;
    ///
    /// // 120 splats afterwards. `rows` has 120 numbers: the old splat of each new one, or `Remap::FRESH`.
    /// let mut encoder = device.create_command_encoder(&Default::default());
    /// // ... the engine decides, and moves the values ...
    /// let views = Views::new(View::new(&new_positions, 0), View::new(&new_gradients, 0));
    /// optimizer.remap(&mut encoder, position, &Remap::new(3, 120, View::new(&rows, 0)).with_views(views))?;
    /// optimizer.encode(&mut encoder, &Step::all())?;
    /// queue.submit([encoder.finish()]);
    /// # Ok::<(), adamod::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the parameter belongs to another optimizer, was removed, or is a shard; if rows do not divide its length, there is none
    /// afterwards, or there are 2^32 elements or more; if the source rows cannot be read or the views cannot hold the new length; if the
    /// state lies in more buffers than the device can bind; if the source rows, or the means of long rows (three words for each column, or
    /// more for [`FreshRows::Mean`] of many rows), are larger than a binding; or if the device refuses a resource. Nothing was recorded
    /// then, and counts for [`Optimizer::rewind`] stay good.
    pub fn remap(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        parameter: ParameterId,
        remap: &Remap<'_>,
    ) -> Result<(), Error> {
        let record = self.registry.record(parameter)?;
        let label = record.label.clone();
        let rows = rows_of(record, remap)?;
        if let Source::Buffer(view) = &remap.source {
            let refused = |error| ErrorKind::View { role: Role::SourceRows, error }.of(&label);
            view.check_words(rows.new).map_err(refused)?;
        }
        let (old_len, old_views) = (record.len, record.views.clone());
        self.registry.resize(parameter, rows.elements(), remap.views.as_ref())?;
        let prepared = self.prepare_remap(parameter, remap, rows).map_err(|error| error.about(&label));
        let (reservation, dispatches) = match prepared {
            Ok(Some(prepared)) => prepared,
            Ok(None) => {
                self.registry.mark_state_changed();
                return Ok(());
            }
            Err(error) => {
                self.registry.restore(parameter, old_len, old_views)?;
                return Err(error);
            }
        };
        {
            let descriptor =
                wgpu::ComputePassDescriptor { label: Some(&self.gpu.name("remap")), timestamp_writes: None };
            let mut pass = encoder.begin_compute_pass(&descriptor);
            let (pipelines, _) = self.recorder.pipelines_and_source();
            let dimension = self.gpu.device.limits().max_compute_workgroups_per_dimension;
            for dispatch in &dispatches {
                pass.set_pipeline(pipelines.get(&dispatch.kernel));
                pass.set_bind_group(0, &dispatch.bind_group, &[]);
                let (x, y) = grid(dispatch.workgroups, dimension);
                pass.dispatch_workgroups(x, y, 1);
            }
        }
        reservation.clear(encoder);
        self.memory.commit(parameter.key.index(), reservation);
        self.registry.mark_state_changed();
        Ok(())
    }

    /// Refuses bindings that the device does not have.
    fn fits_a_binding(&self, bytes: u64) -> Result<(), Error> {
        let found = self.gpu.device.limits().max_storage_buffer_binding_size;
        if bytes > found {
            let limit = "max_storage_buffer_binding_size";
            return Err(ErrorKind::Limit { limit, found, expected: bytes }.into());
        }
        Ok(())
    }

    /// Memory for the new rows, and the dispatches that fill it. `None` if the parameter has no blocks yet.
    fn prepare_remap(
        &mut self,
        parameter: ParameterId,
        remap: &Remap<'_>,
        rows: Rows,
    ) -> Result<Option<(Reservation, Vec<Dispatch>)>, Error> {
        let (index, key, layout) = {
            let record = self.registry.record(parameter)?;
            (parameter.key.index(), record.random_key, record.layout)
        };
        let Some(reservation) = self.memory.reserve(&self.gpu, index, layout, rows.elements())? else {
            return Ok(None);
        };
        if layout.states.is_empty() && layout.master_weights == MasterWeights::None {
            return Ok(Some((reservation, Vec::new())));
        }
        let rates = rates_of(layout.states).filter(|_| remap.fresh == FreshRows::Mean);
        let format =
            Format { state: layout.state, master_weights: layout.master_weights, ..Format::default() };
        let segment = abi::Segment { format: format.bits(), key: remap_key(key), ..Default::default() };
        let counts = self.recorder.source().device().map(DeviceSteps::control).cloned();
        let bands = bands_of(rows.old, rows.len);
        let (source, first_source) = match &remap.source {
            Source::Buffer(view) => {
                let alignment = u64::from(self.gpu.device.limits().min_storage_buffer_offset_alignment);
                let before = view.offset % alignment;
                self.fits_a_binding(before + rows.new * WORD_BYTES)?;
                (abi::FROM_BUFFER, (before / WORD_BYTES) as u32)
            }
            Source::Same => (abi::FROM_SAME, 0),
            Source::Fresh => (abi::FROM_NOWHERE, 0),
        };
        let step_word = match &counts {
            Some(_) => DeviceSteps::step_count_offset(index) / WORD_BYTES,
            None => std::mem::offset_of!(abi::Remap, host_step) as u64 / WORD_BYTES,
        };
        let mut numbers: Vec<u32> = reservation.extents().iter().map(|extent| extent.buffer).collect();
        numbers.sort_unstable();
        numbers.dedup();
        // A binding has at least a word.
        let mean_words = if rates.is_some() { rows.len * (1 + 2 * u64::from(bands)) } else { 1 };
        self.fits_a_binding(mean_words * WORD_BYTES)?;
        let means = self
            .gpu
            .catch(|| self.gpu.buffer("means", mean_words * WORD_BYTES, wgpu::BufferUsages::STORAGE))?;
        let mut dispatches = Vec::new();
        for (nth, &number) in numbers.iter().enumerate() {
            // Other state buffers with old rows, which the kernel numbers from 1. The one that it writes is 0.
            let mut others: Vec<u32> = Vec::new();
            let mut chunks = Vec::new();
            for extent in self.memory.extents(index) {
                let buffer = if extent.buffer == number {
                    0
                } else {
                    let known = others.iter().position(|of| *of == extent.buffer);
                    1 + known.unwrap_or_else(|| {
                        others.push(extent.buffer);
                        others.len() - 1
                    })
                };
                chunks.extend(chunks_of(extent, layout).map(|(_, word)| [buffer as u32, word]));
            }
            let limit = self.gpu.device.limits().max_storage_buffers_per_shader_stage;
            let most = limit.saturating_sub(5).min(Self::MOST_OLD_BUFFERS) as usize;
            if others.len() > most {
                return Err(ErrorKind::RemapBuffers { found: others.len(), most }.into());
            }
            let old_chunks = chunks.len() as u32;
            let here = reservation.extents().iter().filter(|extent| extent.buffer == number);
            chunks
                .extend(here.flat_map(|extent| chunks_of(extent, layout)).map(|(chunk, word)| [chunk, word]));
            let head = abi::Remap {
                segment,
                row_len: rows.len as u32,
                old_rows: rows.old as u32,
                elements: rows.elements() as u32,
                old_chunks,
                source,
                first_source,
                step: step_word as u32,
                host_step: self.registry.steps(parameter) as u32,
                rates: rates.unwrap_or(MAX_STATES) as u32,
                bands,
            };
            let contents = [bytemuck::bytes_of(&head), bytemuck::cast_slice(&chunks)].concat();
            let usage = wgpu::BufferUsages::STORAGE;
            let table =
                self.gpu.catch(|| self.gpu.buffer_with("remap", contents.len() as u64, usage, &contents))?;
            let state = reservation.buffer(number).unwrap_or_else(|| self.memory.buffer(number));
            let sources = match &remap.source {
                Source::Buffer(view) => {
                    let start = view.offset - u64::from(first_source) * WORD_BYTES;
                    binding(view.buffer, start, view.offset + rows.new * WORD_BYTES - start)
                }
                Source::Same | Source::Fresh => table.as_entire_binding(),
            };
            let mut entries = vec![
                (bindings::REMAP, table.as_entire_binding()),
                (bindings::SOURCES, sources),
                (bindings::STEPS, counts.as_ref().unwrap_or(&table).as_entire_binding()),
                (bindings::MEANS, means.as_entire_binding()),
                (bindings::STATE, state.as_entire_binding()),
            ];
            entries.extend(
                (bindings::OLD_STATE..)
                    .zip(&others)
                    .map(|(at, other)| (at, self.memory.buffer(*other).as_entire_binding())),
            );
            let (pipelines, _) = self.recorder.pipelines_and_source();
            let lanes = pipelines.lanes();
            let workgroups = |threads: u64| threads.div_ceil(lanes.into()) as u32;
            let mut parts = Vec::new();
            if rates.is_some() && nth == 0 {
                parts.push((RemapPart::Bands, workgroups(u64::from(bands) * rows.len.div_ceil(4))));
                parts.push((RemapPart::Means, workgroups(rows.len)));
            }
            parts.push((RemapPart::Rows, chunks.len() as u32 - old_chunks));
            for (part, workgroups) in parts {
                let kernel = Kernel::Remap {
                    part,
                    format: format.bits(),
                    states: layout.states,
                    access: match layout.access(CHUNK_ELEMENTS.into()) {
                        StateAccess::Words4 => StateAccess::Words4,
                        StateAccess::Words2 | StateAccess::Words1 => StateAccess::Words1,
                    },
                    old_buffers: others.len() as u32,
                    // Its number there is 1 if it is another one than that which is written.
                    old_buffer: (self.memory.extents(index).len() == 1).then_some(others.len() as u32),
                };
                pipelines.make(kernel)?;
                let bind_group = pipelines.bind_group(&kernel, entries.iter().cloned())?;
                dispatches.push(Dispatch { kernel, bind_group, workgroups });
            }
        }
        Ok(Some((reservation, dispatches)))
    }
}

/// Checks the rows of a remap, and counts them.
fn rows_of(record: &Record, remap: &Remap<'_>) -> Result<Rows, Error> {
    let refused = |kind: ErrorKind| kind.of(&record.label);
    if record.shard.first != 0 || record.shard.whole != record.len {
        return Err(refused(ErrorKind::RemapOfShard));
    }
    let len = remap.row_len;
    if len == 0 || !record.len.is_multiple_of(len) {
        return Err(refused(ErrorKind::RowLength { len: record.len, row_len: len }));
    }
    let old = record.len / len;
    let new = remap.rows.unwrap_or(old);
    if new == 0 {
        return Err(refused(ErrorKind::Empty));
    }
    let most = u64::from(u32::MAX);
    let elements = new.saturating_mul(len);
    let longest = elements.max(record.len);
    if longest > most {
        return Err(refused(ErrorKind::RemapLength { len: longest, most }));
    }
    Ok(Rows { len, old, new })
}

/// Number and word of each chunk of an extent.
fn chunks_of(extent: &Extent, layout: BlockLayout) -> impl Iterator<Item = (u32, u32)> {
    let (first, state) = (extent.first_chunk as u32, extent.state);
    let words = layout.words(CHUNK_ELEMENTS.into()) as u32;
    let count = extent.elements.div_ceil(CHUNK_ELEMENTS.into()) as u32;
    (0..count).map(move |chunk| (first + chunk, state + chunk * words))
}
