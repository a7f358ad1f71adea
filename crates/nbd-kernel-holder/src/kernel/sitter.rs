//! The sitter: a forked process that sits in NBD_DO_IT, or with netlink just sits, and keeps a
//! copy of everything that must outlive holder and backend.
//!
//! It blocks all signals, as any signal to the process in the ioctl tears the device down, and is
//! traced by the holder, as a debugger that attached to it would do the same. It holds its
//! descriptors under fixed numbers, from where another holder can copy them after this one died
//! ([`Process::copy_descriptor`](crate::system::Process::copy_descriptor)).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nbd_control::backend::ExportInfo;
use nbd_control::process::ProcessId;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::ptrace;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::netlink::{Connect, Netlink};
use super::{Device, ioctl, log_valve};
use crate::args::KernelApi;
use crate::system::{Process, fork_child, keep_only};

/// The ledger.
pub(crate) const LEDGER: RawFd = 10;
/// The first lane's server end.
pub(crate) const LANES: RawFd = 16;
/// The first stored descriptor.
pub(crate) const STORED_FDS: RawFd = 40;
/// The most stored descriptors.
pub(crate) const MAX_STORED_FDS: usize = 16;
/// The first pipe from which the log is read.
pub(crate) const LOG_PIPES: RawFd = 90;
/// How many pipes: the owner's, its spare's or successor's, the EIO backend's, and one for what
/// a former program has left behind.
pub(crate) const MAX_LOG_PIPES: usize = 4;
const KERNEL_ENDS: RawFd = 64;
const PROGRESS: RawFd = 80;
const GO: RawFd = 81;
/// How often to try again to connect a device that others have open.
const USERS_INTERVAL: Duration = Duration::from_millis(20);

/// What a sitter is made of.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) device: &'a Device,
    pub(crate) api: KernelApi,
    pub(crate) export: ExportInfo,
    pub(crate) ledger: BorrowedFd<'a>,
    pub(crate) lanes: &'a [OwnedFd],
    pub(crate) kernel_ends: &'a [OwnedFd],
    pub(crate) stored_fds: &'a [(String, OwnedFd)],
    /// How long to wait for passing users of the free device.
    pub(crate) users_timeout: Duration,
    pub(crate) log_pipes: &'a [BorrowedFd<'a>],
}

/// A sitter on its way into the kernel, and the pipe on which it tells how it got on.
#[derive(Debug)]
pub(crate) struct Sitter {
    pub(crate) process: Process,
    /// How others recognise it.
    pub(crate) id: ProcessId,
    pub(crate) progress: Option<File>,
    /// Its word to go; if this is closed without one, it ends.
    go: Option<File>,
}

impl Sitter {
    /// One that sits already.
    pub(crate) fn seated(process: Process, id: ProcessId) -> Self {
        Self { process, id, progress: None, go: None }
    }

    /// It shall not go, and ends.
    pub(crate) fn dismiss(&mut self) {
        self.go = None;
    }

    /// Lets it set up the device. Before that, its holder writes down who it is: of a connected device
    /// with an unknown sitter, nothing could be adopted after the holder's death.
    pub(crate) fn go(&mut self) -> std::io::Result<()> {
        self.go.take().map_or(Ok(()), |mut go| go.write_all(b"g"))
    }
}

/// What a sitter says: the step that failed, and why. Success is an empty message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SetupError {
    pub(crate) step: String,
    pub(crate) errno: Errno,
}

impl SetupError {
    fn unexpected(step: &str) -> Self {
        Self { step: step.into(), errno: Errno::EIO }
    }
}

/// Forks the sitter, which then waits for [`Sitter::go`].
pub(crate) fn start(setup: &Setup<'_>) -> std::io::Result<Sitter> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (wait, go) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // Blocked before the fork, so that there is no moment at which a signal could hit the child.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let child = fork_child(|| child(setup, &write, &wait));
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    drop((write, wait));
    let process = child?;
    let id = ProcessId::of(process.pid.as_raw());
    Ok(Sitter {
        id: id.ok_or(std::io::Error::other("it died at once"))?,
        process,
        progress: Some(read.into()),
        go: Some(go.into()),
    })
}

