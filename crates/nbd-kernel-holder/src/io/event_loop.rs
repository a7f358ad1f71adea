//! The loop: one thread, one `poll(2)` over everything that can happen. Descriptors become events for
//! the core, which decides; nothing in here waits for anything else.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::core::event::SetupRefused;
use crate::core::{BackendId, ClientId, Event, HelperId, Sitter};
use crate::ending::try_reap;
use crate::holder::Holder;
use crate::holder::helper::Helper;
use crate::io::helpers::SCAN_INTERVAL;
use crate::kernel::sitter::{self, SetupError};

/// How often a dying process is looked at, whose pidfd should tell long before. Not more often: what
/// is looked at may be waiting for the same processor.
const FENCE_INTERVAL: Duration = Duration::from_millis(20);
/// How long no connection is accepted after there was no descriptor or memory left for one.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long to wait if waiting itself is not possible.
const POLL_BACKOFF: Duration = Duration::from_millis(10);
/// How long a backend that closed its connection is expected to be dying.
const DYING_TIMEOUT: Duration = Duration::from_secs(2);

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Signal,
    Control,
    Join,
    Report,
    BackendChannel(BackendId),
    BackendProcess(BackendId),
    BackendChild(BackendId),
    Client(ClientId),
    Sitter,
    Progress,
    Helper(HelperId),
    Orphan,
    /// The driver has closed a lane.
    Lane,
    /// The driver has sent something on a lane, after nothing was in flight.
    Arrival,
    LogPipe(usize),
}

impl Holder {
    /// Turns until the device is attached and nothing but its requests is left to be dealt with, or until
    /// all has ended.
    pub(crate) fn run_until_idle(&mut self) {
        while !self.core.is_idle() && self.core.end().is_none() {
            self.turn();
        }
    }

    /// Turns until the device is gone, or this process is not its holder any more.
    pub(crate) fn run(&mut self) {
        while self.core.end().is_none() {
            self.turn();
        }
    }

    /// One turn: waits for something to happen, and deals with it.
    fn turn(&mut self) {
        let now = Instant::now();
        let wait = self.next_due().map(|due| due.saturating_duration_since(now));
        let ready = self.wait(wait);
        let clients = ready.iter().filter_map(|source| match source {
            Source::Client(id) => Some(*id),
            _ => None,
        });
        let postponed = self.postponed_readers(clients);
        for source in ready {
            if self.core.end().is_some() {
                return;
            }
            match source {
                Source::Client(id) if postponed.contains(&id) => {}
                source => self.on_ready(source),
            }
        }
        self.look();
        self.take_findings();
        let now = Instant::now();
        self.sockets.accept_backoff.take_if(|until| *until <= now);
        if self.fence_due(now).is_some_and(|due| due <= now) {
            self.processes.fence_looked = Some(now);
            self.check_fence();
        }
        if self.core.next_deadline().is_some_and(|due| due <= now) {
            self.feed(Event::Time);
        }
        self.check_closed();
        self.drop_overdue_program();
        self.drop_overdue_clients();
        self.check_outage();
        self.check_ages();
        nbd_log::write_summaries();
        self.log_sink.tend();
    }

    fn next_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let watches = self.core.watches();
        let watch = watches.iter().map(|watch| now + watch.interval).min();
        let scan = self.processes.helpers.values().any(Helper::is_scan);
        [
            self.core.next_deadline(),
            watch,
            scan.then_some(now + SCAN_INTERVAL),
            self.fence_due(now),
            self.next_overdue(),
            self.rest_due(),
            self.sockets.accept_backoff,
            self.next_close(),
            self.outage_due(),
            self.departure_due(now),
            self.ages_due(),
            self.log_sink.next_look(),
            nbd_log::next_summary(),
        ]
        .into_iter()
        .flatten()
        .min()
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
                std::thread::sleep(POLL_BACKOFF);
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

    fn on_ready(&mut self, source: Source) {
        match source {
            Source::Signal => self.take_signals(),
            Source::Lane => self.feed(Event::LanesClosed),
            Source::Arrival => self.note_arrivals(),
            Source::LogPipe(number) => {
                self.log_sink.read(number);
            }
            Source::Control => self.accept_clients(),
            Source::Join => self.accept_backend(),
            Source::Report => self.check_report(),
            Source::BackendChannel(id) => self.on_backend_readable(id),
            Source::BackendProcess(id) => self.backend_process_ended(id),
            Source::BackendChild(id) => self.backend_child_ended(id),
            Source::Client(id) => self.on_client_readable(id),
            Source::Sitter => self.sitter_ended(),
            Source::Progress => self.on_progress_readable(),
            Source::Helper(id) => self.on_helper_readable(id),
            // Not all of them are our children, so there may be nothing to reap.
            Source::Orphan => self.processes.orphans.retain(|orphan| {
                let has_ended = orphan.has_ended();
                if has_ended {
                    try_reap(orphan.pid);
                }
                !has_ended
            }),
        }
    }

    /// The program that we have started has ended; the one behind the connection may live.
    fn backend_child_ended(&mut self, id: BackendId) {
        let Some(backend) = self.processes.backends.get_mut(&id) else {
            return;
        };
        backend.reap();
        if backend.closed_at.is_some() && self.core.ownership.owner() != Some(id) {
            self.backend_gone(id);
        }
    }

