//! Accepting connections: on sockets that we bind, on inherited ones, or a single one.

mod accept;
mod error;
mod inherited;
mod tcp;
#[cfg(test)]
mod tests;
mod unix;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, VsockAddr, bind, getsockname,
    listen, socket,
};

use crate::address::{ANY_CID, Address, Listen};
use crate::socket::Socket;

pub use accept::Listeners;
pub use error::ListenError;

/// A source of connections.
#[derive(Debug)]
pub struct Listener {
    address: Option<Address>,
    /// Goes before the descriptor: the file must not outlive the one who answers there.
    _file: Option<unix::SocketFile>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// A listening socket, which does not block.
    Many(OwnedFd),
    /// A connection that was there already; nothing once it is accepted.
    One(Mutex<Option<Socket>>),
}

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

    /// Where clients connect to, with the port that the system chose. `None` for a single
    /// connection, which there is no connecting to.
    pub fn address(&self) -> Option<Address> {
        self.address.clone()
    }

    /// Has this descriptor, which is listening, and is to be found at the address.
    fn many(fd: OwnedFd, address: Option<Address>) -> Self {
        Self { address, _file: None, source: Source::Many(fd) }
    }

    fn one(socket: Socket) -> Self {
        Self { address: None, _file: None, source: Source::One(Mutex::new(Some(socket))) }
    }

    fn take_connection(&self) -> Option<Socket> {
        match &self.source {
            Source::Many(_) => None,
            Source::One(one) => one.lock().unwrap_or_else(PoisonError::into_inner).take(),
        }
    }
}

fn failed(listen: &Listen, errno: nix::Error) -> ListenError {
    match errno {
        nix::Error::EADDRINUSE => ListenError::InUse(listen.clone()),
        errno => ListenError::Failed { listen: listen.clone(), source: errno.into() },
    }
}

fn stream_socket(family: AddressFamily) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(family, SockType::Stream, flags, None)
}

fn vsock(port: u32) -> nix::Result<Listener> {
    let fd = stream_socket(AddressFamily::Vsock)?;
    bind(fd.as_raw_fd(), &VsockAddr::new(ANY_CID, port))?;
    listen(&fd, Backlog::MAXCONN)?;
    let address = local_address(&fd)?;
    Ok(Listener::many(fd, address))
}

/// Where a socket of any family is bound.
fn local_address(fd: &OwnedFd) -> nix::Result<Option<Address>> {
    let bound: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    if let Some(place) = bound.as_sockaddr_in() {
        return Ok(Some(Address::Tcp { host: place.ip().to_string(), port: place.port() }));
    }
    if let Some(place) = bound.as_sockaddr_in6() {
        return Ok(Some(Address::Tcp { host: place.ip().to_string(), port: place.port() }));
    }
    if let Some(place) = bound.as_vsock_addr() {
        return Ok(Some(Address::Vsock { cid: place.cid(), port: place.port() }));
    }
    let path = bound.as_unix_addr().and_then(|place| place.path());
    Ok(path.map(|path| Address::Unix(path.into())))
}
