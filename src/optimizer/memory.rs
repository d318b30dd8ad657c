//! State on the device: where each parameter's blocks lie, and the buffers that hold them.

use std::collections::{BTreeMap, HashMap};

use super::handles::ParameterId;
use super::registry::{Record, Registry};
use super::slots::Key;
use crate::device::error_scope::DeviceError;
use crate::device::gpu::Gpu;
use crate::device::readback::Source;
use crate::device::staged_write::Write;
use crate::kernels::abi::HISTOGRAM_BYTES;
use crate::plan::allocator::{Allocator, Extent};
use crate::plan::launches::MOST_SHARED_ELEMENTS;
use crate::plan::limits::PlanLimits;
use crate::storage::block::{BlockLayout, CHUNK_ELEMENTS, WORD_BYTES, state_words};

/// The buffers that an optimizer owns for good.
#[derive(Debug)]
pub struct Memory {
    allocator: Allocator,
    /// The most elements of a tensor with buffers of its own that may share a dispatch with others; 0 without binding arrays.
    shared_elements: u64,
    /// By number. Vacant numbers have none.
    buffers: BTreeMap<u32, wgpu::Buffer>,
    /// By index of the parameter.
    placements: Vec<Option<Placement>>,
    histogram: Option<wgpu::Buffer>,
    /// The revision of the parameters that all have their state.
    seen: Option<u64>,
    revision: u64,
}

/// Where a parameter's state lies.
#[derive(Debug)]
struct Placement {
    key: Key,
    pool: u32,
    extents: Vec<Extent>,
}

/// Memory for a parameter that moves.
#[derive(Debug)]
pub struct Reservation {
    allocator: Allocator,
    /// New state buffers, by number.
    buffers: Vec<(u32, wgpu::Buffer)>,
    /// Where its blocks will lie.
    extents: Vec<Extent>,
    /// The blocks that it leaves in state buffers that stay, which have to be cleared.
    freed: Vec<Source>,
}

impl Reservation {
    /// Where the blocks will lie.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// A new state buffer.
    pub fn buffer(&self, number: u32) -> Option<&wgpu::Buffer> {
        self.buffers.iter().find(|(of, _)| *of == number).map(|(_, buffer)| buffer)
    }

    /// Records that the blocks that it leaves are zeroed.
    pub fn clear(&self, encoder: &mut wgpu::CommandEncoder) {
        for source in &self.freed {
            encoder.clear_buffer(&source.buffer, source.offset, Some(source.bytes));
        }
    }
}

/// A part of a parameter's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockPart {
    States,
    Master,
}

const USAGES: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

impl Memory {
    /// The pool of tensors with buffers of their own.
    const OWN_BUFFERS: u32 = u32::MAX;

    pub fn new(gpu: &Gpu, limits: &PlanLimits, has_histogram: bool) -> Result<Self, DeviceError> {
        let histogram = has_histogram.then(|| gpu.catch(|| gpu.buffer("histogram", HISTOGRAM_BYTES, USAGES)));
        Ok(Self {
            allocator: Allocator::new(limits),
            shared_elements: if limits.windows > 1 {
                MOST_SHARED_ELEMENTS.min(limits.array_words.saturating_mul(4))
            } else {
                0
            },
            buffers: BTreeMap::new(),
            placements: Vec::new(),
            histogram: histogram.transpose()?,
            seen: None,
            revision: 0,
        })
    }

    /// Changes whenever blocks lie elsewhere.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Counters of the learning rates.
    pub fn histogram(&self) -> Option<&wgpu::Buffer> {
        self.histogram.as_ref()
    }

    /// A state buffer.
    pub fn buffer(&self, number: u32) -> &wgpu::Buffer {
        &self.buffers[&number]
    }

    /// Bytes of all state buffers.
    pub fn bytes(&self) -> u64 {
        self.buffers.values().map(wgpu::Buffer::size).sum()
    }

    /// Where the blocks of the parameter with this index lie. Nowhere before its first step.
    pub fn extents(&self, index: usize) -> &[Extent] {
        self.placements.get(index).and_then(Option::as_ref).map_or(&[], |placement| &placement.extents)
    }

