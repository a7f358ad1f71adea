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
use crate::inheritance::{Inheritance, Predecessor};
use crate::lane::{LaneError, LaneState, LaneThread, is_closed};
use crate::lull::Lull;
use crate::recorder::{LaneRecorder, Recorder};
use crate::system::stay_in_memory;
use crate::unoffered;
use crate::vigil::Vigil;
use crate::workers::Workers;

/// How serving ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel disconnected every lane.
    Disconnected,
}

/// Why serving ended. Requests that were not answered wait in the ledger for a successor.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A lane cannot go on.
    #[error("lane {lane} failed")]
    Lane {
        /// The lane.
        lane: u32,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// The kernel and we disagree about the stream, so it never will.
        is_final: bool,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The holder cannot be told.
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

/// What the holder has granted.
pub(crate) struct Granted {
    pub(crate) ledger: OwnedFd,
    pub(crate) sockets: Vec<OwnedFd>,
    pub(crate) layout: Layout,
    /// What requests are written to.
    pub(crate) recording: Option<OwnedFd>,
}

/// A backend that has recovered and is not receiving yet.
pub(crate) struct Engine {
    lanes: Vec<(LaneThread, Inheritance)>,
}

impl Engine {
    /// Maps the ledger, checks it, and finishes what a predecessor had half sent.
    pub(crate) fn recover(
        granted: Granted,
        export: RequestRules,
        backend: &Arc<dyn Backend>,
        predecessor: Predecessor,
    ) -> Result<Self, ServeError> {
        stay_in_memory();
        let (backend, export) = (&unoffered::complete(backend), unoffered::widen(export));
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
            let (backend, workers) = (Arc::clone(backend), Arc::clone(&workers));
            let thread = LaneThread {
                receiver,
                state,
                backend,
                workers,
                export,
                lull: Lull::default(),
                vigil: Vigil::default(),
            };
            lanes.push((thread, Inheritance::sort(recovery.tickets, predecessor)));
        }
        header.first_answer_at.store(0, Ordering::Relaxed);
        header.ready_at.store(now(), Ordering::Relaxed);
        header.generation.store(generation, Ordering::Release);
        Ok(Self { lanes })
    }

    /// Requests that a predecessor took and did not answer.
    pub(crate) fn replayed(&self) -> u32 {
        self.lanes.iter().map(|(_, inheritance)| inheritance.len()).sum()
    }

    /// Requests that will not be executed, as they crashed too many backends.
    pub(crate) fn poisoned(&self) -> impl Iterator<Item = Poison> {
        let lanes = (0..).zip(&self.lanes);
        lanes.flat_map(|(lane, (_, inheritance))| inheritance.poisoned(lane))
    }

    /// Serves all lanes until the kernel disconnects them, or until one cannot go on: then the
    /// whole process ends, for a successor to serve all of them.
    pub(crate) fn run(self) -> Result<Outcome, ServeError> {
        let count = self.lanes.len();
        let (end, ends) = mpsc::channel();
        let mut lanes = Vec::new();
        for (mut thread, inheritance) in self.lanes {
            lanes.push((inheritance.settle(&mut thread), thread));
        }
        for (index, (tickets, thread)) in (0u32..).zip(lanes) {
            let end = end.clone();
            if count == 1 {
                // It needs no thread of its own: this one would only wait.
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

/// The kernel may be gone already; then there is nothing to recover.
fn ignore_closed(error: io::Error) -> io::Result<()> {
    if is_closed(&error) { Ok(()) } else { Err(error) }
}
