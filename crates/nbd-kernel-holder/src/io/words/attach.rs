//! A device that does not come, in words.

use std::io;
use std::time::Duration;

use nbd_control::control::{Failure, FailureKind, Report};
use nbd_control::system_error::explain;
use nbd_device_users::User;
use nix::errno::Errno;

use super::{failed, words_for};
use crate::core::event::AttachError;
use crate::holder::Holder;

impl Holder {
    /// What the operator is told; nothing if it was they that wanted no more.
    pub(crate) fn not_attached(&mut self, error: &AttachError) -> Option<Failure> {
        use FailureKind::{Busy, Other, TimedOut};
        let name = self.device.name();
        let path = self.device.path().display().to_string();
        let late = |limit: &Duration| limit.as_secs();
        Some(match error {
            AttachError::Interrupted => return None,
            AttachError::NotPrepared => failed(Other, self.told.failures.setup.text.clone()),
            AttachError::NoBackend => failed(Other, self.told.failures.backend.clone()),
            AttachError::BackendLate(limit) => {
                let text = format!(
                    "no backend was ready within {} s: check that the program joins its holder, or raise --ready-timeout",
                    late(limit)
                );
                failed(TimedOut, self.with_words_of_backends(&text))
            }
            AttachError::NotSaved => failed(
                Other,
                format!(
                    "{name}: {}: make room there, or no other holder could take over",
                    self.state_error()
                ),
            ),
            AttachError::SitterNotStarted => failed(Other, self.told.failures.setup.text.clone()),
            AttachError::DriverRefused => {
                failed(Other, format!("{name}: {}", self.explain_setup()))
            }
            AttachError::Taken(users) => failed(Busy, self.taken_words(users)),
            AttachError::DriverLate(limit) => failed(
                TimedOut,
                format!(
                    "the driver did not set {name} up within {} s: see the kernel log (`dmesg`), and try again",
                    late(limit)
                ),
            ),
            AttachError::GivenUpAtOnce => failed(
                Other,
                format!("{name}: the driver disconnected it at once: see the kernel log (`dmesg`)"),
            ),
            AttachError::WrongSize => failed(
                Other,
                format!(
                    "{name}: the kernel shows another size than was set: see the kernel log (`dmesg`)"
                ),
            ),
            AttachError::ReadFailed(status) => {
                let error = explain(&io::Error::from_raw_os_error(*status));
                let text = format!("a test read of {path} failed: {error}");
                failed(Other, self.with_words_of_backends(&text))
            }
            AttachError::ReadLate(limit) => {
                let text = format!(
                    "a test read of {path} got no answer within {} s: the backend may wait for its storage",
                    late(limit)
                );
                failed(TimedOut, self.with_words_of_backends(&text))
            }
        })
    }

    fn explain_setup(&self) -> String {
        let Some(error) = &self.told.failures.setup.refused else {
            return self.told.failures.setup.text.clone();
        };
        let step = &error.step;
        match error.errno {
            errno @ (Errno::EPERM | Errno::EACCES) => format!("{step}: {errno}: run this as root"),
            Errno::EINVAL if step.contains("SIZE") => {
                format!("{step}: the driver does not take {} bytes", self.export().size)
            }
            errno => format!("{step}: {}", explain(&errno.into())),
        }
    }

    fn taken_words(&self, users: &[User]) -> String {
        let text = format!("{}: {}", self.device.name(), self.explain_setup());
        match users.is_empty() {
            true => format!("{text}: another program is setting it up"),
            false => format!(
                "{text}: it is {}, and the driver sets up no device that is open: end that first, or choose another device",
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
