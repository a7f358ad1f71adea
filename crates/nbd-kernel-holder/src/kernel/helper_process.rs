//! Helper processes: system calls on the device that may block for ever, run in forked processes that
//! can be left behind. The exit status is the errno of what failed, or 0.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use nbd_control::backend::ExportInfo;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::limits;
use super::netlink::Netlink;
use super::sitter::numbered_file;
use super::{Device, IO_TIMEOUT, USUAL_TIMEOUT, device_users, fs_probe, ioctl, read_number};
use crate::args::KernelApi;
use crate::core::event::{Flushed, Resized};
use crate::ending::{Ending, try_reap};
use crate::system::{Process, fork_child, keep_only};

/// How long a helper process may take to end that is done.
const REAP_TIMEOUT: Duration = Duration::from_millis(200);
/// The pipe of the report in a helper process.
const REPORT_TO: RawFd = 3;
/// Added to the exit status when the disconnect failed and not the flush before it.
const DISCONNECT_FAILED: u8 = 200;
/// The exit status if something on the device needs more than is to be left of it.
const NEEDED: u8 = 201;

/// A helper process and the pipe on which it reports.
///
/// It reports before it closes the device: the last close of a block device waits for the device's
/// lock, which a partition scan of another process may hold while its reads wait for a backend. A
/// program that knows nothing of this has no pipe, and its exit status is the report.
#[derive(Debug)]
pub(crate) struct HelperProcess {
    pub(crate) process: Process,
    report: Option<File>,
}

/// What a helper process reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// 0, or the errno of what failed, or a number of ours above all of these.
    status: u8,
    /// What was asked for, if the task is a question.
    value: u64,
}

impl From<u8> for Outcome {
    fn from(status: u8) -> Self {
        Self { status, value: 0 }
    }
}

/// What is told of a helper process that was killed, where only success matters.
pub(crate) const KILLED: (i32, u64) = (libc::EINTR, 0);

/// The length of a report: short enough for one write to a pipe to be all of it or nothing.
const REPORT: usize = 9;

impl HelperProcess {
    /// A program that was started elsewhere.
    pub(crate) fn program(process: Process) -> Self {
        Self { process, report: None }
    }

    /// What becomes readable when there is a report, or when the process has ended without one.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.report.as_ref().map_or(self.process.pidfd.as_fd(), |report| report.as_fd())
    }

    /// Status and value, once the descriptor is readable; nothing if it was killed before it could
    /// report. What it had asked of the kernel may be done all the same, but nothing more will be.
    pub(crate) fn read_report(&mut self) -> Option<(i32, u64)> {
        let Some(report) = &mut self.report else {
            return match try_reap(self.process.pid) {
                Some(Ending::Exited(status)) => Some((status, 0)),
                _ => None,
            };
        };
        let mut bytes = [0; REPORT];
        report.read_exact(&mut bytes).ok()?;
        let (status, value) = bytes.split_at(1);
        let value = value.try_into().map_or(0, u64::from_ne_bytes);
        Some((status[0].into(), value))
    }

    /// Waits for the report where no loop turns yet; nothing if it takes longer than `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<(i32, u64)> {
        let mut ready = [PollFd::new(self.descriptor(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut ready, limit) {
            Ok(0) | Err(_) => None,
            Ok(_) => {
                let report = self.read_report();
                self.reap(REAP_TIMEOUT);
                Some(report.unwrap_or(KILLED))
            }
        }
    }

    /// Leaves no zombie behind of a process that has reported; it only has to end.
    fn reap(&self, limit: Duration) {
        let mut ended = [PollFd::new(self.process.pidfd.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        if poll(&mut ended, limit).is_ok_and(|ready| ready > 0) {
            try_reap(self.process.pid);
        }
    }
}

/// Forks. What the child inherits it lets go of, or a task that hangs would keep the holder's
/// sockets open after its death; and it does nothing more once the holder is dead. Its name, like
/// `nbd0-resize`, tells people and holders what it is that hangs.
fn start<T: Into<Outcome>>(
    device: &Device,
    task: &str,
    call: impl FnOnce() -> T,
) -> io::Result<HelperProcess> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let name = CString::new(process_name(device, task));
    let process = fork_child(|| {
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        let _ = name.map(|name| nix::sys::prctl::set_name(&name));
        if keep_only(&[(write.as_fd(), REPORT_TO)]).is_err() {
            return 1;
        }
        let Outcome { status, value } = call().into();
        let mut report = [0; REPORT];
        report[0] = status;
        report[1..].copy_from_slice(&value.to_ne_bytes());
        // The holder may have gone meanwhile, and then there is nothing to do about it.
        let _ = numbered_file(REPORT_TO).write_all(&report);
        status
    })?;
    Ok(HelperProcess { process, report: Some(read.into()) })
}

/// The name of a helper process; the kernel keeps 15 bytes of it.
pub(crate) fn process_name(device: &Device, task: &str) -> String {
    format!("{}-{task}", device.name())
}

/// Opens the device for as long as this process lives; see [`HelperProcess`].
fn open(device: &Device, flags: i32) -> io::Result<ManuallyDrop<File>> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags | libc::O_CLOEXEC);
    options.open(device.path()).map(ManuallyDrop::new)
}

