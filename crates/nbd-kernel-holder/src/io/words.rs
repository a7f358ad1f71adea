//! What clients and the log are told: the core's replies and notes, in words.

use std::time::Duration;

use nbd_control::control::{Failure, FailureKind, Report, Response};
use nbd_control::process;
use nbd_control::size::Size;
use nbd_control::status::TotalsStatus;
use nbd_device_users::User;
use nix::errno::Errno;

use crate::core::attach::AttachError;
use crate::core::detach::DetachError;
use crate::core::fail::DEATH_TIMEOUT;
use crate::core::ownership::Refusal;
use crate::core::resize::{self, ResizeError};
use crate::core::take_down::Released;
use crate::core::upgrade::{self, UpgradeError};
use crate::core::users::UsersUnknown;
use crate::core::{BackendId, ClientId, Refused, Reply};
use crate::holder::Holder;
use crate::io::backend_process::BackendProcess;

/// Why a device is gone without a detach.
pub(crate) const DROPPED: &str = "the driver has dropped the device: it was disconnected by another \
                                  program, or its sitter was stopped, frozen or killed";

/// The counts of a device that is taken down: the ledger's, which is let go of.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    totals: TotalsStatus,
    /// Requests that are failed by that.
    given_up: usize,
    summary: String,
}

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
        true => ("in use by something that /proc does not show".into(), ways),
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
        let last = &self.told.last_failure;
        let other = |text: String| Err(failed(FailureKind::Other, text));
        match reply {
            Reply::Served { backend } => Ok(self.served_words(*backend)),
            Reply::Paused => {
                Ok(format!("{name} is paused: requests wait until `nbd-ctl resume {name}`"))
            }
            Reply::ResumedWaiting => Ok(format!(
                "{name} is resumed; requests wait for a backend to join: `nbd-serve --join {name} SPEC`"
            )),
            Reply::AnsweredAlready => {
                Ok(format!("{name}: what comes is answered with EIO already"))
            }
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
                Ok(format!("{name} is detached: {DROPPED}; what is left was cleared away"))
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
            Reply::DeviceFailed => other(self.told.device_failure.clone().unwrap_or_default()),
            Reply::Dropped => Err(failed(FailureKind::NoDevice, format!("{name}: {DROPPED}"))),
        }
    }

    pub(crate) fn refused_words(&self, why: Refused) -> String {
        let name = self.device.name();
        match why {
            Refused::BeingDetached => format!("{name} is being detached"),
            Refused::GivenUp => {
                format!("{name} is given up: `nbd-ctl detach --force {name}` again")
            }
            Refused::HasFailed => format!("{name} has failed: detach it"),
            Refused::NotAttachedYet => format!("{name} is not attached yet"),
            Refused::BeingAnswered => {
                format!("{name}: what is in flight is just being answered with EIO")
            }
            Refused::BeingResized => format!("{name} is just being resized"),
            Refused::IsPaused => format!("{name} is paused: `nbd-ctl resume {name}` first"),
            Refused::NotPaused => format!("{name} is not paused"),
            Refused::ReplacementUnderWay => format!("{name}: a replacement is under way"),
            Refused::AnotherReplacement => format!("{name}: another replacement is under way"),
            Refused::AnotherDetach => format!("{name}: another detach was asked for"),
            Refused::AnotherUpgrade => format!("{name}: another upgrade was asked for"),
            Refused::NoProgram => {
                format!("{name} has no program to start: its backend joins from outside")
            }
            Refused::BackendAlive => self.alive_words(),
            Refused::BackendJoined => format!(
                "{name}: its backend has joined from outside, so nothing starts it again after \
                 the pause: end it yourself, or use `nbd-ctl pause --kill {name}`"
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
                "{name} is served by process {} ({}): use --takeover, or `nbd-ctl replace {name}`",
                self.owner_pid().unwrap_or(0),
                self.data.description
            ),
            Refusal::Taken => format!("{name}: another backend is about to take over"),
            Refusal::ShuttingDown => format!("{name} is being detached"),
            Refusal::TooSmall { size } => format!("it has {}, and more is needed", Size(size)),
        }
    }

    fn recording_words(&self) -> String {
        let name = self.device.name();
        match self.core.ownership.is_paused() {
            true => format!("{name}: the recording begins with `nbd-ctl resume {name}`"),
            false => format!(
                "{name}: the recording begins once its backend, which joins from outside, is ended and run again"
            ),
        }
    }

    pub(crate) fn fail_withdrawn_words(&self) -> String {
        let (name, seconds) = (self.device.name(), DEATH_TIMEOUT.as_secs());
        let pid = self.owner_pid().unwrap_or(0);
        let why = match process::tracer(pid) {
            Some(tracer) => format!("pid {tracer} traces it and keeps it"),
            None => "it waits in the kernel for its own storage".into(),
        };
        format!(
            "{name}: not answered with EIO: its backend (pid {pid}) was killed and is not dead after \
             {seconds} s: {why}. The order is withdrawn: what is unanswered waits for its death, and \
             then for a successor. `nbd-ctl detach --force {name}` gives the device up"
        )
    }
}

