//! What a server offers, and what both sides agree on.

use alloc::string::String;
use alloc::vec::Vec;

use super::ReplyStyle;
use super::codes::OptionReplyType;
use super::message::BlockSizes;
use crate::TransmissionFlags;

/// What a server tells about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its canonical name.
    pub name: String,
    /// A description for people.
    pub description: Option<String>,
    /// Its length in bytes.
    pub size: u64,
    /// What it can do. `SEND_DF` and `BLOCK_STATUS_PAYLOAD` follow from what is negotiated.
    pub flags: TransmissionFlags,
    /// Its size constraints.
    pub block_sizes: BlockSizes,
    /// Whether block status can tell what is allocated (`base:allocation`).
    pub allocation: bool,
}

impl Offer {
    /// An export without constraints or further abilities.
    pub fn new(name: &str, size: u64, flags: TransmissionFlags) -> Self {
        let (name, block_sizes) = (name.into(), BlockSizes::DEFAULT);
        Self { name, description: None, size, flags, block_sizes, allocation: false }
    }
}

/// What client and server have agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The export, with the flags that hold now.
    pub offer: Offer,
    /// How requests and replies look.
    pub style: ReplyStyle,
    /// The number of `base:allocation`, if it was negotiated.
    pub allocation: Option<u32>,
}

/// The exports of a server.
pub trait ExportList {
    /// The export of this name; the default one has an empty name.
    ///
    /// # Errors
    ///
    /// The refusal that the client is told.
    fn find(&self, name: &str) -> Result<Offer, Refusal>;

    /// Names of the exports, with descriptions.
    ///
    /// # Errors
    ///
    /// The refusal that the client is told.
    fn list(&self) -> Result<Vec<(String, Option<String>)>, Refusal>;
}

/// Why a client does not get what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such export.
    Unknown,
    /// The server's policy excludes this client.
    Policy,
    /// The server is about to end.
    Shutdown,
}

impl Refusal {
    pub(super) const fn reply(self) -> (OptionReplyType, &'static str) {
        match self {
            Self::Unknown => (OptionReplyType::ERR_UNKNOWN, "there is no such export"),
            Self::Policy => (OptionReplyType::ERR_POLICY, "not for this client"),
            Self::Shutdown => (OptionReplyType::ERR_SHUTDOWN, "the server is shutting down"),
        }
    }
}
