//! Atomic writes to several buffers: all of them happen or none.

use super::error_scope::DeviceError;
use super::gpu::Gpu;
use super::readback::staging_bytes;

/// Bytes to write into a buffer. Offset and length are multiples of 4.
pub struct Write<'a> {
    pub buffer: &'a wgpu::Buffer,
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// Writes through staging buffers and one submit. On an error nothing was written.
pub fn write_staged(gpu: &Gpu, writes: &[Write<'_>]) -> Result<(), DeviceError> {
    let mut staged = StagedWrites::new(gpu)?;
    staged.add(writes)?;
    staged.submit()
}

const LABEL: &str = "staged_write";

/// Writes that are collected in staging buffers until they are submitted together.
pub struct StagedWrites<'a> {
    gpu: &'a Gpu,
    encoder: wgpu::CommandEncoder,
}

/// A copy from a staging buffer: target, offset in it, offset in the staging buffer, bytes.
type Target<'a> = (&'a wgpu::Buffer, u64, u64, u64);

impl<'a> StagedWrites<'a> {
    pub fn new(gpu: &'a Gpu) -> Result<Self, DeviceError> {
        Ok(Self { gpu, encoder: gpu.catch(|| gpu.encoder(LABEL))? })
    }

    /// Copies the bytes of these writes. Nothing is written before the submit.
    pub fn add(&mut self, writes: &[Write<'_>]) -> Result<(), DeviceError> {
        let most = staging_bytes(self.gpu) as usize;
        let mut part = Vec::new();
        let mut targets: Vec<Target<'_>> = Vec::new();
        for write in writes {
            let mut done = 0;
            while done < write.bytes.len() {
                let taken = (write.bytes.len() - done).min(most - part.len());
                let (offset, place) = (write.offset + done as u64, part.len() as u64);
                match targets.last_mut() {
                    // Writes that continue the one before share its copy.
                    Some((buffer, start, _, bytes))
                        if *buffer == write.buffer && *start + *bytes == offset =>
                    {
                        *bytes += taken as u64;
                    }
                    _ => targets.push((write.buffer, offset, place, taken as u64)),
                }
                part.extend_from_slice(&write.bytes[done..done + taken]);
                done += taken;
                if part.len() == most {
                    self.copy(&part, &targets)?;
                    part.clear();
                    targets.clear();
                }
            }
        }
        if part.is_empty() { Ok(()) } else { self.copy(&part, &targets) }
    }

    fn copy(&mut self, bytes: &[u8], targets: &[Target<'_>]) -> Result<(), DeviceError> {
        let Self { gpu, encoder } = self;
        gpu.catch(|| {
            let staging = gpu.buffer_with(LABEL, bytes.len() as u64, wgpu::BufferUsages::COPY_SRC, bytes);
            for &(buffer, offset, from, length) in targets {
                encoder.copy_buffer_to_buffer(&staging, from, buffer, offset, length);
            }
        })
    }

    /// Submits all writes. On an error nothing was written.
    pub fn submit(self) -> Result<(), DeviceError> {
        let commands = self.gpu.catch(|| self.encoder.finish())?;
        self.gpu.submit(commands)?;
        Ok(())
    }
}
