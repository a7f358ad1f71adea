//! Every way to fail, and its exit status.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nbd_control::ChannelError;
use nbd_control::control::{Failure, FailureKind};
use nbd_control::system_error::chain;
use nbd_record::CaptureError;
use nbd_record::fake_holder::FakeHolderError;
use thiserror::Error;

use crate::config::ConfigError;
use crate::device::{Device, NotADevice};
use crate::holder::abandoned::Abandoned;

/// Exit status after SIGINT or SIGTERM, as shells have it.
const INTERRUPTED_STATUS: u8 = 130;

/// The program that was replayed for has crashed.
const CRASHED_STATUS: u8 = 7;

/// Why a command came to nothing.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The command line makes no sense; clap's words.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    NotADevice(#[from] NotADevice),
    #[error("{pid}: no such process; a device is given as nbd{pid}")]
    NoProcess { pid: i32 },
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A word without colon names a device; a newcomer may have meant the file that is here.
    #[error(
        "{name}: to serve this file: nbd-ctl attach file:{name}. A word without a colon is the name of a device in devices.toml"
    )]
    IsFile { name: String },
    #[error("{cause}; to serve a file of this name: nbd-ctl attach file:{name}")]
    NoSuchName { name: String, cause: ConfigError },
    #[error("{name} is attached already: {device}; see nbd-ctl status {device}")]
    Attached { name: String, device: Device },
    #[error("{command} needs root: run it with sudo")]
    NotRoot { command: &'static str },
    #[error("{device}: no such attached device ({})", known(attached))]
    NoDevice { device: Device, attached: Vec<Device> },
    #[error("{device} is stale: its processes have died; {}", if *cleaned {
        "cleaned up".to_string()
    } else {
        format!("nbd-ctl detach {device} cleans up")
    })]
    Stale { device: Device, cleaned: bool },
    #[error("{device}: {abandoned}: nbd-ctl detach {device} takes it down")]
    Abandoned { device: Device, abandoned: Abandoned },
    #[error(
        "{device}: it has no holder and no entry in the registry, and was set up by a holder's process \
         (pid {pid}): nbd-ctl detach --force {device} disconnects it, and its users get EIO"
    )]
    Stray { device: Device, pid: i32 },
    #[error("{device}: permission denied: only root may control it; run nbd-ctl with sudo")]
    Forbidden { device: Device },
    #[error("{device}: its holder{} does not listen: it is ending or stopped. Try again, or see {}", pid(*holder), log.display())]
    Unsettled { device: Device, holder: Option<i32>, log: PathBuf },
    #[error("{device}: no answer within {} s: its holder{}; see {}", .limit.as_secs_f64(), holder, log.display())]
    Silent {
        device: Device,
        limit: Duration,
        /// What is known of it.
        holder: String,
        log: PathBuf,
    },
    #[error("{device}: cannot talk to its holder")]
    Talk {
        device: Device,
        #[source]
        source: ChannelError,
    },
    #[error("{device}: its holder ended before it answered; see nbd-ctl logs {device}")]
    Ended { device: Device },
    #[error("{device}: the answer of its holder does not fit: install programs of one release")]
    Confused { device: Device },
    /// The holder's own words.
    #[error("{}", .0.text)]
    Refused(Failure),
    #[error("{device}: still attached after {} s: nbd-ctl detach {device} detaches it", .limit.as_secs_f64())]
    NotGone { device: Device, limit: Duration },
    #[error("{name}: not attached after {} s: nbd-ctl list shows what is attached, nbd-ctl logs {name} why it is not", .limit.as_secs_f64())]
    NotAttached { name: String, limit: Duration },
    #[error("{device}: no backend to debug: it is {state}; see nbd-ctl status {device}")]
    NoBackend { device: Device, state: &'static str },
    #[error("{device}: its backend (pid {pid}) is traced by pid {tracer} already")]
    Traced { device: Device, pid: i32, tracer: i32 },
    #[error(
        "{device}: gdb would wait for itself: it needs {needed}, which is on {device}. Copy that elsewhere, or use --yes"
    )]
    OnItself { device: Device, needed: String },
    #[error(
        "{device}: its backend would wait for itself: {needed} is on {device}. Choose another place"
    )]
    RecordsItself { device: Device, needed: String },
    #[error("{device} is being recorded to {path}: nbd-ctl record --stop {device} ends that")]
    Recorded { device: Device, path: String },
    #[error("{device} is not being recorded")]
    NotRecorded { device: Device },
    #[error("{}", path.display())]
    Recording {
        path: PathBuf,
        #[source]
        source: CaptureError,
    },
    #[error("{}: the recording was cut short: {why}; the device goes on", path.display())]
    CutShort { path: PathBuf, why: String },
    #[error("{program} {ending} before the first request")]
    NotPlayed {
        program: String,
        ending: String,
        #[source]
        source: FakeHolderError,
    },
    #[error("{program} {ending}")]
    Crashed { program: String, ending: String },
    #[error("no answer within {} s", .limit.as_secs_f64())]
    NoAnswer { limit: Duration },
    #[error(
        "{program} does not crash; give it the storage as it was before the recording (--before), or try --one-by-one"
    )]
    NoCrash { program: String },
    #[error("--before: {command}: {ending}")]
    Prepare { command: String, ending: String },
    #[error("{device}: its holder{} is alive: there is nothing to adopt", pid(*holder))]
    HasHolder { device: Device, holder: Option<i32> },
    #[error(
        "{device}: its holder has died and it cannot be adopted: nbd-ctl detach --force {device} removes what is left"
    )]
    State {
        device: Device,
        #[source]
        source: io::Error,
    },
    #[error("{}", path.display())]
    Registry {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: locked for more than {} s by another nbd-ctl or holder: `fuser` on that file shows its pid", path.display(), .limit.as_secs())]
    Locked { path: PathBuf, limit: Duration },
    #[error("{program}: no such program {place}: {way_out}")]
    NoProgram { program: String, place: &'static str, way_out: String },
    #[error("{program}: {problem}: it must be an executable file")]
    NotAProgram { program: String, problem: &'static str },
    #[error("cannot start {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("nbd-kernel-holder died before the device was {goal}{}; {words}", ending(*status))]
    Died {
        goal: &'static str,
        status: Option<ExitStatus>,
        /// What it said last, and where the rest is.
        words: String,
    },
    #[error("cannot talk to nbd-kernel-holder ({program})")]
    Report {
        program: String,
        #[source]
        source: ChannelError,
    },
    #[error("{device}: not adopted within {} s; see {}", .limit.as_secs_f64(), log.display())]
    AdoptionTimedOut { device: Device, limit: Duration, log: PathBuf },
    #[error("interrupted; {0}")]
    Interrupted(String),
    #[error("cannot listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot draw on this terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    #[error("cannot print {path} to standard output; {}", match is_detached {
        true => "it is detached again".to_owned(),
        false => format!("it is attached: nbd-ctl detach {path} takes it away"),
    })]
    Untold {
        path: String,
        is_detached: bool,
        #[source]
        source: io::Error,
    },
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// Everything has been said already; the exit status of the first failure.
    #[error("failed")]
    Several(u8),
}

