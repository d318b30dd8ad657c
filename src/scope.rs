//! Errors of wgpu as values.

/// Why the device did not take something.
#[derive(Debug)]
pub enum Refusal {
    /// wgpu raised an error.
    Device(wgpu::Error),
    /// The device is lost.
    Lost,
}

/// Runs `make` and returns the error that wgpu raised in it, if any; without this, wgpu hands errors to the device's handler,
/// which panics by default and belongs to the caller.
///
/// In a browser errors arrive later than this could return, so there they go to the device's handler.
pub fn catch<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T, Refusal> {
    // What is refused on a lost device says nothing about why.
    raised(device, make).map_err(|error| if is_lost(device) { Refusal::Lost } else { Refusal::Device(error) })
}

fn raised<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
    if cfg!(target_arch = "wasm32") {
        let _ = device;
        return Ok(make());
    }
    let filters =
        [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
    let scopes = filters.map(|filter| device.push_error_scope(filter));
    // wgpu 30 panics where it has no memory for command buffers of its own (`PendingWrites::activate`). Nothing of ours is half
    // done then: whatever `make` had in hand is made anew.
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make));
    let mut first = None;
    // Scopes are a stack: the last one pushed is popped first.
    for scope in scopes.into_iter().rev() {
        let error = wait(scope.pop());
        first = first.or(error);
    }
    match (first, made) {
        (Some(error), _) => Err(error),
        (None, Ok(made)) => Ok(made),
        (None, Err(panic)) => Err(wgpu::Error::OutOfMemory { source: Panicked::new(panic.as_ref()).into() }),
    }
}

/// What wgpu said before it panicked.
#[derive(Debug, thiserror::Error)]
#[error("wgpu panicked: {0}")]
struct Panicked(String);

impl Panicked {
    fn new(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Self(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default().to_owned())
    }
}

/// Whether the device is lost. On a lost device everything seems to succeed, because errors are no longer raised ("lose the
/// device" in WebGPU's specification): so one is provoked.
///
/// In a browser this cannot be known at once; there a lost device shows in read-backs.
pub fn is_lost(device: &wgpu::Device) -> bool {
    let refused = || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("adamod.is_lost"),
            size: 4,
            usage: wgpu::BufferUsages::empty(),
            mapped_at_creation: false,
        })
    };
    !cfg!(target_arch = "wasm32") && raised(device, refused).is_ok()
}

/// Submits commands, and tells whether the device took them.
pub fn submit(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    commands: wgpu::CommandBuffer,
) -> Result<wgpu::SubmissionIndex, Refusal> {
    let submission = catch(device, || queue.submit([commands]))?;
    if is_lost(device) { Err(Refusal::Lost) } else { Ok(submission) }
}

#[cfg(not(target_arch = "wasm32"))]
pub use pollster::block_on as wait;

#[cfg(target_arch = "wasm32")]
fn wait<T>(_: impl Future<Output = Option<T>>) -> Option<T> {
    None
}
