//! State on the device: pages of blocks, and the counters of the diagnostics.

use std::collections::{BTreeMap, HashMap};

use crate::Diagnostics;
use crate::diagnostics::HISTOGRAM_BYTES;
use crate::format::BlockLayout;
use crate::plan::{Allocator, Extent, WORD_BYTES, state_words};
use crate::readback::Source;
use crate::scope::{Refusal, catch};

/// All buffers that the optimizer owns for good.
#[derive(Debug)]
pub struct Arena {
    allocator: Allocator,
    /// By number; vacant ones have none.
    pages: BTreeMap<u32, wgpu::Buffer>,
    histogram: Option<wgpu::Buffer>,
}

impl Arena {
    /// No pages yet.
    pub fn new(
        device: &wgpu::Device,
        allocator: Allocator,
        diagnostics: Diagnostics,
    ) -> Result<Self, Refusal> {
        let histogram = match diagnostics {
            Diagnostics::Off => None,
            Diagnostics::LearningRates => {
                Some(catch(device, || buffer(device, "adamod.histogram", HISTOGRAM_BYTES))?)
            }
        };
        Ok(Self { allocator, pages: BTreeMap::new(), histogram })
    }

    /// A page of state.
    pub fn page(&self, page: u32) -> &wgpu::Buffer {
        &self.pages[&page]
    }

    /// All pages, with their numbers.
    #[cfg(feature = "checkpoint")]
    pub fn pages(&self) -> impl ExactSizeIterator<Item = (u32, &wgpu::Buffer)> {
        self.pages.iter().map(|(&number, page)| (number, page))
    }

    /// Counters of the learning rates.
    pub fn histogram(&self) -> Option<&wgpu::Buffer> {
        self.histogram.as_ref()
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        self.pages.values().map(wgpu::Buffer::size).sum()
    }

    /// Places tensors of these pools, layouts and lengths; their state is zero. On an error nothing has changed.
    pub fn allocate(
        &mut self,
        device: &wgpu::Device,
        tensors: &[(u32, BlockLayout, u64)],
    ) -> Result<Vec<Vec<Extent>>, Refusal> {
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
        // wgpu hands out buffers zeroed, which is where every state starts.
        let new_pages = (0..)
            .zip(allocator.capacities())
            .filter(|(number, words)| *words > 0 && !self.pages.contains_key(number))
            .map(|(number, words)| {
                let page = catch(device, || buffer(device, "adamod.state", words * WORD_BYTES))?;
                Ok((number, page))
            })
            .collect::<Result<Vec<_>, Refusal>>()?;
        self.pages.extend(new_pages);
        self.allocator = allocator;
        Ok(extents)
    }

    /// Takes a tensor's blocks back. Their state has to be zero, as that of all free blocks is.
    pub fn release(&mut self, layout: BlockLayout, extents: &[Extent]) {
        self.allocator.release(layout, extents);
        for (number, words) in (0..).zip(self.allocator.capacities()) {
            if words == 0 {
                self.pages.remove(&number);
            }
        }
    }

    /// Where a tensor's blocks lie.
    pub fn sources(&self, layout: BlockLayout, extents: &[Extent]) -> Vec<Source> {
        extents
            .iter()
            .map(|extent| Source {
                buffer: self.page(extent.page).clone(),
                offset: u64::from(extent.state) * WORD_BYTES,
                bytes: state_words(layout, extent.elements) * WORD_BYTES,
            })
            .collect()
    }
}

fn buffer(device: &wgpu::Device, label: &str, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}
