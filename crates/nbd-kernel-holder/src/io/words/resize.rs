//! Another size, in words.

use nbd_control::control::{Failure, FailureKind};
use nbd_control::size::Size;

use super::{failed, in_use_words};
use crate::core::event::ResizeError;
use crate::core::resize;
use crate::holder::Holder;

impl Holder {
    pub(crate) fn resized_words(&self, size: u64, before: u64) -> String {
        format!("{} has {} now, after {}", self.device.name(), Size(size), Size(before))
    }

    pub(crate) fn not_resized(&self, error: &ResizeError) -> Failure {
        use FailureKind::{Busy, Other, TimedOut};
        let name = self.device.name();
        let last = &self.told.failures.backend;
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
                    "{name}: its backend has joined by hand, so it is not started again: \
                     let one join that has the new size (`nbd-serve --join {name} --takeover SPEC`), \
                     then resize"
                ),
            ),
            ResizeError::TooSmall { offered, wanted } => failed(
                Other,
                format!(
                    "{name}: its storage, {}, has {} and not {}: make that larger first (`truncate -s`, `lvextend`, …); memory and cow: keep \
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
                let loss = format!("it would lose the data beyond {}", Size(*size));
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
                    "a file system or a partition on it needs more than {}: make that smaller first, or lose the rest with --force",
                    Size(*size)
                ),
            ),
            ResizeError::Driver(errno) => not(Other, errno.desc().into()),
            ResizeError::DriverLate => not(
                TimedOut,
                format!(
                    "the driver has not changed it within {} s, and may still do so when all requests in flight are answered: see `nbd-ctl why {name}`",
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
