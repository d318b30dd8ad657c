//! Where a caller's tensors lie, and what is wrong with a place.

use crate::error::{Role, ViewError};
use crate::storage::block::WORD_BYTES;
use crate::storage::dtype::DType;

/// A tensor's place in a buffer of the caller's.
///
/// The offset may be any multiple of 4 bytes. A launch reads and writes four elements at a time if all its views start at multiples of
/// 16 bytes (8 bytes if a view has 16-bit elements) and the buffers hold the last four elements whole. Otherwise it uses words of 4
/// bytes, which is slower on some devices.
///
/// A tensor of 16-bit elements owns the whole of its last word of 4 bytes, also if it has an odd number of elements. The other half
/// keeps its value, but no other view may include it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct View<'a> {
    /// The buffer, with usage STORAGE.
    pub buffer: &'a wgpu::Buffer,
    /// Byte offset in the buffer, a multiple of 4.
    pub offset: u64,
    /// Data type of the elements; `None` means that of the parameter.
    pub dtype: Option<DType>,
}

impl<'a> View<'a> {
    /// The tensor that starts at byte `offset` of `buffer`, with elements of the parameter's data type.
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64) -> Self {
        Self { buffer, offset, dtype: None }
    }

    /// Sets the data type of the elements, for a gradient or a shadow copy whose type is not the parameter's.
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// The byte after the last word of 4 bytes of a tensor, or what is wrong with the view.
    fn end(&self, elements: u64, dtype: DType) -> Result<u64, ViewError> {
        let usages = self.buffer.usage();
        if !usages.contains(wgpu::BufferUsages::STORAGE) {
            return Err(ViewError::Usage { found: usages });
        }
        if !self.offset.is_multiple_of(WORD_BYTES) {
            return Err(ViewError::Alignment { found: self.offset });
        }
        let size = self.buffer.size();
        elements
            .checked_mul(dtype.bytes())
            .and_then(|bytes| bytes.checked_next_multiple_of(WORD_BYTES))
            .and_then(|bytes| bytes.checked_add(self.offset))
            .filter(|&end| end <= size)
            .ok_or(ViewError::OutOfBounds {
                end: elements.saturating_mul(dtype.bytes()).saturating_add(self.offset),
                size,
            })
    }

    /// Checks that so many words of 32 bits lie here.
    pub(crate) fn check_words(&self, words: u64) -> Result<u64, ViewError> {
        self.end(words, DType::F32)
    }

    /// Checks that the values of a parameter can lie here.
    pub(crate) fn check_values(&self, elements: u64, dtype: DType) -> Result<u64, ViewError> {
        match self.dtype {
            Some(found) if found != dtype => Err(ViewError::DType { found, expected: dtype }),
            _ => self.end(elements, dtype),
        }
    }
}

/// The views of a parameter. They may lie in one buffer or in several, beside those of other parameters, as long as no two views share
/// a byte.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Views<'a> {
    /// The parameter itself, which is read and written.
    pub values: View<'a>,
    /// Its gradient, which is read. It is also written with [`Options::zero_gradients`](crate::Options::zero_gradients).
    pub gradients: View<'a>,
    /// A 16-bit shadow copy of an f32 parameter, written at every step for the next forward pass. It lies in a buffer that holds neither
    /// the parameter nor its gradient.
    pub shadow: Option<View<'a>>,
    /// Which rows step. Without it all do.
    pub row_mask: Option<RowMask<'a>>,
}

/// Which rows of a parameter step, a bit for each row.
///
/// Row `r` is elements `r * row_len` to `(r + 1) * row_len` of the parameter, and steps if bit `r % 32` of word `r / 32` is 1. A row whose
/// bit is 0 rests: values, state, master weights and shadow copy stay as they are, and there is no weight decay. The step count is that of
/// the parameter and advances, so that bias corrections do not know that a row has rested. State below 32 bits has `exp_avg_lr` of AdaMod
/// debiased, as `s / (1 - beta3^t)`, and keeps that quotient: the bound of a row that rests through the first steps grows as if it had
/// stepped, while in f32 it stays. The sparse Adam of Gaussian splatting (`SparseGaussianAdam` of the reference code, `SelectiveAdam` of
/// gsplat) has neither a step count nor bias corrections. Gradients of resting rows are zeroed with
/// [`Options::zero_gradients`](crate::Options::zero_gradients), and count in the norm of [`Control::Device`](crate::Control::Device), so an
/// engine that clips leaves zeros there.
///
/// 8-bit state of a resting row is encoded again with the elements that share its scales: it stays as it is while the scales do, and is
/// rounded stochastically where they move.
///
/// A gradient of a resting row that is not finite skips the step as any other does. The shadow copy of a resting row does not follow
/// [`Optimizer::write_parameter`](crate::Optimizer::write_parameter) until the row steps.
///
/// Several parameters may share a mask. It lies in another buffer than the values, the gradient and the shadow copy of its parameter, and
/// shares no byte with those of other parameters. Launches with masks need the storage buffers that
/// [`Optimizer::set_column_factors`](crate::Optimizer::set_column_factors) describes.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RowMask<'a> {
    /// Where the words of 32 bits lie: one for every 32 rows.
    pub view: View<'a>,
    /// Elements of a row. A shard starts at a multiple.
    pub row_len: u64,
}

