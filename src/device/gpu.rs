//! The caller's device and queue.

use std::sync::Arc;

use super::error_scope::{DeviceError, catch, is_lost, is_queue_of, submit};
use super::late_error::{LateError, catch_late};

/// Handles to the caller's device and queue.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// Stands in front of the labels of all objects.
    pub label: Arc<str>,
}

impl Gpu {
    /// Runs `make` and returns the error that wgpu raised in it, if any.
    pub fn catch<T>(&self, make: impl FnOnce() -> T) -> Result<T, DeviceError> {
        catch(&self.device, make)
    }

    /// As [`Gpu::catch`], with the errors that arrive later in a browser.
    pub fn catch_late<T>(&self, make: impl FnOnce() -> T) -> Result<(T, LateError), DeviceError> {
        catch_late(&self.device, make)
    }

    /// Whether the device is lost.
    pub fn is_lost(&self) -> bool {
        is_lost(&self.device)
    }

    /// Whether the queue belongs to the device.
    pub fn is_queue_of_device(&self) -> Result<bool, DeviceError> {
        is_queue_of(&self.device, &self.queue)
    }

    /// Submits commands and checks that the device accepted them.
    pub fn submit(&self, commands: wgpu::CommandBuffer) -> Result<wgpu::SubmissionIndex, DeviceError> {
        submit(&self.device, &self.queue, commands)
    }

    /// The label of an object: `adamod.step`.
    pub fn name(&self, object: &str) -> String {
        format!("{}.{object}", self.label)
    }

    /// A command encoder. To be called within [`Gpu::catch`].
    pub fn encoder(&self, object: &str) -> wgpu::CommandEncoder {
        self.device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(&self.name(object)) })
    }

    /// A buffer of zeros. To be called within [`Gpu::catch`].
    pub fn buffer(&self, object: &str, bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&self.name(object)),
            size: bytes,
            usage,
            mapped_at_creation: false,
        })
    }

    /// A buffer of at least `contents.len()` bytes that starts with `contents`. To be called within [`Gpu::catch`].
    pub fn buffer_with(
        &self,
        object: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        contents: &[u8],
    ) -> wgpu::Buffer {
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&self.name(object)),
            size: bytes,
            usage,
            mapped_at_creation: true,
        });
        // If there was no memory for the buffer, the error scope has the error.
        if let Ok(mut view) = buffer.get_mapped_range_mut(..contents.len() as u64) {
            view.copy_from_slice(contents);
        }
        buffer.unmap();
        buffer
    }
}

/// The binding of a range of a buffer.
pub fn binding(buffer: &wgpu::Buffer, offset: u64, bytes: u64) -> wgpu::BindingResource<'_> {
    wgpu::BindingResource::Buffer(range(buffer, offset, bytes))
}

/// A range of a buffer, for a binding or an element of a binding array.
pub fn range(buffer: &wgpu::Buffer, offset: u64, bytes: u64) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset, size: std::num::NonZeroU64::new(bytes) }
}
