//! How to deal with a server, and where descriptors are stored for a successor.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nbd_net::uri::Retry;

/// Stored connections have this prefix and a number as their name.
pub const CONNECTION_FD_PREFIX: &str = "connection-";
/// Name of the stored descriptor (a pidfd) of a server process that the client has started.
pub const SERVER_FD_NAME: &str = "server";
/// The most connections of one client.
pub const MAX_CONNECTIONS: u32 = 16;
/// Connections, unless target or options say otherwise.
pub(crate) const DEFAULT_CONNECTIONS: u32 = 1;

/// How to deal with a server.
#[derive(Clone)]
pub struct Options {
    /// How long requests wait for a server that is gone. A target that says so has precedence.
    pub retry: Retry,
    /// Connections, if the server allows several. A target that says so has precedence.
    pub connections: Option<u32>,
    /// How long an attempt to connect and the handshake may take together. For programs that are
    /// started, this includes their start.
    pub connect_limit: Duration,
    /// How long a server may take to finish with a lost connection before that is complained
    /// about, and a program to end before it is killed.
    pub fence_limit: Duration,
    /// Stores descriptors for a successor; without one, a successor cannot fence.
    pub fd_store: Option<Arc<dyn FdStore>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retry: Retry::Forever,
            connections: None,
            connect_limit: Duration::from_secs(10),
            fence_limit: Duration::from_secs(5),
            fd_store: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("retry", &self.retry)
            .field("connections", &self.connections)
            .field("connect_limit", &self.connect_limit)
            .field("fence_limit", &self.fence_limit)
            .finish_non_exhaustive()
    }
}

/// Stores descriptors beyond the end of this process, so that a successor can fence what they
/// name: see the [crate's documentation](crate#fencing).
pub trait FdStore: Send + Sync {
    /// Stores a descriptor in place of an earlier one with the same name. When this returns, the
    /// descriptor outlives this process. A successor hands all of them to
    /// [`Remote::begin`](crate::Remote::begin).
    ///
    /// # Errors
    ///
    /// If the descriptor is not stored. The client serves all the same and logs the error.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;
}
