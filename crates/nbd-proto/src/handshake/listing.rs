//! The client's side of a listing: `NBD_OPT_LIST`, then `NBD_OPT_INFO` for each export.

use alloc::string::String;
use alloc::vec::Vec;

use super::client::{ClientHandshake, ClientState};
use super::codes::{MAX_STRING_BYTES, OptionReplyType, OptionType};
use super::error::HandshakeError;
use super::message::{Reader, put_option};
use crate::TransmissionFlags;

/// The most exports that a client lists.
pub const MAX_LISTED_EXPORTS: usize = 4096;

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

impl ClientHandshake {
    /// `NBD_REP_SERVER`: one export.
    pub(super) fn add_listed(&mut self, data: &[u8]) -> Result<(), HandshakeError> {
        let malformed =
            HandshakeError::Malformed { option: OptionType::LIST, reply: OptionReplyType::SERVER };
        let mut reader = Reader(data);
        let name: String = reader.string().ok_or(malformed.clone())?.into();
        let description: String = reader.rest().ok_or(malformed.clone())?.into();
        if name.len().max(description.len()) > MAX_STRING_BYTES {
            return Err(malformed);
        }
        // A server may send as many as it likes, and each takes memory here.
        if self.listing.len() == MAX_LISTED_EXPORTS {
            return Err(HandshakeError::TooManyExports);
        }
        self.listing.push(ListedExport { name, description, shape: None });
        Ok(())
    }

    /// The answer about the export that was asked last; then the next one, or the end.
    pub(super) fn describe_listed(&mut self, out: &mut Vec<u8>) {
        if let Some(export) = self.described.checked_sub(1).and_then(|at| self.listing.get_mut(at))
        {
            export.shape = self.export.take();
        }
        if self.described < self.listing.len() {
            self.described += 1;
            return self.ask(OptionType::INFO, out);
        }
        // Its answer need not be waited for.
        put_option(out, OptionType::ABORT, &[]);
        self.state = ClientState::Listed;
    }
}