    /// A connection. If there is no descriptor left for it, it stays where it is, and poll would tell of
    /// it again and again without a pause.
    pub(crate) fn accepted(
        &mut self,
        result: Option<io::Result<UnixStream>>,
    ) -> Option<UnixStream> {
        match result? {
            Ok(stream) => Some(stream),
            Err(error) => {
                let passing = [ErrorKind::WouldBlock, ErrorKind::Interrupted];
                if !passing.contains(&error.kind()) {
                    self.sockets.accept_backoff = Some(Instant::now() + ACCEPT_BACKOFF);
                }
                None
            }
        }
    }

    /// The program that started us has gone away, or was interrupted.
    fn check_report(&mut self) {
        let Some(report) = &mut self.sockets.report else {
            return;
        };
        if report.try_receive::<()>().is_err() {
            self.sockets.report = None;
            self.feed(Event::StarterGone);
        }
    }

    pub(crate) fn take_signals(&mut self) {
        let signals = self.place.signals.take();
        if signals.child {
            self.release_sitter();
        }
        if signals.stop {
            self.feed(Event::Stop);
        }
    }

    /// Lets a sitter go on that something has sent SIGSTOP, which no process can block and which has ended
    /// the ioctl: as its tracer we can, so that it cleans up and ends.
    pub(crate) fn release_sitter(&self) {
        if let Some(sitter) = self.sitting() {
            sitter::release_if_stopped(&sitter.process);
        }
    }

    fn sitting(&self) -> Option<&sitter::Sitter> {
        let sits = self.core.sitter() == Sitter::Sits;
        self.processes.sitter.as_ref().filter(|_| sits)
    }

    fn on_progress_readable(&mut self) {
        let progress = self.processes.sitter.as_mut().and_then(|sitter| sitter.progress.take());
        let Some(mut pipe) = progress else {
            return;
        };
        let said = sitter::read_progress(&mut pipe);
        self.sitter_said(said);
    }

    fn sitter_said(&mut self, said: Result<(), SetupError>) {
        let said = said.map_err(|error| {
            let busy = error.errno == nix::errno::Errno::EBUSY;
            let set_up = self.device.setup_pid().is_some();
            self.told.failures.setup.refused = Some(error);
            SetupRefused { busy, set_up }
        });
        self.feed(Event::SitterSaid(said));
    }

    fn sitter_ended(&mut self) {
        // What it said last is still in the pipe.
        self.on_progress_readable();
        let Some(sitter) = &self.processes.sitter else {
            return;
        };
        try_reap(sitter.process.pid);
        self.feed(Event::SitterGone);
    }

    /// When to look whether the owner has died unannounced: a debugger can hold back the last threads
    /// of a process that it traces, and with them the pidfd's word.
    fn fence_due(&self, now: Instant) -> Option<Instant> {
        let owner = self.owner()?;
        let closed = owner.closed_at.is_some_and(|at| at.elapsed() < DYING_TIMEOUT);
        let dead = owner.death.since.is_some();
        let looks = self.core.ownership.is_fencing() || closed || dead;
        let last = self.processes.fence_looked;
        looks.then(|| last.map_or(now, |last| last + FENCE_INTERVAL))
    }

    fn check_fence(&mut self) {
        let Some(id) = self.core.ownership.owner() else {
            return;
        };
        let backend = self.processes.backends.get_mut(&id);
        let Some(backend) = backend.filter(|backend| backend.is_dead()) else {
            return;
        };
        // With several processors a process can be seen dead a moment before the kernel tells how it
        // ended. Unless a debugger holds that back, the pidfd has told it by the next look.
        if std::mem::replace(&mut backend.death.is_seen, true) {
            self.backend_process_ended(id);
        }
    }

    fn each_descriptor<'a>(&'a self, watch: &mut impl FnMut(Source, BorrowedFd<'a>)) {
        for signals in self.place.signals.descriptors() {
            watch(Source::Signal, signals);
        }
        let sockets = &self.sockets;
        let listeners = [(Source::Control, &sockets.control), (Source::Join, &sockets.join)];
        for (source, listener) in listeners.into_iter().filter(|_| sockets.accept_backoff.is_none())
        {
            if let Some(listener) = listener {
                watch(source, listener.as_fd());
            }
        }
        if let Some(report) = &sockets.report {
            watch(Source::Report, report.as_fd());
        }
        for (&id, backend) in &self.processes.backends {
            if let Some(channel) = &backend.channel {
                watch(Source::BackendChannel(id), channel.as_fd());
            }
            if let Some(process) = &backend.process {
                watch(Source::BackendProcess(id), process.pidfd.as_fd());
            } else if let Some(child) = &backend.child {
                watch(Source::BackendChild(id), child.pidfd.as_fd());
            }
        }
        for (&id, client) in &self.clients {
            watch(Source::Client(id), client.channel.as_fd());
        }
        if let Some(sitter) = self.sitting() {
            watch(Source::Sitter, sitter.process.pidfd.as_fd());
            if let Some(progress) = &sitter.progress {
                watch(Source::Progress, progress.as_fd());
            }
        }
        for (&id, helper) in &self.processes.helpers {
            watch(Source::Helper(id), helper.descriptor());
        }
        if self.core.watches_lanes() {
            for lane in &self.data.lanes {
                watch(Source::Lane, lane.as_fd());
            }
        }
        for orphan in &self.processes.orphans {
            watch(Source::Orphan, orphan.pidfd.as_fd());
        }
        for (number, pipe) in self.log_sink.to_be_read() {
            watch(Source::LogPipe(number), pipe);
        }
    }
}
