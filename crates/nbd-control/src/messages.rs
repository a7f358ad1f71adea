//! What the processes say to each other: types that travel in frames of a [`channel`].
//!
//! Their layout on the wire is that of bincode ([`wire`]): a new variant goes to the end of its enum, and a changed
//! one needs another [`channel::VERSION`].

pub mod backend;
pub mod channel;
pub mod control;
pub mod handover;
pub mod latency;
pub mod status;
pub mod trace;
pub mod wire;
