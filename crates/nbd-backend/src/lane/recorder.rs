//! Writing requests to the capture that the holder has granted, before they are executed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nbd_control::system_error::chain;
use nbd_ledger::Transmitter;
use nbd_ledger::receive::Ticket;
use nbd_record::{CaptureState, CaptureWriter};

use crate::clock::now;
use crate::panics::lock;

/// The capture, shared by all lanes.
pub(crate) struct Recorder {
    writer: Mutex<CaptureWriter>,
    is_over: AtomicBool,
}

impl Recorder {
    /// Continues a capture. If it cannot be used, the device is served without it.
    pub(crate) fn open(file: OwnedFd, generation: u64) -> Option<Arc<Self>> {
        let mut writer = match CaptureWriter::resume(File::from(file)) {
            Ok(writer) => writer,
            Err(error) => {
                tracing::warn!("not recorded: the recording {}", chain(&error));
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

/// The capture, for one lane. Its functions are cold and not inlined: inlined, they cost
/// instructions where nothing is captured.
pub(crate) struct LaneRecorder {
    recorder: Arc<Recorder>,
    lane: u32,
    /// How many replies of the flight recorder have been written to the capture.
    written: AtomicU64,
}

impl LaneRecorder {
    pub(crate) fn new(recorder: &Arc<Recorder>, transmitter: &Transmitter) -> Self {
        Self {
            recorder: Arc::clone(recorder),
            lane: transmitter.lane().index(),
            written: AtomicU64::new(transmitter.executions_recorded()),
        }
    }

    /// Writes received requests, before any of them is executed: so the one that crashes the
    /// backend is in the capture. `before` is set if a predecessor received them.
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

    /// Writes the results that the flight recorder has since the last call, before the replies are
    /// sent. The caller holds the transmitter's lock.
    #[cold]
    #[inline(never)]
    pub(crate) fn answering(&self, transmitter: &Transmitter) {
        let written = self.written.swap(transmitter.executions_recorded(), Ordering::Relaxed);
        self.recorder.write(|writer| {
            for done in transmitter.executions_from(written) {
                writer.answer(self.lane, done.request.cookie, done.error, done.finished_at);
            }
        });
    }
}
