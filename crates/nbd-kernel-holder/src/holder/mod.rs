//! The holder of a device: its [`Core`], which decides, and all that it has in the world.

mod ages;
pub(crate) mod backend_process;
pub(crate) mod client;
pub(crate) mod connection;
pub(crate) mod helper;
pub(crate) mod lanes;
mod log;
pub(crate) mod outage;
pub(crate) mod program;
pub(crate) mod recording;
mod settings;
mod signals;
pub(crate) mod told;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use nbd_control::Channel;
use nbd_control::backend::ExportInfo;
use nbd_control::control::Report;
use nbd_control::process::ProcessId;
use nbd_control::registry::{HolderLock, Registry};
use nbd_control::system_error::explain;
use nbd_ledger::{Inspector, Layout};
use nix::unistd::{Gid, Uid};

use crate::args::KernelApi;
use crate::core::ownership::Ownership;
use crate::core::{BackendId, ClientId, Config, Core, Event, HelperId};
use crate::kernel::Device;
use crate::kernel::sitter::Sitter;
use crate::system::Process;
use backend_process::BackendProcess;
use client::Client;
use helper::Helper;
use log::LogSink;
use recording::Recording;
pub(crate) use settings::Settings;
use signals::Signals;
use told::Told;

/// Lane and cookie of requests.
pub(crate) type InFlight = HashSet<(u32, u64)>;

/// A device's holder.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) core: Core,
    pub(crate) events: Events,
    pub(crate) settings: Settings,
    pub(crate) place: Place,
    pub(crate) device: Device,
    pub(crate) sockets: Sockets,
    pub(crate) data: DataPath,
    pub(crate) processes: Processes,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    /// What backends write, and the log of the device.
    pub(crate) log_sink: LogSink,
    pub(crate) told: Told,
}

/// What has happened and was not told to the core yet.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) queue: VecDeque<Event>,
    /// They are being told, one after the other.
    pub(crate) is_draining: bool,
}

/// Where this process is known.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) registry: Registry,
    /// What makes this process the device's holder, for as long as it lives. Never given back: the
    /// device's entry is removed before.
    pub(crate) lock: HolderLock,
    pub(crate) me: ProcessId,
    pub(crate) signals: Signals,
}

/// Where others connect.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) control: Option<UnixListener>,
    pub(crate) join: Option<UnixListener>,
    /// Of the program that waits for the attach.
    pub(crate) report: Option<Channel>,
    /// There is none: this process was started by hand, or by a service manager.
    pub(crate) is_foreground: bool,
    /// Until then no connection is accepted: descriptors or memory had run out.
    pub(crate) accept_backoff: Option<Instant>,
}

/// What requests go through, and what is known of it.
#[derive(Debug)]
pub(crate) struct DataPath {
    pub(crate) layout: Layout,
    pub(crate) ledger: Option<OwnedFd>,
    pub(crate) inspector: Option<Inspector>,
    pub(crate) lanes: Vec<OwnedFd>,
    /// The driver's ends, until it has them.
    pub(crate) kernel_ends: Vec<OwnedFd>,
    /// What backends have stored for their successors, by name.
    pub(crate) fd_store: Vec<(String, OwnedFd)>,
    /// What requests are written to, if they are.
    pub(crate) recording: Option<Recording>,
    pub(crate) export: Option<ExportInfo>,
    pub(crate) description: String,
    /// What was in flight when it was noted.
    pub(crate) noted: InFlight,
    /// The queue's `io_timeout` before it was changed, in milliseconds.
    pub(crate) io_timeout: Option<u64>,
}

/// The processes beside this one.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    pub(crate) backends: BTreeMap<BackendId, BackendProcess>,
    pub(crate) sitter: Option<Sitter>,
    pub(crate) helpers: BTreeMap<HelperId, Helper>,
    /// What has to end and be reaped, and nothing else.
    pub(crate) orphans: Vec<Process>,
    /// When it was last looked whether the owner is dead.
    pub(crate) fence_looked: Option<Instant>,
}

impl Processes {
    /// Backends that have connected and not introduced themselves.
    pub(crate) fn joining(&self) -> impl Iterator<Item = (BackendId, &BackendProcess)> {
        let silent = |it: &BackendProcess| it.connected.is_some() && it.hello.is_none();
        self.backends.iter().filter(move |(_, it)| silent(it)).map(|(id, it)| (*id, it))
    }
}

