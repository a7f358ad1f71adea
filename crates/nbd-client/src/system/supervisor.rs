//! A process in front of a shell that stays: it ends all that the shell has started, and ends last.
//!
//! A server is fenced by its process: when that is dead, nothing writes any more. Of `server | log` the
//! process that we start is a shell, whose death tells nothing of the two others. So a supervisor stands
//! in front of it. It is a fork of this process that execs nothing and has no descriptors; the kernel
//! makes all orphans below it its children (`PR_SET_CHILD_SUBREAPER`), so it knows when the last one is
//! dead.
//!
//! Processes may end before a signal reaches them, so errors of sending one are ignored.
//!
//! Between `fork` and `_exit` it only makes system calls: this process may have threads, and a lock that
//! one of them holds is never released in a fork.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, killpg, signal, sigprocmask};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, setpgid};

/// The name of the process, by which a successor knows it.
const NAME: &std::ffi::CStr = c"nbd-supervisor";
/// How often to look again for processes that were killed, and for what they have left.
const KILL_INTERVAL: Duration = Duration::from_millis(50);

/// Puts a supervisor in front of the program that `command` starts; the process that is started is the
/// supervisor. On SIGTERM, and when the program ends, it ends what is left: by SIGTERM, and after
/// `grace` by SIGKILL. It exits with the program's status.
///
/// To be called last: what was prepared before holds for both.
pub(crate) fn supervise(command: &mut Command, grace: Duration) {
    let prepare = move || split(grace);
    // SAFETY: between fork and exec, and between the inner fork and _exit, the closure makes system
    // calls only, and neither allocates nor takes a lock; its errors are numbers.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Whether a process is a supervisor. It must not be killed: then nothing tells when those are dead whom
/// it supervises, and it kills them itself.
pub(crate) fn is_supervisor(process: BorrowedFd<'_>) -> bool {
    let info = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let info = std::fs::read_to_string(info).unwrap_or_default();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let name = pid.and_then(|pid| std::fs::read(format!("/proc/{}/comm", pid.trim())).ok());
    name.is_some_and(|name| name.trim_ascii_end() == NAME.to_bytes())
}

/// Returns in the process that becomes the program.
fn split(grace: Duration) -> io::Result<()> {
    let supervisor = getpid();
    // A signal must find the supervisor ready. Programs start with none blocked.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // Where it was ignored, children are reaped without a signal and without their status.
    // SAFETY: sets no handler.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    prctl::set_child_subreaper(true)?;
    // SAFETY: the supervisor only makes system calls and never returns. The other process goes on as the
    // one before would have.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Supervisor::new(child, grace).run(),
        ForkResult::Child => {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            // Should the supervisor be killed all the same, then at least the shell dies with it.
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != supervisor {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            Ok(())
        }
    }
}

struct Supervisor {
    /// The program, and the group of processes that it leads.
    program: Pid,
    is_reaped: bool,
    grace: Duration,
    exit_code: i32,
    /// From when on what still lives is killed; set once the end has begun.
    kill_at: Option<Instant>,
}

impl Supervisor {
    fn new(program: Pid, grace: Duration) -> Self {
        Self { program, is_reaped: false, grace, exit_code: 0, kill_at: None }
    }

    fn run(mut self) -> ! {
        // Fails for no name of this length.
        let _ = prctl::set_name(NAME);
        // Also done by the program itself: a signal for its group may come before.
        let _ = setpgid(self.program, self.program);
        close_all();
        loop {
            if self.reap() {
                exit(self.exit_code);
            }
            match self.kill_at {
                Some(at) if Instant::now() >= at => self.kill_all(),
                _ => {}
            }
            if wait_for_signal(self.pause()) == Some(Signal::SIGTERM) {
                self.begin_end();
            }
        }
    }

    /// Waits for children that have ended; whether none is left.
    fn reap(&mut self) -> bool {
        loop {
            let (pid, code) = match next_ended() {
                Ok(Some(ended)) => ended,
                Ok(None) => return false,
                Err(errno) => return errno == Errno::ECHILD,
            };
            if pid == self.program && !self.is_reaped {
                self.exit_code = code;
                // What it has left in the background was there for it.
                self.begin_end();
                self.leave_group();
            }
            // SAFETY: takes numbers, and no place for the status.
            unsafe { libc::waitpid(pid.as_raw(), std::ptr::null_mut(), libc::WNOHANG) };
        }
    }

    fn begin_end(&mut self) {
        if self.kill_at.is_none() {
            self.kill_at = Some(Instant::now() + self.grace);
            let _ = killpg(self.program, Signal::SIGTERM);
            for_each_child(|child| {
                if child != self.program {
                    let _ = kill(child, Signal::SIGTERM);
                }
            });
        }
    }

    /// Once the program is reaped, its number may be that of another group. From then on we find what
    /// is left of the group by the list of children, as it loses its parents. Without a list, now is
    /// the last time to kill it.
    fn leave_group(&mut self) {
        if !for_each_child(|_| {}) {
            let _ = killpg(self.program, Signal::SIGKILL);
        }
        self.is_reaped = true;
    }

    /// Kills the group, and those that have left it and lost their parents. Their own children are here
    /// the next time.
    fn kill_all(&self) {
        if !self.is_reaped {
            let _ = killpg(self.program, Signal::SIGKILL);
        }
        for_each_child(|child| {
            let _ = kill(child, Signal::SIGKILL);
        });
    }

    /// How long to wait for a signal; `None` for ever.
    fn pause(&self) -> Option<Duration> {
        let left = self.kill_at?.saturating_duration_since(Instant::now());
        Some(left.max(KILL_INTERVAL))
    }
}

/// A child that has ended and is still to be reaped, with its status as shells tell it. The one of nix
/// knows no real-time signals.
fn next_ended() -> nix::Result<Option<(Pid, i32)>> {
    // SAFETY: a structure of numbers and pointers, for which zeroes are values.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: writes to the structure only.
    Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) })?;
    // SAFETY: waitid has set the fields that belong to a child, or has left the zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let code = if info.si_code == libc::CLD_EXITED { status } else { 128 + status };
    Ok((pid != 0).then_some((Pid::from_raw(pid), code)))
}