/// The end of a device.
impl Holder {
    /// Remembers the counts.
    pub(crate) fn note_totals(&mut self, given_up: usize) {
        let totals = self.totals();
        let summary = match self.failure_words() {
            None => format!(
                "{} reads, {} writes, {} flushes, {} trims, {} errors",
                totals.reads, totals.writes, totals.flushes, totals.trims, totals.errors
            ),
            // What would be counted from has been scribbled over.
            Some(reason) => format!("it had failed ({reason})"),
        };
        self.told.closing = Closing { totals, given_up, summary };
    }

    fn detached_words(&self, released: &Released) -> String {
        let name = self.device.name();
        let Closing { summary, given_up, .. } = &self.told.closing;
        let failed = match given_up {
            0 => String::new(),
            count => format!("; {count} requests in flight were failed with EIO"),
        };
        match released {
            Released::Clear => format!("{name} is detached: {summary}{failed}"),
            Released::InUse(users) => {
                let (words, ways) = words_for(users);
                format!(
                    "{name} has lost its connection{failed}, but it is not free: it is {words}. End \
                     that{ways}, and the driver clears it"
                )
            }
        }
    }

    pub(crate) fn log_detached(&self, released: &Released) {
        let Closing { totals, given_up, .. } = &self.told.closing;
        let TotalsStatus { reads, writes, flushes, trims, errors, .. } = *totals;
        let TotalsStatus { read_bytes, written_bytes, .. } = *totals;
        tracing::info!(
            device = %self.device.name(),
            event = "detached",
            reads,
            writes,
            flushes,
            trims,
            errors,
            read_bytes,
            written_bytes,
            given_up,
            restarts = self.core.ownership.restarts(),
            "{}",
            self.detached_words(released)
        );
    }

    pub(crate) fn not_detached(&self, error: &DetachError) -> Failure {
        let name = self.device.name();
        let by_force = format!("`nbd-ctl detach --force {name}` gives it up");
        match error {
            DetachError::InUse(users) => {
                failed(FailureKind::Busy, in_use_words(&name, users, "", "detach"))
            }
            DetachError::UseUnknown(why) => self.use_unknown(why, "detach"),
            DetachError::Claimed => failed(
                FailureKind::Busy,
                format!(
                    "{name} is in use by the kernel (mounted, swap, or part of another device)"
                ),
            ),
            DetachError::NotWritten(errno) => failed(
                FailureKind::DataLost,
                format!(
                    "{name} is not detached: writing back failed: {}; what was not written would be lost, {by_force}",
                    errno.desc()
                ),
            ),
            DetachError::NotAnswered => {
                let count = self.requests_in_flight().len();
                let state = format!("{:?}", self.backend_state()).to_lowercase();
                failed(
                    FailureKind::TimedOut,
                    format!(
                        "{name} is not detached: {count} requests wait for its backend ({state}): let it continue, restart it, or {by_force}"
                    ),
                )
            }
            DetachError::Unreachable => self.unreachable(),
            DetachError::Stuck => self.stuck(),
        }
    }

    fn use_unknown(&self, why: &UsersUnknown, command: &str) -> Failure {
        let name = self.device.name();
        let (kind, why) = match why {
            UsersUnknown::NoHelper(error) => {
                (FailureKind::Other, format!("no helper process: {error}"))
            }
            UsersUnknown::TimedOut(why) => (FailureKind::TimedOut, why.clone()),
        };
        failed(
            kind,
            format!(
                "{name}: cannot tell whether it is used: {why}; `nbd-ctl {command} --force {name}` does not ask"
            ),
        )
    }

    fn unreachable(&self) -> Failure {
        let name = self.device.name();
        let backend = match self.owner_pid() {
            None => "could not be answered with EIO".into(),
            Some(owner) => format!(
                "process {owner} has; it was killed and is in an uninterruptible call of the kernel, \
                 and they are answered with EIO when that returns"
            ),
        };
        failed(
            FailureKind::TimedOut,
            format!(
                "{name} is not detached: the driver changes its size and waits, under its lock, for \
                 {} requests that {backend}. See `nbd-ctl why {name}`, then `nbd-ctl detach --force \
                 {name}` again",
                self.device.waiting()
            ),
        )
    }

