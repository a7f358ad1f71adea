//! Picking a device, without racing other holders.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind};
use nbd_control::registry::{HolderLock, Registry};
use nbd_control::remains::Remains;
use nbd_control::system_error::explain;
use nix::fcntl::{Flock, FlockArg};

use crate::args::KernelApi;
use crate::io::listen::listen;
use crate::kernel::helper_process;
use crate::kernel::{Device, DeviceError, device_count};

/// How long a device that was given by name may take to become free: the last user's teardown,
/// or udev's look at it.
const FREE_TIMEOUT: Duration = Duration::from_secs(2);

/// A device that is reserved in the registry.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(crate) device: Device,
    /// What makes this process its holder.
    pub(crate) lock: HolderLock,
    /// It was asked for by name, so that no other one will do.
    pub(crate) given: bool,
    /// The listener on its control socket.
    pub(crate) control: UnixListener,
}

fn other(text: String) -> Failure {
    Failure::new(FailureKind::Other, text)
}

/// Reserves the given device, or a free one that is not in `avoid`.
pub(crate) fn pick(
    registry: &Registry,
    wanted: Option<u32>,
    api: KernelApi,
    avoid: &[u32],
) -> Result<Picked, Failure> {
    let directory = registry.directory().display().to_string();
    if !registry.directory().exists() {
        // No entry can be in the way, and an attach that fails for want of a device leaves nothing.
        match wanted {
            Some(index) => wait_for(registry, index, api).map(drop)?,
            None => find_free(registry, api, avoid).map(drop)?,
        }
    }
    let prepared = registry.prepare().and_then(|()| registry.lock_file());
    let file = prepared.map_err(|error| {
        other(format!("the runtime directory {directory}: {error}; choose one with --runtime-dir"))
    })?;
    // Waits for other holders that are picking: not long, unless theirs is being torn down.
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| {
        other(format!("cannot lock {directory}/lock: {}", explain(&errno.into())))
    })?;
    let device = match wanted {
        Some(index) => wait_for(registry, index, api)?,
        None => find_free(registry, api, avoid)?,
    };
    let index = device.index;
    registry.create_folder(index).map_err(|error| in_folder(registry, index, &error))?;
    reserve(registry, device, wanted.is_some()).inspect_err(|_| {
        if let Err(error) = registry.remove(index) {
            tracing::warn!("nbd{index}: cannot remove its registry entry: {}", explain(&error));
        }
    })
}

/// Fills a new folder. What is written to it later has its room from here on.
fn reserve(registry: &Registry, device: Device, given: bool) -> Result<Picked, Failure> {
    let index = device.index;
    let failed = |error: std::io::Error| in_folder(registry, index, &error);
    let lock = registry.lock_folder(index).map_err(failed)?;
    let lock = lock.ok_or_else(|| other(format!("{}: another process holds it", device.name())))?;
    let control = listen(&registry.control_socket(index), None).map_err(failed)?;
    registry.reserve_state(index).map_err(|error| {
        let folder = registry.folder(index).display().to_string();
        other(format!("no room for the holder's state in {folder}: {error}: make room there"))
    })?;
    Ok(Picked { device, lock, given, control })
}

fn in_folder(registry: &Registry, index: u32, error: &std::io::Error) -> Failure {
    other(format!("{}: {}", registry.folder(index).display(), explain(error)))
}

fn busy(error: &DeviceError) -> Failure {
    let kind = match error {
        DeviceError::Busy(..) | DeviceError::NoneFree(_) => FailureKind::Busy,
        DeviceError::NoDevice(..) => FailureKind::NoDevice,
        DeviceError::NoDriver => FailureKind::Other,
    };
    Failure::new(kind, error.to_string())
}