/// Keeps others from tracing a sitter that has lost its holder: a debugger or strace that attaches
/// would interrupt the ioctl. A tracer that asks for nothing disturbs nothing, not even by dying.
/// Only SIGCONT, which is nothing to a sitter that asked to be traced when it was started, interrupts
/// one that was seized.
pub(crate) fn shield(sitter: &Process) -> nix::Result<()> {
    ptrace::seize(sitter.pid, ptrace::Options::empty())
}

/// Lets the sitter run again if a signal has stopped it under our trace, without the signal.
pub(crate) fn release_if_stopped(sitter: &Process) {
    // Stops only, so that its end is still reported where that is waited for.
    let options = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
    let stopped = waitid(Id::Pid(sitter.pid), options);
    if let Ok(WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..)) = stopped {
        let _ = ptrace::cont(sitter.pid, None);
    }
}

/// Reads what the sitter said when its pipe was readable; `Ok(())` if it is about to sit.
pub(crate) fn read_progress(progress: &mut File) -> Result<(), SetupError> {
    let mut text = String::new();
    let failed = |step: &str, errno| SetupError { step: step.into(), errno };
    match progress.read_to_string(&mut text) {
        Err(_) => Err(failed("report", Errno::EIO)),
        Ok(_) if text == "ok" => Ok(()),
        Ok(_) => match text.split_once(' ') {
            Some((errno, step)) => {
                Err(failed(step, Errno::from_raw(errno.parse().unwrap_or(libc::EIO))))
            }
            None => Err(failed("start", Errno::EIO)),
        },
    }
}

fn child(setup: &Setup<'_>, write: &OwnedFd, wait: &OwnedFd) -> u8 {
    nix::unistd::setsid().ok();
    let name = std::ffi::CString::new(format!("{}-sitter", setup.device.name()));
    let _ = name.map(|name| nix::sys::prctl::set_name(&name));
    let (kernel_ends, log_pipes) = (setup.kernel_ends.len(), setup.log_pipes.len());
    let mut kept = descriptors(setup, write.as_fd());
    kept.push((wait.as_fd(), GO));
    if keep_only(&kept).is_err() {
        return 1;
    }
    // From here on the parent's objects name closed descriptors; only numbers are used.
    let progress = numbered_file(PROGRESS);
    let sockets: Vec<OwnedFd> =
        (0..kernel_ends).map(|i| numbered_file(KERNEL_ENDS + i as RawFd).into()).collect();
    silence();
    let pipes = (LOG_PIPES..).take(log_pipes).map(|number| numbered_file(number).into());
    if let Err(errno) = log_valve::start(pipes.collect()) {
        report(progress, &SetupError { step: "start a thread of the sitter".into(), errno });
        return 1;
    }
    if setup.api == KernelApi::Ioctl {
        // By the holder, so that no other process can; it sees from outside whether this worked.
        let _ = ptrace::traceme();
    }
    // The end of the pipe: the holder is dead, or could not write down who we are.
    if numbered_file(GO).read_exact(&mut [0]).is_err() {
        return 1;
    }
    let connected = match setup.api {
        KernelApi::Ioctl => connect_ioctl(setup, &sockets).map(Seat::Ioctl),
        KernelApi::Netlink => connect_netlink(setup, &sockets).map(Seat::Netlink),
    };
    // The driver has its own references; ours would keep a closed lane from looking closed.
    drop(sockets);
    match connected {
        Ok(seat) => {
            report_ok(progress);
            seat.sit()
        }
        Err(error) => {
            report(progress, &error);
            1
        }
    }
}

fn descriptors<'a>(setup: &'a Setup<'_>, progress: BorrowedFd<'a>) -> Vec<(BorrowedFd<'a>, RawFd)> {
    let mut all = vec![(setup.ledger, LEDGER), (progress, PROGRESS)];
    all.extend((LANES..).zip(setup.lanes).map(|(number, fd)| (fd.as_fd(), number)));
    all.extend((KERNEL_ENDS..).zip(setup.kernel_ends).map(|(number, fd)| (fd.as_fd(), number)));
    all.extend((STORED_FDS..).zip(setup.stored_fds).map(|(number, (_, fd))| (fd.as_fd(), number)));
    all.extend((LOG_PIPES..).zip(setup.log_pipes).map(|(number, fd)| (*fd, number)));
    all
}