    pub(crate) fn stuck(&self) -> Failure {
        let name = self.device.name();
        let sits = self.core.sitter() == crate::core::Sitter::Sits;
        let sitter = self.processes.sitter.as_ref().filter(|_| sits);
        let sitter = sitter
            .map(|sitter| format!("its sitter (pid {}) is in the driver", sitter.process.pid));
        let size =
            self.size_change().map(|pid| format!("a change of its size (pid {pid}) is under way"));
        let waiting = match self.device.waiting() {
            0 => None,
            count => Some(format!("{count} requests are not answered")),
        };
        let what: Vec<_> = [sitter, size, waiting].into_iter().flatten().collect();
        failed(
            FailureKind::TimedOut,
            format!(
                "{name} is not detached: its lanes are closed, but the driver does not let go ({}): \
                 see `dmesg`, then `nbd-ctl detach --force {name}` again",
                what.join("; ")
            ),
        )
    }
}

/// Another size.
impl Holder {
    pub(crate) fn resized_words(&self, size: u64, before: u64) -> String {
        format!("{} has {} now, after {}", self.device.name(), Size(size), Size(before))
    }

    pub(crate) fn not_resized(&self, error: &ResizeError) -> Failure {
        use FailureKind::{Busy, Other, TimedOut};
        let name = self.device.name();
        let last = &self.told.last_failure;
        let not = |kind, text: String| failed(kind, format!("{name} is not resized: {text}"));
        match error {
            ResizeError::Stalled(age) => {
                let stalled = match age {
                    Some(ms) => format!("a request has waited for {} s", ms / 1000),
                    None => {
                        let state = format!("{:?}", self.backend_state()).to_lowercase();
                        format!("its backend is {state}")
                    }
                };
                let text = format!(
                    "{name} is not resized while it is stalled: {stalled}; see `nbd-ctl why {name}`"
                );
                failed(Busy, text)
            }
            ResizeError::BeingDetached => not(Busy, "it is being detached".into()),
            ResizeError::Joined => failed(
                Busy,
                format!(
                    "{name}: its backend has joined from outside, so it is not asked again: \
                     let one join that has the new size (`nbd-serve --join {name} --takeover SPEC`), \
                     then resize"
                ),
            ),
            ResizeError::TooSmall { offered, wanted } => failed(
                Other,
                format!(
                    "{name}: what it is made of, {}, has {} and not {}: \
                     make that larger first (`truncate -s`, `lvextend`, …); memory and cow: keep \
                     their size",
                    self.data.description,
                    Size(*offered),
                    Size(*wanted)
                ),
            ),
            ResizeError::NoBackend => failed(Other, format!("{name}: not resized: {last}")),
            ResizeError::ProbeLate => failed(
                TimedOut,
                format!(
                    "{name}: not resized: no backend with its new size has taken over within {} s",
                    resize::PROBE_TIMEOUT.as_secs()
                ),
            ),
            ResizeError::InUse { users, size } => {
                let loss = format!("it would lose what is beyond {}", Size(*size));
                failed(Busy, in_use_words(&name, users, &loss, "resize"))
            }
            ResizeError::UseUnknown(why) => self.use_unknown(why, "resize"),
            ResizeError::NotSaved => {
                failed(Other, "the holder cannot write its state; see the log")
            }
            ResizeError::EarlierChange => {
                let pid = self.size_change().unwrap_or(0);
                let text = format!(
                    "an earlier change of its size (process {pid}) still waits in the driver for {} \
                     requests; see `nbd-ctl why {name}`",
                    self.device.waiting()
                );
                not(Busy, text)
            }
            ResizeError::NotAnswered => {
                let text = format!(
                    "{name} is not resized while it is stalled: {} is not answered; see `nbd-ctl why {name}`",
                    self.oldest_words()
                );
                failed(Busy, text)
            }
            ResizeError::Claimed => not(Busy, "the kernel uses it".into()),
            ResizeError::Needed { size } => not(
                Busy,
                format!(
                    "a file system or a partition on it needs more than {}: make that smaller \
                     first, or lose what is beyond with --force",
                    Size(*size)
                ),
            ),
            ResizeError::Driver(errno) => not(Other, errno.desc().into()),
            ResizeError::DriverLate => not(
                TimedOut,
                format!(
                    "the driver has not done it within {} s, and may still do it when all that \
                     is in flight is answered: see `nbd-ctl why {name}`",
                    resize::DRIVER_TIMEOUT.as_secs()
                ),
            ),
            ResizeError::OtherSize => {
                not(Other, "the kernel shows another size than was set".into())
            }
        }
    }

