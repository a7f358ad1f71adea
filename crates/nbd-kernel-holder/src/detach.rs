//! The end of a device, in order or by force: what comes before it is taken down.

use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind, Response};
use nbd_control::status::{BackendState, TotalsStatus};
use nbd_device_users::User;

use crate::control::Waits;
use crate::device_users::words_for;
use crate::holder::Holder;
use crate::kernel::errand::{self, Errand, Flushed};
use crate::teardown::Released;

/// How long writing back may take, unless the operator forces.
const FLUSH: Duration = Duration::from_secs(60);
/// The same when the backend does not answer at all.
const FLUSH_UNSERVED: Duration = Duration::from_secs(3);
/// How long udev may take to look away. It may not be able to while the backend is stuck.
const UDEV: Duration = Duration::from_secs(3);

/// How long the steps of an end may take together. The last ones get a little time whatever the
/// others took, so that all ends within 10 s.
pub(crate) const TEARDOWN: Duration = Duration::from_millis(7500);

/// How a detach ended that was not refused.
#[derive(Debug)]
pub(crate) enum Detached {
    /// Nothing is left of the device.
    Clear(String),
    /// All of ours is gone, but the driver keeps the device for those who have it open.
    Held(Failure),
}

/// Why a device is gone without a detach.
pub(crate) const DROPPED: &str = "the driver has dropped the device: it was disconnected by another \
                                  program, or its sitter was stopped, frozen or killed";

impl Holder {
    /// Detaches, or says why not: without force nothing has changed then; with force the holder
    /// stays, to try again.
    pub(crate) fn detach(&mut self, force: bool) -> Result<Detached, Failure> {
        let name = self.device.name();
        let waiting = self.in_flight().len();
        if !force && self.failed.is_none() {
            self.flush_and_disconnect()?;
        }
        let waiting = if force { waiting } else { 0 };
        let deadline = Instant::now() + TEARDOWN;
        if self.is_forced() || force {
            self.answer_in_flight();
        }
        let counted = self.totals();
        // The counts are the ledger's, which the teardown lets go of.
        let totals = match &self.failed {
            None => self.summary(),
            // What would be counted from has been scribbled over.
            Some(reason) => format!("it had failed ({reason})"),
        };
        let released = self.teardown(deadline)?;
        let failed = match waiting {
            0 => String::new(),
            count => format!("; {count} requests in flight were failed with EIO"),
        };
        let text = match &released {
            Released::Clear => format!("{name} is detached: {totals}{failed}"),
            Released::InUse(users) => held(&name, users, &failed),
        };
        let TotalsStatus { reads, writes, flushes, trims, errors, .. } = counted;
        let TotalsStatus { read_bytes, written_bytes, .. } = counted;
        tracing::info!(
            device = %name,
            event = "detached",
            reads,
            writes,
            flushes,
            trims,
            errors,
            read_bytes,
            written_bytes,
            given_up = waiting,
            restarts = self.supervisor.restarts(),
            "{text}"
        );
        Ok(match released {
            Released::Clear => Detached::Clear(text),
            Released::InUse(_) => Detached::Held(Failure::new(FailureKind::Busy, text)),
        })
    }

    fn summary(&mut self) -> String {
        let totals = self.status().totals;
        format!(
            "{} reads, {} writes, {} flushes, {} trims, {} errors",
            totals.reads, totals.writes, totals.flushes, totals.trims, totals.errors
        )
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.pending_detach.is_some_and(|(_, force)| force)
    }

    fn flush_and_disconnect(&mut self) -> Result<(), Failure> {
        self.check_unused("", "detach")?;
        self.tell_udev_leaving(true, UDEV);
        self.is_leaving = true;
        let done = self.flush_and_disconnect_unwatched();
        if done.is_err() {
            self.is_leaving = false;
            if done.as_ref().is_err_and(|failure| failure.kind == FailureKind::TimedOut) {
                // The driver may have told the backend to end, or still do it.
                self.told_to_end = self.supervisor.owner();
            }
            self.miss_departed();
            self.tell_udev_leaving(false, UDEV);
        }
        done
    }

