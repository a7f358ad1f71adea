//! Backends that have not introduced themselves: processes that join, and programs that are to be heard of in time.

use std::time::Instant;

use nbd_control::system_error::chain;

use crate::core::{BackendId, Event};
use crate::holder::Holder;
use crate::holder::backend_process::BackendProcess;
use crate::holder::connection::guard;

/// Most connections of backends that have not introduced themselves.
const MAX_JOINING: usize = 16;

impl Holder {
    /// A process from outside wants to serve the device.
    pub(crate) fn accept_backend(&mut self) {
        let join = self.sockets.join.as_ref();
        let result = join.map(|join| join.accept().map(|(stream, _)| stream));
        let Some(stream) = self.accepted(result) else {
            return;
        };
        if self.processes.joining().count() >= MAX_JOINING {
            self.make_room_for_joining();
        }
        let channel = guard(stream);
        let channel = channel.and_then(|mut channel| channel.identify_senders().map(|()| channel));
        match channel {
            Ok(channel) => {
                let id = self.core.new_backend();
                self.processes.backends.insert(id, BackendProcess::joined(channel));
            }
            Err(error) => self.warn(&format!(
                "the connection of a backend that joined failed: {}",
                chain(&error)
            )),
        }
    }

    /// Who has been silent for longest makes room for one that joins.
    fn make_room_for_joining(&mut self) {
        let silent = self.processes.joining().min_by_key(|(_, backend)| backend.since);
        if let Some(id) = silent.map(|(id, _)| id) {
            self.refuse(id, "other backends want to join, and it has not said Hello");
        }
    }

    /// Backends that have not introduced themselves, with when they are to have.
    fn silent_backends(&self) -> impl Iterator<Item = (BackendId, Instant)> + '_ {
        let limit = self.settings.ready_timeout.filter(|_| self.core.is_attached());
        let silent = self.processes.backends.iter().filter(|(_, backend)| {
            let is_adopted = backend.channel.is_none() && backend.process.is_some();
            !is_adopted && backend.hello.is_none()
        });
        silent.filter_map(move |(id, backend)| Some((*id, backend.since + limit?)))
    }

    pub(crate) fn next_overdue(&self) -> Option<Instant> {
        self.silent_backends().map(|(_, due)| due).min()
    }

    /// A program that does not introduce itself in time is as good as dead.
    pub(crate) fn drop_overdue_program(&mut self) {
        let now = Instant::now();
        let Some((id, _)) = self.silent_backends().find(|(_, due)| *due <= now) else {
            return;
        };
        let seconds = self.settings.ready_timeout.unwrap_or_default().as_secs();
        let text = format!("the backend did not say Hello within {seconds} s");
        let text = self.with_last_words(id, &text);
        self.backend_failed(id, text);
        self.drop_backend(id);
        self.feed(Event::Gone { backend: id });
    }
}
