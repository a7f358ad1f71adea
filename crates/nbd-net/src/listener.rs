//! Accepting connections: on sockets that we bind, on inherited ones, or a single one.

mod accept;
mod error;
mod inherited;
mod socket_file;
mod source;
mod tcp;
#[cfg(test)]
mod tests;
mod unix;

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, Backlog, VsockAddr, bind, listen};

use crate::address::{ANY_CID, Listen};

pub use accept::Listeners;
pub use error::ListenError;
pub use source::Listener;
use source::{failed, local_address, stream_socket};

impl Listener {
    /// Listens. One [`Listen`] may become several listeners: a host has several addresses, and a
    /// service manager passes several sockets. Only the owner may connect to a unix socket.
    ///
    /// # Errors
    ///
    /// As for [`bind_with_mode`](Self::bind_with_mode).
    pub fn bind(listen: &Listen) -> Result<Vec<Self>, ListenError> {
        Self::bind_with_mode(listen, 0o600)
    }

    /// Listens; `mode` has the permissions of a unix socket.
    ///
    /// The socket of a server that is gone is replaced, and ours is removed when the listener is
    /// dropped. What [`Listen::Stdin`] and [`Listen::Activated`] name is taken over: it is found
    /// once only, and stdin and stdout are the null device afterwards.
    ///
    /// # Errors
    ///
    /// A [`ListenError`] that names the place: it is in use, this process may not listen there, the host has no
    /// address, or nothing was inherited where [`Listen::Stdin`] or [`Listen::Activated`] expects it.
    pub fn bind_with_mode(listen: &Listen, mode: u32) -> Result<Vec<Self>, ListenError> {
        match listen {
            Listen::Unix(path) => Ok(vec![unix::bind(path, mode)?]),
            Listen::Tcp { host, port } => tcp::bind(host, *port),
            Listen::Vsock { port } => {
                Ok(vec![vsock(*port).map_err(|errno| failed(listen, errno))?])
            }
            Listen::Stdin => Ok(vec![inherited::stdin().map_err(ListenError::Stdin)?]),
            Listen::Activated => inherited::passed(),
        }
    }
}

fn vsock(port: u32) -> nix::Result<Listener> {
    let fd = stream_socket(AddressFamily::Vsock)?;
    bind(fd.as_raw_fd(), &VsockAddr::new(ANY_CID, port))?;
    listen(&fd, Backlog::MAXCONN)?;
    let address = local_address(&fd)?;
    Ok(Listener::many(fd, address))
}
