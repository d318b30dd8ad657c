//! Errors that arrive after the call that raised them, as all of wgpu's do in a browser.

use std::task::{Context, Poll};

use super::error_scope::DeviceError;

/// Runs `make`, and returns what it made with the errors that are still to come. Errors that are known at once are the result.
pub fn catch_late<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<(T, LateError), DeviceError> {
    imp::catch_late(device, make)
}

/// Errors that are still to come. There are none outside of browsers.
#[derive(Debug)]
pub struct LateError(imp::Pending);

impl LateError {
    /// Ready when no further error can arrive: with the cause of those that came.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), DeviceError>> {
        self.0.poll(context)
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod imp {
    use std::task::{Context, Poll};

    use super::LateError;
    use crate::device::error_scope::{DeviceError, catch};

    #[derive(Debug)]
    pub struct Pending;

    impl Pending {
        pub fn poll(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), DeviceError>> {
            Poll::Ready(Ok(()))
        }
    }

    pub fn catch_late<T>(
        device: &wgpu::Device,
        make: impl FnOnce() -> T,
    ) -> Result<(T, LateError), DeviceError> {
        Ok((catch(device, make)?, LateError(Pending)))
    }
}

#[cfg(target_arch = "wasm32")]
mod imp {
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};

    use super::LateError;
    use crate::device::error_scope::DeviceError;

    type Scope = Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>;

    /// Popped error scopes whose errors have not arrived, the outermost one first.
    pub struct Pending {
        scopes: Vec<Scope>,
    }

    impl std::fmt::Debug for Pending {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Pending").field("scopes", &self.scopes.len()).finish_non_exhaustive()
        }
    }

    impl Pending {
        pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), DeviceError>> {
            // Causes come first: what was not made for want of memory is invalid wherever it is used.
            while let Some(scope) = self.scopes.first_mut() {
                let error = ready!(scope.as_mut().poll(context));
                drop(self.scopes.remove(0));
                if let Some(error) = error {
                    self.scopes.clear();
                    return Poll::Ready(Err(DeviceError::Refused(error)));
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    pub fn catch_late<T>(
        device: &wgpu::Device,
        make: impl FnOnce() -> T,
    ) -> Result<(T, LateError), DeviceError> {
        // No scope for internal errors: wgpu 30 panics when it meets one in a browser (`Error::from_js`).
        let outer = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let inner = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = make();
        // Popped at once, in order, so that they hold the errors of `make` alone.
        let inner: Scope = Box::pin(inner.pop());
        let outer: Scope = Box::pin(outer.pop());
        Ok((made, LateError(Pending { scopes: vec![outer, inner] })))
    }
}
