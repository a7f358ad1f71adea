//! Tasks for the blocking calls of the backend, whose callers wait for the result.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nbd_backend::{Completion, Durability, Extent, Task};
use nbd_proto::{Command, NbdError};

use crate::sync::lock;

/// The most data of one task, in bytes; a multiple of every block size.
pub(crate) const MAX_TASK_BYTES: usize = 32 << 20;

/// What came of a task.
#[derive(Debug, Default)]
pub(crate) struct TaskResult {
    pub(crate) data: Vec<u8>,
    pub(crate) extents: Vec<Extent>,
}

/// Where it is waited for.
pub(crate) struct Waiter(Arc<ResultSlot>);

#[derive(Default)]
struct ResultSlot {
    answer: Mutex<Option<Result<TaskResult, NbdError>>>,
    arrived: Condvar,
}

struct BlockingTask {
    command: Command,
    data: Vec<u8>,
    slot: Arc<ResultSlot>,
}

/// A task and where to wait for it.
pub(crate) fn task(command: Command, data: &[u8]) -> (Box<dyn Task>, Waiter) {
    let slot = Arc::<ResultSlot>::default();
    let waiter = Waiter(Arc::clone(&slot));
    (Box::new(BlockingTask { command, data: data.into(), slot }), waiter)
}

impl Waiter {
    pub(crate) fn wait(self) -> io::Result<TaskResult> {
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

impl ResultSlot {
    fn put(&self, answer: Result<TaskResult, NbdError>) {
        let mut slot = lock(&self.answer);
        if slot.is_none() {
            *slot = Some(answer);
            self.arrived.notify_one();
        }
    }
}

impl Task for BlockingTask {
    fn command(&self) -> &Command {
        &self.command
    }

    fn payload(&self) -> &[u8] {
        &self.data
    }

    fn begin(&self) {}

    fn durability(&self) -> &dyn Durability {
        &CallersDurability
    }

    fn finish(self: Box<Self>, completion: Completion<'_>) {
        self.slot.put(match completion {
            Completion::Done => Ok(TaskResult::default()),
            Completion::Data(data) => Ok(TaskResult { data: data.into(), extents: Vec::new() }),
            Completion::Extents(extents) => {
                Ok(TaskResult { data: Vec::new(), extents: extents.into() })
            }
            Completion::Error(error) => Err(error),
        });
    }
}

impl Drop for BlockingTask {
    /// A task that is dropped unfinished is left to a successor; its waiting caller gets an error.
    fn drop(&mut self) {
        self.slot.put(Err(NbdError::ESHUTDOWN));
    }
}

/// The caller gets a failed flush as an error and remembers it, so this remembers nothing.
struct CallersDurability;

impl Durability for CallersDurability {
    fn failed_flush(&self) -> Option<i32> {
        Some(NbdError::EIO.to_errno())
    }

    fn flush_failed(&self, _errno: i32) {}
}
