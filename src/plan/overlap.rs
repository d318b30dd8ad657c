//! Views that share bytes.

use std::collections::BTreeMap;

use super::launches::Location;
use super::places::Places;
use super::views::View;
use crate::error::Role;

/// The byte ranges of all registered views.
#[derive(Debug, Default)]
pub struct Occupied {
    ranges: BTreeMap<(wgpu::Buffer, u64), Owner>,
    /// The masks in each buffer by parameter, from a byte to another. They may share bytes with each other.
    masks: BTreeMap<(wgpu::Buffer, usize), (u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    end: u64,
    parameter: usize,
    role: Role,
}

/// The registered view that another one overlaps, and the first shared byte.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlap {
    pub parameter: usize,
    pub role: Role,
    pub byte: u64,
}

impl Occupied {
    /// Occupies a range, or returns the view that has a part of it.
    pub fn take(&mut self, view: &View<'_>, end: u64, parameter: usize, role: Role) -> Result<(), Overlap> {
        self.check(view, end)?;
        let mut masks = self.masks.range((view.buffer.clone(), 0)..=(view.buffer.clone(), usize::MAX));
        let overlapping = masks.find(|(_, (start, mask_end))| *start < end && view.offset < *mask_end);
        if let Some(((_, parameter), (start, _))) = overlapping {
            let byte = view.offset.max(*start);
            return Err(Overlap { parameter: *parameter, role: Role::RowMask, byte });
        }
        self.ranges.insert((view.buffer.clone(), view.offset), Owner { end, parameter, role });
        Ok(())
    }

    /// Occupies the range of a parameter's mask, or returns the view of another role that has a part of it.
    pub fn take_mask(&mut self, view: &View<'_>, end: u64, parameter: usize) -> Result<(), Overlap> {
        self.check(view, end)?;
        self.masks.insert((view.buffer.clone(), parameter), (view.offset, end));
        Ok(())
    }

    fn check(&self, view: &View<'_>, end: u64) -> Result<(), Overlap> {
        let neighbour = self.ranges.range(..(view.buffer.clone(), end)).next_back();
        match neighbour {
            Some(((buffer, start), owner)) if buffer == view.buffer && owner.end > view.offset => {
                let byte = view.offset.max(*start);
                Err(Overlap { parameter: owner.parameter, role: owner.role, byte })
            }
            _ => Ok(()),
        }
    }

    /// Gives the range of a parameter's mask back.
    pub fn release_mask(&mut self, view: &View<'_>, parameter: usize) {
        self.masks.remove(&(view.buffer.clone(), parameter));
    }

    /// Gives a range back.
    pub fn release(&mut self, view: &View<'_>) {
        self.ranges.remove(&(view.buffer.clone(), view.offset));
    }
}

/// A view of a step that is not registered.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    buffer: u32,
    /// Index of the parameter in the step.
    pub update: usize,
    pub role: Role,
    pub start: u64,
    end: u64,
}

/// The ranges of all views of a step, sorted by address. `ends` are the bytes at which the views of each parameter end.
pub fn sorted_ranges<'a>(places: impl Iterator<Item = (&'a Places, [u64; Role::COUNT])>) -> Vec<Range> {
    // Engines mostly name tensors in the order of their addresses. By role, ranges are then runs that a merge sort finds sorted.
    let mut ranges = [const { Vec::new() }; Role::COUNT];
    for (update, (places, ends)) in places.enumerate() {
        let masks = places.row_mask.map(|(mask, _)| ((Role::RowMask, mask), ends[Role::RowMask as usize]));
        for ((role, location), end) in places.each().zip(ends).chain(masks) {
            let Location { buffer, offset: start, .. } = location;
            ranges[role as usize].push(Range { buffer, update, role, start, end });
        }
    }
    let mut ranges: Vec<Range> = ranges.into_iter().flatten().collect();
    ranges.sort_by_key(|range| (range.buffer, range.start));
    ranges
}

/// The first range that overlaps an earlier one, and that one. What is not written may overlap: masks, and gradients unless they are.
pub fn first_overlap(ranges: &[Range], writes_gradients: bool) -> Option<(&Range, &Range)> {
    // The range that ends last, of all ranges so far and of those that are written.
    let [mut last, mut last_written]: [Option<&Range>; 2] = [None; 2];
    for range in ranges {
        let is_written = match range.role {
            Role::Gradients => writes_gradients,
            role => role != Role::RowMask,
        };
        let earlier = if is_written { last } else { last_written };
        if let Some(other) = earlier.filter(|of| of.buffer == range.buffer && range.start < of.end) {
            return Some((range, other));
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
    None
}
