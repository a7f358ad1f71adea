//! Picking a device, without racing other holders.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind};
use nbd_control::registry::Registry;
use nix::fcntl::{Flock, FlockArg};

use crate::args::KernelApi;
use crate::holder::listen;
use crate::kernel::{Device, DeviceError, device_count};

/// How long a device that was given by name may take to become free: the last user's teardown,
/// or udev's look at it.
const TEARDOWN: Duration = Duration::from_secs(2);

/// A device that is reserved in the registry, and the listener on its control socket.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(crate) device: Device,
    pub(crate) control: std::os::unix::net::UnixListener,
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
    let prepared = registry.prepare().and_then(|()| registry.lock_file());
    let file = prepared.map_err(|error| {
        other(format!("the runtime directory {directory}: {error}; choose one with --runtime-dir"))
    })?;
    // Waits for other holders that are picking: not long, unless theirs is being torn down.
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| other(format!("cannot lock {directory}/lock: {errno}")))?;
    let device = match wanted {
        Some(index) => wait_for(registry, index, api)?,
        None => find_free(registry, api, avoid)?,
    };
    let index = device.index;
    let reserved =
        registry.create_folder(index).and_then(|()| listen(&registry.control_socket(index), None));
    let control = reserved
        .map_err(|error| other(format!("{}: {error}", registry.folder(index).display())))?;
    Ok(Picked { device, control })
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
    let deadline = Instant::now() + TEARDOWN;
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
    // Sockets are bound under the lock that we hold, so one that does not answer is dead.
    if UnixStream::connect(registry.control_socket(index)).is_ok() {
        return Some(format!("it is attached; see `nbd-ctl status nbd{index}`"));
    }
    if let Ok(Some(state)) = registry.read_state(index)
        && state.sitter.is_alive()
    {
        return Some(format!("it is attached and its holder is gone; `nbd-ctl adopt nbd{index}`"));
    }
    if let Ok(Some(state)) = registry.read_state(index)
        && let Some(milliseconds) = state.io_timeout
    {
        Device::new(index).restore_timeouts(milliseconds);
    }
    match registry.remove(index) {
        Ok(()) => None,
        Err(error) => Some(format!("its stale entry cannot be removed: {error}")),
    }
}
