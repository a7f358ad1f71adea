//! Taking a device down, whatever state it is in, within a bound.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind};
use nbd_control::process;
use nbd_device_users::User;
use nix::fcntl::{Flock, FlockArg};

use crate::holder::{Holder, describe_errno};
use crate::kernel::errand;
use crate::lanes;
use crate::peers::Peer;
use crate::supervisor::Event;

/// How long a backend may take to end by itself in a detach in order: nbd-serve gives another server
/// 5 s to close its connections, and a program that it has started as long to end after SIGTERM.
const LEAVE: Duration = Duration::from_secs(15);
/// How often to look whether it is stopped meanwhile …
const LOOK: Duration = Duration::from_millis(100);
/// … and how often in a row, to be sure.
const LOOKS: u32 = 5;
/// How long each step may take before the next, harder one.
const STEP: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(2);

/// The least time for a step, whatever the steps before it took.
const SHORTEST_STEP: Duration = Duration::from_millis(500);

/// What the driver has made of a device that was taken down.
#[derive(Debug)]
pub(crate) enum Released {
    /// It is free.
    Clear,
    /// It has no connection any more, and is free when these users have closed it.
    InUse(Vec<User>),
}

impl Holder {
    /// Takes everything down, whatever state it is in: the lanes first, so that no process can
    /// block on them; then the driver's side; then the backend.
    ///
    /// # Errors
    ///
    /// The driver does not let go. The holder stays, with what it has, to try again.
    pub(crate) fn teardown(&mut self, deadline: Instant) -> Result<Released, Failure> {
        self.check_reachable()?;
        self.attached = false;
        self.due = None;
        self.interrupt_sitter();
        for lane in &self.lanes {
            lanes::end(lane.as_fd());
        }
        let parted = Instant::now();
        self.apply(&Event::Part);
        let released = self.release_device(deadline);
        if let Err(failure) = &released {
            self.failed = Some(failure.text.clone());
            self.attached = true;
            return released;
        }
        self.join = None;
        self.end_backends(parted, deadline);
        self.restore_queue(deadline);
        // Under the lock: a holder that picks a device must not find an entry that is half gone.
        let lock = self.registry.lock_file();
        let _lock = lock.map(|file| Flock::lock(file, FlockArg::LockExclusive));
        self.control = None;
        // What the folder keeps of the log is complete.
        self.log_sink.drain_all();
        if let Err(error) = self.registry.remove(self.device.index) {
            self.warn(&format!("cannot remove its registry entry: {error}"));
        }
        released
    }

    /// Has the driver let go of the device, and sees whether it is free then.
    fn release_device(&mut self, deadline: Instant) -> Result<Released, Failure> {
        if self.sitter.is_none() {
            return Ok(Released::Clear);
        }
        if self.is_netlink() {
            // Not a second time, which the driver would complain of in the kernel's log.
            if !self.is_disconnected {
                self.clear_device(deadline);
            }
            self.kill_sitter();
        }
        let step = |deadline| Some(left(deadline));
        self.pump_until(step(deadline), None, |holder| holder.sitter_gone);
        if !self.sitter_gone {
            self.warn("the driver is slow to let go; clearing its sockets");
            self.clear_device(deadline);
            self.kill_sitter();
            self.pump_until(step(deadline), None, |holder| holder.sitter_gone);
        }
        let device = self.device.clone();
        let mut clear = self.pump_until(step(deadline), Some(TICK), |_| device.is_clear());
        if !clear && self.sitter_gone {
            if !self.is_netlink() {
                // A sitter that was killed has not cleared it.
                self.clear_device(deadline);
            }
            clear = self.await_clear(deadline);
        }
        match clear {
            true => Ok(Released::Clear),
            false if self.is_stuck(deadline) => Err(self.describe_stuck()),
            false => Ok(Released::InUse(self.remaining_users(left(deadline)))),
        }
    }

    fn clear_device(&mut self, deadline: Instant) {
        let errand = errand::disconnect_now(&self.device, self.settings.api);
        self.run_errand(errand, left(deadline));
    }

    /// Waits for users that have seen the end of the device and only have to close it.
    fn await_clear(&mut self, deadline: Instant) -> bool {
        let device = self.device.clone();
        loop {
            let lasting = self.remaining_users(left(deadline)).iter().any(|user| !user.may_pass);
            let is_late = Instant::now() + LOOK >= deadline;
            if self.pump_until(Some(LOOK), Some(TICK), |_| device.is_clear()) {
                return true;
            }
            if lasting || is_late {
                return false;
            }
        }
    }

    /// Whether the driver itself still does something for us or waits for something.
    fn is_stuck(&mut self, deadline: Instant) -> bool {
        // Those of users that still try fail at once.
        let device = self.device.clone();
        let idle = self.pump_until(Some(left(deadline)), Some(TICK), |_| device.waiting() == 0);
        !idle || !self.sitter_gone || self.size_change().is_some()
    }

    fn describe_stuck(&self) -> Failure {
        let name = self.device.name();
        let sitter = self.sitter.as_ref().filter(|_| !self.sitter_gone);
        let sitter = sitter
            .map(|sitter| format!("its sitter (pid {}) is in the driver", sitter.process.pid));
        let size =
            self.size_change().map(|pid| format!("a change of its size (pid {pid}) is under way"));
        let waiting = match self.device.waiting() {
            0 => None,
            count => Some(format!("{count} requests are not answered")),
        };
        let what: Vec<_> = [sitter, size, waiting].into_iter().flatten().collect();
        Failure::new(
            FailureKind::TimedOut,
            format!(
                "{name} is not detached: its lanes are closed, but the driver does not let go ({}): \
                 see `dmesg`, then `nbd-ctl detach --force {name}` again",
                what.join("; ")
            ),
        )
    }

    /// A store to `queue/` may wait for requests that nothing answers, so not even this is done
    /// in here.
    fn restore_queue(&mut self, deadline: Instant) {
        let Some(milliseconds) = self.io_timeout.take() else {
            return;
        };
        let errand = errand::restore_timeouts(&self.device, milliseconds);
        match self.run_errand(errand, left(deadline)) {
            Some(0) => {}
            Some(status) => self
                .warn(&format!("queue/io_timeout is not what it was: {}", describe_errno(status))),
            None => self.warn("queue/io_timeout is not what it was: the kernel is slow"),
        }
    }

    pub(crate) fn kill_sitter(&self) {
        if let Some(sitter) = self.sitter.as_ref().filter(|_| !self.sitter_gone)
            && let Err(error) = sitter.process.kill()
        {
            self.warn(&format!("cannot kill the sitter: {error}"));
        }
    }

    fn end_backends(&mut self, parted: Instant, deadline: Instant) {
        self.await_owner(parted);
        for peer in std::mem::take(&mut self.peers).into_values() {
            // Also one that is not our child.
            peer.kill();
            self.orphans.extend(peer.into_processes());
        }
        self.pump_until(Some(left(deadline)), None, |holder| holder.orphans.is_empty());
        for orphan in &self.orphans {
            self.warn(&format!("process {} was killed and is not dead yet", orphan.pid));
        }
    }

    /// Lets the backend close its upstream connections: its lanes are at their end, which is
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

/// How long the next step may take.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).clamp(SHORTEST_STEP, STEP)
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
