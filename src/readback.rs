//! Copies from the device to the host, asked for by the caller.

use std::pin::Pin;
use std::task::Poll;

use futures_channel::oneshot;

use crate::error::ReadError;
use crate::scope::{Refusal, catch, is_lost};

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
    /// Make the device get on with it until the copy is done, at most so long.
    #[cfg(not(target_arch = "wasm32"))]
    Blocking(std::time::Duration),
}

type Mapped = oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>;

/// Copies of several ranges as they are at one moment: one submit.
pub struct Snapshot {
    device: wgpu::Device,
    #[cfg(not(target_arch = "wasm32"))]
    queue: wgpu::Queue,
    parts: Vec<(wgpu::Buffer, Mapped)>,
}

impl Snapshot {
    /// Submits the copies; what is submitted later is not in them. With `clear`, sources are zeroed after they were copied.
    pub fn new(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        sources: &[Source],
        clear: bool,
    ) -> Result<Self, Refusal> {
        let parts = catch(device, || {
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
            queue.submit([encoder.finish()]);
            let parts = staging.into_iter().map(|staging| {
                let (sender, receiver) = oneshot::channel();
                staging.map_async(wgpu::MapMode::Read, .., move |result| {
                    // The receiver is gone only if the caller dropped the future: nobody is left to tell.
                    let _ = sender.send(result);
                });
                (staging, receiver)
            });
            parts.collect()
        })?;
        Ok(Self {
            device: device.clone(),
            #[cfg(not(target_arch = "wasm32"))]
            queue: queue.clone(),
            parts,
        })
    }

    /// What was copied, once it is there.
    pub async fn read(self, wait: Wait) -> Result<Vec<Vec<u8>>, ReadError> {
        let mut contents = Vec::with_capacity(self.parts.len());
        for (staging, mapped) in self.parts {
            match wait {
                Wait::Caller => received(&self.device, mapped).await?,
                #[cfg(not(target_arch = "wasm32"))]
                Wait::Blocking(limit) => wait_for(&self.device, &self.queue, mapped, limit)?,
            }
            let view = staging.get_mapped_range(..).map_err(|_| ReadError::Lost)?;
            contents.push(view.to_vec());
        }
        Ok(contents)
    }
}

/// Resolves once the mapping is done. On a lost device nothing may ever call back, so every poll looks for that.
async fn received(device: &wgpu::Device, mut mapped: Mapped) -> Result<(), ReadError> {
    let answer = std::future::poll_fn(|context| match Pin::new(&mut mapped).poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending if is_lost(device) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    answer.await.ok_or(ReadError::Lost)?.map_err(|_| ReadError::Lost)??;
    Ok(())
}

/// Blocks until the mapping is done. `Device::poll` panics if the device is lost meanwhile (wgpu 30); an empty submit lets wgpu
/// call back what is done just as well, and hands errors to the scope.
#[cfg(not(target_arch = "wasm32"))]
fn wait_for(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    mut mapped: Mapped,
    limit: std::time::Duration,
) -> Result<(), ReadError> {
    use std::time::{Duration, Instant};
    const LONGEST_PAUSE: Duration = Duration::from_millis(1);

    let start = Instant::now();
    let mut pause = Duration::from_micros(10);
    loop {
        if let Some(result) = mapped.try_recv().map_err(|_| ReadError::Lost)? {
            return Ok(result?);
        }
        if is_lost(device) {
            return Err(ReadError::Lost);
        }
        if start.elapsed() >= limit {
            return Err(ReadError::Timeout { limit });
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
        catch(device, || queue.submit([]))?;
    }
}
