//! What the log, and the operator who waits for an attach, are told of the core's decisions.

use std::time::{Duration, Instant};

use nbd_control::control::{Failure, Report};

use super::{DROPPED, describe_errno, words_for};
use crate::core::{BackendId, Note};
use crate::holder::Holder;
use crate::holder::backend_process::BackendProcess;
use crate::holder::outage::Subject;

impl Holder {
    pub(crate) fn write_note(&mut self, note: Note) {
        match note {
            Note::AwaitingJoin => {
                let name = self.device.name();
                self.notice(&format!(
                    "{name} waits for its backend: run `nbd-serve --join {name} SPEC`, or NBD_JOIN={name} PROGRAM"
                ));
            }
            Note::NotAttached(error) => self.told.failures.attach = self.not_attached(&error),
            Note::Stopping => nbd_control::service::stopping(),
            Note::Attached => {
                self.log_attached();
                self.announce();
            }
            Note::UdevLate => {
                self.notice("udev is still at work; the device may be busy for a moment");
            }
            Note::Retrying { pause } => self.note_retry(pause),
            Note::FormerProgramAgain => {
                let last = &self.told.failures.backend;
                self.warn(&format!("the former program is started again: {last}"));
            }
            Note::GaveUp => {
                self.log_error("gave-up", |last| format!("giving up on the backend: {last}"));
            }
            Note::SpareReady => {
                if self.told.complaints.clear(Subject::Spare) {
                    self.log("a spare backend is ready again");
                }
            }
            Note::EioBackendReady => {
                self.told.complaints.clear(Subject::EioBackend);
                self.log("requests are answered with EIO");
                self.skip_generation();
            }
            Note::Recovered { backend } => self.log_recovered(backend),
            Note::DeviceFailed => {
                let reason = self.told.failures.device.clone().unwrap_or_default();
                tracing::error!(
                    device = %self.device.name(),
                    event = "failed",
                    "the device has failed: {reason}; detach it and attach it anew"
                );
            }
            Note::GrantWaits { backend } => {
                let process = self.processes.backends.get(&backend);
                let pid = process.and_then(BackendProcess::pid).unwrap_or(0);
                self.warn(&format!(
                    "backend {pid} gets the lanes when the state that names it is written"
                ));
            }
            Note::Failing => tracing::warn!(
                device = %self.device.name(),
                event = "failing",
                "what is in flight is to be answered with EIO"
            ),
            Note::RequestsFailed => {
                let errors = self.totals().errors.saturating_sub(self.told.errors_before);
                self.told.failed_requests = errors.max(self.data.noted.len() as u64);
            }
            Note::FailWithdrawn => self.warn(&self.fail_withdrawn_words()),
            Note::Unserved => {
                let since = self.core.unserved_since();
                let seconds = since.map_or(0, |since| since.elapsed().as_secs());
                tracing::warn!(
                    device = %self.device.name(),
                    event = "unserved",
                    seconds,
                    "there has been no backend for {seconds} s"
                );
            }
            Note::Paused => {
                tracing::info!(device = %self.device.name(), event = "paused", "paused");
            }
            Note::Resumed => {
                tracing::info!(device = %self.device.name(), event = "resumed", "resumed");
            }
            Note::OwnerEndedAsTold => self.log_owner_end("as ordered"),
            Note::OwnerEndedGivenUp => {
                self.log_owner_end("because the device is detached by force");
            }
            Note::OwnerLost => self.log_owner_lost(),
            Note::EioBackendEnded => self.log_eio_backend_end(),
            Note::NotDisconnected => {
                self.log(
                    "everything is written back; the driver did not disconnect, so its sockets are closed",
                );
            }
            Note::DriverSlow => self.warn("the driver is slow to disconnect; clearing its sockets"),
            Note::OwnerKilledLate => {
                let pid = self.owner_pid().unwrap_or(0);
                self.warn(&format!("backend {pid} does not end, so it is killed"));
            }
            Note::ProcessesLate => {
                for orphan in &self.processes.orphans {
                    self.warn(&format!("process {} was killed and is not dead yet", orphan.pid));
                }
            }
            Note::TimeoutsNotRestored { status } => {
                let why = status.map_or("the kernel is slow", describe_errno);
                self.warn(&format!("queue/io_timeout could not be restored: {why}"));
            }
            Note::Unanswered => {
                self.warn("what is in flight could not be answered with EIO in time");
            }
            Note::Detached(released) => self.log_detached(&released),
            Note::Dropped => {
                tracing::error!(device = %self.device.name(), event = "dropped", "{DROPPED}");
            }
            Note::Stuck => self.told.failures.device = Some(self.stuck().text),
            Note::Left(error) => self.warn(&self.not_detached(&error).text),
            Note::Kept(users) => {
                let (words, _) = words_for(&users);
                self.warn(&format!("the driver keeps the device for its users: it is {words}"));
            }
            Note::NotStopped(error) => {
                let Failure { text, .. } = self.not_detached(&error);
                self.warn(&format!(
                    "asked to stop: {text}; the device stays as it is, and `nbd-ctl` adopts it"
                ));
            }
            Note::ProbeStarted => {
                self.log("a backend is started to read the present size of its storage");
            }
            Note::Resized { size, before } => tracing::info!(
                device = %self.device.name(),
                event = "resized",
                size,
                before,
                "{}",
                self.resized_words(size, before)
            ),
            Note::NotResized(error) => tracing::warn!(
                device = %self.device.name(),
                event = "not-resized",
                "not resized: {}",
                self.not_resized(&error).text
            ),
            Note::NotUpgraded(error) => self.log(&self.not_upgraded(&error).text),
        }
    }

