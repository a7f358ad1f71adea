//! The holder: what it owns, and what it does when the supervisor says so.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nbd_control::Channel;
use nbd_control::attach_options::AttachOptions;
use nbd_control::backend::ExportInfo;
use nbd_control::control::{Failure, FailureKind, Report};
use nbd_control::history::{History, Loss};
use nbd_control::process::ProcessId;
use nbd_control::registry::{HolderLock, Registry};
use nbd_ledger::{Inspector, Layout};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid};

use crate::ages::Ages;
use crate::args::KernelApi;
use crate::control::Waits;
use crate::fail::Failing;
use crate::io::log_sink::LogSink;
use crate::kernel::Device;
use crate::kernel::errand::Errand;
use crate::kernel::sitter::{self, Sitter};
use crate::loss::Departed;
use crate::peers::Peer;
use crate::program::{self, Start};
use crate::recording::Recording;
use crate::resize::{Growing, Resize};
use crate::retry::{Complaints, Outage, Subject, is_shortage};
use crate::sandbox::Cell;
use crate::signals::Signals;
use crate::state::Unsaved;
use crate::status::monotonic;
use crate::supervisor::{Action, Event, PeerId, Refusal, Supervisor};
use crate::system::Process;

/// What was asked for at attach. Its [`AttachOptions`] are read as if they were fields of it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// For the next holder, which looks up user and group by itself.
    pub(crate) options: AttachOptions,
    pub(crate) api: KernelApi,
    pub(crate) user: Option<(String, Uid, Gid)>,
    pub(crate) group: Option<(String, Gid)>,
    pub(crate) program: Vec<String>,
    pub(crate) name: Option<String>,
    /// Which events to log, as the command line has it.
    pub(crate) log_level: Option<String>,
    pub(crate) patience: Option<Duration>,
}

impl Settings {
    /// The options, with nothing but their user and group looked up.
    ///
    /// # Errors
    ///
    /// The options do not go together, or there is no such user or group.
    pub(crate) fn new(options: AttachOptions) -> Result<Self, String> {
        options.check()?;
        let user = options.user.as_ref().map(|name| match program::look_up(name) {
            Ok((uid, gid)) => Ok((name.clone(), uid, gid)),
            Err(error) => Err(format!("--user {name}: {error}")),
        });
        let group = options.group.as_ref().map(|name| match program::look_up_group(name) {
            Ok(gid) => Ok((name.clone(), gid)),
            Err(error) => Err(format!("--group {name}: {error}")),
        });
        Ok(Self {
            api: options.kernel_api,
            user: user.transpose()?,
            group: group.transpose()?,
            options,
            program: Vec::new(),
            name: None,
            log_level: None,
            patience: None,
        })
    }
}

impl Deref for Settings {
    type Target = AttachOptions;

    fn deref(&self) -> &AttachOptions {
        &self.options
    }
}

