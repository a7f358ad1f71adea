//! Taking over a device whose holder has died, or has become this program. Its I/O has not noticed:
//! the backend has the lanes, and the sitter kept copies of all that a holder owns.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nbd_control::Channel;
use nbd_control::backend::{ExportInfo, Hello};
use nbd_control::control::{Failure, FailureKind, Response};
use nbd_control::handover::Handover;
use nbd_control::process::{ProcessId, is_dead};
use nbd_control::registry::{HolderLock, Registry, State};
use nbd_control::system_error::{chain, explain};
use nbd_ledger::{Inspector, Layout, layout};
use nix::fcntl::{Flock, FlockArg};

use crate::args::KernelApi;
use crate::core::Event;
use crate::core::ownership::Kind;
use crate::holder::backend_process::BackendProcess;
use crate::holder::client::Client;
use crate::holder::connection::guard_resumed;
use crate::holder::recording::Recording;
use crate::holder::{Holder, Settings};
use crate::io::become_program;
use crate::io::listen::listen;
use crate::kernel::Device;
use crate::kernel::sitter::{self, LANES, LEDGER, STORED_FDS, Sitter};
use crate::system::{self, Process};

/// How long a started backend may take to introduce itself.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the lock of a device's folder may be held by a process that only looks.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

fn other(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Other, text)
}

/// Makes a holder of a device's remains.
pub(crate) fn adopt(
    registry: Registry,
    index: u32,
    report: &mut Option<Channel>,
) -> Result<Holder, Failure> {
    let name = Device::new(index).name();
    let file =
        registry.lock_file().map_err(|error| other(format!("cannot lock: {}", explain(&error))))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| other(format!("cannot lock: {}", explain(&errno.into()))))?;
    let (state, lock) = claim(&registry, index)?;
    let mut holder = rebuild(registry, &state, lock)?;
    persist_claim(&holder, &state)?;
    if report.is_some() {
        holder.redirect_output();
    }
    let owner = holder.settings.user.as_ref().map(|(_, uid, gid)| (*uid, *gid));
    let sockets = listen(&holder.place.registry.control_socket(index), None).and_then(|control| {
        listen(&holder.place.registry.join_socket(index), owner).map(|join| (control, join))
    });
    let (control, join) = sockets.map_err(|error| other(format!("{name}: {error}")))?;
    holder.admit_group().map_err(|error| other(format!("{name}: {error}")))?;
    holder.sockets.control = Some(control);
    holder.sockets.join = Some(join);
    shield_sitter(&holder);
    let end = "lost while there was no holder";
    let left = Left { process: BackendProcess::new(None, None), joined: false, end };
    adopt_backend(&mut holder, &state, left)?;
    // Who it is was written by the claim; what has changed since is tried again.
    holder.feed(Event::StateChanged);
    tracing::info!(
        device = %holder.device.name(),
        event = "adopted",
        sitter = state.sitter.pid,
        backend = holder.owner_pid(),
        "adopted from holder {}, which is gone",
        state.holder.pid
    );
    holder.sockets.is_foreground = report.is_none();
    holder.sockets.report = report.take();
    Ok(holder)
}

/// Goes on as the holder that this process was before it became this program; what that one left
/// is under the descriptor `fd`. Its sitter is traced by this process as before.
pub(crate) fn take_over(registry: Registry, fd: RawFd) -> Result<Holder, Failure> {
    let (left, descriptors) = receive(fd)?;
    let name = Device::new(left.index).name();
    let state = registry
        .read_state(left.index)
        .map_err(|error| other(format!("{name}: its state cannot be read: {error}")))?
        .filter(|state| state.holder.pid == nix::unistd::getpid().as_raw())
        .ok_or(other(format!("{name} has another holder than this process")))?;
    let mut sockets = descriptors.into_iter();
    let control = sockets.next().map(UnixListener::from);
    let join = sockets.next().map(UnixListener::from);
    let mut channel = |is_left: bool| {
        let fd = if is_left { sockets.next() } else { None };
        let channel = fd.map(|fd| guard_resumed(fd.into()));
        channel
            .transpose()
            .map_err(|error| other(format!("{name}: a connection: {}", chain(&error))))
    };
    let mut process = BackendProcess::new(channel(left.backend)?, None);
    let client = channel(left.client)?;
    let lock = inherit_lock(&registry, left.index, sockets.next())?;
    let mut holder = rebuild(registry, &state, lock)?;
    become_program::admit_signals().map_err(|errno| {
        other(format!("{name}: cannot unblock signals: {}", explain(&errno.into())))
    })?;
    // Of what came before that there is no signal any more.
    holder.release_sitter();
    (holder.sockets.control, holder.sockets.join) = (control, join);
    holder.processes.orphans.extend(left.orphans.iter().filter_map(|pid| Process::open(*pid).ok()));
    let same = |backend: &ProcessId| ProcessId::of(backend.pid).as_ref() == Some(backend);
    let child = state.backend.filter(|backend| !left.joined && same(backend));
    process.child = child.and_then(|child| Process::open(child.pid).ok());
    process.hello = Some(Hello {
        ledger_version: layout::VERSION,
        description: state.description.clone(),
        export: state.export,
        takeover: false,
    });
    adopt_backend(&mut holder, &state, Left { process, joined: left.joined, end: "ended" })?;
    holder.feed(Event::StateChanged);
    greet(&mut holder, client);
    Ok(holder)
}

