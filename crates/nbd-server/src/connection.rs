//! The transmission phase: take requests, execute what is quick, hand on what may block, answer.
//!
//! One thread receives and executes; workers answer when they are done, in any order. Nobody
//! waits for the client to read its replies while holding the lock: a client that stops reading
//! stops its own connection and no other.

mod incoming;
mod inline;
mod landing;
mod outgoing;
mod task;

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use nbd_backend::{Completion, Lull};
use nbd_net::socket::Socket;
use nbd_proto::{Command, CommandType, NbdError, RequestRules as Rules};
use thiserror::Error;

use crate::export::Export;
use crate::inbox::{Inbox, Payload};
use crate::limits::Limits;
use crate::memory::{Grant, Memory};
use crate::outbox::{ENOUGH, Outbox};
use crate::reply::{Address, Replies};
use crate::request::{Header, ProtocolError, Refused};
use landing::Landing;
use task::NetworkTask;

/// Data of reads that a connection may have pending without a share of the common memory, in bytes.
const OWN: u64 = 1 << 20;

/// Why a connection ended in disorder.
#[derive(Debug, Error)]
pub(crate) enum ConnectionError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("closed the connection in the middle of a request")]
    Torn,
    #[error("was in the middle of sending a request when the server was stopped")]
    Stopped,
    #[error("was silent for too long")]
    Idle,
    #[error(
        "left a request half sent for too long, or sent it too slowly, while others waited for its memory"
    )]
    Stalled,
    #[error("does not answer any more, nor does its machine")]
    Vanished,
    #[error("cannot receive")]
    Receive(#[source] io::Error),
}

/// What the receiving thread and the workers share.
pub(crate) struct Connection {
    pub(crate) export: Arc<Export>,
    pub(crate) rules: Rules,
    pub(crate) replies: Replies,
    pub(crate) limits: Limits,
    pub(crate) memory: Arc<Memory>,
    pub(crate) socket: Arc<Socket>,
    pub(crate) is_stopping: Arc<AtomicBool>,
    pub(crate) shared: Mutex<SharedOutbox>,
    pub(crate) changed: Condvar,
}

/// The outbox under its lock.
pub(crate) struct SharedOutbox {
    pub(crate) outbox: Outbox,
    pub(crate) lull: Lull,
    /// Whether the receiving thread waits for a change.
    pub(crate) is_awaited: bool,
}

impl SharedOutbox {
    pub(crate) fn new(outbox: Outbox) -> Self {
        Self { outbox, lull: Lull::default(), is_awaited: false }
    }
}

/// Why the receiving thread stopped taking requests.
enum Step {
    /// There are none: so many bytes make the next one.
    Receive(usize),
    /// This write's data can be received to where it belongs.
    Land(Landing),
    /// This payload is too long to keep.
    Skip(u64),
    /// There is one, and too much is under way already.
    Full,
    /// There is one, and so much common memory is needed for its data.
    Memory(u64),
    Disconnect,
}

impl Connection {
    /// Serves until the client disconnects.
    pub(crate) fn run(self: &Arc<Self>, inbox: &mut Inbox) -> Result<(), ConnectionError> {
        let end = self.transmit(inbox);
        inbox.close();
        let mut guard = self.lock();
        guard.outbox.inbox_holds = false;
        match end {
            Ok(()) => {}
            Err(ConnectionError::Vanished) => guard.outbox.hang_up(),
            // The client may still read what it is told about requests that are under way.
            Err(_) => self.socket.shutdown_receive(),
        }
        drop(guard);
        let mut guard = self.wait_until(|outbox| outbox.outstanding == 0 && !outbox.is_draining);
        let rest = guard.outbox.send();
        drop(guard);
        if rest.is_err() {
            self.drain();
        }
        self.lock().outbox.close();
        end
    }

    fn transmit(self: &Arc<Self>, inbox: &mut Inbox) -> Result<(), ConnectionError> {
        let mut grant = None;
        loop {
            match self.serve(inbox, grant.take())? {
                Step::Receive(length) => match self.receive(inbox, length)? {
                    0 if inbox.bytes().is_empty() => return Ok(()),
                    0 => return Err(self.torn()),
                    _ => {}
                },
                Step::Land(landing) => {
                    let landed = self.land(inbox, landing);
                    self.lock().outbox.landed();
                    landed?;
                }
                Step::Skip(length) => self.skip(inbox, length)?,
                Step::Full => drop(self.wait_until(|outbox| {
                    outbox.outstanding == 0 || !self.is_full(outbox, inbox.bytes())
                })),
                Step::Memory(bytes) => {
                    grant = Some(self.reserve(inbox, bytes));
                    // It may have taken long enough for the client to leave.
                    self.has_left();
                }
                Step::Disconnect => return Ok(()),
            }
        }
    }

