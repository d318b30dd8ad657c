//! Small tables that change from step to step.
//!
//! `Queue::write_buffer` takes effect before the next submit, so two writes to one place recorded before one submit would both
//! show the last value. A ring gives every recorded step a slot of its own, bound through a dynamic offset, and takes the
//! slot back when wgpu reports that the step's command buffer is done or was dropped. It grows when the caller records more
//! steps ahead than it has slots, and then holds still.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::EncodeError;
use crate::scope::{Refusal, catch};

/// WebGPU's default `min_storage_buffer_offset_alignment`, which no device exceeds.
const SLOT_ALIGNMENT_BYTES: u64 = 256;

/// A buffer of equal slots.
#[derive(Debug)]
pub struct Ring {
    label: &'static str,
    buffer: wgpu::Buffer,
    slot_bytes: u64,
    /// How many leases each slot has.
    users: Arc<[AtomicU32]>,
    next: usize,
    generation: u64,
}

/// Keeps a slot from being written again.
#[derive(Debug)]
pub struct Lease {
    users: Arc<[AtomicU32]>,
    slot: usize,
    /// Byte offset of the slot in the ring's buffer.
    pub offset: u32,
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.users[self.slot].fetch_add(1, Ordering::Relaxed);
        Self { users: Arc::clone(&self.users), ..*self }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.users[self.slot].fetch_sub(1, Ordering::Release);
    }
}

impl Ring {
    /// A ring of `slots` slots that hold at least `bytes` bytes each.
    pub fn new(
        device: &wgpu::Device,
        label: &'static str,
        slots: usize,
        bytes: u64,
    ) -> Result<Self, Refusal> {
        let slot_bytes = bytes.max(1).next_multiple_of(SLOT_ALIGNMENT_BYTES);
        let buffer = catch(device, || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: slot_bytes * slots as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?;
        Ok(Self {
            label,
            buffer,
            slot_bytes,
            users: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            next: 0,
            generation: 0,
        })
    }

    /// Changes whenever the ring's buffer is another one, so that it has to be bound anew.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// The binding of one slot; its place is given by a dynamic offset.
    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.buffer,
            offset: 0,
            size: NonZeroU64::new(self.slot_bytes),
        })
    }

    /// Writes `bytes` into a free slot, in a larger ring if there is none.
    pub fn write(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        bytes: &[u8],
    ) -> Result<Lease, EncodeError> {
        let size = bytes.len() as u64;
        if size > self.slot_bytes {
            self.renew(device, self.users.len(), size.next_power_of_two())?;
        } else if self.users[self.next].load(Ordering::Acquire) > 0 {
            self.renew(device, 2 * self.users.len(), self.slot_bytes)?;
        }
        let slot = self.next;
        let offset = self.slot_bytes * slot as u64;
        let uploaded = catch(device, || {
            if let Some(size) = NonZeroU64::new(size) {
                queue.write_buffer_with(&self.buffer, offset, size)?.copy_from_slice(bytes);
            }
            Some(())
        })?;
        // wgpu gives no place to write to, and raises no error, only if the device is lost.
        if uploaded.is_none() {
            return Err(EncodeError::Lost);
        }
        self.next = (slot + 1) % self.users.len();
        self.users[slot].fetch_add(1, Ordering::Relaxed);
        Ok(Lease { users: Arc::clone(&self.users), slot, offset: offset as u32 })
    }

    /// Steps recorded with the old buffer keep it alive.
    fn renew(&mut self, device: &wgpu::Device, slots: usize, bytes: u64) -> Result<(), Refusal> {
        *self = Self { generation: self.generation + 1, ..Self::new(device, self.label, slots, bytes)? };
        Ok(())
    }
}
