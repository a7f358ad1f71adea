//! The loop: one thread, one `poll(2)` over everything that can happen.
//!
//! Attaching and detaching are straight-line functions that let the loop turn
//! ([`Holder::pump_until`]) while they wait, so status is answered at any time. Nothing here waits
//! for the driver or for a backend without a bound; what might, is an
//! [errand](crate::kernel::errand).

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_control::Channel;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::holder::Holder;
use crate::kernel::sitter;
use crate::peers::{self, Peer};
use crate::supervisor::{Event, PeerId};

/// How often a dying process is looked at, whose pidfd should tell long before. Not more often: what
/// is looked at may be waiting for the same processor.
const FENCE_TICK: Duration = Duration::from_millis(20);
/// How long nobody is let in after there was no descriptor or memory left for somebody.
const DEAF: Duration = Duration::from_millis(100);
/// How long to wait if waiting itself is not possible.
const TROUBLED: Duration = Duration::from_millis(10);
/// How long a backend that closed its connection is expected to be dying.
const DYING: Duration = Duration::from_secs(2);

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Signal,
    Control,
    Join,
    Report,
    PeerChannel(PeerId),
    PeerProcess(PeerId),
    PeerChild(PeerId),
    Client(u64),
    Sitter,
    Progress,
    Errand,
    Orphan,
    /// The driver has closed a lane.
    Lane,
    /// The driver has sent something on a lane, after nothing was in flight.
    Arrival,
    LogPipe(usize),
}

impl Holder {
    /// Lets the loop turn until a condition holds; false if that takes longer than `limit`.
    /// `tick` is for conditions that no descriptor tells of.
    pub(crate) fn pump_until(
        &mut self,
        limit: Option<Duration>,
        tick: Option<Duration>,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> bool {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if holds(self) {
                return true;
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return false;
            }
            let left = deadline.map(|deadline| deadline - now);
            self.pump([left, tick].into_iter().flatten().min());
        }
    }

    /// One turn: waits for something to happen, at most `limit`, and deals with it.
    pub(crate) fn pump(&mut self, limit: Option<Duration>) {
        let now = Instant::now();
        let due = self.due.map(|due| due.saturating_duration_since(now));
        let spare = self.spare_due.map(|due| due.saturating_duration_since(now));
        let fence = self.fence_due().map(|due| due.saturating_duration_since(now));
        let deaf = self.deaf_until.map(|until| until.saturating_duration_since(now));
        let orders = self.next_look();
        let outage = self.outage_look();
        let ages = self.ages_due().map(|due| due.saturating_duration_since(now));
        let save = self.save_due().map(|due| due.saturating_duration_since(now));
        let log = [self.log_sink.next_look(), nbd_log::next_summary()].into_iter().flatten().min();
        let log = log.map(|due| due.saturating_duration_since(now));
        let waits = [limit, due, spare, fence, deaf, orders, outage, ages, save, log];
        let wait = waits.into_iter().flatten().min();
        for source in self.wait(wait) {
            self.handle(source);
        }
        if self.deaf_until.is_some_and(|until| Instant::now() >= until) {
            self.deaf_until = None;
        }
        if self.fence_due().is_some_and(|due| Instant::now() >= due) {
            self.fence_looked = Instant::now();
            self.check_fence();
        }
        if self.due.is_some_and(|due| Instant::now() >= due) {
            self.due = None;
            self.apply(&Event::Due);
        }
        self.check_state();
        self.drop_overdue_program();
        self.check_outage();
        self.check_ages();
        self.tend_spare();
        self.tend_failing();
        self.tend_loss();
        nbd_log::write_summaries();
        self.log_sink.tend();
    }

