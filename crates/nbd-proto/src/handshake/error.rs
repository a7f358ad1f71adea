//! Why a handshake fails.

use alloc::string::String;
use core::fmt;

use super::codes::{MAX_LISTED_EXPORTS, OptionReplyType, OptionType};

/// The other side breaks the protocol, or has refused: close the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The first bytes of the server are not those of NBD.
    NotNbd(u64),
    /// The server speaks oldstyle negotiation, which went out of use in 2011.
    Oldstyle,
    /// The client has set client flags that the specification does not define.
    UnknownClientFlags(u32),
    /// An option, or an answer to one, does not begin with its magic number.
    WrongMagic(u64),
    /// An option, or an answer to one, is longer than the limit.
    TooLong {
        /// Which option.
        option: OptionType,
        /// Bytes of data behind its head.
        length: u32,
    },
    /// The client asked for an export in a way that cannot be refused otherwise.
    Dropped(OptionReplyType),
    /// The server has answered an option that was not asked.
    Unexpected {
        /// What it has answered.
        option: OptionType,
        /// What it has said.
        reply: OptionReplyType,
    },
    /// The data of an answer does not follow the specification.
    Malformed {
        /// What it answers.
        option: OptionType,
        /// What it says.
        reply: OptionReplyType,
    },
    /// The server has refused an option that the client requires.
    Refused {
        /// What it has refused.
        option: OptionType,
        /// Why.
        reply: OptionReplyType,
        /// Its own words; may be empty.
        words: String,
    },
    /// TLS is wanted, and the server does not negotiate.
    NoTls,
    /// The server lacks an export of this name.
    UnknownExport(String),
    /// The exports are to be listed, and the server does not negotiate.
    NoOptions,
    /// The server lists more exports than this client does.
    TooManyExports,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNbd(magic) => {
                write!(f, "the first bytes are not those of an NBD server: {magic:#018x}")
            }
            Self::Oldstyle => {
                f.write_str("the server speaks the protocol as it was before 2011 (oldstyle)")
            }
            Self::UnknownClientFlags(flags) => write!(f, "unknown client flags {flags:#x}"),
            Self::WrongMagic(magic) => write!(f, "wrong magic number {magic:#018x}"),
            Self::TooLong { option, length } => write!(f, "{option}: {length} bytes are too long"),
            Self::Dropped(reply) => write!(f, "export name: {reply}"),
            Self::Unexpected { option, reply } => {
                write!(f, "unexpected answer to {option}: {reply}")
            }
            Self::Malformed { option, reply } => {
                write!(f, "malformed answer to {option}: {reply}")
            }
            Self::Refused { option, reply, words } => {
                write!(f, "the server refuses {option}: {reply}")?;
                if words.is_empty() { Ok(()) } else { write!(f, " ({words:?})") }
            }
            Self::NoOptions => {
                f.write_str("the server knows no options, so it cannot list its exports")
            }
            Self::TooManyExports => {
                write!(f, "the server lists more than {MAX_LISTED_EXPORTS} exports")
            }
            Self::NoTls => f.write_str("the server cannot secure the connection: no negotiation"),
            Self::UnknownExport(name) if name.is_empty() => f.write_str(
                "the server has no default export: name one (nbd-serve --list shows them)",
            ),
            Self::UnknownExport(name) => {
                write!(f, "the server has no export {name:?} (nbd-serve --list shows those it has)")
            }
        }
    }
}

impl core::error::Error for HandshakeError {}
