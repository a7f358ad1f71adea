//! What a detach by force does with requests in flight: it has them answered with EIO.
//!
//! Newer drivers change the size of a device under their lock and wait there until all that is in
//! flight is answered. Once the lanes are shut nothing can be answered any more; the driver fails
//! what it has sent only when it is told to disconnect, and that waits for the same lock. So what is
//! in flight is answered through the lanes first.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nbd_control::control::{Failure, FailureKind};
use nbd_control::process;

use crate::holder::Holder;
use crate::kernel::errand::{self, RESIZE, process_name};
use crate::lanes;
use crate::peers::Peer;
use crate::supervisor::Event;

/// How long a backend may take to answer by itself what it has. One that is well does so at once.
const DRAIN: Duration = Duration::from_millis(500);
/// How long it may take to kill it, and to have its requests answered in its place.
const ANSWER: Duration = Duration::from_millis(2500);
/// How long requests that come meanwhile are answered as well. Those that a full socket has kept
/// in the driver come only then.
const GRACE: Duration = Duration::from_secs(1);
/// How long the driver may take for a change of the size once all is answered.
const SIZE_CHANGE: Duration = Duration::from_secs(2);
/// How long the driver's lock may be held by what does not wait for a backend.
const LOCK: Duration = Duration::from_secs(1);
/// How long a killed sitter may take to leave its wait.
const SITTER: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(20);

/// Lane and cookie of requests.
pub(crate) type InFlight = HashSet<(u32, u64)>;

impl Holder {
    /// Has what is in flight answered, by the backend if it does, otherwise with EIO in its
    /// place. Afterwards all that comes is answered so, until the lanes end.
    pub(crate) fn answer_in_flight(&mut self) {
        if !self.attached || self.failed.is_some() || self.supervisor.is_parting() {
            return;
        }
        let noted = self.requests_in_flight();
        if noted.is_empty() && self.device.waiting() == 0 && self.size_change().is_none() {
            return;
        }
        let served = self.supervisor.is_ready() && !self.is_owner_stopped();
        let answered = |holder: &Self| holder.requests_in_flight().is_disjoint(&noted);
        let drained =
            served && !noted.is_empty() && self.pump_until(Some(DRAIN), Some(TICK), answered);
        if !drained {
            self.abandon(&noted);
        }
        // It could go on only now.
        self.pump_until(Some(SIZE_CHANGE), Some(TICK), |holder| holder.size_change().is_none());
    }

    fn abandon(&mut self, noted: &InFlight) {
        self.apply(&Event::Abandon);
        let done = self.pump_until(Some(ANSWER), Some(TICK), |holder| {
            let silent = holder.device.waiting() == 0;
            let since = holder.eio_since.map(|since| since.elapsed());
            since.is_some_and(|since| silent || since > GRACE)
                && holder.requests_in_flight().is_disjoint(noted)
        });
        if !done {
            self.warn("what is in flight could not be answered with EIO in time");
        }
    }

    fn is_owner_stopped(&self) -> bool {
        let pid = self.owner_pid();
        process::stat(pid).is_none_or(|stat| matches!(stat.state, 'T' | 't'))
    }

    fn owner_pid(&self) -> i32 {
        let owner = self.supervisor.owner().and_then(|id| self.peers.get(&id));
        owner.and_then(Peer::pid).unwrap_or(0)
    }

    /// All requests that have been sent and not been answered.
    pub(crate) fn requests_in_flight(&self) -> InFlight {
        let Some(inspector) = &self.inspector else {
            return InFlight::new();
        };
        let lanes = (0u32..).zip(&self.lanes);
        lanes
            .flat_map(|(lane, socket)| {
                let known = inspector.in_flight(lane).into_iter().map(|slot| slot.request.cookie);
                let unread = inspector.unread(lane, &lanes::peek(socket)).into_iter();
                known
                    .chain(unread.map(|unread| unread.request.cookie))
                    .map(move |cookie| (lane, cookie))
            })
            .collect()
    }

    /// The helper process that is telling the driver another size, if there is one. Found by its
    /// name: it may be that of an earlier holder.
    pub(crate) fn size_change(&self) -> Option<i32> {
        let name = process_name(&self.device, RESIZE);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let named = entries.filter(|entry| {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            // Names are free to choose for others.
            comm.trim_end() == name && entry.metadata().is_ok_and(|data| data.uid() == 0)
        });
        named
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|pid| !process::is_dead(*pid))
    }

    /// Fails if the lanes must stay open: while the driver waits for an answer under its lock,
    /// nothing else than an answer reaches a netlink device.
    pub(crate) fn check_reachable(&mut self) -> Result<(), Failure> {
        if !self.is_netlink() || !self.attached || self.failed.is_some() || !self.is_unanswered() {
            return Ok(());
        }
        let errand = errand::try_lock(&self.device);
        if self.run_errand(errand, LOCK).is_some() {
            return Ok(());
        }
        let name = self.device.name();
        let backend = match self.owner_pid() {
            0 => "could not be answered with EIO".into(),
            owner => format!(
                "process {owner} has; it was killed and is in an uninterruptible call of the kernel, \
                 and they are answered with EIO when that returns"
            ),
        };
        Err(Failure::new(
            FailureKind::TimedOut,
            format!(
                "{name} is not detached: the driver changes its size and waits, under its lock, for \
                 {} requests that {backend}. See `nbd-ctl why {name}`, then `nbd-ctl detach --force \
                 {name}` again",
                self.device.waiting()
            ),
        ))
    }

    fn is_unanswered(&self) -> bool {
        self.device.waiting() > 0 || !self.requests_in_flight().is_empty()
    }

    /// Kills a sitter in its ioctl if requests could not be answered. A signal has the driver fail
    /// what is in flight without its lock, but only as long as the lanes are open: otherwise the
    /// ioctl returns by itself, and waits for the lock.
    pub(crate) fn interrupt_sitter(&mut self) {
        if self.is_netlink() || self.failed.is_some() || !self.supervisor.is_abandoned() {
            return;
        }
        if !self.is_unanswered() {
            return;
        }
        self.kill_sitter();
        let Some(pid) = self.sitter.as_ref().map(|sitter| sitter.process.pid.as_raw()) else {
            return;
        };
        // In D state it waits for a lane's mutex, which is free once the lane has ended, or for
        // the driver's lock, when it has done its work.
        self.pump_until(Some(SITTER), Some(TICK), |holder| {
            holder.sitter_gone || process::stat(pid).is_none_or(|stat| stat.state == 'D')
        });
    }
}
