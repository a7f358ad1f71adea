//! How processes end.

use std::fmt;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Killed(Signal, bool),
    /// It has not: its process lives on, and is done with the device.
    Left,
    /// The kernel does not tell: it was not our child, or a tracer keeps it.
    Unknown,
}

impl Ending {
    /// Reads what waitpid(2) tells; nothing if that is no end.
    pub(crate) fn of(status: nix::Result<WaitStatus>) -> Option<Self> {
        match status {
            Ok(WaitStatus::Exited(_, status)) => Some(Self::Exited(status)),
            Ok(WaitStatus::Signaled(_, signal, core)) => Some(Self::Killed(signal, core)),
            Ok(_) => None,
            Err(_) => Some(Self::Unknown),
        }
    }

    /// Whether the process may have ended because it was told to.
    ///
    /// Of a process that is not our child the end cannot be known; of a child it is, so an unknown
    /// one is no end in order.
    pub(crate) fn is_orderly(&self, own_child: bool) -> bool {
        match self {
            Self::Exited(status) => *status == 0,
            Self::Left => true,
            Self::Unknown => !own_child,
            Self::Killed(..) => false,
        }
    }

    /// Whether the process ended by a fault of its own. SIGKILL is an operator's, or the
    /// kernel's when memory is short; the other signals are sent by people, too.
    pub(crate) fn is_crash(&self) -> bool {
        match self {
            Self::Exited(status) => *status != 0,
            Self::Killed(signal, _) => matches!(
                signal,
                Signal::SIGABRT
                    | Signal::SIGBUS
                    | Signal::SIGFPE
                    | Signal::SIGILL
                    | Signal::SIGSEGV
                    | Signal::SIGSYS
                    | Signal::SIGTRAP
            ),
            Self::Left | Self::Unknown => false,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal, false) => write!(f, "killed by {signal}"),
            Self::Killed(signal, true) => write!(f, "killed by {signal} (core dumped)"),
            Self::Left => write!(f, "has left the device, and its process goes on"),
            Self::Unknown => write!(f, "ended in an unknown way"),
        }
    }
}

impl Ending {
    /// A sentence about `subject`, like "the backend", that has ended so.
    pub(crate) fn sentence(&self, subject: &str) -> String {
        let verb = if matches!(self, Self::Killed(..)) { "was " } else { "" };
        format!("{subject} {verb}{self}")
    }
}

/// The exit status of a child that has ended.
pub(crate) fn try_reap(pid: Pid) -> Option<Ending> {
    Ending::of(waitpid(pid, Some(WaitPidFlag::WNOHANG)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_name_what_has_ended_and_how() {
        let killed = Ending::Killed(Signal::SIGKILL, false);
        assert_eq!(killed.sentence("the backend"), "the backend was killed by SIGKILL");
        let exited = Ending::Exited(3);
        assert_eq!(exited.sentence("the EIO backend"), "the EIO backend exited with status 3");
    }
}
