//! Reads as futures.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::device::readback::Snapshot;
use crate::error::{Error, ErrorKind};

/// What was read from the device, once it arrives.
///
/// The copy has been submitted when a method returns a `Readback`; what is submitted later is not in it. It borrows nothing, so training
/// goes on meanwhile. As a future it resolves once the caller polls the device or submits again. [`Readback::wait`] blocks.
///
/// ```
/// # use adamod::{AdaMod, Optimizer, Options, Parameter, View, Views};
/// # mod doc { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/doc.rs")); }
/// # let (device, queue) = doc::gpu();
/// # let buffer = doc::buffer(&device, 8192);
/// # let mut optimizer = Optimizer::new(&device, &queue, Options::new())?;
/// # let group = optimizer.add_group(AdaMod::new())?;
/// # let views = Views::new(View::new(&buffer, 0), View::new(&buffer, 4096));
/// # let weight = optimizer.add_parameter(group, Parameter::new("weight", 1024).with_views(views))?;
/// let values: Vec<f32> = optimizer.read_parameter(weight).wait()?;
/// assert_eq!(values.len(), 1024);
/// # Ok::<(), adamod::Error>(())
/// ```
#[must_use = "a read-back does nothing unless it is awaited or waited for"]
pub struct Readback<T> {
    snapshot: Option<Result<Snapshot, Error>>,
    decode: Option<Decode<T>>,
    label: Option<String>,
    timeout: Duration,
}

/// Makes a value of the copied bytes of all sources.
type Decode<T> = Box<dyn FnOnce(Vec<Vec<u8>>) -> T + Send + Sync>;

impl<T> Readback<T> {
    /// A read-back of these copies, whose errors name `label`.
    pub(crate) fn new(
        snapshot: Result<Snapshot, Error>,
        label: Option<&str>,
        timeout: Duration,
        decode: impl FnOnce(Vec<Vec<u8>>) -> T + Send + Sync + 'static,
    ) -> Self {
        Self {
            snapshot: Some(snapshot),
            decode: Some(Box::new(decode)),
            label: label.map(str::to_owned),
            timeout,
        }
    }

    /// A read-back that fails.
    pub(crate) fn failed(error: Error) -> Self {
        Self { snapshot: Some(Err(error)), decode: None, label: None, timeout: Duration::ZERO }
    }

    fn error(&self, error: Error) -> Error {
        match &self.label {
            Some(label) if error.label().is_none() => error.about(label),
            _ => error,
        }
    }

    /// Blocks until the value arrives, for at most [`Options::device_timeout`](crate::Options::device_timeout).
    ///
    /// # Errors
    /// If the read was refused, or the device fails or does not finish in time.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(mut self) -> Result<T, Error> {
        let timeout = self.timeout;
        let contents = match self.snapshot.take() {
            Some(Ok(snapshot)) => {
                snapshot.wait(timeout).map_err(|error| ErrorKind::of_snapshot(error, timeout).into())
            }
            Some(Err(error)) => Err(error),
            None => Err(ErrorKind::Lost.into()),
        };
        match (contents, self.decode.take()) {
            (Ok(contents), Some(decode)) => Ok(decode(contents)),
            (Err(error), _) => Err(self.error(error)),
            (Ok(_), None) => Err(ErrorKind::Lost.into()),
        }
    }
}

impl<T> Future for Readback<T> {
    type Output = Result<T, Error>;

    /// # Panics
    /// If it is polled again after it has resolved.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let timeout = self.timeout;
        let contents = match &mut self.snapshot {
            Some(Ok(snapshot)) => match snapshot.poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(contents) => {
                    contents.map_err(|error| ErrorKind::of_snapshot(error, timeout).into())
                }
            },
            Some(Err(_)) | None => match self.snapshot.take() {
                Some(Err(error)) => Err(error),
                _ => panic!("the read-back was polled after it had resolved"),
            },
        };
        self.snapshot = None;
        Poll::Ready(match (contents, self.decode.take()) {
            (Ok(contents), Some(decode)) => Ok(decode(contents)),
            (Ok(_), None) => Err(ErrorKind::Lost.into()),
            (Err(error), _) => Err(self.error(error)),
        })
    }
}

impl<T> Unpin for Readback<T> {}

impl<T> std::fmt::Debug for Readback<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readback").field("snapshot", &self.snapshot).finish_non_exhaustive()
    }
}
