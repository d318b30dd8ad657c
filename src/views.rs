//! Where a caller's tensors lie, and what is refused about it.

use std::collections::BTreeMap;

use crate::error::{Role, ViewError};
use crate::plan::ELEMENT_BYTES;

/// A tensor's place in a caller's buffer.
///
/// Any multiple of 4 bytes will do as an offset. Launches in which every view starts at a multiple of 16 bytes, and whose buffers
/// reach to the multiple of 16 after the last view, read and write words of four elements, which is faster on some devices.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The buffer, with usage STORAGE.
    pub buffer: &'a wgpu::Buffer,
    /// Byte offset in it, a multiple of 4.
    pub offset: u64,
}

impl<'a> View<'a> {
    /// The tensor that starts at byte `offset` of `buffer`.
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64) -> Self {
        Self { buffer, offset }
    }

    /// The byte after the tensor's last one, or what is wrong with the view.
    pub(crate) fn end(&self, elements: u64) -> Result<u64, ViewError> {
        let usages = self.buffer.usage();
        if !usages.contains(wgpu::BufferUsages::STORAGE) {
            return Err(ViewError::Usage { found: usages });
        }
        if !self.offset.is_multiple_of(ELEMENT_BYTES) {
            return Err(ViewError::Alignment { found: self.offset });
        }
        let size = self.buffer.size();
        elements
            .checked_mul(ELEMENT_BYTES)
            .and_then(|bytes| bytes.checked_add(self.offset))
            .filter(|&end| end <= size)
            .ok_or(ViewError::OutOfBounds {
                end: elements.saturating_mul(ELEMENT_BYTES).saturating_add(self.offset),
                size,
            })
    }
}

/// The two views of a parameter. They may lie in one buffer or in two, beside those of any other parameter, as long as no two
/// views share a byte.
#[derive(Clone, Copy, Debug)]
pub struct Views<'a> {
    /// The parameter itself: read and written.
    pub values: View<'a>,
    /// Its gradient: read.
    pub gradients: View<'a>,
}

impl<'a> Views<'a> {
    /// Both views with their roles.
    pub(crate) fn each(&self) -> [(Role, View<'a>); 2] {
        [(Role::Values, self.values), (Role::Gradients, self.gradients)]
    }
}

/// Views that an optimizer keeps.
#[derive(Clone, Debug)]
pub(crate) struct OwnedViews {
    values: (wgpu::Buffer, u64),
    gradients: (wgpu::Buffer, u64),
}

impl OwnedViews {
    pub(crate) fn new(views: &Views<'_>) -> Self {
        let own = |view: &View<'_>| (view.buffer.clone(), view.offset);
        Self { values: own(&views.values), gradients: own(&views.gradients) }
    }

    pub(crate) fn borrow(&self) -> Views<'_> {
        Views {
            values: View::new(&self.values.0, self.values.1),
            gradients: View::new(&self.gradients.0, self.gradients.1),
        }
    }
}

/// The byte ranges that registered views take, to find overlaps.
#[derive(Debug, Default)]
pub(crate) struct Occupied {
    ranges: BTreeMap<(wgpu::Buffer, u64), Owner>,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    end: u64,
    parameter: usize,
    role: Role,
}

/// An overlap: with whose view, and from which byte.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overlap {
    pub parameter: usize,
    pub role: Role,
    pub byte: u64,
}

impl Occupied {
    /// Takes a range, or tells who has a part of it.
    pub(crate) fn take(
        &mut self,
        view: &View<'_>,
        end: u64,
        parameter: usize,
        role: Role,
    ) -> Result<(), Overlap> {
        let key = |offset| (view.buffer.clone(), offset);
        let neighbour = self.ranges.range(..key(end)).next_back();
        if let Some(((buffer, start), owner)) = neighbour
            && buffer == view.buffer
            && owner.end > view.offset
        {
            return Err(Overlap {
                parameter: owner.parameter,
                role: owner.role,
                byte: view.offset.max(*start),
            });
        }
        let owner = Owner { end, parameter, role };
        self.ranges.insert(key(view.offset), owner);
        Ok(())
    }

    /// Gives a range back.
    pub(crate) fn release(&mut self, view: &View<'_>) {
        self.ranges.remove(&(view.buffer.clone(), view.offset));
    }
}
