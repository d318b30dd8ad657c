//! Writes to several buffers, of which all happen or none.

use crate::scope::{Refusal, catch, submit};

/// Bytes staged at a time: large tensors do not need a staging buffer of their size.
const PART_BYTES: usize = 64 << 20;

/// Bytes for a place in a buffer. Place and length are multiples of 4.
pub struct Write<'a> {
    pub buffer: &'a wgpu::Buffer,
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// Writes through staging buffers and one submit. On an error nothing was written.
pub fn upload(device: &wgpu::Device, queue: &wgpu::Queue, writes: &[Write<'_>]) -> Result<(), Refusal> {
    let most = device.limits().max_buffer_size.min(PART_BYTES as u64) as usize / 4 * 4;
    let commands = catch(device, || {
        let mut encoder =
            device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("adamod.upload") });
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
                    copy(device, &mut encoder, &part, &targets);
                    part.clear();
                    targets.clear();
                }
            }
        }
        if !part.is_empty() {
            copy(device, &mut encoder, &part, &targets);
        }
        encoder.finish()
    })?;
    submit(device, queue, commands)?;
    Ok(())
}

/// Where staged bytes go: buffer, place in it, place in the staging buffer, length.
type Target<'a> = (&'a wgpu::Buffer, u64, u64, u64);

fn copy(device: &wgpu::Device, encoder: &mut wgpu::CommandEncoder, bytes: &[u8], targets: &[Target<'_>]) {
    let staging = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("adamod.upload"),
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    });
    // If there was no memory for it, the error scope has the error.
    if let Ok(mut view) = staging.get_mapped_range_mut(..) {
        view.copy_from_slice(bytes);
    }
    staging.unmap();
    for &(buffer, offset, from, length) in targets {
        encoder.copy_buffer_to_buffer(&staging, from, buffer, offset, length);
    }
}
