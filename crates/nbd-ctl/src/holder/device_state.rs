//! What there is of a device in the registry, and clearing away what is left of a dead one.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_control::registry::{Registry, State};
use nbd_control::remains::{Remains, restore_timeout};
use nix::fcntl::{Flock, FlockArg};

use crate::context::Context;
use crate::device::Device;
use crate::error::Error;
use crate::holder::abandoned::Abandoned;

/// How long the registry may be locked by others.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// What there is.
#[derive(Debug)]
pub(crate) enum DeviceState {
    /// No folder.
    Absent,
    /// A process listens on its control socket.
    Listening(UnixStream),
    /// Its holder is gone; the device works on, and can be adopted.
    Orphaned(Box<State>),
    /// Its holder is alive and does not listen: it is about to go.
    Unsettled { holder: i32 },
    /// Holder and sitter are gone, so nothing can adopt it; a backend or the kernel's device is left.
    Abandoned(Abandoned),
    /// All its processes are gone. Certain only under the registry's lock, which holders hold
    /// while they make a folder and listen on its socket.
    Stale,
}

/// Looks at a device's entry.
pub(crate) fn probe(registry: &Registry, device: Device) -> Result<DeviceState, Error> {
    let socket = registry.control_socket(device.0);
    let error = match UnixStream::connect(&socket) {
        Ok(stream) => return Ok(DeviceState::Listening(stream)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => unheld(registry, device),
        ErrorKind::PermissionDenied => Err(Error::Forbidden { device }),
        _ => Err(Error::Registry { path: socket, source: error }),
    }
}

/// What there is if no process listens.
fn unheld(registry: &Registry, device: Device) -> Result<DeviceState, Error> {
    let folder = registry.folder(device.0);
    match folder.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(DeviceState::Absent),
        Err(source) => {
            return Err(Error::Registry { path: folder, source });
        }
        Ok(_) => {}
    }
    let state = registry.read_state(device.0).map_err(|source| match source.kind() {
        ErrorKind::PermissionDenied => Error::Forbidden { device },
        _ => Error::State { device, source },
    })?;
    let remains = Remains::of(device.0, state.as_ref());
    Ok(match state {
        Some(state) if state.holder.is_alive() => {
            DeviceState::Unsettled { holder: state.holder.pid }
        }
        Some(state) if remains.sitter.is_some() => DeviceState::Orphaned(Box::new(state)),
        _ if remains.is_nothing() => DeviceState::Stale,
        _ => DeviceState::Abandoned(Abandoned {
            backend: remains.backend.map(|backend| backend.pid),
            connected: remains.connected,
        }),
    })
}

/// Removes a stale entry, unless it has come to life meanwhile; says whether it did.
pub(crate) fn clean(context: &Context, device: Device) -> Result<bool, Error> {
    let registry = &context.registry;
    let failed = |source| Error::Registry { path: registry.folder(device.0), source };
    let lock = lock(context)?;
    let stale = match probe(registry, device)? {
        // A living holder has it locked, whatever the state says and whichever process listens.
        DeviceState::Stale => registry.lock_folder(device.0).map_err(failed)?.is_some(),
        _ => false,
    };
    if stale {
        let state = registry.read_state(device.0).ok().flatten();
        if let Some(milliseconds) = state.and_then(|state| state.io_timeout) {
            restore_timeout(device.0, milliseconds);
        }
        registry.remove(device.0).map_err(failed)?;
    }
    drop(lock);
    Ok(stale)
}

/// Locks the registry, as holders do while they pick a device.
fn lock(context: &Context) -> Result<Flock<std::fs::File>, Error> {
    let path = context.registry.directory().join("lock");
    let failed = |source: io::Error| Error::Registry { path: path.clone(), source };
    let mut file = context.registry.lock_file().map_err(failed)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, nix::Error::EWOULDBLOCK | nix::Error::EINTR)) => file,
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        if Instant::now() >= deadline {
            return Err(Error::Locked { path, limit: LOCK_TIMEOUT });
        }
        if !context.sleep(Duration::from_millis(20)) {
            return Err(Error::Interrupted("nothing is changed".into()));
        }
    }
}

/// The devices that have an entry.
pub(crate) fn devices(registry: &Registry) -> Result<Vec<Device>, Error> {
    let found = registry
        .devices()
        .map_err(|source| Error::Registry { path: registry.directory().to_path_buf(), source })?;
    Ok(found.into_iter().map(Device).collect())
}

/// The error for a device without entry. What the others are is worth a hint, not a failure.
pub(crate) fn no_device(registry: &Registry, device: Device) -> Error {
    Error::NoDevice { device, attached: devices(registry).unwrap_or_default() }
}
