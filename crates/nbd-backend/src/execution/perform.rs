//! The ways to execute a command.

use std::io;

use nbd_proto::{Command, NbdError};

use super::unoffered::{is_unoffered, substitute};
use crate::backend::durability::{self, Durability};
use crate::backend::{Backend, Completion, Task, ZeroOptions};

/// Submits a task to a backend that executes tasks itself, or returns it for a worker.
pub(crate) fn start(backend: &dyn Backend, task: Box<dyn Task>) -> Option<Box<dyn Task>> {
    if let Err(error) = durability::check(task.durability(), task.command()) {
        task.finish(Completion::Error(error));
        return None;
    }
    match backend.as_async() {
        Some(asynchronous) if !is_unoffered(backend, task.command()) => {
            asynchronous.submit_async(task);
            None
        }
        _ => Some(task),
    }
}

/// Executes a task on this thread, however long it takes. `buffer` is for the data of reads.
pub(crate) fn perform(backend: &dyn Backend, task: Box<dyn Task>, buffer: &mut Buffer) {
    if !task.is_wanted() {
        return task.finish(Completion::Error(NbdError::ESHUTDOWN));
    }
    task.begin();
    let command = *task.command();
    match command {
        Command::Read { offset, length } => {
            let data = buffer.take(length as usize);
            match backend.read_at(data, offset) {
                Ok(()) => task.finish(Completion::Data(data)),
                Err(error) => task.finish(Completion::Error(reply_error(&command, &error))),
            }
        }
        Command::BlockStatus { offset, length, one } => {
            match backend.extents(offset, length, one) {
                Ok(extents) => task.finish(Completion::Extents(&extents)),
                Err(error) => task.finish(Completion::Error(reply_error(&command, &error))),
            }
        }
        _ => {
            let done = execute(backend, task.durability(), &command, task.payload());
            task.finish(done.map_or_else(Completion::Error, |()| Completion::Done));
        }
    }
}

/// Executes any command that returns no data. `payload` is a write's.
pub(crate) fn execute(
    backend: &dyn Backend,
    durability: &dyn Durability,
    command: &Command,
    payload: &[u8],
) -> Result<(), NbdError> {
    durability::check(durability, command)?;
    let result = match *command {
        Command::Read { .. } | Command::BlockStatus { .. } | Command::Disconnect => Ok(()),
        Command::Write { offset, fua, .. } => backend.write_at(payload, offset, fua),
        Command::Flush => backend.flush(),
        _ if is_unoffered(backend, command) => substitute(backend, command),
        Command::Trim { offset, length, fua } => backend.trim(offset, length, fua),
        Command::Cache { offset, length } => backend.cache(offset, length),
        Command::WriteZeroes { offset, length, fua, no_hole, fast_only } => {
            backend.write_zeroes(offset, length, ZeroOptions { fua, no_hole, fast_only })
        }
    };
    result.map_err(|error| {
        let error = reply_error(command, &error);
        durability::remember(durability, command, error);
        error
    })
}

/// The NBD error that the client gets for an error of the backend, which is logged.
pub fn reply_error(command: &Command, error: &io::Error) -> NbdError {
    let nbd = match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => NbdError::from_errno(errno),
        (None, io::ErrorKind::Unsupported) => NbdError::ENOTSUP,
        (None, _) => NbdError::EIO,
    };
    match (nbd, command) {
        // The specification reserves ENOTSUP for this answer, which is no failure.
        (NbdError::ENOTSUP, Command::WriteZeroes { fast_only: true, .. }) => return nbd,
        _ => tracing::warn!("{command} failed: {error}"),
    }
    if nbd == NbdError::ENOTSUP { NbdError::EINVAL } else { nbd }
}

/// Alignment of buffers for direct I/O, in bytes.
const BUFFER_ALIGNMENT: usize = 4096;
/// A worker frees a buffer that is larger than this, in bytes, after the task.
const MAX_KEPT_BUFFER: usize = 256 << 10;

/// A worker's buffer for data, aligned for direct I/O.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    fn take(&mut self, length: usize) -> &mut [u8] {
        if self.0.len() < length + BUFFER_ALIGNMENT {
            self.0.resize(length + BUFFER_ALIGNMENT, 0);
        }
        let start = self.0.as_ptr().align_offset(BUFFER_ALIGNMENT);
        &mut self.0[start..start + length]
    }

    /// Called between tasks.
    pub(crate) fn shrink(&mut self) {
        if self.0.len() > MAX_KEPT_BUFFER {
            self.0 = Vec::new();
        }
    }
}