/// Reads the first block, as the first user will.
pub(crate) fn test_read(device: &Device, block_size: u32) -> io::Result<HelperProcess> {
    start(device, "read", || {
        let mut block = vec![0; block_size as usize];
        status(open(device, 0).and_then(|file| file.read_exact_at(&mut block, 0)))
    })
}

/// Writes back what the page cache holds and disconnects, with the device opened exclusively all
/// the time, so that nothing can mount it in between.
pub(crate) fn flush_and_disconnect(device: &Device, api: KernelApi) -> io::Result<HelperProcess> {
    start(device, "detach", || {
        let flushed = open(device, libc::O_EXCL).and_then(|file| file.sync_all().map(|()| file));
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
pub(crate) fn disconnect_now(device: &Device, api: KernelApi) -> io::Result<HelperProcess> {
    start(device, "clear", || match api {
        KernelApi::Netlink => u8::from(!disconnect_netlink(device)),
        KernelApi::Ioctl => status(
            open(device, 0)
                .and_then(|file| ioctl::clear_sock(file.as_fd()).map_err(io::Error::from)),
        ),
    })
}

/// Takes the driver's lock of this device and gives it back: whether that returns is the answer.
pub(crate) fn try_lock(device: &Device) -> io::Result<HelperProcess> {
    start(device, "lock", || {
        let file = match open(device, 0) {
            Ok(file) => file,
            Err(error) => return status(Err(error)),
        };
        match ioctl::print_debug(file.as_fd()) {
            // The refusal of a device that was set up over netlink.
            Ok(()) | Err(Errno::EINVAL) => 0,
            Err(errno) => status(Err(errno.into())),
        }
    })
}

/// Stops the driver's complaints about waiting requests; the value is the old time.
///
/// Linux 6.12 freezes the queue for any store to `queue/`, and waits for what is in flight; a
/// read of `queue/` then waits for that store.
pub(crate) fn silence_timeouts(device: &Device) -> io::Result<HelperProcess> {
    start(device, "queue", || {
        let path = device.sys("queue/io_timeout");
        let Some(before) = read_number(&path) else {
            return Outcome::from(status(Err(io::ErrorKind::NotFound.into())));
        };
        let status = status(fs::write(path, IO_TIMEOUT.to_string()));
        // Our own value is what a holder leaves behind that is killed together with its sitter.
        Outcome { status, value: if before < IO_TIMEOUT { before } else { USUAL_TIMEOUT } }
    })
}

/// Puts the old time back. A device that netlink made may be gone already, and its attributes with
/// it.
pub(crate) fn restore_timeouts(device: &Device, milliseconds: u64) -> io::Result<HelperProcess> {
    start(device, "queue", || {
        let path = device.sys("queue/io_timeout");
        status(if path.exists() { fs::write(path, milliseconds.to_string()) } else { Ok(()) })
    })
}

/// Asks how the limits of the queue differ from what the export offers; the value has the bits of
/// [`limits::DIFFERENCES`].
pub(crate) fn compare_limits(device: &Device, export: ExportInfo) -> io::Result<HelperProcess> {
    start(device, "queue", || Outcome { status: 0, value: limits::compare(device, &export) })
}

/// What a helper process that tells the driver another size is called.
pub(crate) const RESIZE: &str = "resize";

/// Tells the driver another size. With `guard` only if nothing uses the device, and nothing on it
/// reaches beyond that size; nothing can mount it meanwhile.
pub(crate) fn resize(
    device: &Device,
    api: KernelApi,
    size: u64,
    block_size: u32,
    guard: bool,
) -> io::Result<HelperProcess> {
    start(device, RESIZE, || {
        let exclusive = if guard { libc::O_EXCL } else { 0 };
        let file = match open(device, exclusive) {
            Ok(file) => file,
            Err(error) => return status(Err(error)),
        };
        if guard {
            let unused = file.sync_all().and_then(|()| unused_by_kernel(device));
            match unused.and_then(|()| fs_probe::end(&file, device)) {
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

/// What the report of [`resize`] says.
pub(crate) fn resized(report: Option<(i32, u64)>) -> Resized {
    match report.map(|(status, _)| status) {
        None => Resized::Unknown,
        Some(0) => Resized::Done,
        Some(libc::EBUSY) => Resized::Busy,
        Some(status) if status == i32::from(NEEDED) => Resized::Needed,
        Some(errno) => Resized::Failed(Errno::from_raw(errno)),
    }
}

/// What the status of [`flush_and_disconnect`] says.
pub(crate) fn flushed(status: i32) -> Flushed {
    match status {
        0 => Flushed::Disconnected,
        libc::EBUSY => Flushed::Busy,
        status if status == i32::from(DISCONNECT_FAILED) => Flushed::NotDisconnected,
        errno => Flushed::Failed(Errno::from_raw(errno)),
    }
}
