//! Where the views of a step lie.

use std::collections::HashMap;

use super::{Optimizer, Update};
use crate::error::{EncodeError, Role, ViewError};
use crate::format::DType;
use crate::plan::{AfterUse, Location};
use crate::views::{View, Views};

/// Numbers the buffers of a plan.
#[derive(Default)]
pub(super) struct Buffers {
    numbers: HashMap<wgpu::Buffer, u32>,
    pub(super) list: Vec<wgpu::Buffer>,
    pub(super) sizes: Vec<u64>,
    /// Where the last view of each role lay: tensors of one pool come in a row.
    recent: [u32; Role::COUNT],
}

/// Where a parameter's views lie.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) values: Location,
    pub(super) gradients: Location,
    pub(super) copies: Option<Location>,
}

impl Places {
    fn each(&self) -> impl Iterator<Item = (Role, Location)> + use<> {
        let copies = self.copies.map(|copies| (Role::Copy, copies));
        [(Role::Values, self.values), (Role::Gradients, self.gradients)].into_iter().chain(copies)
    }
}

impl Buffers {
    pub(super) fn locate(&mut self, views: &Views<'_>) -> Places {
        Places {
            values: self.location(Role::Values, &views.values),
            gradients: self.location(Role::Gradients, &views.gradients),
            copies: views.copy.as_ref().map(|copy| self.location(Role::Copy, copy)),
        }
    }

    fn location(&mut self, role: Role, view: &View<'_>) -> Location {
        let recent = self.recent[role as usize];
        let buffer = if self.list.get(recent as usize) == Some(view.buffer) {
            recent
        } else {
            *self.numbers.entry(view.buffer.clone()).or_insert_with(|| {
                self.list.push(view.buffer.clone());
                self.sizes.push(view.buffer.size());
                self.list.len() as u32 - 1
            })
        };
        self.recent[role as usize] = buffer;
        Location { buffer, offset: view.offset, dtype: view.dtype }
    }
}

/// The bytes at which a parameter's views end, or what is wrong with one of them.
pub(super) fn check_views(views: &Views<'_>, len: u64, dtype: DType) -> Result<[u64; 3], (Role, ViewError)> {
    if views.values.dtype != dtype {
        return Err((Role::Values, ViewError::DType { found: views.values.dtype, needed: dtype }));
    }
    views.check_copy().map_err(|error| (Role::Copy, error))?;
    let mut ends = [0; 3];
    for ((role, view), end) in views.each().zip(&mut ends) {
        *end = view.end(len).map_err(|error| (role, error))?;
    }
    Ok(ends)
}

impl Optimizer {
    /// Checks the views of a step that were not registered, and numbers their buffers.
    pub(super) fn locate(
        &self,
        updates: &[Update<'_>],
        buffers: &mut Buffers,
    ) -> Result<Vec<Places>, EncodeError> {
        struct Range {
            buffer: u32,
            update: u32,
            role: Role,
            start: u64,
            end: u64,
        }
        let record_of = |update: u32| &self.parameters[updates[update as usize].parameter.index as usize];
        let mut places = Vec::with_capacity(updates.len());
        // Engines mostly name tensors in the order of their addresses: by role, ranges are runs that a merge sort finds sorted.
        let mut ranges = [const { Vec::new() }; Role::COUNT];
        for (index, update) in (0..).zip(updates) {
            let record = record_of(index);
            let ends = check_views(&update.views, record.len, record.dtype)
                .map_err(|(role, source)| EncodeError::View { label: record.label.clone(), role, source })?;
            let located = buffers.locate(&update.views);
            for ((role, location), end) in located.each().zip(ends) {
                let Location { buffer, offset: start, .. } = location;
                ranges[role as usize].push(Range { buffer, update: index, role, start, end });
            }
            places.push(located);
        }
        let mut ranges: Vec<Range> = ranges.into_iter().flatten().collect();
        ranges.sort_by_key(|range| (range.buffer, range.start));
        // Of the ranges so far, the one that ends last: of all, and of those that are written.
        let [mut last, mut last_written]: [Option<&Range>; 2] = [None; 2];
        for range in &ranges {
            let is_written = range.role != Role::Gradients || self.options.gradients == AfterUse::Zero;
            let earlier = if is_written { last } else { last_written };
            if let Some(other) = earlier.filter(|of| of.buffer == range.buffer && range.start < of.end) {
                return Err(EncodeError::View {
                    label: record_of(range.update).label.clone(),
                    role: range.role,
                    source: ViewError::Overlap {
                        other_role: other.role,
                        other_label: record_of(other.update).label.clone(),
                        byte: range.start,
                    },
                });
            }
            let ends_last =
                |of: Option<&Range>| of.is_none_or(|of| of.buffer != range.buffer || of.end < range.end);
            if ends_last(last) {
                last = Some(range);
            }
            if is_written && ends_last(last_written) {
                last_written = Some(range);
            }
        }
        Ok(places)
    }
}