    fn wait(&self, limit: Option<Duration>) -> Vec<Source> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        self.each_descriptor(&mut |source, fd| {
            sources.push(source);
            // The end of a lane is reported without being asked for.
            let quiet = matches!(source, Source::Lane) && !self.watches_arrivals();
            let events = if quiet { PollFlags::empty() } else { PollFlags::POLLIN };
            fds.push(PollFd::new(fd, events));
        });
        let timeout = match limit {
            None => PollTimeout::NONE,
            // Rounded up, so that a wait for less than a millisecond is not a busy loop.
            Some(limit) => PollTimeout::try_from(limit + Duration::from_micros(999))
                .unwrap_or(PollTimeout::MAX),
        };
        if let Err(errno) = poll(&mut fds, timeout) {
            if errno != nix::Error::EINTR {
                // No memory for it, or more descriptors than are allowed by now; it may pass.
                std::thread::sleep(TROUBLED);
            }
            return Vec::new();
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let both = sources.into_iter().zip(&fds).filter(|(_, fd)| ready(fd));
        both.map(|(source, fd)| match source {
            Source::Lane if fd.revents() == Some(PollFlags::POLLIN) => Source::Arrival,
            other => other,
        })
        .collect()
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Signal => self.take_signals(),
            Source::Lane => self.dropped = true,
            Source::Arrival => self.note_arrivals(),
            Source::LogPipe(number) => {
                self.log_sink.read(number);
            }
            Source::Control => self.accept_client(),
            Source::Join => self.accept_peer(),
            Source::Report => self.check_report(),
            Source::PeerChannel(id) => self.hear_peer(id),
            Source::PeerProcess(id) => self.peer_process_ended(id),
            Source::PeerChild(id) => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.reap(Duration::ZERO);
                }
            }
            Source::Client(id) => self.hear_client(id),
            Source::Sitter => self.sitter_ended(),
            Source::Progress => {
                let progress = self.sitter.as_mut().and_then(|sitter| sitter.progress.take());
                self.sitter_said = progress.map(|mut pipe: File| sitter::read_progress(&mut pipe));
            }
            Source::Errand => {
                if let Some(mut errand) = self.errand.take() {
                    self.errand_report = Some(errand.read_report());
                    // It has still to end, and may be slow to: see `Errand`.
                    self.orphans.push(errand.process);
                }
            }
            Source::Orphan => {
                // Not all of them are our children, so there may be nothing to reap.
                self.orphans.retain(|orphan| {
                    !orphan.has_ended() || {
                        let _ = peers::try_reap(orphan.pid);
                        false
                    }
                });
            }
        }
    }

    /// Whoever has connected. If there is no descriptor left for them they stay where they are, and
    /// poll would tell of them again and again without a pause.
    pub(crate) fn accepted(
        &mut self,
        result: Option<io::Result<UnixStream>>,
    ) -> Option<UnixStream> {
        match result? {
            Ok(stream) => Some(stream),
            Err(error) => {
                let passing = [ErrorKind::WouldBlock, ErrorKind::Interrupted];
                if !passing.contains(&error.kind()) {
                    self.deaf_until = Some(Instant::now() + DEAF);
                }
                None
            }
        }
    }

    fn accept_peer(&mut self) {
        let result = self.join.as_ref().map(|join| join.accept().map(|(stream, _)| stream));
        let Some(stream) = self.accepted(result) else {
            return;
        };
        let channel = Channel::new(stream);
        let channel = channel.and_then(|channel| channel.identify_senders().map(|()| channel));
        match channel {
            Ok(channel) => {
                let id = self.next_id();
                self.peers.insert(id, Peer::new(Some(channel), None));
            }
            Err(error) => self.warn(&format!("a backend that joined failed: {error}")),
        }
    }

    /// The program that started us has gone away, or was interrupted.
    fn check_report(&mut self) {
        let Some(report) = &mut self.report else {
            return;
        };
        if report.try_receive::<()>().is_err() {
            self.report = None;
            self.interrupted |= !self.attached;
        }
    }

    pub(crate) fn take_signals(&mut self) {
        let signals = self.signals.take();
        self.interrupted |= signals.stop;
        if signals.child
            && let Some(sitter) = self.sitter.as_ref().filter(|_| !self.sitter_gone)
        {
            // Somebody sent it SIGSTOP, which no process can block and which has ended the ioctl.
            // As its tracer we let it go on, so that it cleans up and ends.
            sitter::release_if_stopped(&sitter.process);
        }
    }

    fn sitter_ended(&mut self) {
        let Some(sitter) = &mut self.sitter else {
            return;
        };
        // What it said last is still in the pipe.
        if let Some(mut progress) = sitter.progress.take() {
            self.sitter_said = Some(sitter::read_progress(&mut progress));
        }
        let _ = peers::try_reap(sitter.process.pid);
        self.sitter_gone = true;
    }

    /// When to look whether somebody has died unannounced: a debugger can hold back the last threads
    /// of a process that it traces, and with them the pidfd's word.
    fn fence_due(&self) -> Option<Instant> {
        let owner = self.supervisor.owner().and_then(|id| self.peers.get(&id))?;
        let closed = owner.closed_at.is_some_and(|at| at.elapsed() < DYING);
        let dead = owner.dead_since.is_some();
        (self.supervisor.is_fencing() || closed || dead).then_some(self.fence_looked + FENCE_TICK)
    }

    fn check_fence(&mut self) {
        let Some(id) = self.supervisor.owner() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.is_dead()) else {
            return;
        };
        // With several processors a process can be seen dead a moment before the kernel tells how it
        // ended. Unless a debugger holds that back, the pidfd has told it by the next look.
        if std::mem::replace(&mut peer.seen_dead, true) {
            self.peer_process_ended(id);
        }
    }

    fn each_descriptor<'a>(&'a self, watch: &mut impl FnMut(Source, BorrowedFd<'a>)) {
        for signals in self.signals.descriptors() {
            watch(Source::Signal, signals);
        }
        let listeners = [(Source::Control, &self.control), (Source::Join, &self.join)];
        for (source, listener) in listeners.into_iter().filter(|_| self.deaf_until.is_none()) {
            if let Some(listener) = listener {
                watch(source, listener.as_fd());
            }
        }
        if let Some(report) = &self.report {
            watch(Source::Report, report.as_fd());
        }
        for (&id, peer) in &self.peers {
            if let Some(channel) = &peer.channel {
                watch(Source::PeerChannel(id), channel.as_fd());
            }
            if let Some(process) = &peer.process {
                watch(Source::PeerProcess(id), process.pidfd.as_fd());
            } else if let Some(child) = &peer.child {
                watch(Source::PeerChild(id), child.pidfd.as_fd());
            }
        }
        for (&id, client) in &self.clients {
            watch(Source::Client(id), client.channel.as_fd());
        }
        if let Some(sitter) = &self.sitter {
            if !self.sitter_gone {
                watch(Source::Sitter, sitter.process.pidfd.as_fd());
            }
            if let Some(progress) = &sitter.progress {
                watch(Source::Progress, progress.as_fd());
            }
        }
        if let Some(errand) = &self.errand {
            watch(Source::Errand, errand.descriptor());
        }
        if self.attached && self.failed.is_none() && !self.dropped {
            for lane in &self.lanes {
                watch(Source::Lane, lane.as_fd());
            }
        }
        for orphan in &self.orphans {
            watch(Source::Orphan, orphan.pidfd.as_fd());
        }
        for (number, pipe) in self.log_sink.to_be_read() {
            watch(Source::LogPipe(number), pipe);
        }
    }
}
