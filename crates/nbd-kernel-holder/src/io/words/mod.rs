//! What clients and the log are told: the core's replies and notes, in words.

mod attach;
mod detach;
mod notes;
mod resize;

use nbd_control::control::{Failure, FailureKind, Response};
use nbd_control::process;
use nbd_control::size::Size;
use nbd_device_users::User;
use nix::errno::Errno;

use crate::core::event::Refusal;
use crate::core::event::Released;
use crate::core::event::UpgradeError;
use crate::core::fail::DEATH_TIMEOUT;
use crate::core::upgrade;
use crate::core::{BackendId, ClientId, Refused, Reply};
use crate::holder::Holder;
use crate::holder::backend_process::BackendProcess;

/// Why a device is gone without a detach.
pub(crate) const DROPPED: &str = "the driver has dropped the device: it was disconnected by another \
                                  program, or its sitter was stopped, frozen or killed";

/// An errno of a helper process, in words.
pub(crate) fn describe_errno(status: i32) -> &'static str {
    Errno::from_raw(status).desc()
}

fn failed(kind: FailureKind, text: impl Into<String>) -> Failure {
    Failure::new(kind, text)
}

/// The words for the users of a device, for what is refused because of them; `loss` is what it would
/// mean for them, if that needs saying.
pub(crate) fn in_use_words(name: &str, users: &[User], loss: &str, command: &str) -> String {
    let loss = if loss.is_empty() { String::new() } else { format!(" and {loss}") };
    let (words, ways) = words_for(users);
    format!(
        "{name} is {words}{loss}: end that first{ways}, or use `nbd-ctl {command} --force {name}`"
    )
}

/// What uses it, and in parentheses what ends that, if commands do.
pub(crate) fn words_for(users: &[User]) -> (String, String) {
    let words: Vec<&str> = users.iter().map(|user| user.what.as_str()).collect();
    let ways: Vec<&str> = users.iter().filter_map(|user| user.ends_with.as_deref()).collect();
    let ways = if ways.is_empty() { String::new() } else { format!(" (`{}`)", ways.join("; ")) };
    match words.is_empty() {
        // Another mount namespace than all that are seen, or something new in the kernel.
        true => ("in use by a process that /proc does not show".into(), ways),
        false => (words.join(" and "), ways),
    }
}

impl Holder {
    pub(crate) fn send_reply(&mut self, client: ClientId, reply: &Reply) {
        let response = match self.words_of(reply) {
            Ok(text) => Response::Done { text },
            Err(failure) => Response::Failed(failure),
        };
        self.answer(client, &response);
    }

