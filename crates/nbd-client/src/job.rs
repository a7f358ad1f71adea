//! A task that was taken over, and the requests that it is split into.
//!
//! A job is shared (`Arc`) by the requests in flight, by messages that are not entirely sent, and by the
//! pool while there is no connection. When the last share is dropped, the task is finished. So a task's
//! data is not given back while it is still being sent, whatever the server has answered.

pub(crate) mod buffer_pool;

use std::sync::{Arc, Mutex};

use nbd_backend::{Completion, Extent, Task, remember};
use nbd_proto::{Command, NbdError};

use crate::connect::negotiated::Negotiated;
use crate::job::buffer_pool::BufferPool;
use crate::reply::Failure;
use crate::sync::lock;

/// The most requests that one job has in flight.
const MAX_REQUESTS_PER_JOB: u32 = 16;

/// A task that was taken over.
pub(crate) struct Job {
    /// Jobs are replayed in this order.
    pub(crate) id: u64,
    pub(crate) command: Command,
    task: Option<Box<dyn Task>>,
    state: Mutex<State>,
    buffers: Arc<BufferPool>,
}

#[derive(Default)]
struct State {
    /// Requests exist for the range up to here, counted from its start; nothing before the first.
    issued: Option<u64>,
    /// Requests that were not answered.
    outstanding: u32,
    error: Option<NbdError>,
    data: Vec<u8>,
    extents: Vec<Extent>,
}

impl State {
    fn is_finished(&self, whole: u64) -> bool {
        self.outstanding == 0
            && (self.error.is_some() || self.issued.is_some_and(|issued| issued >= whole))
    }
}

impl Job {
    pub(crate) fn new(id: u64, task: Box<dyn Task>, buffers: &Arc<BufferPool>) -> Arc<Self> {
        let command = *task.command();
        let (task, buffers) = (Some(task), Arc::clone(buffers));
        Arc::new(Self { id, command, task, state: Mutex::default(), buffers })
    }

    /// A write's data.
    pub(crate) fn payload(&self) -> &[u8] {
        self.task.as_deref().map_or(&[], Task::payload)
    }

    /// The next request to send, and where in the job's range it begins.
    pub(crate) fn issue(&self, negotiated: &Negotiated) -> Option<(Command, u64)> {
        let mut state = lock(&self.state);
        let (_, whole) = self.command.range();
        let at = state.issued.unwrap_or(0);
        let is_first = state.issued.is_none();
        if is_first && self.needs_no_server(negotiated) {
            state.issued = Some(whole);
            state.extents = vec![Extent { length: whole, hole: false, zero: false }];
            return None;
        }
        if state.error.is_some()
            || state.outstanding >= MAX_REQUESTS_PER_JOB
            || (at >= whole && !is_first)
        {
            return None;
        }
        let length = (whole - at).min(negotiated.max_length(&self.command));
        state.outstanding += 1;
        // A shorter description is a good answer, so a block status is never continued.
        let is_status = matches!(self.command, Command::BlockStatus { .. });
        state.issued = Some(if is_status { whole } else { at + length });
        Some((part_of(&self.command, at, length), at))
    }

    /// A request was answered. Returns whether there may be more to [issue](Self::issue).
    pub(crate) fn answered(&self, result: Result<Vec<Extent>, Failure>) -> bool {
        let mut state = lock(&self.state);
        state.outstanding -= 1;
        match result {
            Ok(extents) => state.extents = extents,
            Err(failure) => {
                let error = self.reportable(failure.error);
                if let Some(task) = &self.task {
                    remember(task.durability(), &self.command, error);
                }
                state.error.get_or_insert(error);
            }
        }
        let (_, whole) = self.command.range();
        state.error.is_none() && state.issued.is_some_and(|issued| issued < whole)
    }

