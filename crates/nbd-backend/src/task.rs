//! A command on its way: who waits for it, what came of it, and how it is carried out.

use std::io;

use nbd_proto::{Command, NbdError};

use crate::backend::{Backend, Extent, ZeroOptions};
use crate::durability::{self, Durability};

/// A command that somebody waits for.
///
/// Whoever has the task must [`finish`](Self::finish) it, sooner or later and in any order: the
/// client waits for as long as it takes. A task that is dropped is a request that only a successor
/// of this process answers.
pub trait Task: Send + Sync + 'static {
    /// What is to be done.
    fn command(&self) -> &Command;

    /// A write's data; empty for all else.
    fn payload(&self) -> &[u8];

    /// Notes that execution begins now.
    fn begin(&self);

    /// Whether anybody still waits for the answer. Asked before a worker begins; a task that is not
    /// wanted is finished without being carried out. Tasks that change something must always say yes.
    fn is_wanted(&self) -> bool {
        true
    }

    /// Where a failed flush is remembered.
    fn durability(&self) -> &dyn Durability;

    /// Answers the client.
    fn finish(self: Box<Self>, completion: Completion<'_>);
}

/// What came of a command.
#[derive(Clone, Copy, Debug)]
pub enum Completion<'a> {
    /// Done; there is no data to return.
    Done,
    /// A read's data, all of it.
    Data(&'a [u8]),
    /// A block status: at least one extent.
    Extents(&'a [Extent]),
    /// It failed.
    Error(NbdError),
}

/// Starts a task: hands it to a backend that works by itself, or gives it back for a worker.
pub(crate) fn start(backend: &dyn Backend, task: Box<dyn Task>) -> Option<Box<dyn Task>> {
    if let Err(error) = durability::check(task.durability(), task.command()) {
        task.finish(Completion::Error(error));
        return None;
    }
    backend.start(task)
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
                Err(error) => task.finish(Completion::Error(to_nbd(&command, &error))),
            }
        }
        Command::BlockStatus { offset, length, one } => {
            match backend.extents(offset, length, one) {
                Ok(extents) => task.finish(Completion::Extents(&extents)),
                Err(error) => task.finish(Completion::Error(to_nbd(&command, &error))),
            }
        }
        _ => {
            let done = execute(backend, task.durability(), &command, task.payload());
            task.finish(done.map_or_else(Completion::Error, |()| Completion::Done));
        }
    }
}

/// Executes a command here and now if that does not mean to wait for anything; `None` if it does.
///
/// `room` is where the data of a read belongs, and empty for all else. `begin` is called before
/// execution begins.
pub fn inline(
    backend: &dyn Backend,
    durability: &dyn Durability,
    command: &Command,
    payload: &[u8],
    room: &mut [u8],
    begin: impl FnOnce(),
) -> Option<Result<(), NbdError>> {
    let quick = backend.is_quick(command);
    match *command {
        Command::Read { offset, .. } => {
            begin();
            let read = if quick {
                backend.read_at(room, offset).map(|()| true)
            } else {
                backend.try_read_at(room, offset)
            };
            match read {
                Ok(true) => Some(Ok(())),
                Ok(false) => None,
                Err(error) => Some(Err(to_nbd(command, &error))),
            }
        }
        Command::BlockStatus { .. } => None,
        _ if quick => {
            begin();
            Some(execute(backend, durability, command, payload))
        }
        _ => None,
    }
}

/// Executes a command here, however long it takes, if the backend agrees; else `None`.
///
/// The arguments are those of [`inline`], which has tried before.
pub fn patiently(
    backend: &dyn Backend,
    durability: &dyn Durability,
    command: &Command,
    payload: &[u8],
    room: &mut [u8],
    begin: impl FnOnce(),
) -> Option<Result<(), NbdError>> {
    if matches!(command, Command::BlockStatus { .. }) || !backend.is_local(command) {
        return None;
    }
    begin();
    Some(match *command {
        Command::Read { offset, .. } => {
            backend.read_at(room, offset).map_err(|error| to_nbd(command, &error))
        }
        _ => execute(backend, durability, command, payload),
    })
}

/// Executes any command that returns no data. `payload` is a write's.
fn execute(
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
        Command::Trim { offset, length, fua } => backend.trim(offset, length, fua),
        Command::Cache { offset, length } => backend.cache(offset, length),
        Command::WriteZeroes { offset, length, fua, no_hole, fast_only } => {
            backend.write_zeroes(offset, length, ZeroOptions { fua, no_hole, fast_only })
        }
    };
    result.map_err(|error| {
        let error = to_nbd(command, &error);
        durability::remember(durability, command, error);
        error
    })
}

/// What the peer is told about an error of the backend's.
fn to_nbd(command: &Command, error: &io::Error) -> NbdError {
    let nbd = match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => NbdError::from_errno(errno),
        (None, io::ErrorKind::Unsupported) => NbdError::ENOTSUP,
        (None, _) => NbdError::EIO,
    };
    match (nbd, command) {
        // The specification keeps ENOTSUP for this question, which is no failure.
        (NbdError::ENOTSUP, Command::WriteZeroes { fast_only: true, .. }) => return nbd,
        _ => tracing::warn!("{command:?} failed: {error}"),
    }
    if nbd == NbdError::ENOTSUP { NbdError::EINVAL } else { nbd }
}

/// Alignment that direct I/O asks of buffers.
const ALIGNMENT: usize = 4096;
/// A buffer that has grown beyond this gives its memory back.
const KEEP: usize = 256 << 10;

/// A worker's place for data, at an address that direct I/O accepts.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    fn take(&mut self, length: usize) -> &mut [u8] {
        if self.0.len() < length + ALIGNMENT {
            self.0.resize(length + ALIGNMENT, 0);
        }
        let start = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[start..start + length]
    }

    /// Called between tasks.
    pub(crate) fn shrink(&mut self) {
        if self.0.len() > KEEP {
            self.0 = Vec::new();
        }
    }
}
