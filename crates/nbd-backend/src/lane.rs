//! Serving one lane: receive requests, execute those that do not block, submit the others to
//! workers, reply.

pub(crate) mod busy_poll;
pub(crate) mod recorder;
pub(crate) mod recovered_requests;

use std::convert::Infallible;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nbd_ledger::receive::{TakeOutcome, Ticket};
use nbd_ledger::{Answer, Receiver, RecvOutcome, StreamError, Transmitter};
use nbd_proto::{Command, NbdError, Rejection, RequestRules};
use thiserror::Error;

use crate::backend::durability::Durability;
use crate::backend::{Completion, Task};
use crate::clock::now;
use crate::execution::{Dispatcher, ReceivedRequest, ReplySink, Room, Workers};
use crate::panics::{AbortOnPanic, lock};
use busy_poll::BusyPoll;
use recorder::LaneRecorder;

/// Staged bytes that are sent before the rest of a batch is executed, so that the kernel can
/// continue meanwhile.
const SEND_THRESHOLD: u64 = 256 << 10;

/// How long a suspect is executed alone. One that takes longer is slow, and probably no poison.
const ISOLATION_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a lane cannot go on.
#[derive(Debug, Error)]
pub(crate) enum LaneError {
    #[error("the kernel sent something else than requests")]
    Stream(#[from] StreamError),
    #[error("cannot receive from or send to the kernel")]
    Socket(#[source] io::Error),
}

/// The state that the lane's thread and the workers share.
pub(crate) struct LaneState {
    send_state: Mutex<SendState>,
    changed: Condvar,
    /// Set once this process has answered anything at all; all lanes share it.
    answered: Arc<AtomicBool>,
    recorder: Option<LaneRecorder>,
}

struct SendState {
    transmitter: Transmitter,
    /// Requests that workers or the backend have.
    outstanding: usize,
    /// Whether the lane's thread waits for [`LaneState::changed`]. Workers skip the wake-up, a
    /// system call, while it does not.
    has_waiter: bool,
}

impl LaneState {
    pub(crate) fn new(
        transmitter: Transmitter,
        answered: Arc<AtomicBool>,
        recorder: Option<LaneRecorder>,
    ) -> Arc<Self> {
        let send_state = SendState { transmitter, outstanding: 0, has_waiter: false };
        Arc::new(Self {
            send_state: Mutex::new(send_state),
            changed: Condvar::new(),
            answered,
            recorder,
        })
    }

    /// Sends what the predecessor left unsent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        lock(&self.send_state).transmitter.finish()
    }

    /// Sends what was staged.
    fn send_staged(&self) -> io::Result<()> {
        self.send(&mut lock(&self.send_state).transmitter)
    }

    /// Answers a request that was submitted; `is_held_back` leaves the sending to who answers next.
    pub(crate) fn answer(&self, ticket: Ticket, answer: Answer<'_>, is_held_back: bool) {
        let mut send_state = lock(&self.send_state);
        let sent = self
            .make_room(&mut send_state.transmitter, ticket.request().length)
            .map(|()| stage(&mut send_state.transmitter, ticket, answer, now()))
            .and_then(|()| match is_held_back {
                true => Ok(()),
                false => self.send(&mut send_state.transmitter),
            });
        send_state.outstanding -= 1;
        if send_state.has_waiter {
            self.changed.notify_all();
        }
        drop(send_state);
        match sent {
            Err(error) if !is_closed(&error) => {
                // The ledger has the request as answered, and its reply is staged but not sent.
                // Only a successor can send it.
                tracing::error!("cannot answer, so a successor must: {error}");
                std::process::abort();
            }
            // The lane's thread notices a closed socket when it receives, and ends.
            Ok(()) | Err(_) => {}
        }
    }

    fn make_room(&self, transmitter: &mut Transmitter, length: u32) -> io::Result<()> {
        if transmitter.fits(length) && transmitter.staged() < SEND_THRESHOLD {
            return Ok(());
        }
        self.send(transmitter)
    }

    fn send(&self, transmitter: &mut Transmitter) -> io::Result<()> {
        if transmitter.staged() == 0 {
            return Ok(());
        }
        if let Some(recorder) = &self.recorder {
            recorder.answering(transmitter);
        }
        transmitter.send()?;
        if !self.answered.load(Ordering::Relaxed) && !self.answered.swap(true, Ordering::Relaxed) {
            transmitter.lane().ledger().header().first_answer_at.store(now(), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The lane's thread.
pub(crate) struct LaneThread {
    pub(crate) receiver: Receiver,
    pub(crate) state: Arc<LaneState>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) export: RequestRules,
    pub(crate) busy_poll: BusyPoll,
}

impl LaneThread {
    /// Serves until the kernel disconnects. `tickets` are those that a predecessor left.
    pub(crate) fn run(self, tickets: Vec<Ticket>) -> Result<(), LaneError> {
        let _abort = AbortOnPanic;
        match self.run_loop(tickets) {
            // The kernel has disconnected; sending may notice that before receiving does.
            Err(LaneError::Socket(error)) if is_closed(&error) => Ok(()),
            end => end,
        }
    }

    fn run_loop(mut self, mut tickets: Vec<Ticket>) -> Result<(), LaneError> {
        let workers = Arc::clone(&self.workers);
        let mut dispatcher = Dispatcher::new(&workers);
        self.serve(&mut dispatcher, &mut tickets, now()).map_err(LaneError::Socket)?;
        loop {
            let time = now();
            let rest = self.receiver.take(time, &mut tickets)?;
            let served = !tickets.is_empty();
            if let Some(recorder) = &self.state.recorder {
                recorder.taken(&tickets, false);
            }
            self.serve(&mut dispatcher, &mut tickets, time).map_err(LaneError::Socket)?;
            match rest {
                TakeOutcome::AllTaken => match self.receive()? {
                    RecvOutcome::Bytes => {
                        let state = &self.state;
                        dispatcher.request_arrived(|| lock(&state.send_state).outstanding == 0);
                    }
                    RecvOutcome::Closed => return Ok(()),
                },
                TakeOutcome::NoFreeSlot if served => {}
                TakeOutcome::NoFreeSlot => self.wait_until(|this, _| this.receiver.has_slot()),
                TakeOutcome::Disconnect => {
                    self.wait_until(|_, outstanding| outstanding == 0);
                    return Ok(());
                }
            }
        }
    }

    /// Answers a request with EIO without executing it.
    pub(crate) fn fail_with_eio(&self, ticket: Ticket) {
        lock(&self.state.send_state).outstanding += 1;
        self.state.answer(ticket, Answer::Error(NbdError::EIO), false);
    }

    /// Executes a request while nothing else is executed, and waits for it for
    /// [`ISOLATION_TIMEOUT`] at most.
    pub(crate) fn run_isolated(&self, ticket: Ticket) {
        let Ok(command) = ticket.request().check(&self.export) else {
            // An invalid request is never executed, so this is no suspect unless the ledger is
            // wrong.
            return self.fail_with_eio(ticket);
        };
        lock(&self.state.send_state).outstanding += 1;
        let lane = Arc::clone(&self.state);
        self.workers.submit(Box::new(LaneTask { ticket, command, lane, is_held_back: false }));
        let mut send_state = lock(&self.state.send_state);
        send_state.has_waiter = true;
        let waited =
            self.state.changed.wait_timeout_while(send_state, ISOLATION_TIMEOUT, |send_state| {
                send_state.outstanding > 0
            });
        send_state = waited.unwrap_or_else(PoisonError::into_inner).0;
        send_state.has_waiter = false;
    }

    fn receive(&mut self) -> Result<RecvOutcome, LaneError> {
        if !self.receiver.has_space() {
            self.wait_until(|this, _| this.receiver.has_space());
        }
        let lane = Arc::clone(self.receiver.lane());
        loop {
            match self.busy_poll.receive(lane.socket(), || self.receiver.receive()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(LaneError::Socket),
            }
        }
    }

    /// Waits for replies of workers until a condition holds.
    fn wait_until(&mut self, mut holds: impl FnMut(&mut Self, usize) -> bool) {
        let state = Arc::clone(&self.state);
        let mut send_state = lock(&state.send_state);
        send_state.has_waiter = true;
        while !holds(self, send_state.outstanding) {
            send_state = state.changed.wait(send_state).unwrap_or_else(PoisonError::into_inner);
        }
        send_state.has_waiter = false;
    }

    /// Executes or submits a batch, and sends the replies that are ready.
    ///
    /// `time` is when the batch was received. Each request begins when the one before it ended, so
    /// the clock, which is a slow system call on some machines, is read once for each request.
    fn serve(
        &self,
        dispatcher: &mut Dispatcher<'_>,
        tickets: &mut Vec<Ticket>,
        time: u64,
    ) -> io::Result<()> {
        if tickets.is_empty() {
            return Ok(());
        }
        let Self { state, export, .. } = self;
        let mut send_state = lock(&state.send_state);
        let SendState { transmitter, outstanding, .. } = &mut *send_state;
        let is_only_request = tickets.len() == 1 && *outstanding == 0;
        let mut sink = LaneSink { transmitter, outstanding, lane: state, export, time };
        let mut rest = tickets.drain(..);
        while let Some(ticket) = rest.next() {
            // Prefetches the data of the following request while this one is executed.
            if let Some(next) = rest.as_slice().first().map(Ticket::request) {
                dispatcher.prefetch(next.offset, next.length);
            }
            state.make_room(sink.transmitter, ticket.request().length)?;
            let request = LaneRequest { ticket, time: sink.time };
            let Ok(()) = dispatcher.dispatch(&mut sink, request, is_only_request);
        }
        let sent = state.send(&mut send_state.transmitter);
        drop(send_state);
        // A socket that is closed for sending does not keep writes from being executed.
        if dispatcher.run_queued() { sent.and(state.send_staged()) } else { sent }
    }
}

/// A request, and when its execution begins if that is now.
struct LaneRequest {
    ticket: Ticket,
    time: u64,
}

impl ReceivedRequest for LaneRequest {
    fn payload(&self) -> &[u8] {
        self.ticket.payload()
    }

    fn begin(&self) {
        self.ticket.begin(self.time);
    }

    fn durability(&self) -> &dyn Durability {
        &**self.ticket.lane().ledger()
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.ticket.lane().socket()
    }
}

/// The replies of a batch, while the lane's lock is held.
struct LaneSink<'a> {
    transmitter: &'a mut Transmitter,
    outstanding: &'a mut usize,
    lane: &'a Arc<LaneState>,
    export: &'a RequestRules,
    /// When the last request ended, or the batch was received.
    time: u64,
}

impl ReplySink for LaneSink<'_> {
    type Request = LaneRequest;
    type Refusal = Rejection;
    type Blocked = Infallible;

    fn check(&self, request: &LaneRequest) -> Result<Command, Rejection> {
        request.ticket.request().check(self.export)
    }

    fn refuse(&mut self, LaneRequest { ticket, time }: LaneRequest, rejection: Rejection) {
        tracing::warn!("refused {}: {rejection}", ticket.request());
        let error = match rejection.error() {
            NbdError::SUCCESS => NbdError::EINVAL,
            error => error,
        };
        stage(self.transmitter, ticket, Answer::Error(error), time);
    }

    fn room(&mut self, _request: &LaneRequest, command: &Command) -> Room<'_> {
        Room::Inline(match *command {
            Command::Read { length, .. } => self.transmitter.room_for_data(length),
            _ => &mut [],
        })
    }

    fn complete(&mut self, request: LaneRequest, command: &Command, done: Result<(), NbdError>) {
        let answer = match (done, command) {
            (Ok(()), Command::Read { .. }) => Answer::DataInPlace,
            (Ok(()), _) => Answer::Done,
            (Err(error), _) => Answer::Error(error),
        };
        self.time = now();
        stage(self.transmitter, request.ticket, answer, self.time);
    }

    fn queue(
        &mut self,
        LaneRequest { ticket, .. }: LaneRequest,
        command: Command,
    ) -> Result<Box<dyn Task>, Infallible> {
        *self.outstanding += 1;
        let lane = Arc::clone(self.lane);
        Ok(Box::new(LaneTask { ticket, command, lane, is_held_back: false }))
    }
}

/// A submitted request.
struct LaneTask {
    ticket: Ticket,
    command: Command,
    lane: Arc<LaneState>,
    is_held_back: bool,
}

impl Task for LaneTask {
    fn command(&self) -> &Command {
        &self.command
    }

