//! From a target to a connection over which requests may be sent.

pub(crate) mod backoff;
pub(crate) mod child;
mod child_words;
pub(crate) mod dialer;
pub(crate) mod error;
pub(crate) mod export_shape;
pub(crate) mod handshake;
pub(crate) mod negotiated;
mod shell;
pub(crate) mod target;
