//! A backend that does not come back: what the log, the status and waiting operators are told while
//! the core has it started again and again.

use std::io;
use std::time::{Duration, Instant};

use nbd_control::status::RetryStatus;
use nix::errno::Errno;

use crate::core::Event;
use crate::core::ownership::LONGEST_PAUSE;
use crate::holder::Holder;
use crate::holder::outage::{Outage, Subject};

/// A backend that has nothing to answer counts as well again after so long.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How often to look whether a backend that came after failures has answered.
const STABLE_INTERVAL: Duration = Duration::from_millis(500);

/// Whether a failure comes from a want of memory, descriptors, processes or space, which is not the
/// backend's fault and may pass.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            Errno::ENOSPC
                | Errno::EDQUOT
                | Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOMEM
                | Errno::ENOBUFS
                | Errno::EAGAIN
        )
    )
}

impl Holder {
    /// Logs a failure, unless it is the same as before.
    pub(crate) fn complain(&mut self, subject: Subject, text: &str) {
        if self.told.complaints.is_new(subject, text) {
            self.warn(text);
        } else {
            self.log_repeated(text);
        }
    }

    pub(crate) fn log_repeated(&self, text: &str) {
        tracing::debug!(device = %self.device.name(), "{text}");
    }

    /// Why the program could not be started or did not get as far as serving.
    pub(crate) fn note_failure(&mut self, text: String) {
        self.complain(Subject::Backend, &text);
        self.told.failures.backend = text;
    }

    /// The program is started again after a pause.
    pub(crate) fn begin_outage(&mut self) {
        let tries = self.core.ownership.tries();
        match &mut self.told.outage {
            Some(outage) => (outage.tries, outage.ready) = (tries, None),
            None => {
                let since = self.core.unserved_since().unwrap_or_else(Instant::now);
                self.told.outage = Some(Outage { since, tries, ready: None });
                tracing::warn!(
                    device = %self.device.name(),
                    event = "retrying",
                    "no backend serves the device: {}; it is started again after growing pauses of up to {} s",
                    self.told.failures.backend,
                    LONGEST_PAUSE.as_secs()
                );
            }
        }
    }

    /// A backend is ready. After failures it has yet to show that it is better than those before.
    /// True if that is so, and nothing is to be logged before.
    pub(crate) fn is_on_probation(&mut self) -> bool {
        if let Some(outage) = &mut self.told.outage {
            outage.ready = Some(Instant::now());
            return true;
        }
        self.told.complaints.clear_backend();
        false
    }

    /// When to look whether the outage is over.
    pub(crate) fn outage_due(&self) -> Option<Instant> {
        self.told.outage.as_ref()?.ready.map(|_| Instant::now() + STABLE_INTERVAL)
    }

    /// Ends the outage once a backend has answered, or has had nothing to answer for a while.
    pub(crate) fn check_outage(&mut self) {
        let Some(&Outage { since, tries, ready: Some(ready) }) = self.told.outage.as_ref() else {
            return;
        };
        let is_idle = || ready.elapsed() >= STABLE_AFTER && self.device.waiting() == 0;
        if !self.core.ownership.is_ready() || !(self.has_answered() || is_idle()) {
            return;
        }
        self.told.outage = None;
        self.told.complaints.clear_backend();
        self.feed(Event::Stable);
        let pid = self.owner_pid();
        let recovered_ms = self.recovery().and_then(|recovery| recovery.ready_ms);
        let (pid, seconds) = (pid.unwrap_or(0), since.elapsed().as_secs());
        tracing::info!(
            device = %self.device.name(),
            event = "recovered",
            pid,
            recovered_ms,
            failed_tries = tries,
            "served by process {pid} again, {seconds} s after the first of {tries} failures"
        );
    }

    /// What operators are told of the outage while there is no backend.
    pub(crate) fn retry_status(&self) -> Option<RetryStatus> {
        let outage = self.told.outage.as_ref().filter(|outage| outage.ready.is_none())?;
        let now = Instant::now();
        let next = self
            .core
            .restart_due()
            .map(|due| due.saturating_duration_since(now).as_millis() as u64);
        Some(RetryStatus {
            since_ms: outage.since.elapsed().as_millis() as u64,
            tries: self.core.ownership.tries(),
            cause: self.told.failures.backend.clone(),
            next_ms: next,
        })
    }
}

/// What is known of failed tries, in words.
pub(crate) fn describe(retry: &RetryStatus) -> String {
    let next = match retry.next_ms {
        Some(next) => format!("the next try is in {} s", next.div_ceil(1000)),
        None => "the next try has begun".into(),
    };
    let times = if retry.tries == 1 { "try has" } else { "tries have" };
    format!(
        "{} {times} failed in {} s, the last one: {}; {next}",
        retry.tries,
        retry.since_ms / 1000,
        retry.cause
    )
}