fn receive(fd: RawFd) -> Result<(Handover, Vec<OwnedFd>), Failure> {
    let left = system::inherited(fd)
        .map_err(nbd_control::ChannelError::from)
        .and_then(|fd| Channel::new(fd.into())?.receive_within::<Handover>(Duration::ZERO));
    let left = left.map_err(|error| {
        other(format!("cannot read what the former program left: {}", chain(&error)))
    })?;
    Ok((left.message, left.descriptors))
}

/// Answers the client that has asked for the upgrade.
fn greet(holder: &mut Holder, client: Option<Channel>) {
    let program = std::env::current_exe().unwrap_or_default();
    let text = format!(
        "its holder (pid {}) is {} {} now",
        nix::unistd::getpid(),
        program.display(),
        env!("CARGO_PKG_VERSION")
    );
    holder.log(&text);
    let text = format!("{}: {text}", holder.device.name());
    if let Some(channel) = client {
        let id = holder.core.new_client();
        holder.clients.insert(id, Client::new(channel));
        holder.answer(id, &Response::Done { text });
    }
}

/// All but sockets and backend.
fn rebuild(registry: Registry, state: &State, lock: HolderLock) -> Result<Holder, Failure> {
    let device = Device::new(state.index);
    let name = device.name();
    let sitter = Process::open(state.sitter.pid).map_err(|error| {
        other(format!("{name}: its sitter cannot be opened: {}", explain(&error)))
    })?;
    let settings = settings_of(&registry, state)?;
    let mut holder = Holder::new(registry, settings, device, lock, true)
        .map_err(|error| other(error.to_string()))?;
    holder.data.layout = Layout::with_lanes(state.options.lanes);
    holder.log_sink.take_from(&sitter);
    copy_descriptors(&mut holder, &sitter, state).map_err(|error| {
        other(format!("{name}: cannot copy from its sitter: {}", explain(&error)))
    })?;
    holder.processes.sitter = Some(Sitter::seated(sitter, state.sitter));
    // The driver may have been told another size that was not written down any more.
    let size = Some(holder.device.size()).filter(|size| *size != 0).unwrap_or(state.export.size);
    holder.data.export = Some(ExportInfo { size, ..state.export });
    holder.data.description.clone_from(&state.description);
    holder.data.io_timeout = state.io_timeout;
    holder.told.history.clone_from(&state.history);
    holder.core.set_adopted(state.restarts, state.io_timeout.is_some());
    if let Some(path) = &state.recording {
        match Recording::reopen(path) {
            Ok(recording) => holder.data.recording = Some(recording),
            Err(error) => {
                holder.log(&format!("the recording to {path} has ended: {}", chain(&error)));
            }
        }
    }
    Ok(holder)
}

/// What is known of the backend.
struct Left {
    process: BackendProcess,
    /// It came from outside.
    joined: bool,
    /// What is said of its end, if it was there when the state was written and is dead.
    end: &'static str,
}

fn shield_sitter(holder: &Holder) {
    let Some(sitter) =
        holder.processes.sitter.as_ref().filter(|_| holder.settings.api == KernelApi::Ioctl)
    else {
        return;
    };
    if let Err(errno) = sitter::shield(&sitter.process) {
        holder.warn(&format!("cannot keep debuggers off the sitter: {}", explain(&errno.into())));
    }
}

/// Makes this process the device's holder, as far as the kernel decides that; under the registry's lock.
fn claim(registry: &Registry, index: u32) -> Result<(State, HolderLock), Failure> {
    let name = Device::new(index).name();
    let lock = match registry.lock_folder(index) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Failure::new(FailureKind::NoDevice, format!("{name} is not attached")));
        }
        Err(error) => {
            return Err(other(format!("{name}: its folder cannot be locked: {}", explain(&error))));
        }
    };
    let taken = || Failure::new(FailureKind::Busy, format!("{name}: another process holds it"));
    let lock = lock.ok_or_else(taken)?;
    Ok((check_state(registry, index)?, lock))
}

/// Writes down that this process is the holder now, before it does anything that only a holder may do.
fn persist_claim(holder: &Holder, state: &State) -> Result<(), Failure> {
    let (name, index) = (holder.device.name(), holder.device.index);
    holder.place.registry.write_state(&State { holder: holder.place.me, ..state.clone() }).map_err(|error| {
        let folder = holder.place.registry.folder(index);
        let folder = folder.display();
        other(format!(
            "{name} is not adopted: cannot write the state to {folder}: {error}: make room there; \
             the device goes on as it is"
        ))
    })
}