impl Error {
    /// Exit status if a replay's results are not those that were recorded.
    pub(crate) const DIFFERENT: u8 = 8;

    /// The error and its causes in one line; `None` if there is nothing to add.
    pub(crate) fn chain(&self) -> Option<String> {
        if matches!(self, Self::Several(_)) {
            return None;
        }
        Some(chain(self))
    }

    /// The exit status; `nbd-ctl --help` documents it.
    pub(crate) fn exit_code(&self) -> u8 {
        let kind = match self {
            Self::Interrupted(_) => return INTERRUPTED_STATUS,
            Self::Several(code) => return *code,
            Self::Crashed { .. } => return CRASHED_STATUS,
            Self::Refused(failure) => failure.kind,
            Self::Usage(_) | Self::NotADevice(_) => FailureKind::Usage,
            Self::NoDevice { .. } | Self::Stale { .. } => FailureKind::NoDevice,
            Self::NoSuchName { cause: ConfigError::Unknown { .. }, .. }
            | Self::Config(ConfigError::Unknown { .. }) => FailureKind::NoDevice,
            Self::Config(_) | Self::NoSuchName { .. } | Self::IsFile { .. } => FailureKind::Usage,
            Self::HasHolder { .. }
            | Self::Traced { .. }
            | Self::OnItself { .. }
            | Self::RecordsItself { .. }
            | Self::Recorded { .. }
            | Self::NotRecorded { .. }
            | Self::Attached { .. } => FailureKind::Busy,
            Self::Unsettled { .. }
            | Self::Silent { .. }
            | Self::NotGone { .. }
            | Self::NotAttached { .. }
            | Self::NoAnswer { .. }
            | Self::Locked { .. }
            | Self::AdoptionTimedOut { .. } => FailureKind::TimedOut,
            _ => FailureKind::Other,
        };
        kind.exit_code()
    }
}

fn known(attached: &[Device]) -> String {
    if attached.is_empty() {
        return "nothing is attached; see nbd-ctl attach --help".into();
    }
    let names: Vec<String> = attached.iter().map(ToString::to_string).collect();
    format!("attached: {}; see nbd-ctl list", names.join(", "))
}

fn pid(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

fn ending(status: Option<ExitStatus>) -> String {
    status.map(|status| format!(" ({status})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_device_lists_those_that_exist() {
        let error = |attached: &[u32]| Error::NoDevice {
            device: Device(3),
            attached: attached.iter().copied().map(Device).collect(),
        };
        assert_eq!(
            error(&[0, 1]).to_string(),
            "nbd3: no such attached device (attached: nbd0, nbd1; see nbd-ctl list)"
        );
        assert_eq!(
            error(&[]).to_string(),
            "nbd3: no such attached device (nothing is attached; see nbd-ctl attach --help)"
        );
        assert_eq!(error(&[]).exit_code(), 3);
    }

    #[test]
    fn causes_follow_in_one_line() {
        let error = Error::Talk {
            device: Device(0),
            source: ChannelError::System(io::Error::other("boom")),
        };
        assert_eq!(
            error.chain().unwrap(),
            "nbd0: cannot talk to its holder: connection failed: boom"
        );
        assert_eq!(error.exit_code(), 1);
        assert_eq!(Error::Several(4).chain(), None);
    }
}
