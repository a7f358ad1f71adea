//! When things are due, beside the steps of a procedure.

use std::time::Instant;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timers {
    /// When the program is started again.
    pub(crate) restart: Option<Instant>,
    /// When the spare may be started: not while its elder sibling needs the processor.
    pub(crate) spare: Option<Instant>,
    /// Since when there is no backend.
    pub(crate) unserved_since: Option<Instant>,
    /// Since when the EIO backend answers.
    pub(crate) eio_since: Option<Instant>,
    /// An EIO backend that was lost is not started again before this.
    pub(crate) eio_pause: Option<Instant>,
}
