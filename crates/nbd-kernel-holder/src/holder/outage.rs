//! A backend that does not come back, and what was told of it.

use std::collections::BTreeMap;
use std::time::Instant;

/// Backends that fail one after the other.
#[derive(Debug)]
pub(crate) struct Outage {
    pub(crate) since: Instant,
    pub(crate) tries: u32,
    /// Since when there is a backend that has yet to show that it is better.
    pub(crate) ready: Option<Instant>,
}

/// What a repeated complaint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Backend,
    /// The end of one that had the lanes.
    Loss,
    /// One that may not serve the device, or does not fit.
    Refused,
    Spare,
    EioBackend,
}

/// The latest complaint about each subject, so that a cause that stays is logged once.
#[derive(Debug, Default)]
pub(crate) struct Complaints(BTreeMap<Subject, String>);

impl Complaints {
    /// Notes a complaint; false if it was made before, and nothing else since then.
    pub(crate) fn is_new(&mut self, subject: Subject, text: &str) -> bool {
        self.0.insert(subject, text.to_owned()).is_none_or(|before| before != text)
    }

    /// There is nothing to complain of any more; true if there was.
    pub(crate) fn clear(&mut self, subject: Subject) -> bool {
        self.0.remove(&subject).is_some()
    }

    pub(crate) fn clear_backend(&mut self) {
        self.0.retain(|subject, _| matches!(subject, Subject::Spare | Subject::EioBackend));
    }
}
