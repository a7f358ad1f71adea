//! A request under way, and the end of it.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use nbd_backend::{Completion, Task, remember, reply_error};
use nbd_proto::Command;

use crate::shared::Shared;
use crate::sys::errno::Errno;
use crate::sys::operation::Operation;

/// What has come of a request.
pub(crate) type Finished = (Box<RunningTask>, Result<usize, Errno>);

/// A task that librbd works on.
pub(crate) struct RunningTask {
    pub(crate) task: Box<dyn Task>,
    pub(crate) buffer: Vec<u8>,
    pub(crate) finished: Sender<Finished>,
}

// SAFETY: a task returns the same payload until it is finished, and the buffer is not touched: both are
// left alone until `done`.
unsafe impl Operation for RunningTask {
    fn data(&self) -> &[u8] {
        self.task.payload()
    }

    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Leaves the answer to another thread: it may have to wait for the client.
    fn done(self: Box<Self>, result: Result<usize, Errno>) {
        let finished = self.finished.clone();
        // Without that thread this process is about to end.
        let _ = finished.send((self, result));
    }
}

/// Answers requests as they are done, until the backend is dropped.
pub(crate) fn answer(shared: &Arc<Shared>, finished: &Receiver<Finished>) {
    for (running, result) in finished {
        let RunningTask { task, buffer, .. } = *running;
        let result = match result {
            Ok(count) if count < buffer.len() => Err(io::Error::from_raw_os_error(libc::EIO)),
            Ok(_) => Ok(()),
            Err(error) => Err(shared.examine(error)),
        };
        match result {
            Ok(()) if matches!(task.command(), Command::Read { .. }) => {
                task.finish(Completion::Data(&buffer));
            }
            Ok(()) => task.finish(Completion::Done),
            Err(error) => fail(task, &error),
        }
        shared.put_buffer(buffer);
    }
}

/// Answers with an error.
pub(crate) fn fail(task: Box<dyn Task>, error: &io::Error) {
    let command = *task.command();
    let error = reply_error(&command, error);
    remember(task.durability(), &command, error);
    task.finish(Completion::Error(error));
}

/// A request that a caller waits for.
pub(crate) struct WaitingRequest {
    pub(crate) data: Vec<u8>,
    pub(crate) buffer: Vec<u8>,
    pub(crate) done: Sender<(Vec<u8>, Result<usize, Errno>)>,
}

// SAFETY: both are left alone until `done`.
unsafe impl Operation for WaitingRequest {
    fn data(&self) -> &[u8] {
        &self.data
    }

    fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn done(self: Box<Self>, result: Result<usize, Errno>) {
        // An error cannot be: its caller waits until this.
        let _ = self.done.send((self.buffer, result));
    }
}
