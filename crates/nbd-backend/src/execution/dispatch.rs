//! The decision about each request of a client: execute it on the receiving thread, or queue it.
//!
//! Lanes and network connections differ in how they receive requests and send replies, which a
//! [`ReplySink`] hides. It is a type parameter, so each of them has code of its own for the decision
//! and pays nothing for sharing it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nbd_proto::{Command, NbdError};

use super::inline_predictor::InlinePredictor;
use super::perform::{Buffer, execute, perform, reply_error};
use super::unoffered::is_unoffered;
use super::workers::Workers;
use crate::backend::durability::Durability;
use crate::backend::{Backend, InlineBackend, MappedBackend, Task};

/// A request that was received and not executed.
pub trait ReceivedRequest {
    /// A write's data; empty for other commands.
    fn payload(&self) -> &[u8];

    /// Notes that execution begins now.
    fn begin(&self) {}

    /// Where a failed flush is remembered.
    fn durability(&self) -> &dyn Durability;

    /// The socket that it came from.
    fn socket(&self) -> BorrowedFd<'_>;
}

/// What a [`Dispatcher`] needs of one client: its requests become commands, and their results
/// replies.
pub trait ReplySink {
    /// A request of the client.
    type Request: ReceivedRequest;
    /// Why a request is not executed.
    type Refusal;
    /// Why a request cannot be queued now.
    type Blocked;

    /// The command of a request.
    ///
    /// # Errors
    ///
    /// If the request is not in order.
    fn check(&self, request: &Self::Request) -> Result<Command, Self::Refusal>;

    /// Answers a request that is not executed.
    fn refuse(&mut self, request: Self::Request, refusal: Self::Refusal);

    /// Where the data of a read goes.
    fn room(&mut self, request: &Self::Request, command: &Command) -> Room<'_>;

    /// Stages the reply to a command that was executed in its [`room`](Self::room).
    fn complete(&mut self, request: Self::Request, command: &Command, done: Result<(), NbdError>);

    /// Makes a task of a request that was not executed.
    ///
    /// # Errors
    ///
    /// If it must wait; then nothing has changed.
    fn queue(
        &mut self,
        request: Self::Request,
        command: Command,
    ) -> Result<Box<dyn Task>, Self::Blocked>;
}

/// What the receiving thread may do with a command.
#[derive(Debug)]
pub enum Room<'a> {
    /// Execute it, with this room for the data of a read; empty for other commands.
    Inline(&'a mut [u8]),
    /// Leave it to a worker: it would take too long.
    Queue,
    /// Nothing: the sink has staged the reply.
    Answered,
}

/// Dispatches the requests of one client.
pub struct Dispatcher<'a> {
    workers: &'a Arc<Workers>,
    backend: &'a dyn Backend,
    // The backend's extensions, asked for once: each request would pay for another virtual call.
    inline: Option<&'a dyn InlineBackend>,
    mapped: Option<&'a dyn MappedBackend>,
    predictor: InlinePredictor,
    queued: Vec<Box<dyn Task>>,
    /// For the data of reads that this thread executes as a worker would.
    buffer: Buffer,
}

impl<'a> Dispatcher<'a> {
    /// For a client of the backend that these workers serve.
    #[must_use]
    pub fn new(workers: &'a Arc<Workers>) -> Self {
        let backend = workers.backend();
        let (inline, mapped) = (backend.as_inline(), backend.as_mapped());
        let (predictor, queued) = (InlinePredictor::default(), Vec::new());
        Self { workers, backend, inline, mapped, predictor, queued, buffer: Buffer::default() }
    }

    /// A request has arrived. `is_done` returns whether all before it are answered.
    pub fn request_arrived(&mut self, is_done: impl FnOnce() -> bool) {
        self.predictor.request_arrived(is_done);
    }

    /// Hints that a range is read or written by the next request.
    pub fn prefetch(&self, offset: u64, length: u32) {
        if let Some(mapped) = self.mapped {
            mapped.prefetch(offset, length);
        }
    }

