//! The end of a device, in words.

use nbd_control::control::{Failure, FailureKind};
use nbd_control::status::TotalsStatus;

use super::{failed, in_use_words, words_for};
use crate::core::Sitter;
use crate::core::event::DetachError;
use crate::core::event::Released;
use crate::core::event::UsersUnknown;
use crate::holder::Holder;
use crate::holder::told::Closing;

impl Holder {
    /// Remembers the counts.
    pub(crate) fn note_totals(&mut self, given_up: usize) {
        let totals = self.totals();
        let summary = match self.failure_words() {
            None => format!(
                "{} reads, {} writes, {} flushes, {} trims, {} errors",
                totals.reads, totals.writes, totals.flushes, totals.trims, totals.errors
            ),
            // What would be counted from has been scribbled over.
            Some(reason) => format!("it had failed ({reason})"),
        };
        self.told.closing = Closing { totals, given_up, summary };
    }

    pub(super) fn detached_words(&self, released: &Released) -> String {
        let name = self.device.name();
        let Closing { summary, given_up, .. } = &self.told.closing;
        let failed = match given_up {
            0 => String::new(),
            count => format!("; {count} requests in flight were failed with EIO"),
        };
        match released {
            Released::Clear => format!("{name} is detached: {summary}{failed}"),
            Released::InUse(users) => {
                let (words, ways) = words_for(users);
                format!(
                    "{name} is disconnected{failed}, but not free: it is {words}. End that{ways}, and the driver frees it"
                )
            }
        }
    }

    pub(crate) fn log_detached(&self, released: &Released) {
        let Closing { totals, given_up, .. } = &self.told.closing;
        let TotalsStatus { reads, writes, flushes, trims, errors, .. } = *totals;
        let TotalsStatus { read_bytes, written_bytes, .. } = *totals;
        tracing::info!(
            device = %self.device.name(),
            event = "detached",
            reads,
            writes,
            flushes,
            trims,
            errors,
            read_bytes,
            written_bytes,
            given_up,
            restarts = self.core.ownership.restarts(),
            "{}",
            self.detached_words(released)
        );
    }

    pub(crate) fn not_detached(&self, error: &DetachError) -> Failure {
        let name = self.device.name();
        let by_force = format!("`nbd-ctl detach --force {name}` gives it up");
        match error {
            DetachError::InUse(users) => {
                failed(FailureKind::Busy, in_use_words(&name, users, "", "detach"))
            }
            DetachError::UseUnknown(why) => self.use_unknown(why, "detach"),
            DetachError::Claimed => failed(
                FailureKind::Busy,
                format!(
                    "{name} is in use by the kernel (mounted, swap, or part of another device)"
                ),
            ),
            DetachError::NotWritten(errno) => failed(
                FailureKind::DataLost,
                format!(
                    "{name} is not detached: writing back failed: {}; unwritten data would be lost, {by_force}",
                    errno.desc()
                ),
            ),
            DetachError::NotAnswered => {
                let count = self.requests_in_flight().len();
                let state = format!("{:?}", self.backend_state()).to_lowercase();
                failed(
                    FailureKind::TimedOut,
                    format!(
                        "{name} is not detached: {count} requests wait for its backend ({state}): let it continue, restart it, or {by_force}"
                    ),
                )
            }
            DetachError::Unreachable => self.unreachable(),
            DetachError::Stuck => self.stuck(),
        }
    }

    pub(super) fn use_unknown(&self, why: &UsersUnknown, command: &str) -> Failure {
        let name = self.device.name();
        let (kind, why) = match why {
            UsersUnknown::NoHelper(error) => {
                (FailureKind::Other, format!("cannot start a helper process: {error}"))
            }
            UsersUnknown::TimedOut(why) => (FailureKind::TimedOut, why.clone()),
        };
        failed(
            kind,
            format!(
                "{name}: cannot tell whether it is used: {why}; `nbd-ctl {command} --force {name}` does not ask"
            ),
        )
    }

    fn unreachable(&self) -> Failure {
        let name = self.device.name();
        let backend = match self.owner_pid() {
            None => "could not be answered with EIO".into(),
            Some(owner) => format!(
                "process {owner} has; it was killed and is in an uninterruptible call of the kernel, \
                 and they are answered with EIO when that returns"
            ),
        };
        failed(
            FailureKind::TimedOut,
            format!(
                "{name} is not detached: the driver changes its size and waits, under its lock, for \
                 {} requests that {backend}. See `nbd-ctl why {name}`, then `nbd-ctl detach --force \
                 {name}` again",
                self.device.waiting()
            ),
        )
    }

    pub(crate) fn stuck(&self) -> Failure {
        let name = self.device.name();
        let sits = self.core.sitter() == Sitter::Sits;
        let sitter = self.processes.sitter.as_ref().filter(|_| sits);
        let sitter = sitter
            .map(|sitter| format!("its sitter (pid {}) is in the driver", sitter.process.pid));
        let size =
            self.size_change().map(|pid| format!("a change of its size (pid {pid}) is under way"));
        let waiting = match self.device.waiting() {
            0 => None,
            count => Some(format!("{count} requests are not answered")),
        };
        let what: Vec<_> = [sitter, size, waiting].into_iter().flatten().collect();
        failed(
            FailureKind::TimedOut,
            format!(
                "{name} is not detached: its lanes are closed, but the driver does not free it ({}): see `dmesg`, then `nbd-ctl detach --force {name}` again",
                what.join("; ")
            ),
        )
    }
}