/// A device's holder.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) registry: Registry,
    /// What makes this process the device's holder, for as long as it lives. Never given back: the
    /// device's entry is removed before.
    pub(crate) lock: HolderLock,
    pub(crate) settings: Settings,
    pub(crate) device: Device,
    pub(crate) signals: Signals,
    pub(crate) control: Option<UnixListener>,
    pub(crate) join: Option<UnixListener>,
    pub(crate) report: Option<Channel>,
    /// What backends write, and the log of the device.
    pub(crate) log_sink: LogSink,
    pub(crate) layout: Layout,
    pub(crate) ledger: Option<OwnedFd>,
    pub(crate) inspector: Option<Inspector>,
    pub(crate) lanes: Vec<OwnedFd>,
    /// The driver's ends, until it has them.
    pub(crate) kernel_ends: Vec<OwnedFd>,
    pub(crate) keepsakes: Vec<(String, OwnedFd)>,
    /// What requests are written to, if they are.
    pub(crate) recording: Option<Recording>,
    pub(crate) export: Option<ExportInfo>,
    pub(crate) description: String,
    pub(crate) supervisor: Supervisor,
    pub(crate) peers: BTreeMap<PeerId, Peer>,
    pub(crate) sitter: Option<Sitter>,
    pub(crate) sitter_said: Option<Result<(), sitter::SetupError>>,
    pub(crate) sitter_gone: bool,
    pub(crate) errand: Option<Errand>,
    /// What the last errand has reported: its status, and the value that it was to find out.
    pub(crate) errand_report: Option<(i32, u64)>,
    pub(crate) orphans: Vec<Process>,
    pub(crate) clients: BTreeMap<u64, crate::control::Client>,
    pub(crate) pending_detach: Option<(u64, bool)>,
    /// The driver is being told to let go, which tells the backend to end.
    pub(crate) is_leaving: bool,
    /// It has let go, and said so.
    pub(crate) is_disconnected: bool,
    /// The owner that has ended because of that, most probably.
    pub(crate) departed: Option<Departed>,
    /// An owner that the driver may have told to end, or still may, in a detach that was refused.
    pub(crate) told_to_end: Option<PeerId>,
    /// Since when the stand-in answers.
    pub(crate) eio_since: Option<Instant>,
    /// Who wants this process to become which program.
    pub(crate) pending_upgrade: Option<(u64, String)>,
    pub(crate) replacing: Option<Vec<String>>,
    pub(crate) pending_resize: Option<Resize>,
    pub(crate) growing: Option<Growing>,
    pub(crate) io_timeout: Option<u64>,
    pub(crate) attached: bool,
    pub(crate) interrupted: bool,
    /// Why attaching has come to nothing.
    pub(crate) hopeless: Option<String>,
    /// Why an attached device only awaits its detach.
    pub(crate) failed: Option<String>,
    /// The driver has closed the lanes, which was not our doing.
    pub(crate) dropped: bool,
    /// So what is left of the device is being cleared away.
    pub(crate) clearing: bool,
    pub(crate) last_failure: String,
    pub(crate) complaints: Complaints,
    pub(crate) outage: Option<Outage>,
    pub(crate) history: History,
    pub(crate) ages: Ages,
    /// What the operator wants answered with EIO.
    pub(crate) failing: Option<Failing>,
    /// Since when there is no backend.
    pub(crate) unserved_since: Option<Instant>,
    /// A stand-in that was lost is not started again before this.
    pub(crate) stand_in_due: Option<Instant>,
    pub(crate) due: Option<Instant>,
    /// When the spare may be started: not while its elder sibling needs the processor.
    pub(crate) spare_due: Option<Instant>,
    /// When the owner was killed, or looked at whether it is dead.
    pub(crate) fence_looked: Instant,
    /// Until then nobody is let in who connects.
    pub(crate) deaf_until: Option<Instant>,
    /// The state that could not be written.
    pub(crate) unsaved: Option<Unsaved>,
    /// The owner that is granted the lanes once it is.
    pub(crate) ungranted: Option<PeerId>,
    pub(crate) me: ProcessId,
    next_id: u64,
}

impl Holder {
    pub(crate) fn new(
        registry: Registry,
        settings: Settings,
        device: Device,
        lock: HolderLock,
    ) -> std::io::Result<Self> {
        let has_program = !settings.program.is_empty();
        let mut supervisor = Supervisor::new(settings.restart, settings.restart_limit, has_program);
        if settings.warm_spare {
            supervisor.keep_spare();
        }
        Ok(Self {
            supervisor,
            layout: Layout::with_lanes(settings.lanes),
            signals: Signals::new()?,
            log_sink: LogSink::new(registry.log(device.index))?,
            registry,
            lock,
            settings,
            device,
            control: None,
            join: None,
            report: None,
            ledger: None,
            inspector: None,
            lanes: Vec::new(),
            kernel_ends: Vec::new(),
            keepsakes: Vec::new(),
            recording: None,
            export: None,
            description: String::new(),
            peers: BTreeMap::new(),
            sitter: None,
            sitter_said: None,
            sitter_gone: false,
            errand: None,
            errand_report: None,
            orphans: Vec::new(),
            history: History::default(),
            clients: BTreeMap::new(),
            pending_detach: None,
            is_leaving: false,
            is_disconnected: false,
            departed: None,
            told_to_end: None,
            eio_since: None,
            pending_upgrade: None,
            replacing: None,
            pending_resize: None,
            growing: None,
            io_timeout: None,
            attached: false,
            interrupted: false,
            hopeless: None,
            failed: None,
            dropped: false,
            clearing: false,
            last_failure: String::new(),
            complaints: Complaints::default(),
            outage: None,
            ages: Ages::default(),
            failing: None,
            unserved_since: None,
            stand_in_due: None,
            due: None,
            spare_due: None,
            fence_looked: Instant::now(),
            deaf_until: None,
            unsaved: None,
            ungranted: None,
            me: ProcessId::of(nix::unistd::getpid().as_raw())
                .ok_or(std::io::Error::other("/proc is not mounted"))?,
            next_id: 0,
        })
    }

    pub(crate) fn log(&self, text: &str) {
        tracing::info!(device = %self.device.name(), "{text}");
    }

    /// Something that somebody should look after.
    pub(crate) fn warn(&self, text: &str) {
        tracing::warn!(device = %self.device.name(), "{text}");
    }

    /// Tells the operator something that is no reason to stop.
    pub(crate) fn notice(&self, text: &str) {
        self.log(text);
        self.report(&Report::Notice { text: text.into() });
    }

