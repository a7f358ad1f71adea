//! Conversations with nbd-ctl.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_control::backend::ExportInfo;
use nbd_control::channel::Received;
use nbd_control::control::{Failure, FailureKind, Request, Response};
use nbd_control::settings;
use nbd_control::system_error::chain;
use nbd_control::{Channel, ChannelError};

use crate::core::{ClientId, Event, Order, Refused};
use crate::holder::Holder;
use crate::holder::backend_process::check_export;
use crate::holder::client::Client;
use crate::holder::connection::guard;
use crate::io::listen::peer_uid;
use crate::system::peer_groups;

/// Most connections that are taken in a turn: who may give orders waits behind all that came before.
const MAX_ACCEPTS: usize = 8;
/// Most clients at a time …
const MAX_CLIENTS: usize = 64;
/// … and most of them that may only look, so that they do not keep out those that may order.
const MAX_READERS: usize = 32;
/// How long a client may take for the rest of a message that it has begun.
const REST_TIMEOUT: Duration = Duration::from_secs(10);

impl Holder {
    pub(crate) fn accept_clients(&mut self) {
        for _ in 0..MAX_ACCEPTS {
            let control = self.sockets.control.as_ref();
            let result = control.map(|control| control.accept().map(|(stream, _)| stream));
            let Some(stream) = self.accepted(result) else {
                return;
            };
            self.admit_client(stream);
        }
    }

    fn admit_client(&mut self, stream: UnixStream) {
        let me = nix::unistd::geteuid().as_raw();
        let is_owner = peer_uid(&stream).is_some_and(|uid| uid == 0 || uid == me);
        if !is_owner && !self.is_member(&stream) {
            return self.let_go(Channel::resume(stream));
        }
        if self.clients.len() >= MAX_CLIENTS || (!is_owner && !self.has_room_for_reader()) {
            self.let_go(Channel::resume(stream));
            return self.warn("a client is refused: too many are connected");
        }
        if let Ok(mut channel) = guard(stream) {
            // The capture file of a recording.
            channel.set_max_descriptors(usize::from(is_owner));
            let id = self.core.new_client();
            self.clients.insert(id, Client { is_read_only: !is_owner, ..Client::new(channel) });
        }
    }

    /// Whether what connected is in the group that may look. That the kernel let them connect
    /// says as much; but directories and sockets have been given wrong modes before.
    fn is_member(&self, stream: &UnixStream) -> bool {
        let Some((_, gid)) = &self.settings.group else {
            return false;
        };
        peer_groups(stream).contains(&gid.as_raw())
    }

    /// If there is none, who has been silent for longest makes room.
    fn has_room_for_reader(&mut self) -> bool {
        let readers = || self.clients.iter().filter(|(_, client)| client.is_read_only);
        if readers().count() < MAX_READERS {
            return true;
        }
        let silent = readers().filter(|(id, _)| !self.core.is_awaited_by(**id));
        let silent = silent.min_by_key(|(_, client)| client.heard).map(|(id, _)| *id);
        if let Some(id) = silent {
            self.forget_client(id);
        }
        silent.is_some()
    }

    /// Of clients that have sent something, those that are not heard this turn: one that may only look is, and who
    /// may give orders waits for no more than that one.
    pub(crate) fn postponed_readers(&self, ready: impl Iterator<Item = ClientId>) -> Vec<ClientId> {
        let heard =
            |id: &ClientId| self.clients.get(id).filter(|it| it.is_read_only).map(|it| it.heard);
        let mut readers: Vec<_> = ready.filter(|id| heard(id).is_some()).collect();
        readers.sort_by_key(heard);
        readers.split_off(readers.len().min(1))
    }

    /// When the next client has to have sent the rest of what it has begun.
    pub(crate) fn rest_due(&self) -> Option<Instant> {
        self.clients.values().filter_map(|client| client.begun).min().map(|it| it + REST_TIMEOUT)
    }

