//! A request that a worker executes, or a backend that executes tasks itself.

use std::sync::{Arc, OnceLock};

use nbd_backend::{Completion, Durability, Task};
use nbd_proto::Command;

use super::outgoing;
use super::shared::Connection;
use crate::memory_budget::Grant;
use crate::recv_buffer::Payload;
use crate::reply::ReplyTarget;
use crate::send_buffer::SendBuffer;

/// A submitted request.
pub(super) struct NetworkTask {
    pub(super) connection: Arc<Connection>,
    pub(super) to: ReplyTarget,
    pub(super) command: Command,
    pub(super) payload: Payload,
    pub(super) grant: TaskGrant,
}

/// Memory for the data of a read.
pub(super) struct TaskGrant {
    /// The grant's id in the connection, until a worker begins.
    queued: Option<u64>,
    begun: OnceLock<Grant>,
}

impl TaskGrant {
    /// The connection keeps the grant until a worker begins.
    pub(super) fn queued(id: u64) -> Self {
        Self { queued: Some(id), begun: OnceLock::new() }
    }

    /// A grant, if the task needs one, that is used from now on.
    pub(super) fn begun(grant: Option<Grant>) -> Self {
        Self { queued: None, begun: grant.map_or_else(OnceLock::new, OnceLock::from) }
    }

    /// Takes the grant from the connection; `false` if it was given back because the client is gone.
    fn begin(&self, send_buffer: &mut SendBuffer) -> bool {
        let Some(id) = self.queued else { return true };
        let grant = send_buffer.queued_grants.take(id);
        grant.is_some_and(|grant| self.begun.set(grant).is_ok())
    }

    /// The grant, whether or not the task was begun.
    fn into_grant(self, send_buffer: &mut SendBuffer) -> Option<Grant> {
        self.begun.into_inner().or_else(|| send_buffer.queued_grants.take(self.queued?))
    }
}

/// Whether a command changes nothing. Such a command is skipped when its client has disconnected.
///
/// All others that were received are executed. Without a reply the protocol promises nothing for
/// them, but NBD_CMD_DISC may come behind them in the socket, and then they must be: "The server
/// MUST handle all outstanding requests". A flush counts among them: it makes those writes last.
pub(super) fn is_read_only(command: &Command) -> bool {
    matches!(command, Command::Read { .. } | Command::BlockStatus { .. } | Command::Cache { .. })
}

impl Task for NetworkTask {
    fn command(&self) -> &Command {
        &self.command
    }

    fn payload(&self) -> &[u8] {
        self.payload.as_slice()
    }

    fn begin(&self) {}

    fn is_wanted(&self) -> bool {
        if !is_read_only(&self.command) {
            return true;
        }
        if self.connection.has_disconnected() {
            return false;
        }
        // Most reads have no grant, and take the lock once only.
        self.grant.queued.is_none() || self.grant.begin(&mut self.connection.lock().send_buffer)
    }

    fn durability(&self) -> &dyn Durability {
        self.connection.export.durability()
    }

    fn finish(self: Box<Self>, completion: Completion<'_>) {
        let Self { connection, to, command, payload, grant } = *self;
        drop(payload);
        let replies = connection.replies;
        let mut head = Vec::new();
        let mut tail: &[u8] = &[];
        match completion {
            Completion::Data([]) => head = connection.answer(to, Completion::Done),
            Completion::Data(data) if connection.is_hole(data) => {
                replies.hole(to, data.len() as u32, &mut head);
            }
            Completion::Data(data) => {
                head.resize(replies.data_head_len(), 0);
                replies.data_head(to, data.len() as u32, &mut head);
                tail = data;
            }
            other => head = connection.answer(to, other),
        }
        let mut guard = connection.lock();
        let grant = grant.into_grant(&mut guard.send_buffer);
        let sent = guard.send_buffer.send_directly(&head, tail);
        guard.send_buffer.hold_grant(grant);
        guard.send_buffer.finished(match command {
            Command::Read { length, .. } | Command::Write { length, .. } => u64::from(length),
            _ => 0,
        });
        if guard.has_waiter {
            connection.changed.notify_all();
        }
        if sent.is_err() {
            // The client reads slowly. A worker must not wait for it: other clients need the
            // worker.
            guard.send_buffer.is_draining = true;
            drop(guard);
            outgoing::spawn_drain(connection);
        }
    }
}
