//! What stands behind a reply chunk's header, and behind a block status request.
//!
//! The parts of fixed size are types with `LEN`, `encode` and `decode`, like the messages; they
//! have no magic number, so decoding cannot fail. What varies in length is parsed in place from
//! the bytes of the whole payload, and borrows from them.
//!
//! | reply type | payload |
//! |---|---|
//! | none | nothing |
//! | offset data | [`OffsetData`], the data |
//! | offset hole | [`OffsetHole`] |
//! | error, error offset | [`ErrorHead`], the message, for the latter an offset: [`ErrorPayload`] |
//! | block status | [`BlockStatusHead`], [`Extent`]s: [`BlockStatus`] |
//! | extended block status | [`ExtendedBlockStatusHead`], [`ExtendedExtent`]s: [`ExtendedBlockStatus`] |
//!
//! A block status request may carry a [`StatusFilter`].

mod content;
mod error;
mod extended_status;
mod status;
mod status_filter;

use core::fmt;

pub use content::{OffsetData, OffsetHole};
pub use error::{ErrorHead, ErrorPayload};
pub use extended_status::{ExtendedBlockStatus, ExtendedBlockStatusHead, ExtendedExtent};
pub use status::{ALLOCATION_HOLE, ALLOCATION_ZERO, BlockStatus, BlockStatusHead, Extent};
pub use status_filter::{StatusFilter, StatusFilterHead};

/// A payload whose length or content does not match its type: a protocol error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedPayload;

impl fmt::Display for MalformedPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed payload")
    }
}

impl core::error::Error for MalformedPayload {}
