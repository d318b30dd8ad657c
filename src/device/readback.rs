//! Copies from the device to the host.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_channel::oneshot;

use super::error_scope::DeviceError;
use super::gpu::Gpu;

/// A range of a buffer.
#[derive(Clone, Debug)]
pub struct Source {
    /// The buffer, with usage COPY_SRC.
    pub buffer: wgpu::Buffer,
    /// Offset in bytes, a multiple of 4.
    pub offset: u64,
    /// Length in bytes, a multiple of 4.
    pub bytes: u64,
}

/// A copy did not arrive.
#[derive(Debug)]
pub enum SnapshotError {
    /// wgpu refused the copy, or the device is lost.
    Device(DeviceError),
    /// The copy could not be mapped.
    Map(wgpu::BufferAsyncError),
    /// The device did not finish in time.
    #[cfg(not(target_arch = "wasm32"))]
    Timeout,
}

impl From<DeviceError> for SnapshotError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

type Mapped = oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>;

/// Copies of several ranges as they are at one moment, made with one submit.
#[derive(Debug)]
pub struct Snapshot {
    gpu: Gpu,
    /// The copies that have not been read yet, the last one first.
    pending: Vec<(wgpu::Buffer, Mapped)>,
    contents: Vec<Vec<u8>>,
}

impl Snapshot {
    /// Submits the copies. They do not see what is submitted later. With `clear`, the sources are zeroed after the copy.
    pub fn new(gpu: &Gpu, sources: &[Source], clear: bool) -> Result<Self, DeviceError> {
        const LABEL: &str = "adamod.snapshot";
        let mut pending: Vec<_> = gpu.catch(|| {
            let mut encoder = gpu.encoder(LABEL);
            let staging: Vec<_> = sources
                .iter()
                .map(|source| {
                    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                    let staging = gpu.buffer(LABEL, source.bytes, usage);
                    encoder.copy_buffer_to_buffer(&source.buffer, source.offset, &staging, 0, source.bytes);
                    if clear {
                        encoder.clear_buffer(&source.buffer, source.offset, Some(source.bytes));
                    }
                    staging
                })
                .collect();
            gpu.queue.submit([encoder.finish()]);
            let pending = staging.into_iter().map(|staging| {
                let (sender, receiver) = oneshot::channel();
                staging.map_async(wgpu::MapMode::Read, .., move |result| {
                    // Sending fails only if the caller has dropped the read-back.
                    let _ = sender.send(result);
                });
                (staging, receiver)
            });
            pending.collect()
        })?;
        pending.reverse();
        Ok(Self { gpu: gpu.clone(), contents: Vec::with_capacity(pending.len()), pending })
    }

    /// Resolves to the copied bytes once the caller has polled the device or submitted again.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Vec<Vec<u8>>, SnapshotError>> {
        while let Some((staging, mapped)) = self.pending.last_mut() {
            match Pin::new(mapped).poll(context) {
                Poll::Ready(result) => match copied(staging, result.ok()) {
                    Ok(bytes) => self.contents.push(bytes),
                    Err(error) => return Poll::Ready(Err(error)),
                },
                // A lost device may never call back.
                Poll::Pending if self.gpu.is_lost() => {
                    return Poll::Ready(Err(DeviceError::Lost.into()));
                }
                Poll::Pending => return Poll::Pending,
            }
            self.pending.pop();
        }
        Poll::Ready(Ok(std::mem::take(&mut self.contents)))
    }

    /// Blocks until the copies have arrived, for at most `timeout` per copy.
    ///
    /// `Device::poll` panics if the device is lost meanwhile (wgpu 30). An empty submit makes wgpu run its callbacks just as well,
    /// and raises its errors into the error scope.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(mut self, timeout: std::time::Duration) -> Result<Vec<Vec<u8>>, SnapshotError> {
        use std::time::{Duration, Instant};
        const LONGEST_PAUSE: Duration = Duration::from_millis(1);

        while let Some((staging, mut mapped)) = self.pending.pop() {
            let start = Instant::now();
            let mut pause = Duration::from_micros(10);
            let result = loop {
                match mapped.try_recv() {
                    Ok(Some(result)) => break Some(result),
                    Ok(None) => {}
                    Err(_) => break None,
                }
                if self.gpu.is_lost() {
                    break None;
                }
                if start.elapsed() >= timeout {
                    return Err(SnapshotError::Timeout);
                }
                std::thread::sleep(pause);
                pause = (2 * pause).min(LONGEST_PAUSE);
                self.gpu.catch(|| self.gpu.queue.submit([]))?;
            };
            self.contents.push(copied(&staging, result)?);
        }
        Ok(self.contents)
    }
}

/// The bytes of a staging buffer that was mapped; `None` if wgpu dropped the callback.
fn copied(
    staging: &wgpu::Buffer,
    result: Option<Result<(), wgpu::BufferAsyncError>>,
) -> Result<Vec<u8>, SnapshotError> {
    result.ok_or(DeviceError::Lost)?.map_err(SnapshotError::Map)?;
    let view = staging.get_mapped_range(..).map_err(|_| DeviceError::Lost)?;
    Ok(view.to_vec())
}
