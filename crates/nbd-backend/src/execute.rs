//! Carrying out a checked command.

use std::io;

use nbd_ledger::Ledger;
use nbd_proto::{Command, NbdError};

use crate::backend::{Backend, ZeroOptions};

/// Executes any command but a read, whose data needs a place. `payload` is a write's.
pub(crate) fn execute(
    backend: &dyn Backend,
    ledger: &Ledger,
    command: &Command,
    payload: &[u8],
) -> Result<(), NbdError> {
    if must_be_durable(command) {
        refuse_after_failed_flush(ledger)?;
    }
    let result = match *command {
        Command::Read { .. } | Command::Disconnect => Ok(()),
        Command::Write { offset, fua, .. } => backend.write_at(payload, offset, fua),
        Command::Flush => backend.flush(),
        Command::Trim { offset, length, fua } => backend.trim(offset, length, fua),
        Command::Cache { offset, length } => backend.cache(offset, length),
        Command::WriteZeroes { offset, length, fua, no_hole, fast_only } => {
            backend.write_zeroes(offset, length, ZeroOptions { fua, no_hole, fast_only })
        }
    };
    result.map_err(|error| {
        if must_be_durable(command) && is_lost_data(command, &error) {
            remember_failed_flush(ledger, &error);
        }
        to_nbd(command, &error)
    })
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

/// A full disk fails one write and says so; a failed flush means that data written long ago, and
/// answered, is gone from the page cache without having reached the disk.
fn is_lost_data(command: &Command, error: &io::Error) -> bool {
    matches!(command, Command::Flush) || error.raw_os_error() == Some(libc::EIO)
}

fn refuse_after_failed_flush(ledger: &Ledger) -> Result<(), NbdError> {
    match ledger.flush_error() {
        None => Ok(()),
        Some(errno) => Err(NbdError::from_errno(errno)),
    }
}

fn remember_failed_flush(ledger: &Ledger, error: &io::Error) {
    if ledger.flush_error().is_none() {
        eprintln!(
            "nbd-backend: a flush failed ({error}): data may be lost, so this and every later \
             flush is answered with an error until the device is detached and attached anew"
        );
    }
    ledger.set_flush_error(error.raw_os_error().unwrap_or(libc::EIO));
}

/// What the peer is told about an error of the backend's.
pub(crate) fn to_nbd(command: &Command, error: &io::Error) -> NbdError {
    let nbd = match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => NbdError::from_errno(errno),
        (None, io::ErrorKind::Unsupported) => NbdError::ENOTSUP,
        (None, _) => NbdError::EIO,
    };
    match (nbd, command) {
        // The specification keeps ENOTSUP for this question, which is no failure.
        (NbdError::ENOTSUP, Command::WriteZeroes { fast_only: true, .. }) => return nbd,
        _ => eprintln!("nbd-backend: {command:?} failed: {error}"),
    }
    if nbd == NbdError::ENOTSUP { NbdError::EINVAL } else { nbd }
}