    /// Takes all requests that have come, and sends the answers that are there. A grant is for the
    /// data of the first one.
    fn serve(
        self: &Arc<Self>,
        inbox: &mut Inbox,
        mut grant: Option<Grant>,
    ) -> Result<Step, ConnectionError> {
        let mut handed_on = Vec::new();
        let mut guard = self.lock();
        let SharedOutbox { outbox, lull, .. } = &mut *guard;
        lull.arrived(|| outbox.outstanding == 0);
        outbox.inbox_holds = inbox.holds_memory();
        let step = loop {
            match self.take(&mut guard, inbox, grant.take()) {
                Ok(Taken::Answered) => {}
                Ok(Taken::HandedOn(task)) => handed_on.push(task),
                Ok(Taken::Nothing(step)) => break Ok(step),
                Err(error) => break Err(error.into()),
            }
            if guard.outbox.unsent() >= ENOUGH {
                guard = self.send(guard);
            }
        };
        drop(self.send(guard));
        // A task may be finished while it is submitted, and that takes the lock.
        for task in handed_on {
            self.export.workers().submit(task);
        }
        step
    }

    /// Takes one request.
    fn take(
        self: &Arc<Self>,
        shared: &mut SharedOutbox,
        inbox: &mut Inbox,
        grant: Option<Grant>,
    ) -> Result<Taken, ProtocolError> {
        if shared.outbox.is_hung_up() {
            return Ok(Taken::Nothing(Step::Disconnect));
        }
        let head = Header::len(self.replies.style);
        let Some(header) = Header::parse(inbox.bytes(), self.replies.style)? else {
            return Ok(Taken::Nothing(Step::Receive(head)));
        };
        if header.command_type() == CommandType::DISC {
            return Ok(Taken::Nothing(Step::Disconnect));
        }
        let payload_len = header.payload_len()?;
        let is_kept = payload_len <= self.rules.max_payload;
        let length = head + if is_kept { payload_len as usize } else { 0 };
        if inbox.bytes().len() < length {
            let landing = if is_kept { self.landing(inbox, &header, length) } else { None };
            shared.outbox.inbox_holds = inbox.holds_memory();
            shared.outbox.is_landing = landing.is_some();
            return Ok(Taken::Nothing(landing.map_or(Step::Receive(length), Step::Land)));
        }
        let outbox = &shared.outbox;
        if outbox.outstanding > 0 && self.is_full(outbox, inbox.bytes()) {
            return Ok(Taken::Nothing(Step::Full));
        }
        self.look_ahead(&shared.outbox, &inbox.bytes()[length..]);
        let taken = self.execute(shared, inbox, &header, head..length, grant);
        if matches!(taken, Taken::Nothing(_)) {
            return Ok(taken);
        }
        inbox.consume(length);
        Ok(if is_kept { taken } else { Taken::Nothing(Step::Skip(u64::from(payload_len))) })
    }

    /// Has what is needed next fetched while another request is executed, unless it is to be sent from
    /// where it lies: that is copied later, with all else.
    fn look_ahead(&self, outbox: &Outbox, bytes: &[u8]) {
        let Ok(Some(next)) = Header::parse(bytes, self.replies.style) else { return };
        let length = u32::try_from(next.data_len()).unwrap_or(u32::MAX);
        if next.command_type() != CommandType::READ || !self.is_worth_a_span(outbox, length) {
            self.export.backend().prefetch(next.address().offset, length);
        }
    }

