//! An NBD server for the network: any [`Backend`](nbd_backend::Backend), under a name, for any
//! number of clients, plain or secured.
//!
//! | module | idea |
//! |---|---|
//! | `server` | accepting clients, and stopping |
//! | `session` | one client, from the first byte to the last: handshake, then transmission |
//! | `connection` | the transmission phase: the engine of the lanes, on a socket |
//! | `inbox`, `outbox` | bytes that come and go, in pieces that suit system calls |
//! | `memory` | what all connections have together for their data, and whose turn it is |
//! | `request`, `reply` | headers and chunks in the style that was negotiated |
//! | `export` | backends under names |
//! | `limits` | how much of us a client may take |
//!
//! A client that breaks the protocol, in whatever way and at whatever byte, loses its connection
//! and costs one line on stderr. It cannot hold up another one: nothing is shared between
//! connections but the backend, its workers, which never wait for a client, and memory for large
//! requests, for which a client waits only so long for another one.

mod connection;
mod export;
mod inbox;
mod limits;
mod memory;
mod outbox;
mod reply;
mod request;
mod server;
mod session;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use export::Export;
pub use limits::Limits;
pub use server::{Security, Server};