    pub(crate) fn report(&self, report: &Report) {
        if let Some(channel) = &self.report {
            let _ = channel.send(report, &[]);
        }
    }

    /// From now on our own words go to the device's log, like those of its backends.
    pub(crate) fn redirect_output(&mut self) {
        if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stdin(&null);
            let _ = nix::unistd::dup2_stdout(&null);
        }
        self.log_sink.take_stderr();
    }

    /// Stdout and stderr of a program that is about to be started.
    pub(crate) fn open_log(&mut self, id: PeerId) -> std::io::Result<File> {
        let user = self.settings.user.as_ref().map(|(_, uid, gid)| (*uid, *gid));
        self.log_sink.open_for(id, user, |peer| self.peers.contains_key(&peer))
    }

    /// A sentence about a program that has ended, with what it said last.
    pub(crate) fn with_last_words(&mut self, id: PeerId, text: &str) -> String {
        match self.log_sink.last_words(id) {
            Some(words) => format!("{text}; it said: {words}"),
            None => text.into(),
        }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The export; all zero before a backend has told it.
    pub(crate) fn export(&self) -> ExportInfo {
        self.export.unwrap_or(ExportInfo { size: 0, block_size: 0, flags: 0 })
    }

    /// Feeds the supervisor and does what it says.
    pub(crate) fn apply(&mut self, event: &Event) {
        let actions = self.supervisor.apply(event);
        self.perform(&actions);
    }

    pub(crate) fn perform(&mut self, actions: &[Action]) {
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Start => self.start_program(),
            Action::StartAfter(pause) => self.start_after(pause),
            Action::Grant(id) => self.grant(id),
            Action::Refuse(id, why) => self.refuse(id, &self.refusal(why)),
            Action::KillOwner => {
                self.fence_looked = Instant::now();
                if let Some(owner) = self.supervisor.owner().and_then(|id| self.peers.get(&id)) {
                    owner.kill();
                }
            }
            Action::Dismiss(id) => self.drop_peer(id),
            Action::StartStandIn => self.start_stand_in(),
            Action::FailFailed => self.fail_failed(),
            Action::GiveUp => {
                self.replacing = None;
                let text = self.last_failure.clone();
                if !self.attached {
                    self.hopeless.get_or_insert(text);
                    return;
                }
                tracing::error!(
                    device = %self.device.name(),
                    event = "gave-up",
                    "giving up on the backend: {text}"
                );
                let failure = Failure::new(FailureKind::Other, text);
                for waits in [Waits::Start, Waits::Backend] {
                    self.answer_waiters(waits, &Err(failure.clone()));
                }
            }
            Action::ReplacementFailed => {
                self.replacing = None;
                let text = format!("the present backend goes on: {}", self.last_failure);
                let failure = Failure::new(FailureKind::Other, text);
                self.answer_waiters(Waits::Start, &Err(failure));
            }
        }
    }

    fn refusal(&self, why: Refusal) -> String {
        let name = self.device.name();
        let owner = self.supervisor.owner().and_then(|id| self.peers.get(&id));
        let pid = owner.and_then(Peer::pid).unwrap_or(0);
        match why {
            Refusal::Served => format!(
                "{name} is served by process {pid} ({}): use --takeover, or `nbd-ctl replace {name}`",
                self.description
            ),
            Refusal::Taken => format!("{name}: another backend is about to take over"),
            Refusal::Parting => format!("{name} is being detached"),
        }
    }

    pub(crate) fn start_program(&mut self) {
        let program = self.replacing.clone().unwrap_or_else(|| self.settings.program.clone());
        match self.launch(&program) {
            Ok(id) => self.supervisor.started(id),
            Err(error) => {
                let name = program.first().cloned().unwrap_or_default();
                self.note_failure(format!("cannot start {name}: {error}"));
                self.apply(&Event::StartFailed { shortage: is_shortage(&error) });
            }
        }
    }

    /// Starts a program as a new peer.
    fn launch(&mut self, program: &[String]) -> std::io::Result<PeerId> {
        let user = self.settings.user.as_ref().map(|(_, uid, gid)| (*uid, *gid));
        let stamp = program::stamp(program);
        // Another program has to show that it fits; the present one's storage may have grown.
        let attached = self.export.filter(|_| program == self.settings.program);
        let survive_shutdown = self.settings.survive_shutdown;
        let cell = self.cell()?;
        let id = self.next_id();
        let log = self.open_log(id)?;
        let growing = self.growing.as_mut().filter(|growing| growing.peer.is_none());
        let grows = growing.is_some();
        let examines = self.supervisor.has_backend();
        let how = Start { user, attached, grows, examines, survive_shutdown, log, cell };
        let started = program::start(program, how)?;
        let pid = started.process.pid.as_raw();
        tracing::debug!(device = %self.device.name(), pid, ?program, "a backend is started");
        if let Some(growing) = growing {
            growing.peer = Some(id);
        }
        let mut peer = Peer::new(Some(started.channel), Some(started.process));
        peer.stamp = stamp;
        peer.program = program.to_vec();
        self.peers.insert(id, peer);
        Ok(id)
    }

    /// What backends are confined in, if they are.
    fn cell(&self) -> std::io::Result<Option<Cell>> {
        let directory = self.registry.directory();
        self.settings.sandbox.map(|sandbox| Cell::new(sandbox, directory)).transpose()
    }

    /// Starts a spare when one is wanted, a little later than that.
    pub(crate) fn tend_spare(&mut self) {
        // One that is started while the size changes would have the old one.
        if !self.supervisor.wants_spare() || self.pending_resize.is_some() {
            self.spare_due = None;
            return;
        }
        let due =
            *self.spare_due.get_or_insert_with(|| Instant::now() + self.supervisor.spare_pause());
        if Instant::now() >= due {
            self.spare_due = None;
            self.start_spare();
        }
    }

    fn start_spare(&mut self) {
        let program = self.settings.program.clone();
        match self.launch(&program) {
            Ok(id) => self.supervisor.started_spare(id),
            Err(error) => {
                self.complain(Subject::Spare, &format!("cannot start a spare backend: {error}"));
                self.supervisor.spare_failed();
            }
        }
    }

    /// A spare of an older build than the program is now must not be used.
    pub(crate) fn drop_old_spare(&mut self) {
        let Some(id) = self.supervisor.spare() else { return };
        let now = program::stamp(&self.settings.program);
        if self.peers.get(&id).is_none_or(|peer| peer.stamp != now) {
            self.supervisor.lose_spare();
            self.drop_peer(id);
        }
    }

    /// Forgets a peer; its process, if it is one of ours, is killed and reaped in time.
    pub(crate) fn drop_peer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.remove(&id) else {
            return;
        };
        if peer.child.is_some() {
            // A program may have been started by another one, like a shell.
            peer.kill();
            self.orphans.extend(peer.into_processes());
        }
    }

    /// A program that does not introduce itself in time is as good as dead.
    pub(crate) fn drop_overdue_program(&mut self) {
        let Some(patience) = self.settings.patience.filter(|_| self.attached) else {
            return;
        };
        let overdue = self.peers.iter().find(|(_, peer)| {
            let adopted = peer.channel.is_none() && peer.process.is_some();
            !adopted && peer.hello.is_none() && peer.since.elapsed() > patience
        });
        if let Some((&id, _)) = overdue {
            let seconds = patience.as_secs();
            let text = format!("the backend did not introduce itself within {seconds} s");
            let text = self.with_last_words(id, &text);
            self.peer_failed(id, text);
            self.drop_peer(id);
            self.apply(&Event::Gone { peer: id });
        }
    }

    /// How many have taken the ledger over.
    pub(crate) fn generation(&self) -> u64 {
        let header = self.inspector.as_ref().map(Inspector::header);
        header.map_or(0, |header| header.generation.load(std::sync::atomic::Ordering::Acquire))
    }

    /// Notes how the owner was lost.
    pub(crate) fn note_loss(&mut self, cause: String, crashed: bool) {
        let generation = self.generation();
        if self.attached {
            self.unserved_since.get_or_insert_with(Instant::now);
        }
        self.history.loss =
            Some(Loss { cause, crashed, at: monotonic(), generation, replayed: None });
    }
}

/// An errno of an errand, in words.
pub(crate) fn describe_errno(status: i32) -> &'static str {
    Errno::from_raw(status).desc()
}

/// Binds a listener at `path`, for `owner` only.
pub(crate) fn listen(
    path: &std::path::Path,
    owner: Option<(Uid, Gid)>,
) -> std::io::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    // From its first moment on nobody else may connect. Nothing else runs in this process that
    // the mask could surprise.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    // Accepted sockets inherit it. Set on them it would come too late for what is sent at once.
    setsockopt(&listener, sockopt::PassCred, &true)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Holder {
    /// Lets the members of the group reach the control socket, if there is a group.
    pub(crate) fn admit_group(&self) -> std::io::Result<()> {
        let Some((_, gid)) = &self.settings.group else {
            return Ok(());
        };
        let index = self.device.index;
        let paths =
            [(self.registry.control_socket(index), 0o660), (self.registry.folder(index), 0o710)];
        for (path, mode) in paths {
            std::os::unix::fs::chown(&path, None, Some(gid.as_raw()))?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// The credentials of a connected peer's process.
pub(crate) fn peer_uid(stream: &UnixStream) -> Option<u32> {
    let credentials =
        nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials);
    credentials.ok().map(|peer| peer.uid())
}