    fn payload(&self) -> &[u8] {
        self.ticket.payload()
    }

    fn begin(&self) {
        self.ticket.begin(now());
    }

    fn hold_back(&mut self) {
        self.is_held_back = true;
    }

    fn durability(&self) -> &dyn Durability {
        &**self.ticket.lane().ledger()
    }

    fn finish(self: Box<Self>, completion: Completion<'_>) {
        let answer = match completion {
            Completion::Done => Answer::Done,
            Completion::Data(data) => Answer::Data(data),
            Completion::Error(error) => Answer::Error(error),
            // The driver never asks for block status, and a lane does not offer it.
            Completion::Extents(_) => Answer::Error(NbdError::EINVAL),
        };
        self.lane.answer(self.ticket, answer, self.is_held_back);
    }
}

/// Whether the kernel has closed its end, so that it waits for no reply any more.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Stages a reply and notes it in the flight recorder; `time` is when the execution ended.
fn stage(transmitter: &mut Transmitter, ticket: Ticket, answer: Answer<'_>, time: u64) {
    let error = match answer {
        Answer::Error(error) => error,
        Answer::Done | Answer::Data(_) | Answer::DataInPlace => NbdError::SUCCESS,
    };
    transmitter.record_execution(&ticket, error, time);
    transmitter.stage(ticket, answer);
}