    /// Allocates zeroed state for every parameter that has none. On an error nothing has changed.
    pub fn update(&mut self, gpu: &Gpu, registry: &Registry) -> Result<(), DeviceError> {
        if self.seen == Some(registry.revisions().parameters) {
            return Ok(());
        }
        // A pool for each buffer of values, but one for all tensors that may share a dispatch though each has a buffer of its own. Pool 0
        // is for values without a registered buffer.
        #[expect(clippy::mutable_key_type, reason = "a buffer is hashed and compared by identity")]
        let mut pools: HashMap<wgpu::Buffer, u32> = HashMap::new();
        let buffer_of =
            |record: &Record| record.views.as_ref().map(|views| views.borrow().values.buffer.clone());
        let placed = |id: ParameterId| {
            self.placements.get(id.key.index()).and_then(Option::as_ref).filter(|of| of.key == id.key)
        };
        let mut count = 0;
        #[expect(clippy::mutable_key_type, reason = "a buffer is hashed and compared by identity")]
        let mut tensors_in: HashMap<wgpu::Buffer, u32> = HashMap::new();
        for (id, record) in registry.parameters() {
            let buffer = buffer_of(record);
            if self.shared_elements > 0
                && let Some(buffer) = buffer.clone()
            {
                *tensors_in.entry(buffer).or_default() += 1;
            }
            if let Some(placement) = placed(id) {
                if placement.pool != Self::OWN_BUFFERS {
                    count = count.max(placement.pool);
                }
                if let Some(buffer) = buffer {
                    pools.entry(buffer).or_insert(placement.pool);
                }
            }
        }
        let mut keys = Vec::new();
        let mut tensors = Vec::new();
        for (id, record) in registry.parameters().filter(|&(id, _)| placed(id).is_none()) {
            let pool = buffer_of(record).map_or(0, |buffer| {
                let may_share = tensors_in.get(&buffer) == Some(&1)
                    && record.len <= self.shared_elements
                    && may_share_dispatch(record);
                *pools.entry(buffer).or_insert_with(|| {
                    if may_share {
                        return Self::OWN_BUFFERS;
                    }
                    count += 1;
                    count
                })
            });
            keys.push(id.key);
            tensors.push((pool, record.layout, record.len));
        }
        let extents = self.allocate(gpu, &tensors)?;
        self.placements.resize_with(registry.end().max(self.placements.len()), || None);
        for ((key, extents), (pool, ..)) in keys.into_iter().zip(extents).zip(tensors) {
            self.placements[key.index()] = Some(Placement { key, pool, extents });
        }
        self.seen = Some(registry.revisions().parameters);
        self.revision += 1;
        Ok(())
    }

    /// Places tensors of these pools, layouts and lengths.
    fn allocate(
        &mut self,
        gpu: &Gpu,
        tensors: &[(u32, BlockLayout, u64)],
    ) -> Result<Vec<Vec<Extent>>, DeviceError> {
        let mut allocator = self.allocator.clone();
        let mut pending: HashMap<u32, u64> = HashMap::new();
        for &(pool, layout, elements) in tensors {
            *pending.entry(pool).or_default() += state_words(layout, elements);
        }
        let mut extents = Vec::with_capacity(tensors.len());
        for &(pool, layout, elements) in tensors {
            let pending = pending.entry(pool).or_default();
            extents.push(allocator.allocate(pool, layout, elements, *pending));
            *pending -= state_words(layout, elements);
        }
        let new_buffers = self.new_buffers(gpu, &allocator)?;
        self.buffers.extend(new_buffers);
        self.allocator = allocator;
        Ok(extents)
    }

    /// The state buffers that an allocator has and this memory has not. wgpu zeroes them, and zero is where every state starts.
    fn new_buffers(&self, gpu: &Gpu, allocator: &Allocator) -> Result<Vec<(u32, wgpu::Buffer)>, DeviceError> {
        let is_new = |&(number, words): &(u32, u64)| words > 0 && !self.buffers.contains_key(&number);
        let make = |(number, words)| {
            let buffer = gpu.catch(|| gpu.buffer("state", words * WORD_BYTES, USAGES))?;
            Ok((number, buffer))
        };
        (0..).zip(allocator.capacities()).filter(is_new).map(make).collect()
    }

