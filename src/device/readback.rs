//! Copies from the device to the host.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_channel::oneshot;

use super::error_scope::DeviceError;
use super::gpu::Gpu;
use super::late_error::LateError;

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
    /// In a browser, the errors of the copies. What was not copied is mapped all the same, and holds zeros.
    late_error: LateError,
    /// The staging buffers that have not been read yet, the last one first. Together they hold all ranges without a gap.
    pending: Vec<(wgpu::Buffer, Mapped)>,
    /// Bytes of each range.
    sizes: Vec<usize>,
    /// The ranges that have arrived. The last one may be incomplete.
    contents: Vec<Vec<u8>>,
}

impl Snapshot {
    /// Submits the copies. They do not see what is submitted later. With `clear`, the sources are zeroed after the copy.
    pub fn new(gpu: &Gpu, sources: &[Source], clear: bool) -> Result<Self, DeviceError> {
        const LABEL: &str = "snapshot";
        let most = staging_bytes(gpu);
        let total: u64 = sources.iter().map(|source| source.bytes).sum();
        let (mut pending, late_error): (Vec<_>, _) = gpu.catch_late(|| {
            let mut encoder = gpu.encoder(LABEL);
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            let mut staging: Vec<wgpu::Buffer> = Vec::new();
            // Bytes of all ranges that have been copied, and of the staging buffers before the last one.
            let (mut copied, mut before) = (0, 0);
            for source in sources {
                let mut done = 0;
                while done < source.bytes {
                    if copied - before == staging.last().map_or(0, wgpu::Buffer::size) {
                        before = copied;
                        staging.push(gpu.buffer(LABEL, (total - copied).min(most), usage));
                    }
                    let Some(target) = staging.last() else { break };
                    let place = copied - before;
                    let bytes = (source.bytes - done).min(target.size() - place);
                    encoder.copy_buffer_to_buffer(&source.buffer, source.offset + done, target, place, bytes);
                    copied += bytes;
                    done += bytes;
                }
                if clear {
                    encoder.clear_buffer(&source.buffer, source.offset, Some(source.bytes));
                }
            }
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
        let sizes = sources.iter().map(|source| source.bytes as usize).collect();
        Ok(Self { gpu: gpu.clone(), late_error, pending, sizes, contents: Vec::new() })
    }

    /// Resolves to the copied bytes once the caller has polled the device or submitted again.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Vec<Vec<u8>>, SnapshotError>> {
        ready!(self.late_error.poll(context))?;
        while let Some((_, mapped)) = self.pending.last_mut() {
            let result = match Pin::new(mapped).poll(context) {
                Poll::Ready(result) => result.ok(),
                // A lost device may never call back.
                Poll::Pending if self.gpu.is_lost() => None,
                Poll::Pending => return Poll::Pending,
            };
            if let Some((staging, _)) = self.pending.pop()
                && let Err(error) = self.take(&staging, result)
            {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(self.finish()))
    }

    /// Blocks until the copies have arrived, for at most `timeout` per staging buffer.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(mut self, timeout: std::time::Duration) -> Result<Vec<Vec<u8>>, SnapshotError> {
        while let Some((staging, mapped)) = self.pending.pop() {
            let result = wait_for(&self.gpu, mapped, timeout)?;
            self.take(&staging, result)?;
        }
        Ok(self.finish())
    }

    /// Appends the bytes of a staging buffer that was mapped; `None` if wgpu dropped the callback.
    fn take(
        &mut self,
        staging: &wgpu::Buffer,
        result: Option<Result<(), wgpu::BufferAsyncError>>,
    ) -> Result<(), SnapshotError> {
        // A browser has no other reason not to map a buffer that is valid.
        let refused = |error| {
            if cfg!(target_arch = "wasm32") { DeviceError::Lost.into() } else { SnapshotError::Map(error) }
        };
        result.ok_or(DeviceError::Lost)?.map_err(refused)?;
        let view = staging.get_mapped_range(..).map_err(|_| DeviceError::Lost)?;
        let mut bytes = &view[..];
        while !bytes.is_empty() {
            let size = |index: usize| self.sizes.get(index).copied().unwrap_or(0);
            let is_complete =
                self.contents.last().is_none_or(|last| last.len() == size(self.contents.len() - 1));
            if is_complete {
                let size = size(self.contents.len());
                self.contents.push(Vec::with_capacity(size));
            }
            let missing = size(self.contents.len() - 1);
            let Some(last) = self.contents.last_mut() else { break };
            let (now, later) = bytes.split_at((missing - last.len()).min(bytes.len()));
            last.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn finish(&mut self) -> Vec<Vec<u8>> {
        // Ranges without bytes at the end.
        self.contents.resize_with(self.sizes.len(), Vec::new);
        std::mem::take(&mut self.contents)
    }
}

/// Bytes of a staging buffer at most, so that nothing large needs one of its size.
pub fn staging_bytes(gpu: &Gpu) -> u64 {
    const PART_BYTES: u64 = 64 << 20;
    gpu.device.limits().max_buffer_size.min(PART_BYTES) / 4 * 4
}

/// Blocks until wgpu calls back, for at most `timeout`; `None` if it never will.
///
/// `Device::poll` panics if the device is lost meanwhile (wgpu 30). An empty submit makes wgpu run its callbacks just as well, and raises
/// its errors into the error scope.
#[cfg(not(target_arch = "wasm32"))]
fn wait_for<T>(
    gpu: &Gpu,
    mut receiver: oneshot::Receiver<T>,
    timeout: std::time::Duration,
) -> Result<Option<T>, SnapshotError> {
    use std::time::{Duration, Instant};
    const LONGEST_PAUSE: Duration = Duration::from_millis(1);

    let start = Instant::now();
    let mut pause = Duration::from_micros(10);
    loop {
        match receiver.try_recv() {
            Ok(Some(result)) => return Ok(Some(result)),
            Ok(None) => {}
            Err(_) => return Ok(None),
        }
        if gpu.is_lost() {
            return Ok(None);
        }
        if start.elapsed() >= timeout {
            return Err(SnapshotError::Timeout);
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
        gpu.catch(|| gpu.queue.submit([]))?;
    }
}

/// Blocks until everything that was submitted is done, for at most `timeout`.
#[cfg(all(feature = "checkpoint", not(target_arch = "wasm32")))]
pub fn wait_until_done(gpu: &Gpu, timeout: std::time::Duration) -> Result<(), SnapshotError> {
    let (sender, receiver) = oneshot::channel();
    gpu.queue.on_submitted_work_done(move || {
        // Sending fails only if nobody waits any more.
        let _ = sender.send(());
    });
    Ok(wait_for(gpu, receiver, timeout)?.ok_or(DeviceError::Lost)?)
}
