//! System calls that have no safe wrapper: forking, pidfds, starting programs.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::sandbox::SandboxPlan;
use nbd_control::system_error::explain;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork};

/// A child process, or one that is none of ours, and a descriptor that tells of its death.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

impl Process {
    /// Opens a process by its pid. The caller makes sure that it still is the one it means.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: plain numbers; the result is a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        Ok(Self { pid: Pid::from_raw(pid), pidfd: owned(fd)? })
    }

    /// Copies a descriptor out of the process.
    pub(crate) fn copy_descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: plain numbers; the result is a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), number, 0) };
        owned(fd)
    }

    /// Whether it has ended, though its parent may still have to hear of it.
    pub(crate) fn has_ended(&self) -> bool {
        let mut fd = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fd, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Sends SIGKILL. Nobody else can be hit, as the pidfd names this very process.
    pub(crate) fn kill(&self) -> io::Result<()> {
        // SAFETY: plain numbers and a null siginfo, which the kernel then fills in itself.
        let result = unsafe {
            let none = std::ptr::null::<libc::siginfo_t>();
            let pidfd = self.pidfd.as_raw_fd();
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, none, 0)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// How many bytes wait in a socket to be received.
pub(crate) fn unread_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD stores one int, to a local variable.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut count) } {
        0 => Ok(u64::try_from(count).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call has just made this descriptor for us, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `linux/prctl.h`, since 5.6; the libc crate does not have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Keeps writeback from waiting for itself: this process is neither swapped out nor does it start
/// I/O when it allocates. Best effort.
pub(crate) fn stay_in_memory() {
    // SAFETY: both calls take plain numbers and change only how the kernel treats this process.
    // MCL_ONFAULT locks what is touched, and not all of the ledger's sparse memory.
    unsafe {
        libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
        libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    }
}

/// Takes over a descriptor that our parent left us under this number.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a query about a number; it is no error if nothing is open there.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open, named by the parent on our command line, known to nothing else in here.
    unsafe {
        libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC);
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Runs `child` in a forked process; its result becomes the exit status. This process must be
/// single-threaded, so that the child may do anything, and it always is: nothing in this program
/// starts a thread.
pub(crate) fn fork_child(child: impl FnOnce() -> u8) -> io::Result<Process> {
    // SAFETY: single-threaded, see above, so no lock can be held by a thread that does not exist
    // in the child.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => open_child(child),
        ForkResult::Child => {
            let status = child();
            // SAFETY: ends the process without running the parent's exit handlers a second time.
            unsafe { libc::_exit(i32::from(status)) }
        }
    }
}

/// Opens a child of this process that was just started. Without a descriptor nothing would watch it, and so it
/// is killed and reaped if there is none left.
pub(crate) fn open_child(child: Pid) -> io::Result<Process> {
    Process::open(child.as_raw()).inspect_err(|_| {
        let ended = kill(child, Signal::SIGKILL).and_then(|()| waitpid(child, None).map(drop));
        if let Err(errno) = ended {
            let why = explain(&errno.into());
            tracing::warn!("process {child} cannot be watched, and is left: {why}");
        }
    })
}

/// Puts `descriptors` under the numbers that come with them and closes all others but 0 to 2.
/// Only for a forked child, which borrows nothing from its parent's table.
pub(crate) fn keep_only(descriptors: &[(BorrowedFd<'_>, RawFd)]) -> io::Result<()> {
    const FAR: RawFd = 512;
    let mut copies = Vec::with_capacity(descriptors.len());
    for (fd, number) in descriptors {
        // SAFETY: plain numbers. Copies far above every target number, so that no target is
        // overwritten before it was copied.
        let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, FAR) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        copies.push((copy, *number));
    }
    close_range(3, FAR - 1)?;
    for (copy, number) in copies {
        // SAFETY: plain numbers; everything below FAR was closed above.
        if unsafe { libc::dup2(copy, number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    close_range(FAR, RawFd::MAX)
}

/// Closes what our parent left open by accident, all but 0 to 2 and `kept`: a daemon would hold
/// it for ever. Only for the beginning of the program, when nothing else was opened.
pub(crate) fn close_inherited(kept: Option<RawFd>) {
    let after = kept.map_or(3, |kept| {
        let _ = (kept > 3).then(|| close_range(3, kept - 1));
        kept + 1
    });
    let _ = close_range(after, RawFd::MAX);
}

/// How many bytes of a pipe are unread.
pub(crate) fn unread(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD stores one int at the given place, which is one.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Lets the program that this process becomes have a descriptor.
pub(crate) fn inherit(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let none = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(fd, none).map(drop)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers. The objects that owned these descriptors are the parent's; the child
    // never drops them, as it ends with _exit.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `fd` survive into the program that `command` starts, in a session of its own, as the
/// given user. One that is trusted has the favours that a server of its machine's memory needs; one in a sandbox
/// could take all memory by them.
pub(crate) fn prepare_program(
    command: &mut Command,
    fd: RawFd,
    user: Option<(Uid, Gid)>,
    cell: Option<SandboxPlan>,
) {
    let child = move || {
        // SAFETY: only async-signal-safe system calls on plain numbers and a local structure.
        // The favours are tried and may be refused.
        unsafe {
            libc::setsid();
            libc::fcntl(fd, libc::F_SETFD, 0);
            libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
            let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            if cell.is_none() {
                libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const all);
            }
        }
        // Not ours to inherit: the holder is never killed for memory, a backend may be.
        set_oom_score(if cell.is_none() { b"-500" } else { b"0" });
        if let Some(cell) = &cell {
            cell.enter()?;
        }
        if let Some((uid, gid)) = user {
            // SAFETY: as above. Groups first, as only root may change them.
            let dropped = unsafe {
                libc::setgroups(0, std::ptr::null()) == 0
                    && libc::setgid(gid.as_raw()) == 0
                    && libc::setuid(uid.as_raw()) == 0
            };
            if !dropped {
                return Err(io::Error::last_os_error());
            }
        }
        match &cell {
            Some(cell) => cell.lock(),
            None => Ok(()),
        }
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(child) };
}

/// How readily this process is killed when memory is short. Best effort; for a forked child.
fn set_oom_score(score: &[u8]) {
    // SAFETY: async-signal-safe system calls on a constant path, plain numbers and the given bytes.
    unsafe {
        let path = c"/proc/self/oom_score_adj";
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, score.as_ptr().cast(), score.len());
            libc::close(fd);
        }
    }
}

/// The groups of a connected peer's process when it connected, its first one among them.
pub(crate) fn peer_groups(stream: &UnixStream) -> Vec<u32> {
    const MOST: usize = 1024;
    let mut groups = vec![0u32; MOST];
    let mut length = (MOST * size_of::<u32>()) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the vector, which has so many, and then
    // how many they were.
    let result = unsafe {
        let place = groups.as_mut_ptr().cast();
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERGROUPS);
        libc::getsockopt(stream.as_raw_fd(), level, option, place, &raw mut length)
    };
    groups.truncate(if result == 0 { length as usize / size_of::<u32>() } else { 0 });
    let peer = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials);
    groups.extend(peer.ok().map(|peer| peer.gid()));
    groups
}
