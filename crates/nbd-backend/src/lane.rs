//! Serving one lane: take requests, execute what is quick, hand on what may block, answer.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_ledger::receive::{TakeOutcome, Ticket};
use nbd_ledger::{Answer, Receiver, RecvOutcome, StreamError, Transmitter};
use nbd_proto::{Command, NbdError, Rejection, RequestRules};
use thiserror::Error;

use crate::backend::Backend;
use crate::clock::now;
use crate::durability::Durability;
use crate::lull::Lull;
use crate::recorder::LaneRecorder;
use crate::task::{self, Completion, Task};
use crate::vigil::Vigil;
use crate::workers::Workers;

/// Staged bytes that are worth a system call of their own, so that the kernel can copy while
/// we go on.
const ENOUGH: u64 = 256 << 10;

/// A request that crashes its backend does so within this time.
const DEADLY: Duration = Duration::from_secs(1);

/// Why a lane cannot go on.
#[derive(Debug, Error)]
pub(crate) enum LaneError {
    #[error("the kernel sent something else than requests")]
    Stream(#[from] StreamError),
    #[error("cannot receive from or send to the kernel")]
    Socket(#[source] io::Error),
}

/// What the lane's thread and the workers share.
pub(crate) struct LaneState {
    outbox: Mutex<Outbox>,
    changed: Condvar,
    /// Set once this process has answered anything at all; all lanes share it.
    answered: Arc<AtomicBool>,
    recorder: Option<LaneRecorder>,
}

struct Outbox {
    transmitter: Transmitter,
    /// Requests that workers have.
    outstanding: usize,
    /// Whether the lane's thread waits for a change.
    awaited: bool,
}

impl LaneState {
    pub(crate) fn new(
        transmitter: Transmitter,
        answered: Arc<AtomicBool>,
        recorder: Option<LaneRecorder>,
    ) -> Arc<Self> {
        let outbox = Outbox { transmitter, outstanding: 0, awaited: false };
        Arc::new(Self { outbox: Mutex::new(outbox), changed: Condvar::new(), answered, recorder })
    }

    /// Sends what the predecessor left unsent.
    pub(crate) fn finish(&self) -> io::Result<()> {
        lock(&self.outbox).transmitter.finish()
    }

    /// Answers a request that a worker had.
    pub(crate) fn answer(&self, ticket: Ticket, answer: Answer<'_>) {
        let mut outbox = lock(&self.outbox);
        let sent = self
            .make_room(&mut outbox.transmitter, ticket.request().length)
            .map(|()| stage(&mut outbox.transmitter, ticket, answer, now()))
            .and_then(|()| self.send(&mut outbox.transmitter));
        outbox.outstanding -= 1;
        if outbox.awaited {
            self.changed.notify_all();
        }
        drop(outbox);
        match sent {
            Err(error) if !is_closed(&error) => {
                // The request counts as answered and its reply is not sent. A successor sends it.
                tracing::error!("cannot answer, so a successor must: {error}");
                std::process::abort();
            }
            // A closed socket is the lane's thread's business: it receives nothing more.
            Ok(()) | Err(_) => {}
        }
    }

    fn make_room(&self, transmitter: &mut Transmitter, length: u32) -> io::Result<()> {
        if transmitter.fits(length) && transmitter.staged() < ENOUGH {
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
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) export: RequestRules,
    pub(crate) lull: Lull,
    pub(crate) vigil: Vigil,
}

impl LaneThread {
    /// Serves until the kernel disconnects. `tickets` are those that a predecessor left.
    pub(crate) fn run(self, tickets: Vec<Ticket>) -> Result<(), LaneError> {
        let _abort = AbortOnPanic;
        match self.converse(tickets) {
            // However it was found out that the kernel has hung up.
            Err(LaneError::Socket(error)) if is_closed(&error) => Ok(()),
            end => end,
        }
    }

    fn converse(mut self, mut tickets: Vec<Ticket>) -> Result<(), LaneError> {
        self.serve(&mut tickets, now()).map_err(LaneError::Socket)?;
        loop {
            let time = now();
            let rest = self.receiver.take(time, &mut tickets)?;
            let served = !tickets.is_empty();
            if let Some(recorder) = &self.state.recorder {
                recorder.taken(&tickets, false);
            }
            self.serve(&mut tickets, time).map_err(LaneError::Socket)?;
            match rest {
                TakeOutcome::AllTaken => match self.receive()? {
                    RecvOutcome::Bytes => {
                        let state = &self.state;
                        self.lull.arrived(|| lock(&state.outbox).outstanding == 0);
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
    pub(crate) fn give_up(&self, ticket: Ticket) {
        lock(&self.state.outbox).outstanding += 1;
        self.state.answer(ticket, Answer::Error(NbdError::EIO));
    }

    /// Executes a request while nothing else is executed. One that takes its time is no longer
    /// waited for: it is slow, not deadly.
    pub(crate) fn try_alone(&self, ticket: Ticket) {
        let Ok(command) = ticket.request().check(&self.export) else {
            // Its predecessors saw nothing wrong with it.
            return self.give_up(ticket);
        };
        lock(&self.state.outbox).outstanding += 1;
        let lane = Arc::clone(&self.state);
        self.workers.submit(Box::new(LaneTask { ticket, command, lane }));
        let mut outbox = lock(&self.state.outbox);
        outbox.awaited = true;
        let waited =
            self.state.changed.wait_timeout_while(outbox, DEADLY, |outbox| outbox.outstanding > 0);
        outbox = waited.unwrap_or_else(PoisonError::into_inner).0;
        outbox.awaited = false;
    }

    fn receive(&mut self) -> Result<RecvOutcome, LaneError> {
        if !self.receiver.has_space() {
            self.wait_until(|this, _| this.receiver.has_space());
        }
        let lane = Arc::clone(self.receiver.lane());
        loop {
            match self.vigil.keep(lane.socket(), || self.receiver.receive()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(LaneError::Socket),
            }
        }
    }

    /// Waits for answers of workers until a condition holds.
    fn wait_until(&mut self, mut holds: impl FnMut(&mut Self, usize) -> bool) {
        let state = Arc::clone(&self.state);
        let mut outbox = lock(&state.outbox);
        outbox.awaited = true;
        while !holds(self, outbox.outstanding) {
            outbox = state.changed.wait(outbox).unwrap_or_else(PoisonError::into_inner);
        }
        outbox.awaited = false;
    }

    /// Executes or hands on a batch, and sends the answers that are there.
    ///
    /// `time` is when the batch was taken. Each request begins when the one before it was done, so
    /// that the clock, which is a slow system call on some machines, is read once for each.
    fn serve(&mut self, tickets: &mut Vec<Ticket>, mut time: u64) -> io::Result<()> {
        if tickets.is_empty() {
            return Ok(());
        }
        let state = Arc::clone(&self.state);
        let mut handed_on = Vec::new();
        let mut outbox = lock(&state.outbox);
        let alone = tickets.len() == 1 && outbox.outstanding == 0;
        let mut rest = tickets.drain(..);
        while let Some(ticket) = rest.next() {
            self.look_ahead(rest.as_slice().first());
            state.make_room(&mut outbox.transmitter, ticket.request().length)?;
            match ticket.request().check(&self.export) {
                Err(rejection) => reject(&mut outbox.transmitter, ticket, &rejection, time),
                Ok(command) => {
                    let transmitter = &mut outbox.transmitter;
                    match self.inline(transmitter, ticket, &command, time, alone) {
                        Ok(done_at) => time = done_at,
                        Err(ticket) => {
                            outbox.outstanding += 1;
                            if alone && self.backend.is_local(&command) {
                                self.lull.watch();
                            }
                            let lane = Arc::clone(&state);
                            handed_on.push(Box::new(LaneTask { ticket, command, lane }));
                        }
                    }
                }
            }
        }
        let sent = state.send(&mut outbox.transmitter);
        // A task may be finished while it is submitted, and that takes the lock.
        drop(outbox);
        for task in handed_on {
            self.workers.submit(task);
        }
        sent
    }

    /// Has what is needed next fetched while another request is executed.
    fn look_ahead(&self, next: Option<&Ticket>) {
        if let Some(next) = next.map(Ticket::request) {
            self.backend.prefetch(next.offset, next.length);
        }
    }

    /// Executes a command here if it does not wait for anything, or if it is alone and will probably
    /// stay so; and tells when that was done, or gives the ticket back.
    fn inline(
        &mut self,
        transmitter: &mut Transmitter,
        ticket: Ticket,
        command: &Command,
        time: u64,
        alone: bool,
    ) -> Result<u64, Ticket> {
        let room = match *command {
            Command::Read { length, .. } => transmitter.room_for_data(length),
            _ => &mut [],
        };
        let (backend, payload) = (&*self.backend, ticket.payload());
        let ledger = &**ticket.lane().ledger();
        let begin = || ticket.begin(time);
        let mut done = task::inline(backend, ledger, command, payload, room, begin);
        if done.is_none() && alone && self.lull.is_likely() {
            done = task::patiently(backend, ledger, command, payload, room, begin);
            if done.is_some() {
                self.lull.waited(ticket.lane().socket());
            }
        }
        let answer = match (done, command) {
            (None, _) => return Err(ticket),
            (Some(Ok(())), Command::Read { .. }) => Answer::DataInPlace,
            (Some(Ok(())), _) => Answer::Done,
            (Some(Err(error)), _) => Answer::Error(error),
        };
        let done_at = now();
        stage(transmitter, ticket, answer, done_at);
        Ok(done_at)
    }
}

/// A request that was handed on.
struct LaneTask {
    ticket: Ticket,
    command: Command,
    lane: Arc<LaneState>,
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

    fn durability(&self) -> &dyn Durability {
        &**self.ticket.lane().ledger()
    }

    fn finish(self: Box<Self>, completion: Completion<'_>) {
        let answer = match completion {
            Completion::Done => Answer::Done,
            Completion::Data(data) => Answer::Data(data),
            Completion::Error(error) => Answer::Error(error),
            // The driver never asks, and a lane offers it to nobody.
            Completion::Extents(_) => Answer::Error(NbdError::EINVAL),
        };
        self.lane.answer(self.ticket, answer);
    }
}

/// Whether the kernel has closed its end, so that nobody waits for an answer any more.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn reject(transmitter: &mut Transmitter, ticket: Ticket, rejection: &Rejection, time: u64) {
    tracing::warn!("refused {:?}: {rejection}", ticket.request());
    let error = match rejection.error() {
        NbdError::SUCCESS => NbdError::EINVAL,
        error => error,
    };
    stage(transmitter, ticket, Answer::Error(error), time);
}

/// Stages an answer and leaves a trace of it; `time` is when its execution was over.
fn stage(transmitter: &mut Transmitter, ticket: Ticket, answer: Answer<'_>, time: u64) {
    let error = match answer {
        Answer::Error(error) => error,
        Answer::Done | Answer::Data(_) | Answer::DataInPlace => NbdError::SUCCESS,
    };
    transmitter.record_execution(&ticket, error, time);
    transmitter.stage(ticket, answer);
}

/// Turns a panic of this thread into the death of the process: a request whose thread is gone
/// would never be answered, but a successor executes it again.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Locks a mutex that no thread can leave poisoned and live: see [`AbortOnPanic`].
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