/// What a fork has of its parent's descriptors keeps connections open and pipes from their end.
fn close_all() {
    // SAFETY: takes numbers. The objects that own these descriptors are the parent's; they are never
    // dropped here, as this process ends with _exit.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
    if done != 0 {
        for descriptor in 0..super::fallback_fd_end() {
            // SAFETY: as above; one that is not open is an error without effect.
            unsafe { libc::close(descriptor) };
        }
    }
}

/// The next signal, all of which are blocked.
fn wait_for_signal(limit: Option<Duration>) -> Option<Signal> {
    let signals = SigSet::all();
    let time = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), |time| &raw const *time);
    // SAFETY: a set and a time that live as long as the call, and no place for further information.
    let number = unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), time) };
    Signal::try_from(number).ok()
}

/// Calls `each` with the children that the kernel lists. `false` if it has no list, as where it was built
/// without `CONFIG_PROC_CHILDREN`: then there is the group of processes only.
fn for_each_child(each: impl Fn(Pid)) -> bool {
    // SAFETY: a path that ends with a zero.
    let list = unsafe { libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY) };
    if list < 0 {
        return false;
    }
    let mut number = 0_i32;
    let mut buffer = [0_u8; 512];
    loop {
        // SAFETY: writes at most as many bytes as the buffer has.
        let count = unsafe { libc::read(list, buffer.as_mut_ptr().cast(), buffer.len()) };
        let Some(bytes) = usize::try_from(count).ok().and_then(|count| buffer.get(..count)) else {
            break;
        };
        if bytes.is_empty() {
            break;
        }
        for byte in bytes {
            match byte {
                b'0'..=b'9' => number = number.wrapping_mul(10).wrapping_add((byte - b'0').into()),
                _ if number > 0 => each(Pid::from_raw(std::mem::take(&mut number))),
                _ => {}
            }
        }
    }
    // SAFETY: was opened above and is used no more.
    unsafe { libc::close(list) };
    true
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process without running the parent's exit handlers.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_told_where_the_ends_of_children_were_ignored() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exit 7"]);
        let ignore = || {
            // SAFETY: sets no handler.
            unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
            Ok(())
        };
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(ignore) };
        supervise(&mut command, Duration::ZERO);
        assert_eq!(command.status().unwrap().code(), Some(7));
    }
}
