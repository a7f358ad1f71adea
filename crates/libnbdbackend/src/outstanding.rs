//! How many requests of a device the program has: the device ends after the last one.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The count of one device.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    count: Mutex<usize>,
    none: Condvar,
}

impl Outstanding {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self) {
        *self.lock() += 1;
    }

    pub(crate) fn remove(&self) {
        let mut count = self.lock();
        *count -= 1;
        if *count == 0 {
            self.none.notify_all();
        }
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        *self.lock()
    }

    /// Waits until the program has completed all, however long it takes.
    pub(crate) fn wait_for_none(&self) {
        let mut count = self.lock();
        while *count > 0 {
            count = self.none.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
