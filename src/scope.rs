//! Errors of wgpu as values.

/// Runs `make` and returns the error that wgpu raised in it, if any; without this, wgpu hands errors to the device's handler,
/// which panics by default and belongs to the caller.
///
/// In a browser errors arrive later than this could return, so there they go to the device's handler.
pub fn catch<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
    if cfg!(target_arch = "wasm32") {
        let _ = device;
        return Ok(make());
    }
    let filters =
        [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
    let scopes = filters.map(|filter| device.push_error_scope(filter));
    let made = make();
    let mut first = None;
    // Scopes are a stack: the last one pushed is popped first.
    for scope in scopes.into_iter().rev() {
        let error = wait(scope.pop());
        first = first.or(error);
    }
    first.map_or(Ok(made), Err)
}

#[cfg(not(target_arch = "wasm32"))]
pub use pollster::block_on as wait;

#[cfg(target_arch = "wasm32")]
fn wait<T>(_: impl Future<Output = Option<T>>) -> Option<T> {
    None
}
