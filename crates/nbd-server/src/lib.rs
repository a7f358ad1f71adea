//! An NBD server for the network: any [`Backend`](nbd_backend::Backend), under a name, for any
//! number of clients, plain or secured.
//!
//! | module | idea |
//! |---|---|
//! | `server` | accepting clients, and stopping |
//! | `session` | one client, from the first byte to the last: handshake, then transmission |
//! | `connection` | the transmission phase: dispatch requests, send replies |
//! | `recv_buffer`, `send_buffer` | received and unsent bytes, in pieces that suit system calls |
//! | `memory_budget` | memory for the data of all connections, granted in order and, for long writes, in steps |
//! | `request`, `reply` | headers and chunks in the style that was negotiated |
//! | `export` | backends under names |
//! | `limits` | how much of the server a client may use |
//!
//! A client that breaks the protocol loses its connection, and the server logs one line. No client
//! can hold up another one. Connections share three things only: the backend, its workers, which
//! never wait for a client, and the memory for large requests. A client that holds that memory
//! while others wait for it is disconnected after [`Limits::stall`].

mod connection;
mod export;
mod limits;
mod memory_budget;
mod recv_buffer;
mod reply;
mod request;
mod send_buffer;
mod server;
mod session;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use export::Export;
pub use limits::Limits;
pub use server::{Security, Server};
