//! Staging buffers between the device and the host. There are few, each as large as the largest bucket, and they are used again and again.

use std::sync::mpsc::{Receiver, TryRecvError, channel};

use adamod::wgpu;

use crate::error::Error;

/// Buffers of each direction: one that the device copies, one that the host reads or writes, and one in between.
const BUFFERS: usize = 3;

/// A part of a copy: a place in a staging buffer and one of the caller's.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub staging: u64,
    pub buffer: wgpu::Buffer,
    pub offset: u64,
    pub bytes: u64,
}

/// A buffer that was submitted to be mapped.
pub(crate) struct Mapping {
    buffer: wgpu::Buffer,
    result: Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Mapping {
    pub fn start(buffer: wgpu::Buffer, mode: wgpu::MapMode) -> Self {
        let (sender, result) = channel();
        buffer.map_async(mode, .., move |result| {
            // Nobody receives it if the run has failed meanwhile.
            let _ = sender.send(result);
        });
        Self { buffer, result }
    }

    pub fn is_mapped(&self) -> Result<bool, Error> {
        match self.result.try_recv() {
            Ok(result) => Ok(result.map(|()| true)?),
            Err(TryRecvError::Empty) => Ok(false),
            Err(TryRecvError::Disconnected) => Err(wgpu::BufferAsyncError.into()),
        }
    }
}

/// All staging buffers of a rank.
pub(crate) struct Staging {
    device: wgpu::Device,
    queue: wgpu::Queue,
    downloads: Vec<wgpu::Buffer>,
    uploads: Vec<wgpu::Buffer>,
    returning: Vec<Mapping>,
}

impl Staging {
    /// Buffers of this many bytes.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue, bytes: u64) -> Self {
        let buffers = |usage, mapped_at_creation| {
            (0..BUFFERS)
                .map(|_| {
                    device.create_buffer(&wgpu::BufferDescriptor {
                        label: Some("adamod-mpi.staging"),
                        size: bytes.next_multiple_of(wgpu::MAP_ALIGNMENT).max(wgpu::MAP_ALIGNMENT),
                        usage,
                        mapped_at_creation,
                    })
                })
                .collect()
        };
        Self {
            downloads: buffers(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, false),
            uploads: buffers(wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC, true),
            returning: Vec::new(),
            device: device.clone(),
            queue: queue.clone(),
        }
    }

    /// Lets the device report what it has finished, without waiting for it.
    pub fn poll(&mut self) -> Result<(), Error> {
        self.device.poll(wgpu::PollType::Poll)?;
        let mut index = 0;
        while index < self.returning.len() {
            if self.returning[index].is_mapped()? {
                self.uploads.push(self.returning.swap_remove(index).buffer);
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// Submits copies to the host, and a clear of what was copied if the caller wants one; `None` if all buffers are in use.
    pub fn download(&mut self, copies: &[Copy], clears: bool) -> Option<Mapping> {
        let staging = self.downloads.pop()?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for copy in copies {
            encoder.copy_buffer_to_buffer(&copy.buffer, copy.offset, &staging, copy.staging, copy.bytes);
        }
        if clears {
            for copy in copies {
                encoder.clear_buffer(&copy.buffer, copy.offset, Some(copy.bytes));
            }
        }
        self.queue.submit([encoder.finish()]);
        Some(Mapping::start(staging, wgpu::MapMode::Read))
    }

    /// Reads a download if it has arrived, and gives its buffer back.
    pub fn read<T>(&mut self, mapping: &Mapping, read: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, Error> {
        if !mapping.is_mapped()? {
            return Ok(None);
        }
        let value = read(&mapping.buffer.get_mapped_range(..)?);
        mapping.buffer.unmap();
        self.downloads.push(mapping.buffer.clone());
        Ok(Some(value))
    }

    /// Whether a buffer is free for an upload.
    pub fn has_upload(&self) -> bool {
        !self.uploads.is_empty()
    }

    /// Submits copies from the host, each of the bytes at its place; `false` if all buffers are in use.
    pub fn upload(&mut self, copies: &[(&Copy, &[u8])]) -> Result<bool, Error> {
        if copies.is_empty() {
            return Ok(true);
        }
        let Some(staging) = self.uploads.pop() else { return Ok(false) };
        let mut view = staging.get_mapped_range_mut(..)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for (copy, bytes) in copies {
            let first = copy.staging as usize;
            view.slice(first..first + bytes.len()).copy_from_slice(bytes);
            encoder.copy_buffer_to_buffer(&staging, copy.staging, &copy.buffer, copy.offset, copy.bytes);
        }
        drop(view);
        staging.unmap();
        self.queue.submit([encoder.finish()]);
        self.returning.push(Mapping::start(staging, wgpu::MapMode::Write));
        Ok(true)
    }
}