    /// Memory for a parameter's blocks at another length, beside those that it has. `None` if it has none.
    pub fn reserve(
        &self,
        gpu: &Gpu,
        index: usize,
        layout: BlockLayout,
        elements: u64,
    ) -> Result<Option<Reservation>, DeviceError> {
        let Some(placement) = self.placements.get(index).and_then(Option::as_ref) else { return Ok(None) };
        let mut allocator = self.allocator.clone();
        let extents = allocator.allocate_together(placement.pool, layout, elements);
        let buffers = self.new_buffers(gpu, &allocator)?;
        allocator.release(layout, &placement.extents);
        let capacities: Vec<_> = allocator.capacities().collect();
        let freed = self.sources_of(&placement.extents, layout, |number| capacities[number as usize] > 0);
        Ok(Some(Reservation { allocator, buffers, extents, freed }))
    }

    /// Moves a parameter to its reservation. Its old blocks are free from then on, so the caller has cleared them.
    pub fn commit(&mut self, index: usize, reservation: Reservation) {
        let Reservation { allocator, buffers, extents, .. } = reservation;
        self.buffers.extend(buffers);
        self.allocator = allocator;
        if let Some(placement) = &mut self.placements[index] {
            placement.extents = extents;
        }
        self.drop_vacant();
    }

    /// Records that a parameter's blocks are zeroed, as all free blocks are.
    pub fn clear(&self, encoder: &mut wgpu::CommandEncoder, index: usize, layout: BlockLayout) {
        for source in self.sources(index, layout) {
            encoder.clear_buffer(&source.buffer, source.offset, Some(source.bytes));
        }
    }

    /// Takes a parameter's blocks back, which have to be zero.
    pub fn release(&mut self, index: usize, layout: BlockLayout) {
        let Some(placement) = self.placements.get_mut(index).and_then(Option::take) else { return };
        self.allocator.release(layout, &placement.extents);
        self.drop_vacant();
    }

    fn drop_vacant(&mut self) {
        for (number, words) in (0..).zip(self.allocator.capacities()) {
            if words == 0 {
                self.buffers.remove(&number);
            }
        }
        self.revision += 1;
    }

    /// The ranges of a parameter's blocks.
    pub fn sources(&self, index: usize, layout: BlockLayout) -> Vec<Source> {
        self.sources_of(self.extents(index), layout, |_| true)
    }

    fn sources_of(
        &self,
        extents: &[Extent],
        layout: BlockLayout,
        is_wanted: impl Fn(u32) -> bool,
    ) -> Vec<Source> {
        extents
            .iter()
            .filter(|extent| is_wanted(extent.buffer))
            .map(|extent| Source {
                buffer: self.buffer(extent.buffer).clone(),
                offset: u64::from(extent.state) * WORD_BYTES,
                bytes: state_words(layout, extent.elements) * WORD_BYTES,
            })
            .collect()
    }

    /// Writes of one part of a parameter's blocks, given the words of all of them.
    pub fn writes<'a>(
        &'a self,
        index: usize,
        layout: BlockLayout,
        words: &'a [u32],
        part: BlockPart,
    ) -> Vec<Write<'a>> {
        let mut writes = Vec::new();
        let mut block_start = 0;
        for extent in self.extents(index) {
            let mut place = u64::from(extent.state);
            let mut left = extent.elements;
            while left > 0 {
                let elements = left.min(CHUNK_ELEMENTS.into());
                let range = match part {
                    BlockPart::States => 0..layout.master_start(elements),
                    BlockPart::Master => layout.master_start(elements)..layout.words(elements),
                };
                writes.push(Write {
                    buffer: self.buffer(extent.buffer),
                    offset: (place + range.start) * WORD_BYTES,
                    bytes: bytemuck::cast_slice(
                        &words[(block_start + range.start) as usize..(block_start + range.end) as usize],
                    ),
                });
                let size = state_words(layout, elements);
                block_start += size;
                place += size;
                left -= elements;
            }
        }
        writes
    }
}

/// Whether a tensor with buffers of its own can be an element of binding arrays.
fn may_share_dispatch(record: &Record) -> bool {
    record.column_factors.is_none()
        && record.views.as_ref().is_some_and(|views| {
            let views = views.borrow();
            views.row_mask.is_none() && views.values.buffer != views.gradients.buffer
        })
}
