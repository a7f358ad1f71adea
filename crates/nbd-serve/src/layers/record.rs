//! Notes every change of an export in the write log, and what is durable when.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_backend::Command;

use super::layered::CommandHook;
use super::write_log::{EntryKind, Log};

/// The hook of `record:`.
pub(crate) struct Recorder(Mutex<Log>);

impl Recorder {
    pub(crate) fn new(log: Log) -> Self {
        Self(Mutex::new(log))
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry is made after its command was carried out and before it is answered. So what has been
/// answered is in the log; and what is in the log may be on the disk.
impl CommandHook for Recorder {
    fn run(
        &self,
        command: &Command,
        payload: &[u8],
        inner: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let (kind, fua) = match *command {
            Command::Write { fua, .. } => (EntryKind::Write, fua),
            Command::WriteZeroes { fua, .. } => (EntryKind::Zero, fua),
            // It may read as anything afterwards, so as zeroes, too.
            Command::Trim { fua, .. } => (EntryKind::Zero, fua),
            Command::Flush => {
                // It covers what was answered before it, and nothing that is answered meanwhile.
                let covers = self.log().count();
                inner()?;
                return self.log().flush(covers);
            }
            _ => return inner(),
        };
        let (offset, length) = command.range();
        inner()?;
        self.log().change(kind, offset, length, fua, payload)
    }
}
