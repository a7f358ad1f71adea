//! Errands: system calls on the device that may block for ever, run in forked processes that can
//! be left behind. The exit status is the errno of what failed, or 0.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::sys::signal::Signal;

use super::netlink::Netlink;
use super::{Device, contents, device_users, ioctl};
use crate::args::KernelApi;
use crate::system::{Process, fork_child, keep_only};

/// Added to the exit status when the disconnect failed and not the flush before it.
const DISCONNECT_FAILED: u8 = 200;
/// The exit status if something on the device needs more than is to be left of it.
const NEEDED: u8 = 201;

/// Forks. What the child inherits it lets go of, or an errand that hangs would keep the holder's
/// sockets open after its death; and it does nothing more once the holder is dead.
fn start(errand: impl FnOnce() -> u8) -> io::Result<Process> {
    fork_child(|| {
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        match keep_only(&[]) {
            Ok(()) => errand(),
            Err(error) => status(Err(error)),
        }
    })
}

/// Reads the first block, as the first user will.
pub(crate) fn test_read(device: &Device, block_size: u32) -> io::Result<Process> {
    start(|| {
        let mut block = vec![0; block_size as usize];
        status(File::open(device.path()).and_then(|file| file.read_exact_at(&mut block, 0)))
    })
}

/// Writes back what the page cache holds and disconnects, with the device opened exclusively all
/// the time, so that nobody can mount it in between.
pub(crate) fn flush_and_disconnect(device: &Device, api: KernelApi) -> io::Result<Process> {
    start(|| {
        let exclusive = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL | libc::O_CLOEXEC)
            .open(device.path());
        let flushed = exclusive.and_then(|file| file.sync_all().map(|()| file));
        let flushed = flushed.and_then(|file| unused_by_kernel(device).map(|()| file));
        match flushed {
            Err(error) => status(Err(error)),
            Ok(file) => match disconnect(&file, device, api) {
                true => 0,
                false => DISCONNECT_FAILED,
            },
        }
    })
}

/// Disconnects without asking. The lanes must be shut down before, or it may block.
pub(crate) fn disconnect_now(device: &Device, api: KernelApi) -> io::Result<Process> {
    start(|| match api {
        KernelApi::Netlink => u8::from(!disconnect_netlink(device)),
        KernelApi::Ioctl => status(
            File::open(device.path())
                .and_then(|file| ioctl::clear_sock(file.as_fd()).map_err(io::Error::from)),
        ),
    })
}

/// Tells the driver another size. With `guard` only if nobody uses the device, and nothing on it
/// reaches beyond that size; nobody can mount it meanwhile.
pub(crate) fn resize(
    device: &Device,
    api: KernelApi,
    size: u64,
    block_size: u32,
    guard: bool,
) -> io::Result<Process> {
    start(|| {
        let exclusive = if guard { libc::O_EXCL } else { 0 };
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(exclusive | libc::O_CLOEXEC)
            .open(device.path());
        let file = match opened {
            Ok(file) => file,
            Err(error) => return status(Err(error)),
        };
        if guard {
            let unused = file.sync_all().and_then(|()| unused_by_kernel(device));
            match unused.and_then(|()| contents::end(&file, device)) {
                Ok(end) if end > size => return NEEDED,
                Ok(_) => {}
                Err(error) => return status(Err(error)),
            }
        }
        status(set_size(&file, device, api, size, block_size))
    })
}

/// Nothing can claim the device while the caller has it exclusively; a loop device and its like do
/// not try, and writing back may have taken them long enough to come.
fn unused_by_kernel(device: &Device) -> io::Result<()> {
    match device_users::is_used_by_kernel(device) {
        true => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        false => Ok(()),
    }
}

fn set_size(
    file: &File,
    device: &Device,
    api: KernelApi,
    size: u64,
    block_size: u32,
) -> io::Result<()> {
    match api {
        KernelApi::Ioctl => Ok(ioctl::set_size_blocks(file.as_fd(), size / u64::from(block_size))?),
        KernelApi::Netlink => Netlink::open()
            .and_then(|netlink| netlink.resize(device.index, size, &device.name()))
            .map_err(|error| error.errno().into()),
    }
}

fn disconnect(file: &File, device: &Device, api: KernelApi) -> bool {
    match api {
        KernelApi::Ioctl => ioctl::disconnect(file.as_fd()).is_ok(),
        KernelApi::Netlink => disconnect_netlink(device),
    }
}

fn disconnect_netlink(device: &Device) -> bool {
    Netlink::open().and_then(|netlink| netlink.disconnect(device.index)).is_ok()
}

fn status(result: io::Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            u8::try_from(errno).ok().filter(|&errno| errno < DISCONNECT_FAILED).unwrap_or(5)
        }
    }
}

/// What [`resize`] came back with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resized {
    /// The driver has the new size.
    Done,
    /// Somebody has it open exclusively.
    Busy,
    /// A file system or a partition needs more than that.
    Needed,
    /// Something else.
    Failed(nix::errno::Errno),
}

impl Resized {
    /// Reads the exit status.
    pub(crate) fn from_status(status: i32) -> Self {
        match status {
            0 => Self::Done,
            libc::EBUSY => Self::Busy,
            status if status == i32::from(NEEDED) => Self::Needed,
            errno => Self::Failed(nix::errno::Errno::from_raw(errno)),
        }
    }
}

/// What [`flush_and_disconnect`] came back with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// All is written, the driver has been told to disconnect.
    Disconnected,
    /// Somebody has it open exclusively: a mount, swap, device mapper.
    Busy,
    /// Data could not be written.
    Failed(nix::errno::Errno),
    /// Written, but the driver would not disconnect.
    NotDisconnected,
}

impl Flushed {
    /// Reads the exit status.
    pub(crate) fn from_status(status: i32) -> Self {
        match status {
            0 => Self::Disconnected,
            libc::EBUSY => Self::Busy,
            status if status == i32::from(DISCONNECT_FAILED) => Self::NotDisconnected,
            errno => Self::Failed(nix::errno::Errno::from_raw(errno)),
        }
    }
}
