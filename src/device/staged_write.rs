//! Atomic writes to several buffers: all of them happen or none.

use super::error_scope::DeviceError;
use super::gpu::Gpu;

/// Bytes per staging buffer, so that a large tensor does not need one of its size.
const PART_BYTES: usize = 64 << 20;

/// Bytes to write into a buffer. Offset and length are multiples of 4.
pub struct Write<'a> {
    pub buffer: &'a wgpu::Buffer,
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// Writes through staging buffers and one submit. On an error nothing was written.
pub fn write_staged(gpu: &Gpu, writes: &[Write<'_>]) -> Result<(), DeviceError> {
    let most = gpu.device.limits().max_buffer_size.min(PART_BYTES as u64) as usize / 4 * 4;
    let commands = gpu.catch(|| {
        let mut encoder = gpu.encoder(LABEL);
        let mut part = Vec::new();
        let mut targets = Vec::new();
        for write in writes {
            let mut done = 0;
            while done < write.bytes.len() {
                let taken = (write.bytes.len() - done).min(most - part.len());
                targets.push((write.buffer, write.offset + done as u64, part.len() as u64, taken as u64));
                part.extend_from_slice(&write.bytes[done..done + taken]);
                done += taken;
                if part.len() == most {
                    copy(gpu, &mut encoder, &part, &targets);
                    part.clear();
                    targets.clear();
                }
            }
        }
        if !part.is_empty() {
            copy(gpu, &mut encoder, &part, &targets);
        }
        encoder.finish()
    })?;
    gpu.submit(commands)?;
    Ok(())
}

const LABEL: &str = "adamod.staged_write";

/// A copy from the staging buffer: target, offset in it, offset in the staging buffer, bytes.
type Target<'a> = (&'a wgpu::Buffer, u64, u64, u64);

fn copy(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, bytes: &[u8], targets: &[Target<'_>]) {
    let staging = gpu.buffer_with(LABEL, bytes.len() as u64, wgpu::BufferUsages::COPY_SRC, bytes);
    for &(buffer, offset, from, length) in targets {
        encoder.copy_buffer_to_buffer(&staging, from, buffer, offset, length);
    }
}