    fn oldest_words(&self) -> String {
        self.in_flight().into_iter().next().map_or("a request".into(), |it| {
            let (command, length, offset) = (it.command, it.length, it.offset);
            format!("{command} of {length} bytes at {offset}, sent {} ms ago,", it.age_ms)
        })
    }
}

/// Another holder.
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
            UpgradeError::Stopping => (Busy, "it was told to stop, and does that first".into()),
            UpgradeError::NoSitter => {
                (Other, "its sitter is gone, which had what is handed on: detach at leisure".into())
            }
            UpgradeError::NotSaved => (Other, "its state cannot be written".into()),
            UpgradeError::NotBecome => (Other, self.told.not_become.clone()),
        };
        failed(kind, format!("the present holder goes on: {why}"))
    }
}

/// A device that does not come.
impl Holder {
    /// What the operator is told; nothing if it was they that wanted no more.
    pub(crate) fn not_attached(&mut self, error: &AttachError) -> Option<Failure> {
        use FailureKind::{Busy, Other, TimedOut};
        let name = self.device.name();
        let path = self.device.path().display().to_string();
        let late = |limit: &Duration| limit.as_secs();
        Some(match error {
            AttachError::Interrupted => return None,
            AttachError::NotPrepared => failed(Other, self.told.setup.text.clone()),
            AttachError::NoBackend => failed(Other, self.told.last_failure.clone()),
            AttachError::BackendLate(limit) => {
                let text = format!(
                    "no backend was ready within {} s: see that the program joins its holder, or raise --ready-timeout",
                    late(limit)
                );
                failed(TimedOut, self.with_words_of_backends(&text))
            }
            AttachError::NotSaved => failed(
                Other,
                format!(
                    "{name}: {}: make room there; without it no other holder could take over",
                    self.state_error()
                ),
            ),
            AttachError::SitterNotStarted => failed(Other, self.told.setup.text.clone()),
            AttachError::DriverRefused => {
                failed(Other, format!("{name}: {}", self.explain_setup()))
            }
            AttachError::Taken(users) => failed(Busy, self.taken_words(users)),
            AttachError::DriverLate(limit) => failed(
                TimedOut,
                format!("the driver did not set {name} up within {} s", late(limit)),
            ),
            AttachError::GivenUpAtOnce => {
                failed(Other, format!("{name}: the driver gave it up at once; see the kernel log"))
            }
            AttachError::WrongSize => {
                failed(Other, format!("{name}: it shows another size than was set"))
            }
            AttachError::ReadFailed(status) => {
                let errno = describe_errno(*status);
                let text = format!("a test read of {path} failed: {errno}");
                failed(Other, self.with_words_of_backends(&text))
            }
            AttachError::ReadLate(limit) => {
                let text = format!("a test read of {path} got no answer within {} s", late(limit));
                failed(TimedOut, self.with_words_of_backends(&text))
            }
        })
    }

    fn explain_setup(&self) -> String {
        let Some(error) = &self.told.setup.refused else {
            return self.told.setup.text.clone();
        };
        let step = &error.step;
        match error.errno {
            errno @ (Errno::EPERM | Errno::EACCES) => format!("{step}: {errno}: run this as root"),
            Errno::EINVAL if step.contains("SIZE") => {
                format!("{step}: the driver does not take {} bytes", self.export().size)
            }
            errno => format!("{step}: {errno}"),
        }
    }

    fn taken_words(&self, users: &[User]) -> String {
        let text = format!("{}: {}", self.device.name(), self.explain_setup());
        match users.is_empty() {
            true => format!("{text}: another program is setting it up"),
            false => format!(
                "{text}: it is {}, and the driver sets up no device that is open: end that \
                 first, or take another one",
                words_for(users).0
            ),
        }
    }

    /// A sentence about an attach that has failed, with what the backend, which lives, said last.
    fn with_words_of_backends(&mut self, text: &str) -> String {
        match self.log_sink.all_words().pop() {
            Some(words) => format!("{text}; the backend said: {words}"),
            None => text.into(),
        }
    }

    /// What the backend had to say while the operator is still watching.
    pub(crate) fn pass_on_words(&mut self) {
        for text in self.log_sink.all_words() {
            self.report(&Report::Notice { text });
        }
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
