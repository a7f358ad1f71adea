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