    /// The only request was answered with all its data: finishes the job without copying them.
    pub(crate) fn answered_with(self: Arc<Self>, data: &[u8]) {
        match Arc::try_unwrap(self) {
            Ok(mut job) => {
                if let Some(task) = job.task.take() {
                    task.finish(Completion::Data(data));
                }
            }
            // A read is shared by its request only, so this does not happen; copying is right anyway.
            Err(job) => {
                let mut buffer = job.take_buffer();
                buffer[..data.len()].copy_from_slice(data);
                job.put_buffer(buffer);
                job.answered(Ok(Vec::new()));
            }
        }
    }

    /// The place for the data of a read, to be [put back](Self::put_buffer) when there is more in
    /// it. Until then the job must not be finished.
    pub(crate) fn take_buffer(&self) -> Vec<u8> {
        let mut state = lock(&self.state);
        let data = std::mem::take(&mut state.data);
        if data.is_empty() { self.buffers.take(self.command.range().1 as usize) } else { data }
    }

    pub(crate) fn put_buffer(&self, data: Vec<u8>) {
        lock(&self.state).data = data;
    }

    /// Forgets all answers, so that the job can be carried out over another connection.
    pub(crate) fn reset(&self) {
        let mut state = lock(&self.state);
        let data = std::mem::take(&mut state.data);
        *state = State { data, ..State::default() };
    }

    /// Gives up on a job that has no request under way.
    pub(crate) fn fail_with_eio(&self) {
        lock(&self.state).error = Some(NbdError::EIO);
    }

    /// Whether the server knows nothing about what is asked, and need not be asked.
    fn needs_no_server(&self, negotiated: &Negotiated) -> bool {
        match self.command {
            Command::BlockStatus { .. } => negotiated.allocation.is_none(),
            Command::Flush => !negotiated.has_flush,
            Command::Cache { .. } => !negotiated.has_cache,
            _ => false,
        }
    }

    /// What the client may be told: numbers that the protocol knows, and ENOTSUP only to the
    /// commands that ask for it (fast zeroing).
    fn reportable(&self, error: NbdError) -> NbdError {
        let asked = matches!(self.command, Command::WriteZeroes { fast_only: true, .. });
        match NbdError::from_errno(error.to_errno()) {
            NbdError::ENOTSUP if !asked => NbdError::EINVAL,
            error => error,
        }
    }
}

impl Drop for Job {
    /// Answers the client. A job that is not finished goes to a successor of this process.
    fn drop(&mut self) {
        let state = std::mem::take(self.state.get_mut().unwrap_or_else(|state| state.into_inner()));
        let Some(task) = self.task.take().filter(|_| state.is_finished(self.command.range().1))
        else {
            return;
        };
        match (state.error, self.command) {
            (Some(error), _) => task.finish(Completion::Error(error)),
            (None, Command::Read { .. }) => task.finish(Completion::Data(&state.data)),
            (None, Command::BlockStatus { .. }) => {
                task.finish(Completion::Extents(&state.extents));
            }
            (None, _) => task.finish(Completion::Done),
        }
        self.buffers.put(state.data);
    }
}

/// The command for `length` bytes of another's range, from `at` on.
fn part_of(command: &Command, at: u64, length: u64) -> Command {
    let short = length as u32;
    match *command {
        Command::Read { offset, .. } => Command::Read { offset: offset + at, length: short },
        Command::Write { offset, fua, .. } => {
            Command::Write { offset: offset + at, length: short, fua }
        }
        Command::Trim { offset, fua, .. } => Command::Trim { offset: offset + at, length, fua },
        Command::Cache { offset, .. } => Command::Cache { offset: offset + at, length },
        Command::WriteZeroes { offset, fua, no_hole, fast_only, .. } => {
            Command::WriteZeroes { offset: offset + at, length, fua, no_hole, fast_only }
        }
        Command::BlockStatus { offset, one, .. } => {
            Command::BlockStatus { offset: offset + at, length, one }
        }
        Command::Flush | Command::Disconnect => *command,
    }
}
