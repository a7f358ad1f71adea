//! Writing requests to the recording that the holder has granted, before they are executed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nbd_ledger::Transmitter;
use nbd_ledger::receive::Ticket;
use nbd_record::{CaptureState, CaptureWriter};

use crate::clock::now;
use crate::lane::lock;

/// The recording, common to all lanes.
pub(crate) struct Recorder {
    writer: Mutex<CaptureWriter>,
    is_over: AtomicBool,
}

impl Recorder {
    /// Goes on with a recording. One that cannot be used is no reason not to serve.
    pub(crate) fn open(file: OwnedFd, generation: u64) -> Option<Arc<Self>> {
        let mut writer = match CaptureWriter::resume(File::from(file)) {
            Ok(writer) => writer,
            Err(error) => {
                tracing::warn!("not recorded: the recording {}", crate::chain(&error));
                return None;
            }
        };
        if writer.state() != CaptureState::Going {
            return None;
        }
        writer.backend_started(generation, std::process::id(), now());
        Some(Arc::new(Self { writer: Mutex::new(writer), is_over: AtomicBool::new(false) }))
    }

    fn write(&self, add: impl FnOnce(&mut CaptureWriter)) {
        if self.is_over.load(Ordering::Relaxed) {
            return;
        }
        let mut writer = lock(&self.writer);
        add(&mut writer);
        let state = writer.commit();
        if state != CaptureState::Going && !self.is_over.swap(true, Ordering::Relaxed) {
            tracing::warn!("the recording is over: {state}; the device goes on");
        }
    }
}

/// The recording, as one lane sees it. Its functions are cold: inlined, they cost those who do not
/// record registers and moves.
pub(crate) struct LaneRecorder {
    recorder: Arc<Recorder>,
    lane: u32,
    /// How many answers of the flight recorder's have been written.
    told: AtomicU64,
}

impl LaneRecorder {
    pub(crate) fn new(recorder: &Arc<Recorder>, transmitter: &Transmitter) -> Self {
        Self {
            recorder: Arc::clone(recorder),
            lane: transmitter.lane().index(),
            told: AtomicU64::new(transmitter.executions_recorded()),
        }
    }

    /// Requests were taken, by a predecessor `before` perhaps, and none of them is executed yet.
    #[cold]
    #[inline(never)]
    pub(crate) fn taken(&self, tickets: &[Ticket], before: bool) {
        self.recorder.write(|writer| {
            let time = now();
            for ticket in tickets {
                writer.request(self.lane, ticket.request(), ticket.payload(), before, time);
            }
        });
    }

    /// The requests that were executed since the last time are about to be answered. Their results
    /// are those that the flight recorder has. Called by whoever holds the transmitter's lock.
    #[cold]
    #[inline(never)]
    pub(crate) fn answering(&self, transmitter: &Transmitter) {
        let told = self.told.swap(transmitter.executions_recorded(), Ordering::Relaxed);
        self.recorder.write(|writer| {
            for done in transmitter.executions_from(told) {
                writer.answer(self.lane, done.request.cookie, done.error, done.finished_at);
            }
        });
    }
}
