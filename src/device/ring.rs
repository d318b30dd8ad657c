//! Rings of slots for small tables that change from step to step.
//!
//! `Queue::write_buffer` takes effect before the next submit. Two writes to the same place before one submit would both show the
//! last value. A ring gives every recorded step a slot of its own, bound with a dynamic offset, and reuses the slot when wgpu
//! reports that the step's command buffer is done or was dropped. A ring grows when the caller records more steps ahead than it
//! has slots, and then keeps its size.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::error_scope::DeviceError;
use super::gpu::{Gpu, binding};

/// The default of `min_storage_buffer_offset_alignment` in WebGPU, which no device exceeds.
const SLOT_ALIGNMENT_BYTES: u64 = 256;

/// A buffer of slots of equal size.
#[derive(Debug)]
pub struct Ring {
    label: &'static str,
    buffer: wgpu::Buffer,
    slot_bytes: u64,
    /// The number of leases of each slot.
    users: Arc<[AtomicU32]>,
    next: usize,
    generation: u64,
}

/// Keeps a slot from being reused.
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
    /// A ring of `slots` slots of at least `bytes` bytes each.
    pub fn new(gpu: &Gpu, label: &'static str, slots: usize, bytes: u64) -> Result<Self, DeviceError> {
        let slot_bytes = bytes.max(1).next_multiple_of(SLOT_ALIGNMENT_BYTES);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let buffer = gpu.catch(|| gpu.buffer(label, slot_bytes * slots as u64, usage))?;
        Ok(Self {
            label,
            buffer,
            slot_bytes,
            users: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            next: 0,
            generation: 0,
        })
    }

    /// Changes whenever the ring has another buffer, which has to be bound anew.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Bytes per slot.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// The binding of one slot. A lease has its dynamic offset.
    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        binding(&self.buffer, 0, self.slot_bytes)
    }

    /// Writes `bytes` into a free slot. Replaces the buffer by a larger one if no slot is free or `bytes` do not fit.
    pub fn write(&mut self, gpu: &Gpu, bytes: &[u8]) -> Result<Lease, DeviceError> {
        let size = bytes.len() as u64;
        if size > self.slot_bytes {
            self.renew(gpu, self.users.len(), size.next_power_of_two())?;
        } else if self.users[self.next].load(Ordering::Acquire) > 0 {
            self.renew(gpu, 2 * self.users.len(), self.slot_bytes)?;
        }
        let slot = self.next;
        let offset = self.slot_bytes * slot as u64;
        let written = gpu.catch(|| {
            if let Some(size) = NonZeroU64::new(size) {
                gpu.queue.write_buffer_with(&self.buffer, offset, size)?.copy_from_slice(bytes);
            }
            Some(())
        })?;
        // On a lost device wgpu returns `None` and raises no error.
        if written.is_none() {
            return Err(DeviceError::Lost);
        }
        self.next = (slot + 1) % self.users.len();
        self.users[slot].fetch_add(1, Ordering::Relaxed);
        Ok(Lease { users: Arc::clone(&self.users), slot, offset: offset as u32 })
    }

    /// Replaces the buffer. Steps recorded with the old one keep it alive.
    fn renew(&mut self, gpu: &Gpu, slots: usize, bytes: u64) -> Result<(), DeviceError> {
        *self = Self { generation: self.generation + 1, ..Self::new(gpu, self.label, slots, bytes)? };
        Ok(())
    }
}
