//! What backends, clients, helper processes and states are called: numbers that are never used again.

/// Number of a backend, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BackendId(pub(crate) u64);

/// Number of a connected nbd-ctl, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(pub(crate) u64);

/// Number of a helper process, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HelperId(pub(crate) u64);

/// Number of a state of the holder; later ones are larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Revision(pub(crate) u64);

/// A program and its arguments.
pub(crate) type Program = Vec<String>;