    /// Executes a request if that does not block, or if it may and no other request is likely to
    /// arrive meanwhile; `is_only_request` tells that none is in flight or received. Else queues it,
    /// for [`run_queued`](Self::run_queued) or [`submit_queued`](Self::submit_queued).
    ///
    /// # Errors
    ///
    /// If the sink cannot queue it now.
    pub fn dispatch<S: ReplySink>(
        &mut self,
        sink: &mut S,
        request: S::Request,
        is_only_request: bool,
    ) -> Result<(), S::Blocked> {
        let command = match sink.check(&request) {
            Ok(command) => command,
            Err(refusal) => {
                sink.refuse(request, refusal);
                return Ok(());
            }
        };
        let done = match sink.room(&request, &command) {
            Room::Answered => return Ok(()),
            Room::Inline(room) => self.execute(&request, &command, room, is_only_request),
            Room::Queue => None,
        };
        if let Some(done) = done {
            sink.complete(request, &command, done);
            return Ok(());
        }
        let task = sink.queue(request, command)?;
        if is_only_request && self.may_block_inline(&command) {
            self.predictor.command_submitted();
        }
        self.queued.push(task);
        Ok(())
    }

    /// Executes a command here, if that does not block or may.
    fn execute(
        &mut self,
        request: &impl ReceivedRequest,
        command: &Command,
        room: &mut [u8],
        is_only_request: bool,
    ) -> Option<Result<(), NbdError>> {
        let done = execute_inline(self.backend, self.inline?, request, command, room);
        if done.is_some() || !is_only_request || !self.predictor.allows_inline() {
            return done;
        }
        if !self.may_block_inline(command) {
            return None;
        }
        request.begin();
        let done = match *command {
            Command::Read { offset, .. } => {
                self.backend.read_at(room, offset).map_err(|error| reply_error(command, &error))
            }
            _ => execute(self.backend, request.durability(), command, request.payload()),
        };
        self.predictor.executed_inline(request.socket());
        Some(done)
    }

    /// Whether the receiving thread may execute a command although that may block.
    fn may_block_inline(&self, command: &Command) -> bool {
        !matches!(command, Command::BlockStatus { .. })
            && self.inline.is_some_and(|inline| inline.may_block_inline(command))
            && !is_unoffered(self.backend, command)
    }

    /// Submits what was queued. The sink's lock must be free: a task may be finished at once.
    pub fn submit_queued(&mut self) {
        for task in self.queued.drain(..) {
            self.workers.submit(task);
        }
    }

    /// Submits what was queued, but executes here what is likely to be [quick](Backend::is_quick), last:
    /// if it is not, everything else is under way, and the sink's lock is free for its replies. Returns
    /// whether answers may have been [held back](Task::hold_back).
    pub fn run_queued(&mut self) -> bool {
        let Self { workers, backend, queued, buffer, .. } = self;
        for task in queued.extract_if(.., |task| !backend.is_quick(task.command())) {
            workers.submit(task);
        }
        let has_quick = !queued.is_empty();
        for mut task in queued.drain(..) {
            // One of them may have been slow.
            if backend.is_quick(task.command()) {
                task.hold_back();
                perform(*backend, task, buffer);
                buffer.shrink();
            } else {
                workers.submit(task);
            }
        }
        has_quick
    }
}

/// Executes a command on this thread if that does not block; `None` if it would. `room` is for the
/// data of a read, and empty for other commands.
///
/// # Errors
///
/// The backend's error as the client gets it, or that of an earlier failed flush if the command
/// promises durability.
pub fn execute_inline(
    backend: &dyn Backend,
    inline: &dyn InlineBackend,
    request: &impl ReceivedRequest,
    command: &Command,
    room: &mut [u8],
) -> Option<Result<(), NbdError>> {
    let never_blocks = inline.never_blocks(command);
    match *command {
        Command::Read { offset, .. } => {
            request.begin();
            let read = if never_blocks {
                backend.read_at(room, offset).map(|()| true)
            } else {
                inline.try_read_at(room, offset)
            };
            match read {
                Ok(true) => Some(Ok(())),
                Ok(false) => None,
                Err(error) => Some(Err(reply_error(command, &error))),
            }
        }
        Command::BlockStatus { .. } => None,
        _ if never_blocks && !is_unoffered(backend, command) => {
            request.begin();
            Some(execute(backend, request.durability(), command, request.payload()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
