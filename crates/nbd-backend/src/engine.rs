//! From the holder's grant to the end of the last lane.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use nbd_control::backend::Poison;
use nbd_ledger::{Layout, Ledger, LedgerError};
use nbd_proto::RequestRules;
use thiserror::Error;

use crate::backend::Backend;
use crate::clock::now;
use crate::execution::{Workers, unoffered};
use crate::lane::busy_poll::BusyPoll;
use crate::lane::recorder::{LaneRecorder, Recorder};
use crate::lane::recovered_requests::{Predecessor, RecoveredRequests};
use crate::lane::{LaneError, LaneState, LaneThread, is_closed};
use crate::system::request_flusher_privileges;

/// How serving ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel disconnected every lane.
    Disconnected,
}

/// Why serving failed. Requests that were not answered stay in the ledger for a successor.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A lane failed.
    #[error("lane {lane} failed")]
    Lane {
        /// The lane.
        lane: u32,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// The kernel sent bytes that are no requests, so every successor would fail, too.
        is_final: bool,
    },
    /// The kernel refused a thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The connection to the holder failed.
    #[error("cannot talk to the holder")]
    Holder(#[from] nbd_control::ChannelError),
}

impl ServeError {
    /// Whether a successor would fail in the same way.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Ledger(error) => matches!(error, LedgerError::Corrupt(_)),
            Self::Lane { is_final, .. } => *is_final,
            Self::Thread(_) | Self::Holder(_) => false,
        }
    }
}

/// The descriptors and the layout that the holder has granted.
pub(crate) struct Granted {
    pub(crate) ledger: OwnedFd,
    pub(crate) sockets: Vec<OwnedFd>,
    pub(crate) layout: Layout,
    /// The file of a capture (`nbd-ctl record`).
    pub(crate) recording: Option<OwnedFd>,
}

/// A backend that has recovered and is not receiving yet.
pub(crate) struct Engine {
    ledger: Arc<Ledger>,
    lanes: Vec<(LaneThread, RecoveredRequests)>,
}

impl Engine {
    /// Maps the ledger, checks it, and sends the rest of the replies that a predecessor had begun
    /// to send.
    pub(crate) fn recover(
        granted: Granted,
        export: RequestRules,
        backend: &Arc<dyn Backend>,
        predecessor: Predecessor,
    ) -> Result<Self, ServeError> {
        request_flusher_privileges();
        let export = unoffered::widen(export);
        let Granted { ledger, sockets, layout, recording } = granted;
        let ledger = Ledger::open(ledger, &layout)?;
        let header = ledger.header();
        let generation = header.generation.load(Ordering::Relaxed).wrapping_add(1);
        let recorder = recording.and_then(|file| Recorder::open(file, generation));
        let answered = Arc::new(AtomicBool::new(false));
        let workers = Workers::new(Arc::clone(backend));
        let mut lanes = Vec::new();
        for (index, socket) in (0u32..).zip(sockets) {
            let (receiver, transmitter, recovery) = ledger.open_lane(index, socket)?;
            let recorder =
                recorder.as_ref().map(|recorder| LaneRecorder::new(recorder, &transmitter));
            if let Some(recorder) = &recorder {
                recorder.taken(&recovery.tickets, true);
            }
            let state = LaneState::new(transmitter, Arc::clone(&answered), recorder);
            state
                .finish()
                .or_else(ignore_closed)
                .map_err(|error| failed(index, LaneError::Socket(error)))?;
            let (workers, busy_poll) = (Arc::clone(&workers), BusyPoll::default());
            let thread = LaneThread { receiver, state, workers, export, busy_poll };
            lanes.push((thread, RecoveredRequests::classify(recovery.tickets, predecessor)));
        }
        header.first_answer_at.store(0, Ordering::Relaxed);
        header.ready_at.store(now(), Ordering::Relaxed);
        header.generation.store(generation, Ordering::Release);
        Ok(Self { ledger, lanes })
    }

    /// The ledger, which stays mapped for as long as this is kept.
    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    /// The number of requests that a predecessor received and did not answer.
    pub(crate) fn replayed(&self) -> u32 {
        self.lanes.iter().map(|(_, recovered)| recovered.len()).sum()
    }

    /// Requests that fail with EIO because they crashed too many backends.
    pub(crate) fn poisoned(&self) -> impl Iterator<Item = Poison> {
        let lanes = (0..).zip(&self.lanes);
        lanes.flat_map(|(lane, (_, recovered))| recovered.poisoned(lane))
    }

    /// As [`run`](Self::run); all threads have ended if that succeeds.
    pub(crate) fn run_and_join(self) -> Result<Outcome, ServeError> {
        let workers = self.lanes.first().map(|(lane, _)| Arc::clone(&lane.workers));
        let outcome = self.run()?;
        if let Some(workers) = workers {
            workers.close();
        }
        Ok(outcome)
    }

    /// Serves all lanes until the kernel disconnects them, or until one cannot go on: then the
    /// whole process ends, for a successor to serve all of them.
    pub(crate) fn run(self) -> Result<Outcome, ServeError> {
        let count = self.lanes.len();
        let (end, ends) = mpsc::channel();
        let mut lanes = Vec::new();
        for (mut thread, recovered) in self.lanes {
            lanes.push((recovered.run_suspects(&mut thread), thread));
        }
        for (index, (tickets, thread)) in (0u32..).zip(lanes) {
            let end = end.clone();
            if count == 1 {
                // A single lane runs on this thread, which would only wait otherwise. `ends` is
                // received below, so sending cannot fail.
                let _ = end.send((index, thread.run(tickets)));
                continue;
            }
            std::thread::Builder::new()
                .name(format!("lane-{index}"))
                .spawn(move || drop(end.send((index, thread.run(tickets)))))
                .map_err(ServeError::Thread)?;
        }
        drop(end);
        for (index, result) in ends {
            result.map_err(|error| failed(index, error))?;
        }
        Ok(Outcome::Disconnected)
    }
}

fn failed(lane: u32, error: LaneError) -> ServeError {
    ServeError::Lane {
        lane,
        is_final: matches!(error, LaneError::Stream(_)),
        source: Box::new(error),
    }
}

/// Ignores that the kernel has disconnected already: then there is nothing to recover.
fn ignore_closed(error: io::Error) -> io::Result<()> {
    if is_closed(&error) { Ok(()) } else { Err(error) }
}
