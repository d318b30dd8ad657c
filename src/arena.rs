//! State on the device: pages of blocks, and the counters of the diagnostics.

use crate::Diagnostics;
use crate::diagnostics::HISTOGRAM_BYTES;
use crate::layout::CHUNK_ELEMENTS;
use crate::plan::{Allocator, ELEMENT_BYTES, Extent, block_elements};
use crate::readback::Source;
use crate::scope::catch;

/// All buffers that the optimizer owns for good.
#[derive(Debug)]
pub struct Arena {
    allocator: Allocator,
    pages: Vec<wgpu::Buffer>,
    histogram: Option<wgpu::Buffer>,
}

impl Arena {
    /// No pages yet.
    pub fn new(
        device: &wgpu::Device,
        allocator: Allocator,
        diagnostics: Diagnostics,
    ) -> Result<Self, wgpu::Error> {
        let histogram = match diagnostics {
            Diagnostics::Off => None,
            Diagnostics::LearningRates => {
                Some(catch(device, || buffer(device, "adamod.histogram", HISTOGRAM_BYTES))?)
            }
        };
        Ok(Self { allocator, pages: Vec::new(), histogram })
    }

    /// A page of state.
    pub fn page(&self, page: u32) -> &wgpu::Buffer {
        &self.pages[page as usize]
    }

    /// Counters of the learning rates.
    pub fn histogram(&self) -> Option<&wgpu::Buffer> {
        self.histogram.as_ref()
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(wgpu::Buffer::size).sum()
    }

    /// Places tensors of these lengths; their state is zero. On an error nothing has changed.
    pub fn allocate(
        &mut self,
        device: &wgpu::Device,
        lengths: &[u64],
    ) -> Result<Vec<Vec<Extent>>, wgpu::Error> {
        let mut allocator = self.allocator.clone();
        let state_elements = |elements| self.allocator.state_elements(elements);
        let mut pending: u64 = lengths.iter().map(|&elements| state_elements(elements)).sum();
        let mut extents = Vec::with_capacity(lengths.len());
        for &elements in lengths {
            extents.push(allocator.allocate(elements, pending));
            pending -= state_elements(elements);
        }
        // wgpu hands out buffers zeroed, which is where every state starts.
        let new_pages = allocator
            .capacities()
            .skip(self.pages.len())
            .map(|elements| catch(device, || buffer(device, "adamod.state", elements * ELEMENT_BYTES)))
            .collect::<Result<Vec<_>, _>>()?;
        self.pages.extend(new_pages);
        self.allocator = allocator;
        Ok(extents)
    }

    /// Where a tensor's blocks lie.
    pub fn sources(&self, extents: &[Extent]) -> Vec<Source> {
        extents
            .iter()
            .map(|extent| Source {
                buffer: self.page(extent.page).clone(),
                offset: u64::from(extent.state) * ELEMENT_BYTES,
                bytes: self.allocator.state_elements(extent.elements) * ELEMENT_BYTES,
            })
            .collect()
    }
}

/// Takes blocks of a tensor of `elements` elements apart into its states. `blocks` is what the tensor's extents hold, in order.
pub fn states_of_blocks(blocks: &[f32], elements: u64, states: u32) -> Vec<Vec<f32>> {
    let mut tensors = vec![Vec::with_capacity(elements as usize); states as usize];
    let mut at = 0;
    let mut left = elements as usize;
    while left > 0 {
        let chunk = left.min(CHUNK_ELEMENTS as usize);
        let block = block_elements(states, chunk as u32) as usize;
        let stride = block / states as usize;
        for (state, tensor) in tensors.iter_mut().enumerate() {
            let start = at + state * stride;
            tensor.extend_from_slice(&blocks[start..start + chunk]);
        }
        at += block;
        left -= chunk;
    }
    tensors
}

fn buffer(device: &wgpu::Device, label: &str, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}
