//! Takes down what is left of a device that has lost its holder and that no other one can adopt, as its
//! sitter is gone too or its state cannot be read.
//!
//! This is a process of its own for one device, so it waits where a holder must not; each wait is
//! bounded.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind};
use nbd_control::process::ProcessId;
use nbd_control::registry::{HolderLock, Registry, State};
use nbd_control::remains::{Remains, stray};
use nbd_control::system_error::explain;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::args::KernelApi;
use crate::core::event::Flushed;
use crate::core::users::SCAN_TIMEOUT;
use crate::io::helpers::SCAN_INTERVAL;
use crate::io::words::in_use_words;
use crate::kernel::device_users;
use crate::kernel::helper_process::{self, HelperProcess, flushed};
use crate::kernel::{Device, USUAL_TIMEOUT, check_driver};
use crate::system::Process;

/// How long writing back may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a backend may take to end by itself once its lanes are at their end.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long each other step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// No descriptor tells of changes in /sys.
const SYSFS_INTERVAL: Duration = Duration::from_millis(10);

fn failure(kind: FailureKind, device: &Device, text: &str) -> Failure {
    Failure::new(kind, format!("{}: {text}", device.name()))
}

/// Takes the device down: in order, or by force, which fails what is in flight with EIO. The result says
/// what was done.
pub(crate) fn take_down(registry: &Registry, index: u32, force: bool) -> Result<String, Failure> {
    let device = Device::new(index);
    // Kept until the entry is gone: no process adopts the device meanwhile.
    let _lock = lock(registry, &device, force)?;
    let state = read_state(registry, &device, force)?;
    let remains = Remains::of(index, state.as_ref());
    check_adoptable(&device, state.as_ref(), &remains)?;
    if remains.connected && check_driver().is_ok() {
        disconnect(&device, &remains, force || remains.backend.is_none())?;
    }
    let limit = if force { STEP_TIMEOUT } else { LEAVE_TIMEOUT };
    end(&device, remains.backend, limit)?;
    // Where it is not known, it most probably was the default of a queue.
    let milliseconds = state.and_then(|state| state.io_timeout).unwrap_or(USUAL_TIMEOUT);
    if run(helper_process::restore_timeouts(&device, milliseconds), STEP_TIMEOUT) != Some(0) {
        tracing::warn!(device = %device.name(), "queue/io_timeout is not what it was");
    }
    let _registry_lock = lock_registry(registry, &device)?;
    registry.remove(index).map_err(|error| {
        let text = format!("its registry entry cannot be removed: {}", explain(&error));
        failure(FailureKind::Other, &device, &text)
    })?;
    let what = match (remains.connected, remains.backend) {
        (true, Some(backend)) => format!("the kernel's device and backend {}", backend.pid),
        (true, None) => "the kernel's device".into(),
        (false, Some(backend)) => format!("backend {}", backend.pid),
        (false, None) => "its entry".into(),
    };
    Ok(format!("{} is removed: its holder had died and had left {what}", device.name()))
}

fn lock_registry(registry: &Registry, device: &Device) -> Result<Flock<std::fs::File>, Failure> {
    let failed = |error: io::Error| {
        failure(
            FailureKind::Other,
            device,
            &format!("the registry cannot be locked: {}", explain(&error)),
        )
    };
    let file = registry.lock_file().map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))
}

