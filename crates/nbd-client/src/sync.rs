//! Locking.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex that no thread can leave poisoned and live: see
/// [`AbortOnPanic`](nbd_backend::AbortOnPanic).
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
