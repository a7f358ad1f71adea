//! The end of a device: in order, or by force, and always within a bound.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind, Response};
use nbd_control::process;
use nbd_control::status::TotalsStatus;
use nix::fcntl::{Flock, FlockArg};

use crate::control::Waits;
use crate::holder::Holder;
use crate::kernel::errand::{self, Flushed};
use crate::lanes;
use crate::peers::Peer;
use crate::supervisor::Event;

/// How long writing back may take, unless the operator forces.
const FLUSH: Duration = Duration::from_secs(60);
/// The same when the backend does not answer at all.
const FLUSH_UNSERVED: Duration = Duration::from_secs(3);
/// How long udev may take to look away. It may not be able to while the backend is stuck.
const UDEV: Duration = Duration::from_secs(3);
/// How long a backend may take to end by itself in a detach in order: nbd-serve gives another server
/// 5 s to close its connections, and a program that it has started as long to end after SIGTERM.
const LEAVE: Duration = Duration::from_secs(15);
/// How often to look whether it is stopped meanwhile …
const LOOK: Duration = Duration::from_millis(100);
/// … and how often in a row, to be sure.
const LOOKS: u32 = 5;
/// How long each step of a teardown may take before the next, harder one.
const STEP: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(2);

/// Why a device that nobody has detached is gone.
pub(crate) const DROPPED: &str = "the driver has dropped the device: it was disconnected by another \
                                  program, or its sitter was stopped, frozen or killed";

impl Holder {
    /// Detaches, or says why not; then nothing has changed.
    pub(crate) fn detach(&mut self, force: bool) -> Result<String, Failure> {
        let name = self.device.name();
        let waiting = self.in_flight().len();
        if !force && self.failed.is_none() {
            self.flush_and_disconnect()?;
        }
        let waiting = if force { waiting } else { 0 };
        let counted = self.totals();
        // The counts are the ledger's, which the teardown lets go of.
        let totals = match &self.failed {
            None => self.summary(),
            // What would be counted from has been scribbled over.
            Some(reason) => format!("it had failed ({reason})"),
        };
        self.teardown();
        let text = match waiting {
            0 => format!("{name} is detached: {totals}"),
            count => format!(
                "{name} is detached: {totals}; {count} requests in flight were failed with EIO"
            ),
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
        Ok(text)
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
            Some(Flushed::Disconnected) => Ok(()),
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
        errand: std::io::Result<crate::system::Process>,
        limit: Duration,
    ) -> Option<i32> {
        let mut errand = Some(errand);
        let mut unserved = Duration::ZERO;
        let slice = Duration::from_millis(500);
        let mut waited = Duration::ZERO;
        self.errand_status = None;
        if let Some(Ok(process)) = errand.take() {
            self.errand = Some(process);
        }
        while self.errand.is_some() && waited < limit && unserved < FLUSH_UNSERVED {
            self.pump_until(Some(slice), None, |holder| {
                holder.errand_status.is_some() || holder.is_forced()
            });
            if self.is_forced() {
                break;
            }
            if self.device.waiting() > 0 {
                self.miss_departed();
            }
            waited += slice;
            let state = self.status().backend.state;
            let served = state == nbd_control::status::BackendState::Running;
            unserved = if served { Duration::ZERO } else { unserved + slice };
        }
        if let Some(late) = self.errand.take() {
            // Killed, so that it does not disconnect long after we said that it did not.
            let _ = late.kill();
            self.orphans.push(late);
        }
        self.errand_status.take()
    }

    /// Clears away what is left of a device that the driver has dropped.
    pub(crate) fn clear_dropped(&mut self) {
        tracing::error!(device = %self.device.name(), event = "dropped", "{DROPPED}");
        self.clearing = true;
        self.teardown();
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

    /// Takes everything down, whatever state it is in: the lanes first, so that nobody can block
    /// on them; then the driver's side; then the backend. Bounded at each step.
    pub(crate) fn teardown(&mut self) {
        self.attached = false;
        self.join = None;
        self.due = None;
        for lane in &self.lanes {
            lanes::end(lane.as_fd());
        }
        let parted = Instant::now();
        self.apply(&Event::Part);
        self.disconnect_driver();
        self.end_backends(parted);
        if let Some(milliseconds) = self.io_timeout.take() {
            self.device.restore_timeouts(milliseconds);
        }
        // Under the lock: whoever picks a device must not find an entry that is half gone.
        let lock = self.registry.lock_file();
        let _lock = lock.map(|file| Flock::lock(file, FlockArg::LockExclusive));
        self.control = None;
        if let Err(error) = self.registry.remove(self.device.index) {
            self.warn(&format!("cannot remove its registry entry: {error}"));
        }
    }

    fn disconnect_driver(&mut self) {
        if self.sitter.is_none() {
            return;
        }
        let api = self.settings.api;
        if self.is_netlink() {
            let errand = errand::disconnect_now(&self.device, api);
            self.run_errand(errand, STEP);
            self.kill_sitter();
        }
        self.pump_until(Some(STEP), None, |holder| holder.sitter_gone);
        if !self.sitter_gone {
            self.warn("the driver is slow to let go; clearing its sockets");
            let errand = errand::disconnect_now(&self.device, api);
            self.run_errand(errand, STEP);
            self.kill_sitter();
            self.pump_until(Some(STEP), None, |holder| holder.sitter_gone);
        }
        let device = self.device.clone();
        if !self.pump_until(Some(STEP), Some(TICK), |_| device.is_clear()) {
            self.warn("somebody still has the device open; the driver clears it after them");
        }
    }

    fn kill_sitter(&self) {
        if let Some(sitter) = &self.sitter {
            let _ = sitter.process.kill();
        }
    }

    fn end_backends(&mut self, parted: Instant) {
        self.await_owner(parted);
        for peer in std::mem::take(&mut self.peers).into_values() {
            // Also who is not our child.
            peer.kill();
            self.orphans.extend(peer.into_processes());
        }
        self.pump_until(Some(STEP), None, |holder| holder.orphans.is_empty());
        for orphan in &self.orphans {
            self.warn(&format!("process {} was killed and is not dead yet", orphan.pid));
        }
    }

    /// Lets the backend take leave of whoever it works with: its lanes are at their end, which is
    /// how it has known since they `parted`. One that has not begun to serve would not, nor one
    /// that is stopped.
    fn await_owner(&mut self, parted: Instant) {
        let Some(owner) = self.supervisor.owner().filter(|_| self.supervisor.is_ready()) else {
            return;
        };
        let pid = self.peers.get(&owner).and_then(Peer::pid).unwrap_or(0);
        let in_order = self.is_leaving && !self.is_forced();
        let is_done = |holder: &Self| !holder.peers.contains_key(&owner) || is_stopped(pid);
        if in_order {
            let left = LEAVE.saturating_sub(parted.elapsed());
            self.pump_until(Some(left), Some(LOOK), |it| is_done(it) || it.is_forced());
        }
        if !in_order || self.is_forced() {
            self.pump_until(Some(STEP.saturating_sub(parted.elapsed())), Some(LOOK), is_done);
        }
        if self.peers.contains_key(&owner) {
            self.warn(&format!("backend {pid} does not end, so it is killed"));
        }
    }
}

/// Whether a process is stopped, and not for a moment only, as at each system call under strace.
fn is_stopped(pid: i32) -> bool {
    (0..LOOKS).all(|look| {
        if look > 0 {
            std::thread::sleep(TICK);
        }
        process::stat(pid).is_some_and(|stat| matches!(stat.state, 'T' | 't'))
    })
}
