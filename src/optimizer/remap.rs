//! What a caller says of rows that move.

use crate::options::FreshRows;
use crate::plan::views::{View, Views};

/// How the rows of a parameter move, for [`Optimizer::remap`](crate::Optimizer::remap).
///
/// A row is `row_len` elements that follow each other: a splat of a parameter of positions, a token of an embedding table, a rank of an
/// adapter. The parameter's number of elements is a multiple of it before and after.
///
/// | | new row `r` is |
/// | --- | --- |
/// | [`Remap::new`] | the old row that the caller's buffer names, or fresh: prune, split, clone, reorder, clear |
/// | [`Remap::resize`] | old row `r`, or fresh past the old end: append, truncate |
/// | [`Remap::clear`] | fresh: forget |
#[derive(Clone, Copy, Debug)]
pub struct Remap<'a> {
    pub(super) row_len: u64,
    pub(super) rows: Option<u64>,
    pub(super) source: Source<'a>,
    pub(super) fresh: FreshRows,
    pub(super) views: Option<Views<'a>>,
}

/// Where new rows come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// Indices of old rows in a buffer.
    Buffer(View<'a>),
    /// The old row of the same index.
    Same,
    /// Nowhere.
    Fresh,
}

impl<'a> Remap<'a> {
    /// The source of a fresh row.
    pub const FRESH: u32 = u32::MAX;

    /// `rows` rows of `row_len` elements each. New row `r` continues old row `source[r]`, where `source` is a view of `rows` u32 in a
    /// buffer with usage STORAGE. An index that is not one of an old row, as [`Remap::FRESH`] is, makes a fresh row. An old row may be
    /// named several times: each copy gets its state, as where a splat splits.
    pub fn new(row_len: u64, rows: u64, source: View<'a>) -> Self {
        Self::of(row_len, Some(rows), Source::Buffer(source))
    }

    /// `rows` rows in total. Rows keep their indices: those past the old end are fresh, and those past the new one are dropped.
    pub fn resize(row_len: u64, rows: u64) -> Self {
        Self::of(row_len, Some(rows), Source::Same)
    }

    /// As many rows as before, all fresh. With the default [`FreshRows::Mean`] they keep the mean rates of their columns;
    /// [`FreshRows::Zero`] forgets everything. The step count stays; [`Optimizer::write_state`](crate::Optimizer::write_state) sets it.
    pub fn clear(row_len: u64) -> Self {
        Self::of(row_len, None, Source::Fresh)
    }

    fn of(row_len: u64, rows: Option<u64>, source: Source<'a>) -> Self {
        Self { row_len, rows, source, fresh: FreshRows::default(), views: None }
    }

    /// Sets what the state of fresh rows starts from.
    pub fn with_fresh(self, fresh: FreshRows) -> Self {
        Self { fresh, ..self }
    }

    /// Moves the parameter to these views, or registers its first ones, from the next recorded step on. Without this the registered
    /// views stay where they are, and have to hold the new length.
    pub fn with_views(self, views: Views<'a>) -> Self {
        Self { views: Some(views), ..self }
    }
}