fn wait_for(registry: &Registry, index: u32, api: KernelApi) -> Result<Device, Failure> {
    let deadline = Instant::now() + FREE_TIMEOUT;
    loop {
        match check(registry, index, api) {
            Err(DeviceError::Busy(..)) if Instant::now() < deadline => {
                // No event tells of a device that becomes free.
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result.map_err(|error| busy(&error)),
        }
    }
}

fn find_free(registry: &Registry, api: KernelApi, avoid: &[u32]) -> Result<Device, Failure> {
    let count = device_count();
    let beyond = match api {
        // The driver makes a device that does not exist yet.
        KernelApi::Netlink => count as u32 + 64,
        KernelApi::Ioctl => count as u32,
    };
    (0..beyond)
        .filter(|index| !avoid.contains(index))
        .find_map(|index| check(registry, index, api).ok())
        .ok_or_else(|| busy(&DeviceError::NoneFree(count)))
}

fn check(registry: &Registry, index: u32, api: KernelApi) -> Result<Device, DeviceError> {
    let device = Device::new(index);
    let path = device.path().display().to_string();
    if !device.exists() && api == KernelApi::Ioctl {
        return Err(DeviceError::NoDevice(path, device_count()));
    }
    if registry.folder(index).exists()
        && let Some(why) = registered(registry, index)
    {
        return Err(DeviceError::Busy(path, why));
    }
    match device.owner() {
        Some(why) => Err(DeviceError::Busy(path, why)),
        None => Ok(device),
    }
}

/// Why a registry entry counts, or nothing if it was stale and has been removed.
fn registered(registry: &Registry, index: u32) -> Option<String> {
    let name = format!("nbd{index}");
    // Sockets are bound under the lock that we hold, so one that does not answer is dead.
    if UnixStream::connect(registry.control_socket(index)).is_ok() {
        return Some(format!("it is attached; see `nbd-ctl status {name}`"));
    }
    // Kept until the entry is removed, so that no holder begins to adopt it meanwhile.
    let _lock = match registry.lock_folder(index) {
        Ok(Some(lock)) => lock,
        Ok(None) => return Some("its holder is alive and does not listen".into()),
        Err(error) => return Some(format!("its entry cannot be locked: {}", explain(&error))),
    };
    let state = match registry.read_state(index) {
        Ok(state) => state,
        Err(error) => {
            let path = registry.folder(index);
            let path = path.display();
            return Some(format!(
                "the state of its holder in {path} cannot be read: {error}; \
                 `nbd-ctl detach --force {name}` takes down what is left"
            ));
        }
    };
    // A holder of an older build locks nothing.
    if let Some(state) = state.as_ref().filter(|state| state.holder.is_alive()) {
        return Some(format!("its holder (pid {}) is alive and does not listen", state.holder.pid));
    }
    let remains = Remains::of(index, state.as_ref());
    if state.is_some() && remains.sitter.is_some() {
        return Some(format!("it is attached and its holder has died: `nbd-ctl adopt {name}`"));
    }
    if !remains.is_nothing() {
        return Some(format!(
            "its holder has died and has left something; `nbd-ctl detach {name}` removes it"
        ));
    }
    if let Some(milliseconds) = state.and_then(|state| state.io_timeout)
        && let Some(why) = restore_timeouts(&Device::new(index), milliseconds)
    {
        return Some(why);
    }
    match registry.remove(index) {
        Ok(()) => None,
        Err(error) => Some(format!("its stale entry cannot be removed: {}", explain(&error))),
    }
}

/// Puts a setting of the queue back; the result is why the device cannot be used before that is
/// done.
fn restore_timeouts(device: &Device, milliseconds: u64) -> Option<String> {
    let restored = helper_process::restore_timeouts(device, milliseconds);
    let mut helper = match restored {
        Ok(helper) => helper,
        Err(error) => {
            return Some(format!("no process can be started for it: {}", explain(&error)));
        }
    };
    // Whether the kernel takes the value is of no importance to the next user, who sets another.
    let done = helper.wait(FREE_TIMEOUT).is_some();
    let pid = helper.process.pid;
    (!done).then(|| {
        format!("the kernel still waits for requests of its last user (process {pid} waits in the driver)")
    })
}
