//! How NBD bytes travel: over unix sockets, TCP and vsock, in the clear or secured by TLS.
//!
//! | module | idea |
//! |---|---|
//! | [`address`] | where a server is, and where to listen, as people write it |
//! | [`uri`] | NBD URIs |
//! | [`socket`] | a connected socket of any family; connecting one |
//! | [`descriptors`] | how many of them this process may have |
//! | [`liveness`] | whether the machine at the other end still answers |
//! | [`listener`] | accepting connections: bound, inherited, or a single one |
//! | [`tls`] | certificates and keys, in the files that other NBD programs use |
//! | [`stream`] | a connection: first in turns with a deadline, then in both directions at once |
//!
//! Nothing here knows what the bytes mean, but for [`uri`], which knows that exports have names.
//!
//! # Use
//!
//! A handshake goes in turns, under one deadline; the transmission phase has a receiving thread and
//! several that send.
//!
//! ```
//! use std::io::IoSlice;
//! use std::os::unix::net::UnixStream;
//! use std::time::{Duration, Instant};
//!
//! use nbd_net::socket::Socket;
//! use nbd_net::stream::Stream;
//!
//! # fn main() -> std::io::Result<()> {
//! let (ours, theirs) = UnixStream::pair()?;
//! let mut client = Stream::plain(Socket::from_fd(ours.into())?);
//! let mut server = Stream::plain(Socket::from_fd(theirs.into())?);
//! server.set_deadline(Some(Instant::now() + Duration::from_secs(10)));
//! client.write_all(b"NBDMAGIC")?;
//! let mut magic = [0; 8];
//! server.read_exact(&mut magic)?;
//! assert_eq!(&magic, b"NBDMAGIC");
//!
//! let (mut receiver, _) = client.split();
//! let (_, mut sender) = server.split();
//! sender.send(&[IoSlice::new(b"a reply")])?;
//! let mut reply = [0; 16];
//! assert_eq!(receiver.receive(&mut reply)?, 7);
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//!
//! - Nothing waits without a limit but [`Listeners::accept`](listener::Listeners::accept), which a
//!   descriptor ends, and a receiver that was given none.
//! - Sending under a lock never waits: [`Sender::send`](stream::Sender::send) says that there is no room.
//! - No signal comes of a peer that is gone.

pub mod address;
pub mod descriptors;
pub mod listener;
pub mod liveness;
pub mod socket;
pub mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod uri;
