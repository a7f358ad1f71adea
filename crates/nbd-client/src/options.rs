//! How to deal with a server, and who keeps what must outlive this process.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nbd_net::uri::Retry;

/// Names of keepsakes begin so that are connections; a number follows.
pub const CONNECTION: &str = "connection-";
/// Name of the keepsake that is the process of a server that we have started.
pub const SERVER: &str = "server";
/// Most connections.
pub const MOST_CONNECTIONS: u32 = 16;
/// Connections, unless something else is asked for.
pub(crate) const USUAL_CONNECTIONS: u32 = 1;

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
    /// Who keeps descriptors for a successor.
    pub custodian: Option<Arc<dyn Custodian>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retry: Retry::Forever,
            connections: None,
            connect_limit: Duration::from_secs(10),
            fence_limit: Duration::from_secs(5),
            custodian: None,
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

/// Keeps descriptors beyond the end of this process, so that a successor can fence what they
/// name: see the [crate's documentation](crate#fencing).
pub trait Custodian: Send + Sync {
    /// Keeps a descriptor; one that was kept under the same name is let go. When this returns,
    /// the descriptor outlives this process. A successor hands all of them to
    /// [`Remote::begin`](crate::Remote::begin).
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;
}