/// The lock that this process had as the program before, under the last descriptor. One of an older
/// build had none.
fn inherit_lock(
    registry: &Registry,
    index: u32,
    folder: Option<OwnedFd>,
) -> Result<HolderLock, Failure> {
    let name = Device::new(index).name();
    let failed = |error: io::Error| {
        other(format!("{name}: its folder cannot be locked: {}", explain(&error)))
    };
    let taken = || other(format!("{name}: another process holds it"));
    if let Some(folder) = folder {
        return Registry::lock_opened(File::from(folder)).map_err(failed)?.ok_or_else(taken);
    }
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match registry.lock_folder(index).map_err(failed)? {
            Some(lock) => return Ok(lock),
            None if Instant::now() >= deadline => return Err(taken()),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn check_state(registry: &Registry, index: u32) -> Result<State, Failure> {
    let name = Device::new(index).name();
    let state = registry
        .read_state(index)
        .map_err(|error| other(format!("{name}: its state cannot be read: {error}")))?;
    let missing = || Failure::new(FailureKind::NoDevice, format!("{name} is not attached"));
    let state = state.ok_or_else(missing)?;
    if state.holder.is_alive() {
        let text = format!("{name}: its holder, process {}, is alive", state.holder.pid);
        return Err(Failure::new(FailureKind::Busy, text));
    }
    if !state.sitter.is_alive() {
        let text = format!(
            "{name}: its sitter has died too, so it cannot be adopted: `nbd-ctl detach {name}` removes what is left"
        );
        return Err(Failure::new(FailureKind::NoDevice, text));
    }
    Ok(state)
}

fn settings_of(registry: &Registry, state: &State) -> Result<Settings, Failure> {
    let settings = Settings::new(state.options.clone());
    Ok(Settings {
        program: state.program.clone(),
        name: registry.name(state.index),
        log_level: state.log_level.clone(),
        ready_timeout: Some(READY_TIMEOUT),
        ..settings.map_err(|text| other(format!("nbd{}: {text}", state.index)))?
    })
}

fn copy_descriptors(holder: &mut Holder, sitter: &Process, state: &State) -> std::io::Result<()> {
    let data = &mut holder.data;
    let ledger = sitter.copy_descriptor(LEDGER)?;
    let inspector = Inspector::open(ledger.try_clone()?, &data.layout);
    data.inspector = Some(inspector.map_err(std::io::Error::other)?);
    data.ledger = Some(ledger);
    for number in (LANES..).take(state.options.lanes as usize) {
        data.lanes.push(sitter.copy_descriptor(number)?);
    }
    for (number, name) in (STORED_FDS..).zip(&state.keepsakes) {
        data.fd_store.push((name.clone(), sitter.copy_descriptor(number)?));
    }
    Ok(())
}

/// A backend that lives goes on; for a dead one the usual policy holds.
///
/// # Errors
///
/// It cannot be told whether it lives, so no other one must be given the lanes.
fn adopt_backend(holder: &mut Holder, state: &State, left: Left) -> Result<(), Failure> {
    let Left { process: mut backend, joined, end } = left;
    let id = holder.core.new_backend();
    let is_child = backend.child.is_some();
    let opened = state.backend.map(|backend| open_backend(backend, is_child)).transpose();
    let process = opened.map_err(|error| {
        let pid = state.backend.map_or(0, |backend| backend.pid);
        let name = holder.device.name();
        other(format!(
            "{name} is not adopted: its backend (pid {pid}) cannot be looked at: {error}"
        ))
    })?;
    let from_outside = joined || holder.settings.program.is_empty();
    let kind = if from_outside { Kind::Joined } else { Kind::Program };
    holder.core.adopt_owner(id, kind, state.paused);
    match process.flatten() {
        Some(process) => {
            holder.log_sink.attribute(id, process.pid.as_raw());
            backend.process = Some(process);
            holder.processes.backends.insert(id, backend);
            if state.stand_in || state.paused {
                // An EIO backend goes, and what follows is what follows a backend.
                holder.feed(Event::AdoptedUnwanted);
            }
        }
        None => {
            if state.backend.is_some() {
                holder.note_loss(end.into(), false);
            }
            holder.feed(Event::AdoptedDead);
        }
    }
    Ok(())
}

/// The backend that a state names, unless it is dead. One that has died as our child is to be reaped, and
/// tells how it ended.
fn open_backend(backend: ProcessId, is_child: bool) -> std::io::Result<Option<Process>> {
    let process = match Process::open(backend.pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        opened => opened?,
    };
    // After it was opened the pid is not given to another one.
    let is_same = ProcessId::read(backend.pid)? == Some(backend);
    Ok(Some(process).filter(|_| is_same && (is_child || !is_dead(backend.pid))))
}
