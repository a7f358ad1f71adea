//! The system calls that neither std nor nix has in a safe form.
#![allow(unsafe_code)]

mod supervisor;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use rustix::io::Errno;
use rustix::process::{self, PidfdFlags};

pub(crate) use supervisor::{is_supervisor, supervise};

/// Has the process that `command` starts sent a SIGTERM when the thread that starts it ends.
pub(crate) fn die_with_this_thread(command: &mut Command) {
    let parent = Pid::this();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        // A parent that died before the line above will not cause the signal.
        if getppid() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec, the closure makes two system calls and neither allocates
    // nor takes a lock; its errors are numbers.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Leaves the program that `command` starts none of our descriptors but the standard ones, and its
/// own limit of them: there are sockets among ours that only we may hold, and programs made for few
/// descriptors fail with many.
pub(crate) fn keep_descriptors_from(command: &mut Command, limit: Option<u64>) {
    let prepare = move || {
        close_on_exec();
        if let Some(soft) = limit {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec, the closure makes system calls only, and neither allocates nor
    // takes a lock; its errors are numbers.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// All descriptors behind the standard ones are closed by exec. Those that std needs are already.
fn close_on_exec() {
    const FIRST_FD: libc::c_int = 3;
    // SAFETY: takes three numbers.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST_FD, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if done == 0 {
        return;
    }
    for descriptor in FIRST_FD..fallback_fd_end() {
        // SAFETY: takes numbers; one that is not open is an error without effect.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Behind the highest descriptor that can be open, for kernels that cannot treat all at once (before
/// 5.11): each is tried. The limit may have been raised for thousands of connections.
fn fallback_fd_end() -> libc::c_int {
    const MIN: libc::c_int = 4096;
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    libc::c_int::try_from(limit).unwrap_or(libc::c_int::MAX).max(MIN)
}

/// A descriptor for a process, which must not have been waited for.
pub(crate) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    let pid = pid.try_into().ok().and_then(process::Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok(process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal to a process; one that is gone already is no error.
pub(crate) fn signal_process(process: BorrowedFd<'_>, signal: process::Signal) -> io::Result<()> {
    match process::pidfd_send_signal(process, signal) {
        Err(Errno::SRCH) => Ok(()),
        result => Ok(result?),
    }
}
