//! Copies from the device to the host, asked for by the caller.

use crate::error::ReadError;
use crate::scope::catch;

/// Bytes copied at a time: large tensors do not need a staging buffer of their size.
const PART_BYTES: u64 = 64 << 20;

/// A range of a buffer.
#[derive(Clone, Debug)]
pub struct Source {
    /// The buffer, with usage COPY_SRC.
    pub buffer: wgpu::Buffer,
    /// First byte, a multiple of 4.
    pub offset: u64,
    /// Bytes, a multiple of 4.
    pub bytes: u64,
}

/// How to wait for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The caller polls the device, or submits, elsewhere.
    Caller,
    /// Poll the device until the copy is done.
    #[cfg(not(target_arch = "wasm32"))]
    Poll,
}

/// Copies the sources, one after the other, into one vector. Submits command buffers of its own.
pub async fn download(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    sources: &[Source],
    wait: Wait,
) -> Result<Vec<u8>, ReadError> {
    let total: u64 = sources.iter().map(|source| source.bytes).sum();
    let mut bytes = Vec::with_capacity(total as usize);
    for source in sources {
        let mut done = 0;
        while done < source.bytes {
            let part = Source {
                offset: source.offset + done,
                bytes: (source.bytes - done).min(PART_BYTES),
                ..source.clone()
            };
            download_part(device, queue, &part, wait, &mut bytes).await?;
            done += part.bytes;
        }
    }
    Ok(bytes)
}

async fn download_part(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    part: &Source,
    wait: Wait,
    bytes: &mut Vec<u8>,
) -> Result<(), ReadError> {
    let (sender, receiver) = futures_channel::oneshot::channel();
    let (staging, submission) = catch(device, || {
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod.readback"),
            size: part.bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder =
            device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("adamod.readback") });
        encoder.copy_buffer_to_buffer(&part.buffer, part.offset, &staging, 0, part.bytes);
        let submission = queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if the caller dropped the future: nobody is left to tell.
            let _ = sender.send(result);
        });
        (staging, submission)
    })?;
    match wait {
        Wait::Caller => {
            let _ = submission;
        }
        #[cfg(not(target_arch = "wasm32"))]
        Wait::Poll => {
            device.poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout: None })?;
        }
    }
    receiver.await.map_err(|_| ReadError::Lost)??;
    let view = staging.get_mapped_range(..).map_err(|_| ReadError::Lost)?;
    bytes.extend_from_slice(&view);
    drop(view);
    staging.unmap();
    Ok(())
}

/// Copies of several ranges as they are at one moment: one submit.
pub struct Snapshot {
    device: wgpu::Device,
    submission: wgpu::SubmissionIndex,
    parts: Vec<(wgpu::Buffer, futures_channel::oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>)>,
}

impl Snapshot {
    /// Submits the copies; what is submitted later is not in them. With `clear`, sources are zeroed after they were copied.
    pub fn new(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        sources: &[Source],
        clear: bool,
    ) -> Result<Self, wgpu::Error> {
        let (parts, submission) = catch(device, || {
            let mut encoder = device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("adamod.snapshot") });
            let staging: Vec<_> = sources
                .iter()
                .map(|source| {
                    let staging = device.create_buffer(&wgpu::BufferDescriptor {
                        label: Some("adamod.snapshot"),
                        size: source.bytes,
                        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                        mapped_at_creation: false,
                    });
                    encoder.copy_buffer_to_buffer(&source.buffer, source.offset, &staging, 0, source.bytes);
                    if clear {
                        encoder.clear_buffer(&source.buffer, source.offset, Some(source.bytes));
                    }
                    staging
                })
                .collect();
            let submission = queue.submit([encoder.finish()]);
            let parts = staging.into_iter().map(|staging| {
                let (sender, receiver) = futures_channel::oneshot::channel();
                staging.map_async(wgpu::MapMode::Read, .., move |result| {
                    let _ = sender.send(result);
                });
                (staging, receiver)
            });
            (parts.collect(), submission)
        })?;
        Ok(Self { device: device.clone(), submission, parts })
    }

    /// What was copied, once it is there.
    pub async fn read(self, wait: Wait) -> Result<Vec<Vec<u8>>, ReadError> {
        match wait {
            Wait::Caller => {}
            #[cfg(not(target_arch = "wasm32"))]
            Wait::Poll => {
                let submission_index = Some(self.submission);
                self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None })?;
            }
        }
        let mut contents = Vec::with_capacity(self.parts.len());
        for (staging, receiver) in self.parts {
            receiver.await.map_err(|_| ReadError::Lost)??;
            let view = staging.get_mapped_range(..).map_err(|_| ReadError::Lost)?;
            contents.push(view.to_vec());
        }
        Ok(contents)
    }
}