    fn log_error(&self, event: &str, words: impl Fn(&str) -> String) {
        let text = words(&self.told.failures.backend);
        tracing::error!(device = %self.device.name(), event, "{text}");
    }

    fn log_attached(&mut self) {
        self.pass_on_words();
        let export = self.export();
        let took = self.told.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        tracing::info!(
            device = %self.device.name(),
            event = "ready",
            export = %self.data.description,
            size = export.size,
            block_size = export.block_size,
            lanes = self.data.lanes.len(),
            backend = self.owner_pid(),
            took_ms = took.as_millis() as u64,
            "{} can be used",
            self.device.path().display()
        );
    }

    /// Tells the program that started us that the device can be used.
    pub(crate) fn announce(&mut self) {
        let path = self.device.path().display().to_string();
        if self.sockets.is_foreground {
            println!("{path}");
            nbd_control::service::ready(&format!("holds {path}"));
            return;
        }
        self.report(&Report::Ready { path });
        self.sockets.report = None;
    }

    /// It is told as an event, beside the words, that an attach has begun.
    pub(crate) fn log_attach(&mut self) {
        self.told.begun = Some(Instant::now());
        tracing::info!(
            device = %self.device.name(),
            event = "attach",
            kernel_api = self.settings.api.name(),
            program = self.settings.program.join(" "),
            "being attached"
        );
    }

    fn log_recovered(&mut self, backend: BackendId) {
        let process = self.processes.backends.get(&backend);
        let pid = process.and_then(BackendProcess::pid).unwrap_or(0);
        if !self.core.is_attached() || self.is_on_probation() {
            return;
        }
        let replayed = self.told.history.loss.as_ref().and_then(|loss| loss.replayed).unwrap_or(0);
        let recovered_ms = self.recovery().and_then(|recovery| recovery.ready_ms);
        tracing::info!(
            device = %self.device.name(),
            event = "recovered",
            pid,
            replayed,
            recovered_ms,
            "served by process {pid} again; {replayed} requests replayed"
        );
    }

    fn note_retry(&mut self, pause: Duration) {
        self.begin_outage();
        self.log_repeated(&format!("starting the backend again in {} ms", pause.as_millis()));
    }
}
