//! The client's side of a listing: `NBD_OPT_LIST`, then `NBD_OPT_INFO` for each export.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use super::codes::{MAX_LISTED_EXPORTS, MAX_STRING_BYTES, OptionReplyType, OptionType};
use super::error::HandshakeError;
use super::message::Reader;
use crate::TransmissionFlags;

/// One export of a server, as the server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    /// Its name; empty for the default one.
    pub name: String,
    /// What the server says of it; may be empty.
    pub description: String,
    /// Its length in bytes and its flags; `None` if the server does not tell.
    pub shape: Option<(u64, TransmissionFlags)>,
}

impl ListedExport {
    /// Whether clients may not write; `None` if the server does not tell.
    #[must_use]
    pub fn is_read_only(&self) -> Option<bool> {
        self.shape.map(|(_, flags)| flags.contains(TransmissionFlags::READ_ONLY))
    }
}

/// The exports of a server, as they become known.
#[derive(Debug)]
pub(super) struct Listing {
    exports: Vec<ListedExport>,
    /// How many of them the server was asked about.
    asked: usize,
}

impl Listing {
    pub(super) const fn new() -> Self {
        Self { exports: Vec::new(), asked: 0 }
    }

    /// `NBD_REP_SERVER`: one export.
    pub(super) fn add(&mut self, data: &[u8]) -> Result<(), HandshakeError> {
        let malformed =
            HandshakeError::Malformed { option: OptionType::LIST, reply: OptionReplyType::SERVER };
        let mut reader = Reader(data);
        let name: String = reader.string().ok_or(malformed.clone())?.into();
        let description: String = reader.rest().ok_or(malformed.clone())?.into();
        if name.len().max(description.len()) > MAX_STRING_BYTES {
            return Err(malformed);
        }
        // A server may send as many as it likes, and each takes memory here.
        if self.exports.len() == MAX_LISTED_EXPORTS {
            return Err(HandshakeError::TooManyExports);
        }
        self.exports.push(ListedExport { name, description, shape: None });
        Ok(())
    }

    /// The answer about the export that was asked about last. Whether there is another one to ask about.
    pub(super) fn advance(&mut self, shape: Option<(u64, TransmissionFlags)>) -> bool {
        if let Some(export) = self.current_index().and_then(|at| self.exports.get_mut(at)) {
            export.shape = shape;
        }
        let is_left = self.asked < self.exports.len();
        self.asked += usize::from(is_left);
        is_left
    }

    /// The name of the export that is asked about.
    pub(super) fn current_name(&self) -> &str {
        let export = self.current_index().and_then(|at| self.exports.get(at));
        export.map_or("", |export| &export.name)
    }

    fn current_index(&self) -> Option<usize> {
        self.asked.checked_sub(1)
    }

    pub(super) fn take(&mut self) -> Vec<ListedExport> {
        mem::take(&mut self.exports)
    }
}
