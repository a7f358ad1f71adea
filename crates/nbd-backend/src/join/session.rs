//! A grant of the lanes, from the holder's message to the end of serving.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nbd_control::Channel;
use nbd_control::backend::{FromBackend, FromHolder, Grant};
use nbd_control::system_error::chain;
use nbd_ledger::{Layout, Ledger};

use super::error::{ACKNOWLEDGE_TIMEOUT, JoinError, failure};
use super::replay::Replay;
use crate::backend::Backend;
use crate::engine::{Engine, Granted, Outcome, ServeError};
use crate::lane::recovered_requests::Predecessor;

/// A grant: this process owns the lanes, and has read nothing from them yet.
#[derive(Debug)]
pub struct Session {
    pub(crate) channel: Channel,
    pub(crate) grant: Grant,
    pub(crate) ledger: OwnedFd,
    pub(crate) sockets: Vec<OwnedFd>,
    pub(crate) stored_fds: Vec<(String, OwnedFd)>,
    pub(crate) recording: Option<OwnedFd>,
    pub(crate) replay: Option<Replay>,
}

impl Session {
    /// Name of the device, like `nbd0`.
    pub fn device(&self) -> &str {
        &self.grant.device
    }

    /// A stored descriptor of a predecessor.
    pub fn stored_fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        let (_, fd) = self.stored_fds.iter().find(|(kept, _)| kept == name)?;
        Some(fd.as_fd())
    }

    /// The names of all stored descriptors.
    pub fn stored_fd_names(&self) -> impl Iterator<Item = &str> {
        self.stored_fds.iter().map(|(name, _)| &**name)
    }

    /// Stores a descriptor with the holder. After this returns, it survives this process.
    ///
    /// # Errors
    ///
    /// If the holder refuses (it stores descriptors only before the device is attached, and a
    /// limited number), breaks the protocol, or does not answer within 10 s.
    pub fn keep(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), JoinError> {
        self.channel.send(&FromBackend::Keep { name: name.into() }, &[descriptor])?;
        match self.channel.receive_within(ACKNOWLEDGE_TIMEOUT)?.message {
            FromHolder::Kept => Ok(()),
            FromHolder::Refusal { reason } => Err(JoinError::Refused(reason)),
            FromHolder::Grant(_) | FromHolder::Stored { .. } => {
                Err(JoinError::Protocol("an answer to another question"))
            }
        }
    }

    /// Returns the lanes unused, and reports the reason to the holder. Errors are ignored: the
    /// holder notices the end of the connection as well.
    pub fn fail(self, reason: &str) {
        let _ = self.channel.send(&failure(reason, false), &[]);
    }

    /// Recovers the predecessor's requests and serves until the device is detached. The process must
    /// exit afterwards.
    ///
    /// # Errors
    ///
    /// If the ledger is damaged, a lane fails, or a thread cannot be started. The holder gets the
    /// reason; the requests stay in the ledger for a successor.
    #[expect(clippy::needless_pass_by_value, reason = "callers have just made it")]
    pub fn serve(self, backend: Arc<dyn Backend>) -> Result<Outcome, ServeError> {
        self.run(&backend, |_| {}, Engine::run)?;
        Ok(Outcome::Disconnected)
    }

    /// The same for a process that lives on, because it serves other devices. `ready` is called when
    /// requests are served, with the number of those that a predecessor left. When this returns
    /// success, no thread of the engine is left, and no task but those that an
    /// [`AsyncBackend`](crate::AsyncBackend) has not finished.
    ///
    /// # Errors
    ///
    /// As for [`serve`](Self::serve). Then threads may be left, and only the end of this process lets
    /// the holder grant the lanes to a successor.
    #[expect(clippy::needless_pass_by_value, reason = "callers have just made it")]
    pub fn serve_shared(
        self,
        backend: Arc<dyn Backend>,
        ready: impl FnOnce(u32),
    ) -> Result<Departure, ServeError> {
        let (channel, ledger) = self.run(&backend, ready, Engine::run_and_join)?;
        Ok(Departure { channel, ledger })
    }

    fn run(
        self,
        backend: &Arc<dyn Backend>,
        ready: impl FnOnce(u32),
        run: impl FnOnce(Engine) -> Result<Outcome, ServeError>,
    ) -> Result<(Channel, Arc<Ledger>), ServeError> {
        let Self { channel, grant, ledger, sockets, recording, replay, .. } = self;
        let layout = Layout {
            lanes: grant.lanes,
            ring: grant.ring,
            transmit: grant.transmit,
            max_payload: grant.max_payload,
        };
        let export = backend.geometry().export(grant.max_payload);
        let predecessor = Predecessor { crashed: grant.crashed, poison_limit: grant.poison_limit };
        let granted = Granted { ledger, sockets, layout, recording };
        let served = Engine::recover(granted, export, backend, predecessor).and_then(|engine| {
            // Errors are ignored: if the holder died, the next one adopts this process.
            for poison in engine.poisoned() {
                let _ = channel.send(&FromBackend::Poisoned(poison), &[]);
            }
            let replayed = engine.replayed();
            let _ = channel.send(&FromBackend::Ready { replayed }, &[]);
            ready(replayed);
            let ledger = engine.ledger();
            run(engine).map(|Outcome::Disconnected| ledger)
        });
        match served {
            Ok(ledger) => {
                if let Some(replay) = replay {
                    replay.end();
                }
                backend.close();
                Ok((channel, ledger))
            }
            Err(error) => {
                let _ = channel.send(&failure(&chain(&error), error.is_final()), &[]);
                Err(error)
            }
        }
    }
}

/// The end of a device in a process that lives on.
#[derive(Debug)]
#[must_use = "the holder waits for it, and kills the process in the end"]
pub struct Departure {
    channel: Channel,
    ledger: Arc<Ledger>,
}

impl Departure {
    /// Tells the holder that this process is done with the device. All tasks must be finished: the
    /// holder lets others use the storage.
    pub fn leave(self) {
        // First, because the holder may have died: then the next one has adopted the device, and has no
        // connection on which it could hear of this.
        self.ledger.note_departure();
        // Errors are ignored: a holder that is gone waits for nothing.
        let _ = self.channel.send(&FromBackend::Left, &[]);
    }
}