    fn words_of(&self, reply: &Reply) -> Result<String, Failure> {
        let name = self.device.name();
        let last = &self.told.failures.backend;
        let other = |text: String| Err(failed(FailureKind::Other, text));
        match reply {
            Reply::Served { backend } => Ok(self.served_words(*backend)),
            Reply::Paused => {
                Ok(format!("{name} is paused: requests wait until `nbd-ctl resume {name}`"))
            }
            Reply::ResumedWaiting => Ok(format!(
                "{name} is resumed; requests wait for a backend to join: `nbd-serve --join {name} SPEC`"
            )),
            Reply::AnsweredAlready => Ok(format!("{name}: requests are already answered with EIO")),
            Reply::NothingInFlight => Ok(format!("{name}: nothing is in flight")),
            Reply::RequestsFailed => Ok(format!(
                "{name}: {} requests were answered with EIO; later ones are served or wait as usual",
                self.told.failed_requests
            )),
            Reply::RecordingBegins => Ok(self.recording_words()),
            Reply::Detached(Released::Clear) => Ok(self.detached_words(&Released::Clear)),
            Reply::Detached(released) => {
                Err(failed(FailureKind::Busy, self.detached_words(released)))
            }
            Reply::DetachedDropped => {
                Ok(format!("{name} is detached: {DROPPED}; what was left is removed"))
            }
            Reply::Resized { size, before } => Ok(self.resized_words(*size, *before)),
            Reply::SizeAlready { size } => Ok(format!("{name} has {} already", Size(*size))),
            Reply::Refused(why) => Err(failed(FailureKind::Busy, self.refused_words(*why))),
            Reply::NotDetached(error) => Err(self.not_detached(error)),
            Reply::NotResized(error) => Err(self.not_resized(error)),
            Reply::NotUpgraded(error) => {
                let Failure { kind, text } = self.not_upgraded(error);
                Err(failed(kind, format!("{name}: {text}")))
            }
            Reply::ReplacementLost if self.core.ownership.has_backend() => other(format!(
                "{name}: the new program is not used: another backend serves the device"
            )),
            Reply::ReplacementLost => other(format!("{name}: the new program has failed: {last}")),
            Reply::NoBackendComes => {
                other(format!("{name}: no backend serves it: {last}; see `nbd-ctl why {name}`"))
            }
            Reply::PresentBackendGoesOn => other(format!("the present backend goes on: {last}")),
            Reply::FormerProgramAgain => {
                other(format!("the former program is started again: {last}"))
            }
            Reply::Retrying { pause } => other(format!(
                "{name}: its backend does not come back: {last}; it is started again in {:.0} s, and \
                 so on: see `nbd-ctl why {name}`",
                pause.as_secs_f32()
            )),
            Reply::GaveUp => other(last.clone()),
            Reply::FailAborted => other(format!("{name}: not answered: {last}")),
            Reply::FailWithdrawn => Err(failed(FailureKind::TimedOut, self.fail_withdrawn_words())),
            Reply::DeviceFailed => other(self.told.failures.device.clone().unwrap_or_default()),
            Reply::Dropped => Err(failed(FailureKind::NoDevice, format!("{name}: {DROPPED}"))),
        }
    }

    pub(crate) fn refused_words(&self, why: Refused) -> String {
        let name = self.device.name();
        match why {
            Refused::BeingDetached => format!("{name} is being detached"),
            Refused::GivenUp => {
                format!("{name} is being detached by force: `nbd-ctl detach --force {name}` again")
            }
            Refused::HasFailed => {
                format!("{name} has failed: `nbd-ctl detach {name}`, then attach it again")
            }
            Refused::NotAttachedYet => format!("{name} is not attached yet"),
            Refused::BeingAnswered => {
                format!("{name}: requests in flight are being answered with EIO: try again")
            }
            Refused::BeingResized => format!("{name} is being resized: try again"),
            Refused::IsPaused => format!("{name} is paused: `nbd-ctl resume {name}` first"),
            Refused::NotPaused => format!("{name} is not paused"),
            Refused::ReplacementUnderWay => {
                format!("{name}: a replacement is under way: try again")
            }
            Refused::AnotherReplacement => {
                format!("{name}: another replacement is under way: try again")
            }
            Refused::AnotherDetach => format!("{name}: another detach is under way: try again"),
            Refused::AnotherUpgrade => format!("{name}: another upgrade is under way: try again"),
            Refused::NoProgram => {
                format!(
                    "{name} has no program to start: its backend joins by hand (`nbd-serve --join {name} SPEC`)"
                )
            }
            Refused::BackendAlive => self.alive_words(),
            Refused::BackendJoined => format!(
                "{name}: its backend has joined by hand, so nothing starts it again after the pause: end it yourself, or use `nbd-ctl pause --kill {name}`"
            ),
        }
    }

    fn served_words(&self, backend: BackendId) -> String {
        let process = self.processes.backends.get(&backend);
        let pid = process.and_then(BackendProcess::pid).unwrap_or(0);
        format!("{} is served by process {pid}", self.device.name())
    }

    fn alive_words(&self) -> String {
        let (name, pid) = (self.device.name(), self.owner_pid().unwrap_or(0));
        let stopped = process::stat(pid).map(|stat| stat.state);
        let how = match (process::tracer(pid), stopped) {
            (Some(tracer), _) => format!("is alive, traced by pid {tracer}"),
            (None, Some('T' | 't')) => "is alive, stopped by a signal".into(),
            (None, _) => "is alive".into(),
        };
        format!(
            "{name}: its backend (pid {pid}) {how}, and may still answer what it has: let it, or \
             have it killed: `nbd-ctl fail --kill {name}`"
        )
    }