    fn flush_and_disconnect_unwatched(&mut self) -> Result<(), Failure> {
        let name = self.device.name();
        let limit = if self.supervisor.is_ready() { FLUSH } else { FLUSH_UNSERVED };
        let errand = errand::flush_and_disconnect(&self.device, self.settings.api);
        let fail = |kind, text: String| Err(Failure::new(kind, text));
        let by_force = format!("`nbd-ctl detach --force {name}` gives it up");
        match self.run_detach_errand(errand, limit).map(Flushed::from_status) {
            _ if self.is_forced() => Ok(()),
            Some(Flushed::Disconnected) => {
                self.is_disconnected = true;
                Ok(())
            }
            Some(Flushed::NotDisconnected) => {
                self.log(
                    "written back; the driver would not disconnect, so its sockets are closed",
                );
                Ok(())
            }
            Some(Flushed::Busy) => {
                // What has come since it was looked at.
                self.check_unused("", "detach")?;
                fail(
                    FailureKind::Busy,
                    format!(
                        "{name} is in use by the kernel (mounted, swap, or part of another device)"
                    ),
                )
            }
            Some(Flushed::Failed(errno)) => fail(
                FailureKind::DataLost,
                format!(
                    "{name} is not detached: writing back failed: {}; what was not written would be lost, {by_force}",
                    errno.desc()
                ),
            ),
            None => {
                let count = self.in_flight().len();
                let state = self.status().backend.state;
                fail(
                    FailureKind::TimedOut,
                    format!(
                        "{name} is not detached: {count} requests wait for its backend ({}): let it continue, restart it, or {by_force}",
                        format!("{state:?}").to_lowercase()
                    ),
                )
            }
        }
    }

    /// Like `run_errand`, but a detach by force in the meantime ends it, and a backend that stops
    /// shortens the wait.
    fn run_detach_errand(
        &mut self,
        errand: std::io::Result<Errand>,
        limit: Duration,
    ) -> Option<i32> {
        let Ok(errand) = errand else {
            return Some(libc::EAGAIN);
        };
        let mut unserved = Duration::ZERO;
        let slice = Duration::from_millis(500);
        let mut waited = Duration::ZERO;
        self.errand_report = None;
        self.errand = Some(errand);
        while self.errand.is_some() && waited < limit && unserved < FLUSH_UNSERVED {
            self.pump_until(Some(slice), None, |holder| {
                holder.errand_report.is_some() || holder.is_forced()
            });
            if self.is_forced() {
                break;
            }
            if self.errand.is_some() && self.device.waiting() > 0 {
                self.miss_departed();
            }
            waited += slice;
            let served = self.status().backend.state == BackendState::Running;
            unserved = if served { Duration::ZERO } else { unserved + slice };
        }
        // Killed, so that it does not disconnect long after we said that it did not.
        self.leave_errand();
        self.errand_report.take().map(|(status, _)| status)
    }

    /// Clears away what is left of a device that the driver has dropped.
    pub(crate) fn clear_dropped(&mut self) {
        tracing::error!(device = %self.device.name(), event = "dropped", "{DROPPED}");
        self.clearing = true;
        crate::clear_away(self);
        let name = self.device.name();
        let detached = self.pending_detach.take().map(|(client, _)| client);
        if let Some(client) = detached {
            let text = format!("{name} is detached: {DROPPED}; what is left was cleared away");
            self.answer(client, &Response::Done { text });
        }
        let failure = Failure::new(FailureKind::NoDevice, format!("{name}: {DROPPED}"));
        if let Some((client, _)) = self.pending_upgrade.take() {
            self.answer(client, &Response::Failed(failure.clone()));
        }
        for waits in [Waits::Start, Waits::Backend, Waits::Pause, Waits::Fail] {
            self.answer_waiters(waits, &Err(failure.clone()));
        }
    }
}

/// What is said when the driver keeps a device for its users.
fn held(name: &str, users: &[User], failed: &str) -> String {
    let (words, ways) = words_for(users);
    format!(
        "{name} has lost its connection{failed}, but it is not free: it is {words}. End that{ways}, \
         and the driver clears it"
    )
}
