//! A request that a worker executes, or a backend that executes tasks itself.

use std::sync::Arc;

use nbd_backend::{Completion, Durability, Task};
use nbd_proto::Command;

use super::{Connection, outgoing};
use crate::memory_budget::Grant;
use crate::recv_buffer::Payload;
use crate::reply::ReplyTarget;

/// A submitted request.
pub(super) struct NetworkTask {
    pub(super) connection: Arc<Connection>,
    pub(super) to: ReplyTarget,
    pub(super) command: Command,
    pub(super) payload: Payload,
    pub(super) grant: Option<Grant>,
}

/// Whether a command changes nothing. Such a command is skipped when its client has disconnected.
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
        !is_read_only(&self.command) || !self.connection.has_disconnected()
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