    pub(crate) fn refusal_words(&self, why: Refusal) -> String {
        let name = self.device.name();
        match why {
            Refusal::Served => format!(
                "{name} is served by process {} ({}): use --takeover or NBD_TAKEOVER=1, or \
                 `nbd-ctl replace {name}`",
                self.owner_pid().unwrap_or(0),
                self.data.description
            ),
            Refusal::Taken => format!("{name}: another backend is taking over: try again"),
            Refusal::ShuttingDown if self.core.failed().is_some() => {
                self.refused_words(Refused::HasFailed)
            }
            Refusal::ShuttingDown => format!("{name} is being detached"),
            Refusal::TooSmall { size } => format!("it has {}, and more is needed", Size(size)),
        }
    }

    fn recording_words(&self) -> String {
        let name = self.device.name();
        match self.core.ownership.is_paused() {
            true => format!("{name}: the recording begins with `nbd-ctl resume {name}`"),
            false => format!(
                "{name}: the recording begins when its backend, which joins by hand, is ended and run again"
            ),
        }
    }

    pub(crate) fn fail_withdrawn_words(&self) -> String {
        let (name, seconds) = (self.device.name(), DEATH_TIMEOUT.as_secs());
        let pid = self.owner_pid().unwrap_or(0);
        let why = match process::tracer(pid) {
            Some(tracer) => format!("pid {tracer} traces it, so it does not die"),
            None => "it waits in the kernel for its own storage".into(),
        };
        format!(
            "{name}: not answered with EIO: its backend (pid {pid}) was killed and is not dead after \
             {seconds} s: {why}. The order is withdrawn: what is unanswered waits for its death, and \
             then for a successor. `nbd-ctl detach --force {name}` gives the device up"
        )
    }
}

impl Holder {
    pub(crate) fn not_upgraded(&self, error: &UpgradeError) -> Failure {
        use FailureKind::{Busy, Other};
        let (kind, why) = match error {
            UpgradeError::CannotTakeOver(text) => (Other, text.clone()),
            UpgradeError::CheckLate { program } => (
                Other,
                format!("{program} did not answer within {} s", upgrade::CHECK_TIMEOUT.as_secs()),
            ),
            UpgradeError::CannotRun { program, errno } => {
                (Other, format!("{program} cannot be run: {}", describe_errno(*errno)))
            }
            UpgradeError::Refused(why) => (Busy, self.refused_words(*why)),
            UpgradeError::Unsettled => (
                Busy,
                "a backend is about to serve the device, or it is to be detached: try again".into(),
            ),
            UpgradeError::Stopping => (Busy, "it was told to stop and does that first".into()),
            UpgradeError::NoSitter => {
                (Other, "its sitter, which keeps the descriptors to hand over, has died: detach and attach again when convenient".into())
            }
            UpgradeError::NotSaved => (Other, "its state cannot be written".into()),
            UpgradeError::NotBecome => (Other, self.told.failures.upgrade.clone()),
        };
        failed(kind, format!("the present holder goes on: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(what: &str, ends_with: Option<&str>) -> User {
        User { what: what.into(), ends_with: ends_with.map(str::to_owned), may_pass: false }
    }

    #[test]
    fn a_refusal_names_every_user_and_what_ends_it() {
        let users = [
            user("mounted on /m by way of loop0", Some("umount /m")),
            user("the backing device of the loop device loop0", Some("losetup -d /dev/loop0")),
        ];
        assert_eq!(
            in_use_words("nbd0", &users, "", "detach"),
            "nbd0 is mounted on /m by way of loop0 and the backing device of the loop device loop0: \
             end that first (`umount /m; losetup -d /dev/loop0`), or use `nbd-ctl detach --force nbd0`"
        );
        assert_eq!(
            in_use_words(
                "nbd1",
                &[user("opened by dd (pid 7)", None)],
                "it would lose data",
                "resize"
            ),
            "nbd1 is opened by dd (pid 7) and it would lose data: end that first, or use `nbd-ctl \
             resize --force nbd1`"
        );
    }
}