#[allow(unsafe_code)]
pub(super) fn numbered_file(number: RawFd) -> File {
    // SAFETY: `keep_only` has just put a descriptor of this process under this number, and each
    // number is asked for once.
    unsafe { File::from_raw_fd(number) }
}

/// Lets go of the terminal and of anybody's pipes.
fn silence() {
    let Ok(null) = open("/dev/null", OFlag::O_RDWR, Mode::empty()) else {
        return;
    };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
}

fn at(step: &str) -> impl FnOnce(Errno) -> SetupError {
    let step = step.to_owned();
    move |errno| SetupError { step, errno }
}

/// Where the sitter sits once the device is set up.
enum Seat {
    Ioctl(OwnedFd),
    /// The socket that connected stays open for the life of the device.
    Netlink(Netlink),
}

impl Seat {
    fn sit(self) -> u8 {
        match self {
            Self::Ioctl(device) => {
                let result = ioctl::do_it(device.as_fd());
                // It returns with requests still in flight; this fails them, so that no process
                // waits for ever.
                let _ = ioctl::clear_sock(device.as_fd());
                u8::from(result.is_err())
            }
            Self::Netlink(_socket) => loop {
                // Only SIGKILL ends this.
                nix::unistd::pause();
            },
        }
    }
}

fn connect_ioctl(setup: &Setup<'_>, sockets: &[OwnedFd]) -> Result<OwnedFd, SetupError> {
    let path = setup.device.path();
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let device = open(&path, flags, Mode::empty()).map_err(at("open the device"))?;
    let (first, more) = sockets.split_first().ok_or(SetupError::unexpected("count lanes"))?;
    // If this fails the device is another program's, and nothing of ours is to be cleared.
    ioctl::set_sock(device.as_fd(), first.as_fd()).map_err(at("NBD_SET_SOCK"))?;
    match set_up(setup, device.as_fd(), more) {
        Ok(()) => Ok(device),
        Err(error) => {
            let _ = ioctl::clear_sock(device.as_fd());
            Err(error)
        }
    }
}

fn set_up(setup: &Setup<'_>, device: BorrowedFd<'_>, more: &[OwnedFd]) -> Result<(), SetupError> {
    let export = &setup.export;
    for socket in more {
        ioctl::set_sock(device, socket.as_fd()).map_err(at("NBD_SET_SOCK"))?;
    }
    let blocks = export.size / u64::from(export.block_size);
    ioctl::set_block_size(device, export.block_size).map_err(at("NBD_SET_BLKSIZE"))?;
    ioctl::set_size_blocks(device, blocks).map_err(at("NBD_SET_SIZE_BLOCKS"))?;
    ioctl::set_flags(device, export.flags).map_err(at("NBD_SET_FLAGS"))
}

fn connect_netlink(setup: &Setup<'_>, sockets: &[OwnedFd]) -> Result<Netlink, SetupError> {
    let failed = |error: super::netlink::NetlinkError| SetupError {
        step: format!("netlink: {error}"),
        errno: error.errno(),
    };
    let netlink = Netlink::open().map_err(failed)?;
    let ends: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let connect = Connect {
        index: setup.device.index,
        sockets: &ends,
        size: setup.export.size,
        block_size: setup.export.block_size,
        flags: setup.export.flags.into(),
        identifier: &setup.device.name(),
    };
    let deadline = Instant::now() + setup.users_timeout;
    loop {
        match netlink.connect(&connect) {
            Ok(_) => return Ok(netlink),
            Err(error) if is_passing(&error, setup.device) && Instant::now() < deadline => {
                // No event tells when a device is closed.
                std::thread::sleep(USERS_INTERVAL);
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Over netlink the driver does not set up a device that is open, whichever process has it open and however
/// briefly, such as udev; one that is set up stays so.
fn is_passing(error: &super::netlink::NetlinkError, device: &Device) -> bool {
    error.errno() == Errno::EBUSY && device.setup_pid().is_none()
}

fn report(mut progress: File, error: &SetupError) {
    let _ = write!(progress, "{} {}", error.errno as i32, error.step);
}

/// The last word; what waits for it also waits for the pipe's end.
fn report_ok(mut progress: File) {
    let _ = progress.write_all(b"ok");
}
