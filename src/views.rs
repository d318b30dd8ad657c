//! Where a caller's tensors lie, and what is refused about it.

use std::collections::BTreeMap;

use crate::error::{Role, ViewError};
use crate::format::DType;
use crate::plan::WORD_BYTES;

/// A tensor's place in a caller's buffer.
///
/// Any multiple of 4 bytes will do as an offset. Launches read and write four elements at a time where every view starts at a
/// multiple of 16 bytes (of 8, where a view has 16 bits) and the buffers hold the last four elements whole; elsewhere, words of
/// 4 bytes, which is slower on some devices.
///
/// A tensor of 16-bit elements owns the last word of 4 bytes also where it has an odd number of elements: the other half is left
/// as it is, but no other view may have it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The buffer, with usage STORAGE.
    pub buffer: &'a wgpu::Buffer,
    /// Byte offset in it, a multiple of 4.
    pub offset: u64,
    /// Type of its elements.
    pub dtype: DType,
}

impl<'a> View<'a> {
    /// The f32 tensor that starts at byte `offset` of `buffer`.
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64) -> Self {
        Self { buffer, offset, dtype: DType::F32 }
    }

    /// The same place, with elements of another type.
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// The byte after the tensor's last word of 4 bytes, or what is wrong with the view.
    pub(crate) fn end(&self, elements: u64) -> Result<u64, ViewError> {
        let usages = self.buffer.usage();
        if !usages.contains(wgpu::BufferUsages::STORAGE) {
            return Err(ViewError::Usage { found: usages });
        }
        if !self.offset.is_multiple_of(WORD_BYTES) {
            return Err(ViewError::Alignment { found: self.offset });
        }
        let size = self.buffer.size();
        elements
            .checked_mul(self.dtype.bytes())
            .and_then(|bytes| bytes.checked_next_multiple_of(WORD_BYTES))
            .and_then(|bytes| bytes.checked_add(self.offset))
            .filter(|&end| end <= size)
            .ok_or(ViewError::OutOfBounds {
                end: elements.saturating_mul(self.dtype.bytes()).saturating_add(self.offset),
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
    /// Its gradient: read, and written if the optimizer zeroes gradients.
    pub gradients: View<'a>,
    /// A copy in 16 bits of an f32 parameter, written at every step; for the next forward pass. It lies in a buffer that holds
    /// neither the parameter nor its gradient.
    pub copy: Option<View<'a>>,
}

impl<'a> Views<'a> {
    /// A parameter and its gradient.
    pub fn new(values: View<'a>, gradients: View<'a>) -> Self {
        Self { values, gradients, copy: None }
    }

    /// The same, with a copy.
    pub fn with_copy(self, copy: View<'a>) -> Self {
        Self { copy: Some(copy), ..self }
    }

    /// All views with their roles.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Role, View<'a>)> + use<'a> {
        let copy = self.copy.map(|copy| (Role::Copy, copy));
        [(Role::Values, self.values), (Role::Gradients, self.gradients)].into_iter().chain(copy)
    }

    /// What is wrong with a copy, apart from where it ends.
    pub(crate) fn check_copy(&self) -> Result<(), ViewError> {
        let Some(copy) = self.copy else { return Ok(()) };
        if copy.dtype == DType::F32 || self.values.dtype != DType::F32 {
            return Err(ViewError::CopyDType { values: self.values.dtype, copy: copy.dtype });
        }
        if copy.buffer == self.values.buffer || copy.buffer == self.gradients.buffer {
            return Err(ViewError::CopyBuffer);
        }
        Ok(())
    }
}

/// Views that an optimizer keeps.
#[derive(Clone, Debug)]
pub(crate) struct OwnedViews {
    values: OwnedView,
    gradients: OwnedView,
    copy: Option<OwnedView>,
}

#[derive(Clone, Debug)]
struct OwnedView {
    buffer: wgpu::Buffer,
    offset: u64,
    dtype: DType,
}

impl OwnedView {
    fn new(view: &View<'_>) -> Self {
        Self { buffer: view.buffer.clone(), offset: view.offset, dtype: view.dtype }
    }

    fn borrow(&self) -> View<'_> {
        View { buffer: &self.buffer, offset: self.offset, dtype: self.dtype }
    }
}

impl OwnedViews {
    pub(crate) fn new(views: &Views<'_>) -> Self {
        Self {
            values: OwnedView::new(&views.values),
            gradients: OwnedView::new(&views.gradients),
            copy: views.copy.as_ref().map(OwnedView::new),
        }
    }

    pub(crate) fn borrow(&self) -> Views<'_> {
        Views {
            values: self.values.borrow(),
            gradients: self.gradients.borrow(),
            copy: self.copy.as_ref().map(OwnedView::borrow),
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