    /// Executes a request if that does not wait for anything.
    fn execute(
        self: &Arc<Self>,
        shared: &mut SharedOutbox,
        inbox: &Inbox,
        header: &Header,
        payload: std::ops::Range<usize>,
        grant: Option<Grant>,
    ) -> Taken {
        let outbox = &mut shared.outbox;
        let to = header.address();
        let data = &inbox.bytes()[payload.clone()];
        let checked = if self.is_stopping.load(Ordering::Relaxed) {
            Err(Refused::Stopping)
        } else {
            header.check(&self.rules, data, self.replies.allocation)
        };
        let command = match checked {
            Ok(command) => command,
            Err(refusal) => {
                outbox.tell_refused(&refusal);
                let mut reply = Vec::new();
                self.replies.error(to, refusal.error(), &refusal.to_string(), &mut reply);
                outbox.stage(&reply);
                return Taken::Answered;
            }
        };
        if outbox.is_closed() && task::only_tells(&command) {
            return Taken::Answered;
        }
        let alone = outbox.outstanding == 0 && outbox.unsent() == 0;
        let alone = alone && inbox.bytes().len() == payload.end;
        let patient = alone && shared.lull.is_likely();
        match self.inline(outbox, to, &command, data, patient) {
            None => {}
            Some(has_waited) => {
                if has_waited {
                    shared.lull.waited(self.socket.as_fd());
                }
                return Taken::Answered;
            }
        }
        let grant = match self.grant(outbox, &command, grant) {
            Ok(grant) => grant,
            Err(step) => return Taken::Nothing(step),
        };
        if alone && self.export.backend().is_local(&command) {
            shared.lull.watch();
        }
        outbox.outstanding += 1;
        outbox.outstanding_bytes += header.data_len();
        let payload = if data.is_empty() { Payload::default() } else { inbox.share(payload) };
        let connection = Arc::clone(self);
        Taken::HandedOn(Box::new(NetworkTask { connection, to, command, payload, grant }))
    }

    /// A right to memory for the data of a read, unless the connection's own is enough. That of a
    /// write is where it was received.
    fn grant(
        &self,
        outbox: &Outbox,
        command: &Command,
        grant: Option<Grant>,
    ) -> Result<Option<Grant>, Step> {
        let Command::Read { length, .. } = *command else {
            return Ok(None);
        };
        let length = u64::from(length);
        if grant.is_some() || outbox.pending() + length <= OWN {
            return Ok(grant);
        }
        self.memory.try_take(length).map(Some).ok_or(Step::Memory(length))
    }

    /// Everything but data.
    fn answer(&self, to: Address, completion: Completion<'_>) -> Vec<u8> {
        let mut reply = Vec::new();
        match completion {
            Completion::Error(error) => self.replies.error(to, error, "", &mut reply),
            Completion::Extents(extents) if self.replies.extents(to, extents, &mut reply) => {}
            _ => {
                reply.resize(self.replies.done_len(), 0);
                self.replies.done(to, &mut reply);
            }
        }
        reply
    }

    /// Stages the answer to a command that returns no data.
    fn stage(&self, outbox: &mut Outbox, to: Address, done: Result<(), NbdError>) {
        if let Err(error) = done {
            outbox.stage(&self.answer(to, Completion::Error(error)));
            return;
        }
        let length = self.replies.done_len();
        self.replies.done(to, outbox.room(length));
        outbox.advance(length);
    }

    /// Whether the next request would be more than a client may have under way.
    fn is_full(&self, outbox: &Outbox, bytes: &[u8]) -> bool {
        let next = Header::parse(bytes, self.replies.style).ok().flatten();
        let more = next.map_or(0, |header| header.data_len());
        // A longer one is refused and moves nothing.
        let more = if more > u64::from(self.rules.max_payload) { 0 } else { more };
        outbox.outstanding >= self.limits.in_flight
            || outbox.outstanding_bytes + more > self.limits.in_flight_bytes
    }

    /// Why the stream has ended within a request.
    fn torn(&self) -> ConnectionError {
        if self.is_stopping.load(Ordering::Relaxed) {
            ConnectionError::Stopped
        } else {
            ConnectionError::Torn
        }
    }

    /// Whether the client has left without a word, as far as the system knows.
    fn has_left(&self) -> bool {
        let is_hung_up = self.socket.is_hung_up();
        let mut guard = self.lock();
        if is_hung_up && !guard.outbox.is_closed() {
            guard.outbox.client_left();
        }
        guard.outbox.is_closed()
    }

    /// Leaves the client if that can be done at once; see [`Outbox::hang_up`]. It cannot while a
    /// command is executed where it was received.
    pub(crate) fn try_hang_up(&self) {
        let guard = match self.shared.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut guard) = guard
            && !guard.outbox.is_hung_up()
        {
            guard.outbox.hang_up();
        }
    }

    fn lock(&self) -> MutexGuard<'_, SharedOutbox> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for answers of workers until a condition holds.
    fn wait_until(&self, holds: impl Fn(&Outbox) -> bool) -> MutexGuard<'_, SharedOutbox> {
        let mut guard = self.lock();
        guard.is_awaited = true;
        while !holds(&guard.outbox) {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        guard.is_awaited = false;
        guard
    }
}

enum Taken {
    Answered,
    HandedOn(Box<NetworkTask>),
    Nothing(Step),
}
