//! A panic ends the process, so that a successor can take over.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Aborts the process if this thread panics. A request of a thread that is gone would never be
/// answered; a successor of the process executes it again.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Locks a mutex. Poisoning is ignored, because a panic ends the process: see [`AbortOnPanic`].
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