impl<'a> RowMask<'a> {
    /// A mask of rows of `row_len` elements.
    pub fn new(view: View<'a>, row_len: u64) -> Self {
        Self { view, row_len }
    }
}

impl<'a> Views<'a> {
    /// A parameter and its gradient, without a shadow copy.
    pub fn new(values: View<'a>, gradients: View<'a>) -> Self {
        Self { values, gradients, shadow: None, row_mask: None }
    }

    /// Adds a mask of the rows that step.
    pub fn with_row_mask(self, mask: RowMask<'a>) -> Self {
        Self { row_mask: Some(mask), ..self }
    }

    /// Adds a shadow copy, whose data type is f16 or bf16.
    pub fn with_shadow(self, shadow: View<'a>) -> Self {
        Self { shadow: Some(shadow), ..self }
    }

    /// All views of a parameter of this data type, with their roles and data types.
    pub(crate) fn each(&self, dtype: DType) -> impl Iterator<Item = (Role, View<'a>, DType)> + use<'a> {
        let shadow = self.shadow.map(|shadow| (Role::Shadow, shadow));
        [(Role::Values, self.values), (Role::Gradients, self.gradients)]
            .into_iter()
            .chain(shadow)
            .map(move |(role, view)| (role, view, view.dtype.unwrap_or(dtype)))
    }

    /// The bytes at which the views end, in the order of [`Views::each`] and the mask in the place of its role, or what is wrong with one
    /// of them.
    pub(crate) fn check(&self, elements: u64, dtype: DType) -> Result<[u64; Role::COUNT], (Role, ViewError)> {
        self.values.check_values(elements, dtype).map_err(|error| (Role::Values, error))?;
        self.check_shadow(dtype).map_err(|error| (Role::Shadow, error))?;
        let mask_end = self.check_row_mask(elements).map_err(|error| (Role::RowMask, error))?;
        let mut ends = [0; Role::COUNT];
        for ((role, view, dtype), end) in self.each(dtype).zip(&mut ends) {
            *end = view.end(elements, dtype).map_err(|error| (role, error))?;
        }
        ends[Role::RowMask as usize] = mask_end.unwrap_or_default();
        Ok(ends)
    }

    /// The mask's place, and its end of those that [`Views::check`] returns.
    pub(crate) fn mask(&self, ends: &[u64; Role::COUNT]) -> Option<(View<'a>, u64)> {
        self.row_mask.map(|mask| (mask.view, ends[Role::RowMask as usize]))
    }

    /// The byte at which the mask ends, if there is one.
    fn check_row_mask(&self, elements: u64) -> Result<Option<u64>, ViewError> {
        let Some(RowMask { view, row_len }) = self.row_mask else { return Ok(None) };
        if !(1..=1 << 31).contains(&row_len) {
            return Err(ViewError::RowLength { row_len });
        }
        let end = view.check_words(elements.div_ceil(row_len).div_ceil(32))?;
        let others = [Some(self.values), Some(self.gradients), self.shadow];
        if others.into_iter().flatten().any(|other| other.buffer == view.buffer) {
            return Err(ViewError::RowMaskBuffer);
        }
        Ok(Some(end))
    }

    fn check_shadow(&self, values: DType) -> Result<(), ViewError> {
        let Some(view) = self.shadow else { return Ok(()) };
        let shadow = view.dtype.unwrap_or(values);
        if shadow == DType::F32 || values != DType::F32 {
            return Err(ViewError::ShadowDType { values, shadow });
        }
        if view.buffer == self.values.buffer || view.buffer == self.gradients.buffer {
            return Err(ViewError::ShadowBuffer);
        }
        Ok(())
    }
}

/// Views that an optimizer keeps.
#[derive(Clone, Debug)]
pub(crate) struct OwnedViews {
    values: OwnedView,
    gradients: OwnedView,
    shadow: Option<OwnedView>,
    row_mask: Option<(OwnedView, u64)>,
}

#[derive(Clone, Debug)]
struct OwnedView {
    buffer: wgpu::Buffer,
    offset: u64,
    dtype: Option<DType>,
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
            shadow: views.shadow.as_ref().map(OwnedView::new),
            row_mask: views.row_mask.as_ref().map(|mask| (OwnedView::new(&mask.view), mask.row_len)),
        }
    }

    pub(crate) fn borrow(&self) -> Views<'_> {
        Views {
            values: self.values.borrow(),
            gradients: self.gradients.borrow(),
            shadow: self.shadow.as_ref().map(OwnedView::borrow),
            row_mask: self.row_mask.as_ref().map(|(view, row_len)| RowMask::new(view.borrow(), *row_len)),
        }
    }
}
