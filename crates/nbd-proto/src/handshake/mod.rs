//! The handshake: fixed newstyle negotiation as state machines without I/O, one for each side.
//!
//! The caller feeds a machine with the bytes that have come; the machine appends to a buffer what to
//! send, and returns how many bytes it consumed. The caller keeps the others and feeds them again,
//! with more behind them. Timeouts are the caller's.
//!
//! ```
//! use nbd_proto::handshake::{
//!     ExportList, ClientHandshake, ClientProgress, Offer, ServerProgress, Refusal, ServerHandshake, TlsPolicy, ClientOptions,
//! };
//! use nbd_proto::{BlockSizes, TransmissionFlags};
//!
//! struct One;
//! impl ExportList for One {
//!     fn find(&self, name: &str) -> Result<Offer, Refusal> {
//!         match name {
//!             "disk" => Ok(Offer::new("disk", 4096, TransmissionFlags::HAS_FLAGS)),
//!             _ => Err(Refusal::Unknown),
//!         }
//!     }
//!     fn list(&self) -> Result<Vec<(String, Option<String>)>, Refusal> {
//!         Ok(vec![("disk".into(), None)])
//!     }
//! }
//!
//! let (mut server, mut client) = (ServerHandshake::new(TlsPolicy::Off), ClientHandshake::new(ClientOptions::new("disk")));
//! let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
//! server.greet(&mut to_client);
//! let established = loop {
//!     let (used, progress) = client.handle(&to_client, &mut to_server)?;
//!     to_client.drain(..used);
//!     if let ClientProgress::Established(established) = progress {
//!         break established;
//!     }
//!     let (used, _) = server.handle(&to_server, &One, &mut to_client)?;
//!     to_server.drain(..used);
//! };
//! assert_eq!(established.size, 4096);
//! assert_eq!(established.block_sizes, BlockSizes::DEFAULT);
//! # Ok::<(), nbd_proto::handshake::HandshakeError>(())
//! ```

mod client;
mod codes;
mod error;
mod listing;
mod message;
mod offer;
mod option_replies;
mod server;

pub use client::{ClientHandshake, ClientOptions, ClientProgress, Established};
pub use codes::{
    BASE_ALLOCATION, FLAG_C_FIXED_NEWSTYLE, FLAG_C_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    InfoType, MAX_LISTED_EXPORTS, MAX_STRING_BYTES, OptionReplyType, OptionType,
};
pub use error::HandshakeError;
pub use listing::ListedExport;
pub use message::{
    BlockSizes, GREETING_LEN, INIT_MAGIC, OLDSTYLE_MAGIC, OPTION_MAGIC, OptionHead,
    OptionReplyHead, REPLY_MAGIC, ZEROES_LEN,
};
pub use offer::{Agreement, ExportList, Offer, Refusal};
pub use server::{ServerHandshake, ServerProgress, TlsPolicy};

/// How requests and replies of the transmission phase look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReplyStyle {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies (`NBD_OPT_STRUCTURED_REPLY`).
    Structured,
    /// Extended requests and replies (`NBD_OPT_EXTENDED_HEADERS`).
    Extended,
}
