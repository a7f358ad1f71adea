//! A request that was handed on, to a worker or to a backend that works by itself.

use std::sync::Arc;

use nbd_backend::{Completion, Durability, Task};
use nbd_proto::Command;

use super::{Connection, outgoing};
use crate::inbox::Payload;
use crate::memory::Grant;
use crate::reply::Address;

/// A request that was handed on.
pub(super) struct NetworkTask {
    pub(super) connection: Arc<Connection>,
    pub(super) to: Address,
    pub(super) command: Command,
    pub(super) payload: Payload,
    pub(super) grant: Option<Grant>,
}

/// Whether a command is of no use to a client that has left: it changes nothing.
pub(super) fn only_tells(command: &Command) -> bool {
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
        !only_tells(&self.command) || !self.connection.has_left()
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
        let sent = guard.outbox.send_directly(&head, tail);
        guard.outbox.hold(grant);
        guard.outbox.finished(match command {
            Command::Read { length, .. } | Command::Write { length, .. } => u64::from(length),
            _ => 0,
        });
        if guard.is_awaited {
            connection.changed.notify_all();
        }
        if sent.is_err() {
            // The client is slow, and this thread is needed elsewhere.
            guard.outbox.is_draining = true;
            drop(guard);
            outgoing::drain_aside(connection);
        }
    }
}
