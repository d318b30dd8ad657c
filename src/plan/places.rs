//! The buffers of a step, numbered, and where the views of its parameters lie in them.

use std::collections::HashMap;

use super::launches::Location;
use super::views::{View, Views};
use crate::error::Role;
use crate::storage::dtype::DType;

/// The buffers that the views of a step name.
#[derive(Debug, Default)]
pub struct Buffers {
    numbers: HashMap<wgpu::Buffer, u32>,
    pub list: Vec<wgpu::Buffer>,
    /// Their sizes in bytes.
    pub sizes: Vec<u64>,
    /// The buffer of the last view of each role. Tensors of one pool often follow each other.
    recent: [u32; Role::COUNT],
}

/// Where the views of a parameter lie.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    pub values: Location,
    pub gradients: Location,
    pub shadow: Option<Location>,
    /// The mask of rows, and the elements of a row.
    pub row_mask: Option<(Location, u64)>,
}

impl Places {
    /// All locations with their roles.
    pub fn each(&self) -> impl Iterator<Item = (Role, Location)> + use<> {
        let shadow = self.shadow.map(|shadow| (Role::Shadow, shadow));
        [(Role::Values, self.values), (Role::Gradients, self.gradients)].into_iter().chain(shadow)
    }
}

impl Buffers {
    /// Locates the views of a parameter of this data type.
    pub fn locate(&mut self, views: &Views<'_>, dtype: DType) -> Places {
        Places {
            values: self.location(Role::Values, &views.values, dtype),
            gradients: self.location(Role::Gradients, &views.gradients, dtype),
            shadow: views.shadow.as_ref().map(|shadow| self.location(Role::Shadow, shadow, dtype)),
            row_mask: views
                .row_mask
                .as_ref()
                .map(|mask| (self.location(Role::RowMask, &mask.view, DType::F32), mask.row_len)),
        }
    }

    fn location(&mut self, role: Role, view: &View<'_>, dtype: DType) -> Location {
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
        Location { buffer, offset: view.offset, dtype: view.dtype.unwrap_or(dtype) }
    }
}
