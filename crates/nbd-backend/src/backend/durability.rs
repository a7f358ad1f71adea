//! A failed flush stays failed: every later flush fails, too.
//!
//! A full disk fails one write, and the client knows which. A failed flush means that data of
//! writes that were answered long ago is gone from the page cache without having reached the disk.
//! The kernel reports that once: the next fsync(2) would succeed as if the data were on disk.

use std::fmt;
use std::sync::atomic::{AtomicI32, Ordering};

use nbd_ledger::Ledger;
use nbd_proto::{Command, NbdError};

/// Where the first failed flush of an export is remembered.
pub trait Durability {
    /// The errno of the first flush that failed, if one did.
    fn failed_flush(&self) -> Option<i32>;

    /// A flush failed with this errno. Only the first one counts.
    fn flush_failed(&self, errno: i32);
}

/// On a lane, the ledger keeps it for all backends of the device.
impl Durability for Ledger {
    fn failed_flush(&self) -> Option<i32> {
        self.flush_error()
    }

    fn flush_failed(&self, errno: i32) {
        self.set_flush_error(errno);
    }
}

/// Remembers a failed flush until this process ends.
#[derive(Default)]
pub struct ProcessDurability(AtomicI32);

impl Durability for ProcessDurability {
    fn failed_flush(&self) -> Option<i32> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            errno => Some(errno),
        }
    }

    fn flush_failed(&self, errno: i32) {
        // Fails if an earlier flush failed: the first error stays.
        let _ = self.0.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl fmt::Debug for ProcessDurability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProcessDurability").field(&self.failed_flush()).finish()
    }
}

/// Refuses a command that promises durability after a flush has failed.
///
/// The error is that of the first failed flush.
pub(crate) fn check(durability: &dyn Durability, command: &Command) -> Result<(), NbdError> {
    match durability.failed_flush() {
        Some(errno) if must_be_durable(command) => Err(NbdError::from_errno(errno)),
        _ => Ok(()),
    }
}

/// Remembers the failure of a command if it means that data is lost. Backends that finish tasks
/// themselves must call it, too.
pub fn remember(durability: &dyn Durability, command: &Command, error: NbdError) {
    let is_lost_data = matches!(command, Command::Flush) || error == NbdError::EIO;
    if !must_be_durable(command) || !is_lost_data {
        return;
    }
    if durability.failed_flush().is_none() {
        tracing::error!(
            "a flush failed ({error}): data may be lost, so this and every later \
             flush is answered with an error until the export is opened anew"
        );
    }
    durability.flush_failed(error.to_errno());
}

fn must_be_durable(command: &Command) -> bool {
    match command {
        Command::Flush => true,
        Command::Write { fua, .. }
        | Command::Trim { fua, .. }
        | Command::WriteZeroes { fua, .. } => *fua,
        _ => false,
    }
}
