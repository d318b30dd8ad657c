//! wgpu's errors as values.

/// The device refused an operation.
#[derive(Debug)]
pub enum DeviceError {
    /// wgpu raised an error.
    Refused(wgpu::Error),
    /// The device is lost.
    Lost,
}

/// Runs `make` and returns the error that wgpu raised in it, if any. Without an error scope, wgpu hands errors to the device's
/// error handler, which panics by default and belongs to the caller.
///
/// In a browser, errors arrive after this function has returned. There they go to the device's error handler; where a caller can wait
/// for them, [`catch_late`](super::late_error::catch_late) gives them.
pub fn catch<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T, DeviceError> {
    // An error on a lost device does not say that the device is lost.
    raised(device, make)
        .map_err(|error| if is_lost(device) { DeviceError::Lost } else { DeviceError::Refused(error) })
}

fn raised<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
    if cfg!(target_arch = "wasm32") {
        let _ = device;
        return Ok(make());
    }
    // Causes come first: what was not made for want of memory is invalid wherever it is used.
    let filters =
        [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
    let scopes = filters.map(|filter| device.push_error_scope(filter));
    // wgpu 30 panics when it runs out of memory for its own command buffers (`PendingWrites::activate`). `make` leaves nothing half
    // done: everything that it was building is dropped.
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make));
    let mut cause = None;
    // Error scopes form a stack.
    for scope in scopes.into_iter().rev() {
        cause = wait(scope.pop()).or(cause);
    }
    match (cause, made) {
        (Some(error), _) => Err(error),
        (None, Ok(made)) => Ok(made),
        (None, Err(panic)) => Err(wgpu::Error::OutOfMemory { source: Panicked::new(panic.as_ref()).into() }),
    }
}

/// The message of a panic in wgpu.
#[derive(Debug, thiserror::Error)]
#[error("wgpu panicked: {0}")]
struct Panicked(String);

impl Panicked {
    fn new(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Self(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default().to_owned())
    }
}

/// Whether the device is lost. A lost device raises no errors ("lose the device" in the WebGPU specification), so this provokes an
/// error and checks that it is raised.
///
/// Always false in a browser, where a lost device shows in read-backs.
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

/// Whether a queue belongs to a device. The error of a submit goes to the error scopes of the queue's device, so this submits commands
/// that use a destroyed buffer and checks that this device raises the error. If it does not, the other device's error handler got it;
/// the default handler panics, which is caught here after the panic hook has run.
///
/// Always true in a browser.
pub fn is_queue_of(device: &wgpu::Device, queue: &wgpu::Queue) -> Result<bool, DeviceError> {
    if cfg!(target_arch = "wasm32") {
        return Ok(true);
    }
    const LABEL: Option<&str> = Some("adamod.is_queue_of");
    let commands = catch(device, || {
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: LABEL,
            size: 4,
            usage: wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: LABEL });
        encoder.clear_buffer(&buffer, 0, None);
        let commands = encoder.finish();
        buffer.destroy();
        commands
    })?;
    match raised(device, || queue.submit([commands])) {
        Err(wgpu::Error::Validation { .. }) => Ok(true),
        _ if is_lost(device) => Err(DeviceError::Lost),
        Err(error) if !is_of_default_handler(&error) => Err(DeviceError::Refused(error)),
        _ => Ok(false),
    }
}

/// Whether an error is a panic of wgpu's default error handler.
fn is_of_default_handler(error: &wgpu::Error) -> bool {
    let source = std::error::Error::source(error);
    let panic = source.and_then(|source| source.downcast_ref::<Panicked>());
    panic.is_some_and(|Panicked(text)| text.starts_with("wgpu error: "))
}

/// Submits commands and checks that the device accepted them.
pub fn submit(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    commands: wgpu::CommandBuffer,
) -> Result<wgpu::SubmissionIndex, DeviceError> {
    let submission = catch(device, || queue.submit([commands]))?;
    if is_lost(device) { Err(DeviceError::Lost) } else { Ok(submission) }
}

#[cfg(not(target_arch = "wasm32"))]
pub use pollster::block_on as wait;

#[cfg(target_arch = "wasm32")]
fn wait<T>(_: impl Future<Output = Option<T>>) -> Option<T> {
    None
}
