//! Tasks of our own, for callers who wait.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nbd_backend::{Completion, Durability, Extent, Task};
use nbd_proto::{Command, NbdError};

use crate::lock;

/// Most data of one task, in bytes; it has to be a multiple of every block size.
pub(crate) const PIECE: usize = 32 << 20;

/// What came of a task.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) data: Vec<u8>,
    pub(crate) extents: Vec<Extent>,
}

/// Where it is waited for.
pub(crate) struct Waiter(Arc<Mailbox>);

#[derive(Default)]
struct Mailbox {
    answer: Mutex<Option<Result<Answer, NbdError>>>,
    arrived: Condvar,
}

struct WaitedFor {
    command: Command,
    data: Vec<u8>,
    mailbox: Arc<Mailbox>,
}

/// A task and where to wait for it.
pub(crate) fn task(command: Command, data: &[u8]) -> (Box<dyn Task>, Waiter) {
    let mailbox = Arc::<Mailbox>::default();
    let waiter = Waiter(Arc::clone(&mailbox));
    (Box::new(WaitedFor { command, data: data.into(), mailbox }), waiter)
}

impl Waiter {
    pub(crate) fn wait(self) -> io::Result<Answer> {
        let mut answer = lock(&self.0.answer);
        loop {
            match answer.take() {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(NbdError::ENOTSUP)) => return Err(io::ErrorKind::Unsupported.into()),
                Some(Err(error)) => return Err(io::Error::from_raw_os_error(error.to_errno())),
                None => {
                    answer = self.0.arrived.wait(answer).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl Mailbox {
    fn put(&self, answer: Result<Answer, NbdError>) {
        let mut slot = lock(&self.answer);
        if slot.is_none() {
            *slot = Some(answer);
            self.arrived.notify_one();
        }
    }
}

impl Task for WaitedFor {
    fn command(&self) -> &Command {
        &self.command
    }

    fn payload(&self) -> &[u8] {
        &self.data
    }

    fn begin(&self) {}

    fn durability(&self) -> &dyn Durability {
        &Elsewhere
    }

    fn finish(self: Box<Self>, completion: Completion<'_>) {
        self.mailbox.put(match completion {
            Completion::Done => Ok(Answer::default()),
            Completion::Data(data) => Ok(Answer { data: data.into(), extents: Vec::new() }),
            Completion::Extents(extents) => {
                Ok(Answer { data: Vec::new(), extents: extents.into() })
            }
            Completion::Error(error) => Err(error),
        });
    }
}

impl Drop for WaitedFor {
    /// Nobody will answer any more, and somebody waits.
    fn drop(&mut self) {
        self.mailbox.put(Err(NbdError::ESHUTDOWN));
    }
}

/// A failed flush is remembered by those who have called us: they get the error.
struct Elsewhere;

impl Durability for Elsewhere {
    fn failed_flush(&self) -> Option<i32> {
        Some(NbdError::EIO.to_errno())
    }

    fn flush_failed(&self, _errno: i32) {}
}
