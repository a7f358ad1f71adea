//! Taking over a device whose holder has died. Its I/O has not noticed: the backend has the
//! lanes, and the sitter kept copies of all that a holder owns.

use std::time::Duration;

use clap::ValueEnum;
use nbd_control::Channel;
use nbd_control::control::{Failure, FailureKind};
use nbd_control::registry::{Registry, State};
use nbd_ledger::{Inspector, Layout};
use nix::fcntl::{Flock, FlockArg};

use crate::args::{KernelApi, RestartWhen, Sandbox};
use crate::holder::{Holder, Settings, listen};
use crate::kernel::Device;
use crate::kernel::sitter::{self, KEEPSAKES, LANES, LEDGER, Sitter};
use crate::peers::Peer;
use crate::program;
use crate::supervisor::{Event, Kind};
use crate::system::Process;

/// How long a started backend may take to introduce itself.
const PATIENCE: Duration = Duration::from_secs(30);

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
    let file = registry.lock_file().map_err(|error| other(format!("cannot lock: {error}")))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| other(format!("cannot lock: {errno}")))?;
    let state = check_state(&registry, index)?;
    let sitter = Process::open(state.sitter.pid)
        .map_err(|error| other(format!("{name}: its sitter cannot be opened: {error}")))?;
    let settings = settings_of(&registry, &state)?;
    let layout = Layout::with_lanes(state.lanes);
    let mut holder = Holder::new(registry, settings, Device::new(index))
        .map_err(|error| other(error.to_string()))?;
    holder.layout = layout;
    if report.is_some() {
        holder.redirect_output();
    }
    copy_descriptors(&mut holder, &sitter, &state)
        .map_err(|error| other(format!("{name}: cannot copy from its sitter: {error}")))?;
    holder.sitter = Some(Sitter { process: sitter, id: state.sitter, progress: None });
    holder.export = Some(state.export);
    holder.description.clone_from(&state.description);
    holder.io_timeout = state.io_timeout;
    holder.attached = true;
    holder.supervisor.set_attached(state.restarts);
    let owner = holder.settings.user.as_ref().map(|(_, uid, gid)| (*uid, *gid));
    let sockets = listen(&holder.registry.control_socket(index), None).and_then(|control| {
        listen(&holder.registry.join_socket(index), owner).map(|join| (control, join))
    });
    let (control, join) = sockets.map_err(|error| other(format!("{name}: {error}")))?;
    holder.admit_group().map_err(|error| other(format!("{name}: {error}")))?;
    holder.control = Some(control);
    holder.join = Some(join);
    shield_sitter(&holder);
    adopt_backend(&mut holder, &state);
    holder.save_state();
    holder.report = report.take();
    Ok(holder)
}

fn shield_sitter(holder: &Holder) {
    let Some(sitter) = holder.sitter.as_ref().filter(|_| !holder.is_netlink()) else {
        return;
    };
    if let Err(errno) = sitter::shield(&sitter.process) {
        holder.log(&format!("cannot keep debuggers off the sitter: {errno}"));
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
        let text = format!("{name}: its sitter is gone too, so there is nothing to adopt");
        return Err(Failure::new(FailureKind::NoDevice, text));
    }
    Ok(state)
}

fn settings_of(registry: &Registry, state: &State) -> Result<Settings, Failure> {
    let user = match &state.user {
        None => None,
        Some(user) => {
            let (uid, gid) =
                program::look_up(user).map_err(|error| other(format!("user {user}: {error}")))?;
            Some((user.clone(), uid, gid))
        }
    };
    let group = match &state.group {
        None => None,
        Some(name) => {
            let gid = program::look_up_group(name)
                .map_err(|error| other(format!("group {name}: {error}")))?;
            Some((name.clone(), gid))
        }
    };
    let sandbox = match &state.sandbox {
        None => None,
        Some(name) => Some(Sandbox::from_str(name, false).map_err(other)?),
    };
    Ok(Settings {
        api: match state.kernel_api.as_str() {
            "netlink" => KernelApi::Netlink,
            _ => KernelApi::Ioctl,
        },
        restart: match state.restart.as_str() {
            "always" => RestartWhen::Always,
            "never" => RestartWhen::Never,
            _ => RestartWhen::OnFailure,
        },
        restart_limit: state.restart_limit,
        poison_limit: state.poison_limit,
        on_backend_loss: state.on_backend_loss.parse().map_err(other)?,
        program: state.program.clone(),
        warm_spare: state.warm_spare,
        name: registry.name(state.index),
        survive_shutdown: state.survive_shutdown,
        user,
        sandbox,
        group,
        lanes: state.lanes,
        patience: Some(PATIENCE),
    })
}

fn copy_descriptors(holder: &mut Holder, sitter: &Process, state: &State) -> std::io::Result<()> {
    let ledger = sitter.copy_descriptor(LEDGER)?;
    let inspector = Inspector::open(ledger.try_clone()?, &holder.layout);
    holder.inspector = Some(inspector.map_err(std::io::Error::other)?);
    holder.ledger = Some(ledger);
    for number in (LANES..).take(state.lanes as usize) {
        holder.lanes.push(sitter.copy_descriptor(number)?);
    }
    for (number, name) in (KEEPSAKES..).zip(&state.keepsakes) {
        holder.keepsakes.push((name.clone(), sitter.copy_descriptor(number)?));
    }
    Ok(())
}

/// A backend that lives goes on; for a dead one the usual policy holds.
fn adopt_backend(holder: &mut Holder, state: &State) {
    let id = holder.next_id();
    let alive = state.backend.filter(nbd_control::process::ProcessId::is_alive);
    let process = alive.and_then(|backend| Process::open(backend.pid).ok());
    if state.paused {
        holder.supervisor.set_paused();
    }
    let kind = if holder.settings.program.is_empty() { Kind::Joined } else { Kind::Program };
    holder.supervisor.adopt(id, kind);
    match process {
        Some(process) => {
            let mut peer = Peer::new(None, None);
            peer.process = Some(process);
            holder.peers.insert(id, peer);
            if state.stand_in || state.paused {
                // A stand-in goes, and what follows is what follows a backend.
                holder.apply(&Event::FailDone);
            }
        }
        None => {
            holder.note_loss("lost while there was no holder".into(), false);
            holder.apply(&Event::OwnerDead { clean: false, progressed: true });
        }
    }
}