fn is_missing(locked: &io::Result<Option<HolderLock>>) -> bool {
    locked.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn lock(registry: &Registry, device: &Device, force: bool) -> Result<HolderLock, Failure> {
    let _registry_lock = lock_registry(registry, device)?;
    let mut locked = registry.lock_folder(device.index);
    if is_missing(&locked) && force && stray(device.index).is_some() {
        // One whose entry was removed beneath it gets another one, so that no holder picks it meanwhile.
        locked =
            registry.create_folder(device.index).and_then(|()| registry.lock_folder(device.index));
    }
    match locked {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(failure(FailureKind::Busy, device, "another process holds it")),
        locked if is_missing(&locked) => {
            Err(failure(FailureKind::NoDevice, device, "it is not attached"))
        }
        Err(error) => {
            let text = format!("its folder cannot be locked: {}", explain(&error));
            Err(failure(FailureKind::Other, device, &text))
        }
    }
}

fn read_state(registry: &Registry, device: &Device, force: bool) -> Result<Option<State>, Failure> {
    match registry.read_state(device.index) {
        Ok(state) => Ok(state),
        Err(_) if force => Ok(None),
        Err(error) => {
            let folder = registry.folder(device.index);
            let text = format!(
                "the state of its holder in {} cannot be read: {error}; `nbd-ctl detach --force {}` \
                 takes down what is left, and what is in flight fails with EIO",
                folder.display(),
                device.name()
            );
            Err(failure(FailureKind::Other, device, &text))
        }
    }
}

/// What can be adopted loses nothing, and is detached by the holder that adopts it.
fn check_adoptable(
    device: &Device,
    state: Option<&State>,
    remains: &Remains,
) -> Result<(), Failure> {
    let Some(state) = state else { return Ok(()) };
    let text = if state.holder.is_alive() {
        format!("its holder (pid {}) is alive", state.holder.pid)
    } else if let Some(sitter) = remains.sitter {
        format!("its sitter (pid {}) is alive: `nbd-ctl adopt {}`", sitter.pid, device.name())
    } else {
        return Ok(());
    };
    Err(failure(FailureKind::Busy, device, &text))
}

fn disconnect(device: &Device, remains: &Remains, force: bool) -> Result<(), Failure> {
    if !force {
        flush(device)?;
    }
    // One that is stopped would keep the driver waiting in front of a full socket; without it the
    // lanes are closed. A sitter in the ioctl takes the device along.
    for process in [remains.backend.filter(|_| force), remains.sitter] {
        end(device, process, Duration::ZERO)?;
    }
    if device.setup_pid().is_some() {
        // What comes of it is seen below.
        let _ = run(helper_process::disconnect_now(device, KernelApi::Netlink), STEP_TIMEOUT);
    }
    let deadline = Instant::now() + STEP_TIMEOUT;
    while !device.is_clear() {
        if Instant::now() >= deadline {
            let text = "the driver has not freed it: a process may have it open; see the kernel log (`dmesg`), and try again";
            return Err(failure(FailureKind::TimedOut, device, text));
        }
        std::thread::sleep(SYSFS_INTERVAL);
    }
    Ok(())
}

fn check_unused(device: &Device) -> Result<(), Failure> {
    let unknown = |kind, why: String| {
        let text = format!(
            "cannot tell whether it is used: {why}; `nbd-ctl detach --force {}` does not ask",
            device.name()
        );
        failure(kind, device, &text)
    };
    let (helper, mut scan) = device_users::scan(device, &[]).map_err(|error| {
        unknown(FailureKind::Other, format!("cannot start a helper process: {}", explain(&error)))
    })?;
    let deadline = Instant::now() + SCAN_TIMEOUT;
    let mut done = false;
    while !done && Instant::now() < deadline {
        done = ends_within(&helper, SCAN_INTERVAL);
        scan.take();
    }
    if !done {
        // What it was stuck in tells the scan's result; it has nothing more to say.
        let _ = helper.kill();
    }
    let users = scan.result().map_err(|why| unknown(FailureKind::TimedOut, why))?;
    match users.is_empty() {
        true => Ok(()),
        false => {
            let text = in_use_words(&device.name(), &users, "", "detach");
            Err(Failure::new(FailureKind::Busy, text))
        }
    }
}

/// Writes back through the backend, which still serves, and disconnects; no process can begin to use the
/// device in between.
fn flush(device: &Device) -> Result<(), Failure> {
    check_unused(device)?;
    let force = format!("`nbd-ctl detach --force {}`", device.name());
    let helper = helper_process::flush_and_disconnect(device, KernelApi::Netlink);
    match run(helper, FLUSH_TIMEOUT).map(flushed) {
        Some(Flushed::Disconnected | Flushed::NotDisconnected) => Ok(()),
        Some(Flushed::Busy) => {
            let text = "it is in use by the kernel (mounted, swap, or part of another device)";
            Err(failure(FailureKind::Busy, device, text))
        }
        Some(Flushed::Failed(errno)) => {
            let text = format!("writing back failed: {}; {force} gives it up", errno.desc());
            Err(failure(FailureKind::DataLost, device, &text))
        }
        None => {
            let text = format!("its backend does not answer: continue it, or {force}");
            Err(failure(FailureKind::TimedOut, device, &text))
        }
    }
}

/// The exit status of a helper process; nothing if it takes too long and is killed.
fn run(helper: io::Result<HelperProcess>, limit: Duration) -> Option<i32> {
    let mut helper = match helper {
        Ok(helper) => helper,
        Err(error) => return Some(error.raw_os_error().unwrap_or(libc::EAGAIN)),
    };
    let status = helper.wait(limit).map(|(status, _)| status);
    if status.is_none() {
        // It may sit in an uninterruptible call; it dies when that returns, doing no more.
        let _ = helper.process.kill();
    }
    status
}

/// Waits for a process's end, and brings it about if it does not come by itself.
fn end(device: &Device, process: Option<ProcessId>, limit: Duration) -> Result<(), Failure> {
    let Some(id) = process else { return Ok(()) };
    let Ok(process) = Process::open(id.pid) else { return Ok(()) };
    // The pid may belong to another process by now.
    if !id.is_alive() || ends_within(&process, limit) {
        return Ok(());
    }
    // A process that is gone by now is what is wanted.
    let _ = process.kill();
    match ends_within(&process, STEP_TIMEOUT) {
        true => Ok(()),
        false => {
            let text = format!("process {} was killed and is not dead yet: try again", id.pid);
            Err(failure(FailureKind::TimedOut, device, &text))
        }
    }
}

fn ends_within(process: &Process, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if process.has_ended() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let mut fds = [PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, timeout).is_err() {
            std::thread::sleep(SYSFS_INTERVAL);
        }
    }
}
