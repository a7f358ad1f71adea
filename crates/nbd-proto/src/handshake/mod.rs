//! The handshake: fixed newstyle negotiation as state machines without I/O, one for each side.
//!
//! A machine is fed with the bytes that have come and appends to a buffer what is to be sent.
//! It tells how many bytes it has used up; the rest is to be given again, with more behind it.
//!
//! ```
//! use nbd_proto::handshake::{
//!     Catalog, Client, ClientProgress, Offer, Progress, Refusal, Server, TlsPolicy, Wishes,
//! };
//! use nbd_proto::{BlockSizes, TransmissionFlags};
//!
//! struct One;
//! impl Catalog for One {
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
//! let (mut server, mut client) = (Server::new(TlsPolicy::Off), Client::new(Wishes::new("disk")));
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

mod answer;
mod client;
mod error;
mod message;
mod number;
mod offer;
mod server;

pub use client::{Client, ClientProgress, Established, Wishes};
pub use error::HandshakeError;
pub use message::{
    BlockSizes, GREETING_LEN, INIT_MAGIC, OLDSTYLE_MAGIC, OPTION_MAGIC, OptionHead,
    OptionReplyHead, REPLY_MAGIC, ZEROES_LEN,
};
pub use number::{
    BASE_ALLOCATION, FLAG_C_FIXED_NEWSTYLE, FLAG_C_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    InfoType, MAX_STRING, OptionReplyType, OptionType,
};
pub use offer::{Agreement, Catalog, Offer, Refusal};
pub use server::{Progress, Server, TlsPolicy};

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
