//! Conversations with nbd-ctl.

use std::fs::File;
use std::os::unix::net::UnixStream;

use nbd_control::Channel;
use nbd_control::channel::Received;
use nbd_control::control::{Failure, FailureKind, Request, Response};
use nbd_control::settings;

use crate::holder::{Holder, peer_uid};
use crate::supervisor::Event;
use crate::system::peer_groups;

/// A connected nbd-ctl.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) channel: Channel,
    waits: Option<Waits>,
    /// It is a member of the group, and neither root nor us.
    only_looks: bool,
}

impl Client {
    /// One that may give orders.
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel, waits: None, only_looks: false }
    }
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// A backend, however long that takes.
    Backend,
    /// The backend that it has ordered, or word that it failed.
    Start,
    /// The end of the backend.
    Pause,
    /// The answers to what is in flight.
    Fail,
}

impl Holder {
    pub(crate) fn accept_client(&mut self) {
        let result =
            self.control.as_ref().map(|control| control.accept().map(|(stream, _)| stream));
        let Some(stream) = self.accepted(result) else {
            return;
        };
        let me = nix::unistd::geteuid().as_raw();
        let is_owner = peer_uid(&stream).is_some_and(|uid| uid == 0 || uid == me);
        if !is_owner && !self.is_member(&stream) {
            return;
        }
        if let Ok(channel) = Channel::new(stream) {
            let id = self.next_id();
            self.clients.insert(id, Client { only_looks: !is_owner, ..Client::new(channel) });
        }
    }

    /// Whether whoever connected is in the group that may look. That the kernel let them connect
    /// says as much; but directories and sockets have been given wrong modes before.
    fn is_member(&self, stream: &UnixStream) -> bool {
        let Some((_, gid)) = &self.settings.group else {
            return false;
        };
        peer_groups(stream).contains(&gid.as_raw())
    }

    pub(crate) fn hear_client(&mut self, id: u64) {
        loop {
            let Some(client) = self.clients.get_mut(&id) else {
                return;
            };
            match client.channel.try_receive::<Request>() {
                Ok(None) => return,
                Ok(Some(received)) => self.serve_client(id, received),
                Err(nbd_control::ChannelError::Closed) => {
                    self.clients.remove(&id);
                }
                Err(error) => {
                    self.warn(&format!("a control connection failed: {error}"));
                    let failure = Failure::new(FailureKind::Other, error.to_string());
                    self.answer(id, &Response::Failed(failure));
                    self.clients.remove(&id);
                }
            }
        }
    }

    fn serve_client(&mut self, id: u64, received: Received<Request>) {
        let only_looks = self.clients.get(&id).is_none_or(|client| client.only_looks);
        if only_looks && !received.message.only_looks() {
            let name = self.device.name();
            let text = format!("{name}: its group may look; for orders it takes root");
            return self.answer(id, &Response::Failed(Failure::new(FailureKind::Other, text)));
        }
        match received.message {
            Request::Status => {
                let status = Response::Status(Box::new(self.status()));
                self.answer(id, &status);
            }
            Request::Detach { force } => {
                // A second one that forces overrides the first one.
                if let Some((other, was)) = self.pending_detach.filter(|(other, _)| *other != id) {
                    let text = format!("{}: another detach was asked for", self.device.name());
                    let failure = Response::Failed(Failure::new(FailureKind::Busy, text));
                    if was || !force {
                        return self.answer(id, &failure);
                    }
                    self.answer(other, &failure);
                }
                self.pending_detach = Some((id, force));
            }
            Request::Set { assignments } => {
                let response = match self.set(&assignments) {
                    Ok(settings) => Response::Settings(settings),
                    Err(failure) => Response::Failed(failure),
                };
                self.answer(id, &response);
            }
            Request::Restart => self.restart(id, None),
            Request::Replace { program } => self.restart(id, program),
            Request::WaitReady if self.supervisor.is_ready() && self.attached => {
                let text = format!("{} is being served", self.device.name());
                self.answer(id, &Response::Done { text });
            }
            Request::Upgrade { program } if self.pending_upgrade.is_none() => {
                self.pending_upgrade = Some((id, program));
            }
            Request::Upgrade { .. } => {
                let text = format!("{}: another upgrade was asked for", self.device.name());
                self.answer(id, &Response::Failed(Failure::new(FailureKind::Busy, text)));
            }
            Request::WaitReady => self.await_for(id, Waits::Backend),
            Request::Fail { kill } => self.order_fail(id, kill),
            Request::Pause { kill } => self.order_pause(id, kill),
            Request::Resume => self.order_resume(id),
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

    /// Changes settings where the backend reads them, whether it lives or not.
    fn set(&self, assignments: &[String]) -> Result<Vec<(String, String)>, Failure> {
        let name = self.device.name();
        let failed = |kind, text: String| Failure::new(kind, format!("{name}: {text}"));
        let other = |error: std::io::Error| {
            failed(FailureKind::Other, format!("its settings cannot be used: {error}"))
        };
        let kept = self.keepsakes.iter().find(|(kept, _)| kept == settings::KEEPSAKE);
        let table = kept.map(|(_, fd)| fd.try_clone().map(File::from));
        let Some(table) = table.transpose().map_err(other)?.filter(settings::is_memory) else {
            let text = "has no settings: attach it with a layer that has, like delay@file:PATH";
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

    fn restart(&mut self, id: u64, program: Option<Vec<String>>) {
        let name = self.device.name();
        let refused = if let Some(text) = self.ordered() {
            Some(text)
        } else if program.is_none() && self.settings.program.is_empty() {
            Some(format!("{name} has no program to start: its backend joins from outside"))
        } else if self.replacing.is_some() {
            Some(format!("{name}: another replacement is under way"))
        } else {
            None
        };
        if let Some(text) = refused {
            let failure = Failure::new(FailureKind::Busy, text);
            return self.answer(id, &Response::Failed(failure));
        }
        self.replacing = program;
        self.await_for(id, Waits::Start);
        self.due = None;
        self.apply(&Event::Restart);
    }

    /// The client is answered when that has come.
    pub(crate) fn await_for(&mut self, id: u64, what: Waits) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.waits = Some(what);
        }
    }

    pub(crate) fn answer(&mut self, id: u64, response: &Response) {
        let channel = self.clients.get(&id).map(|client| &client.channel);
        if channel.is_some_and(|channel| channel.send(response, &[]).is_err()) {
            self.clients.remove(&id);
        }
    }

    /// Tells everybody who waits for this how it ended.
    pub(crate) fn answer_waiters(&mut self, what: Waits, result: &Result<String, Failure>) {
        let response = match result {
            Ok(text) => Response::Done { text: text.clone() },
            Err(failure) => Response::Failed(failure.clone()),
        };
        let waiting = self.clients.iter().filter(|(_, client)| client.waits == Some(what));
        for id in waiting.map(|(&id, _)| id).collect::<Vec<_>>() {
            if let Some(client) = self.clients.get_mut(&id) {
                client.waits = None;
            }
            self.answer(id, &response);
        }
    }
}