impl Holder {
    /// `given`: no other device will do.
    ///
    /// # Errors
    ///
    /// There are no descriptors left, or /proc is not mounted.
    pub(crate) fn new(
        registry: Registry,
        settings: Settings,
        device: Device,
        lock: HolderLock,
        given: bool,
    ) -> std::io::Result<Self> {
        let has_program = !settings.program.is_empty();
        let mut ownership = Ownership::new(settings.restart, settings.restart_limit, has_program);
        if settings.warm_spare {
            ownership.keep_spare();
        }
        let config = Config {
            netlink: settings.api == KernelApi::Netlink,
            given,
            exists: device.exists(),
            ready_timeout: settings.ready_timeout,
            loss_limit: settings.on_backend_loss.limit(),
        };
        let data = DataPath {
            layout: Layout::with_lanes(settings.lanes),
            ledger: None,
            inspector: None,
            lanes: Vec::new(),
            kernel_ends: Vec::new(),
            fd_store: Vec::new(),
            recording: None,
            export: None,
            description: String::new(),
            noted: InFlight::new(),
            io_timeout: None,
        };
        Ok(Self {
            core: Core::new(config, ownership, Instant::now()),
            events: Events::default(),
            log_sink: LogSink::new(registry.log(device.index))?,
            place: Place {
                signals: Signals::new()?,
                registry,
                lock,
                me: ProcessId::of(nix::unistd::getpid().as_raw())
                    .ok_or(std::io::Error::other("/proc is not mounted"))?,
            },
            settings,
            device,
            sockets: Sockets::default(),
            data,
            processes: Processes::default(),
            clients: BTreeMap::new(),
            told: Told::default(),
        })
    }

    /// Ends a conversation.
    pub(crate) fn let_go(&mut self, channel: Channel) {
        match connection::close(channel) {
            Ok(closer) => self.processes.orphans.extend(closer),
            Err(error) => {
                self.warn(&format!("a connection may be slow to close: {}", explain(&error)));
            }
        }
    }

    pub(crate) fn log(&self, text: &str) {
        tracing::info!(device = %self.device.name(), "{text}");
    }

    /// Something that the operator should look after.
    pub(crate) fn warn(&self, text: &str) {
        tracing::warn!(device = %self.device.name(), "{text}");
    }

    /// Tells the operator something that is no reason to stop.
    pub(crate) fn notice(&self, text: &str) {
        self.log(text);
        self.report(&Report::Notice { text: text.into() });
    }

    pub(crate) fn report(&self, report: &Report) {
        let Some(channel) = &self.sockets.report else {
            return;
        };
        if let Err(error) = channel.send(report, &[]) {
            // Its end is noticed by the event loop; what it was told is in the log as well.
            tracing::debug!(device = %self.device.name(), "not told: {error}");
        }
    }

    /// From now on our own words go to the device's log, like those of its backends.
    pub(crate) fn redirect_output(&mut self) {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        let redirected = null.and_then(|null| {
            nix::unistd::dup2_stdin(&null)?;
            nix::unistd::dup2_stdout(&null)?;
            Ok(())
        });
        if let Err(error) = redirected {
            self.warn(&format!("cannot close standard input and output: {}", explain(&error)));
        }
        self.log_sink.take_stderr();
    }

    /// A sentence about a program that has ended, with what it said last.
    pub(crate) fn with_last_words(&mut self, id: BackendId, text: &str) -> String {
        match self.log_sink.last_words(id) {
            Some(words) => format!("{text}; it said: {words}"),
            None => text.into(),
        }
    }

    /// The export; all zero before a backend has told it.
    pub(crate) fn export(&self) -> ExportInfo {
        self.data.export.unwrap_or(ExportInfo { size: 0, block_size: 0, flags: 0 })
    }

    /// The process that has the lanes, or had them.
    pub(crate) fn owner(&self) -> Option<&BackendProcess> {
        self.core.ownership.owner().and_then(|id| self.processes.backends.get(&id))
    }

    pub(crate) fn owner_pid(&self) -> Option<i32> {
        self.owner().and_then(BackendProcess::pid)
    }

    /// User and group under which backends run, if not ours.
    pub(crate) fn backend_user(&self) -> Option<(Uid, Gid)> {
        self.settings.user.as_ref().map(|(_, uid, gid)| (*uid, *gid))
    }
}