    pub(crate) fn drop_overdue_clients(&mut self) {
        let is_late = |begun: Instant| begun.elapsed() >= REST_TIMEOUT;
        let late = self.clients.iter().filter(|(_, client)| client.begun.is_some_and(is_late));
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.forget_client(id);
        }
    }

    /// A client has sent something, or closed. One message is taken: others are served in between, however much
    /// it sends.
    pub(crate) fn on_client_readable(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let received = client.channel.try_receive::<Request>();
        client.begun = match client.channel.is_at_rest() {
            true => None,
            false => client.begun.or_else(|| Some(Instant::now())),
        };
        match received {
            Ok(None) => {}
            Ok(Some(received)) => {
                client.heard = Instant::now();
                self.serve_client(id, received);
            }
            Err(ChannelError::Closed) => self.forget_client(id),
            Err(ChannelError::Descriptors) if client.is_read_only => {
                self.deny(id);
                self.forget_client(id);
            }
            Err(error) => {
                let text = format!("the connection of a client failed: {}", chain(&error));
                self.warn(&text);
                let failure = Failure::new(FailureKind::Other, error.to_string());
                self.answer(id, &Response::Failed(failure));
                self.forget_client(id);
            }
        }
    }

    fn serve_client(&mut self, id: ClientId, received: Received<Request>) {
        let is_read_only = self.clients.get(&id).is_none_or(|client| client.is_read_only);
        if is_read_only && !received.message.is_read_only() {
            return self.deny(id);
        }
        match received.message {
            Request::Status => {
                let status = Response::Status(Box::new(self.status()));
                self.answer(id, &status);
            }
            Request::Detach { force } => self.order(id, Order::Detach { force }),
            Request::Set { assignments } => {
                let response = match self.set(&assignments) {
                    Ok(settings) => Response::Settings(settings),
                    Err(failure) => Response::Failed(failure),
                };
                self.answer(id, &response);
            }
            Request::Restart => self.order(id, Order::Restart { program: None }),
            Request::Replace { program } => self.order(id, Order::Restart { program }),
            Request::WaitReady if self.core.is_served() => {
                let text = format!("{} is being served", self.device.name());
                self.answer(id, &Response::Done { text });
            }
            Request::WaitReady => self.order(id, Order::WaitReady),
            Request::Upgrade { program } => self.order(id, Order::Upgrade { program }),
            Request::Fail { kill } => {
                let in_flight = !self.in_flight().is_empty() || self.device.waiting() > 0;
                self.order(id, Order::Fail { kill, in_flight });
            }
            Request::Pause { kill } => self.order(id, Order::Pause { kill }),
            Request::Resume => self.order(id, Order::Resume),
            Request::Resize { size, force } => self.order_resize(id, size, force),
            Request::Record { path } => {
                self.order_recording(id, path, received.descriptors.into_iter().next());
            }
            Request::EndRecording => self.end_recording(id),
            Request::Trace { from } => {
                let trace = Response::Trace(Box::new(self.trace(&from)));
                self.answer(id, &trace);
            }
        }
    }

    fn deny(&mut self, id: ClientId) {
        let name = self.device.name();
        let text = format!("{name}: permission denied: this command requires root");
        self.answer(id, &Response::Failed(Failure::new(FailureKind::Other, text)));
    }

    fn order(&mut self, client: ClientId, order: Order) {
        self.feed(Event::Order { client, order });
    }

    fn order_resize(&mut self, id: ClientId, size: Option<u64>, force: bool) {
        let wanted = size.map(|size| check_export(&ExportInfo { size, ..self.export() }));
        if let (Some(Err(text)), None) = (wanted, self.core.why_no_resize()) {
            let text = format!("{}: {text}", self.device.name());
            return self.answer(id, &Response::Failed(Failure::new(FailureKind::Usage, text)));
        }
        self.order(id, Order::Resize { size, force });
    }

    pub(crate) fn refuse_order(&mut self, id: ClientId, why: Refused) {
        let failure = Failure::new(FailureKind::Busy, self.refused_words(why));
        self.answer(id, &Response::Failed(failure));
    }

    /// Changes settings where the backend reads them, whether it lives or not.
    fn set(&self, assignments: &[String]) -> Result<Vec<(String, String)>, Failure> {
        let name = self.device.name();
        let failed = |kind, text: String| Failure::new(kind, format!("{name}: {text}"));
        let other = |error: std::io::Error| {
            failed(FailureKind::Other, format!("its table of settings is damaged: {error}"))
        };
        let kept = self.data.fd_store.iter().find(|(kept, _)| kept == settings::STORED_FD_NAME);
        let table = kept.map(|(_, fd)| fd.try_clone().map(File::from));
        let Some(table) = table.transpose().map_err(other)?.filter(settings::is_memory) else {
            let text =
                "has no settings: attach it with a layer that has some, like delay@file:PATH";
            return Err(failed(FailureKind::Other, text.into()));
        };
        let current = settings::load(&table).map_err(other)?;
        let changes = settings::plan(&current, assignments)
            .map_err(|error| failed(FailureKind::Usage, error.to_string()))?;
        settings::change(&table, &changes).map_err(other)?;
        for text in assignments {
            tracing::info!(device = %name, event = "set", setting = %text, "{text} was set");
        }
        let current = settings::load(&table).map_err(other)?;
        Ok(current.into_iter().map(|one| (one.name, one.kind.format(one.value))).collect())
    }

    /// Sends a client its answer.
    pub(crate) fn answer(&mut self, id: ClientId, response: &Response) {
        let Some(channel) = self.clients.get(&id).map(|client| &client.channel) else {
            return;
        };
        let sent = match channel.send(response, &[]) {
            // Nothing of it was sent.
            Err(ChannelError::Malformed(error)) => {
                let text = format!("cannot send the answer: {error}");
                channel.send(&Response::Failed(Failure::new(FailureKind::Other, text)), &[])
            }
            sent => sent,
        };
        if sent.is_err() {
            self.forget_client(id);
        }
    }

    pub(crate) fn forget_client(&mut self, id: ClientId) {
        if let Some(client) = self.clients.remove(&id) {
            self.let_go(client.channel);
        }
        self.feed(Event::ClientGone { client: id });
    }
}
