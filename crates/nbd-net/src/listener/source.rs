//! A source of connections, and what all kinds of it need.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, getsockname, socket};

use super::error::ListenError;
use super::socket_file::SocketFile;
use crate::address::{Address, Listen};
use crate::socket::Socket;

/// A source of connections.
#[derive(Debug)]
pub struct Listener {
    pub(super) address: Option<Address>,
    /// Goes before the descriptor: the file must not outlive the one who answers there.
    pub(super) _file: Option<SocketFile>,
    pub(super) source: Source,
}

#[derive(Debug)]
pub(super) enum Source {
    /// A listening socket, which does not block.
    Many(OwnedFd),
    /// A connection that was there already; nothing once it is accepted.
    One(Mutex<Option<Socket>>),
}

impl Listener {
    /// Where clients connect to, with the port that the system chose. `None` for a single
    /// connection, which there is no connecting to.
    pub fn address(&self) -> Option<Address> {
        self.address.clone()
    }

    /// Has this descriptor, which is listening, and is to be found at the address.
    pub(super) fn many(fd: OwnedFd, address: Option<Address>) -> Self {
        Self { address, _file: None, source: Source::Many(fd) }
    }

    pub(super) fn one(socket: Socket) -> Self {
        Self { address: None, _file: None, source: Source::One(Mutex::new(Some(socket))) }
    }

    pub(super) fn take_connection(&self) -> Option<Socket> {
        match &self.source {
            Source::Many(_) => None,
            Source::One(one) => one.lock().unwrap_or_else(PoisonError::into_inner).take(),
        }
    }
}

pub(super) fn failed(listen: &Listen, errno: nix::Error) -> ListenError {
    match errno {
        nix::Error::EADDRINUSE => ListenError::InUse(listen.clone()),
        errno => ListenError::Failed { listen: listen.clone(), source: errno.into() },
    }
}

pub(super) fn stream_socket(family: AddressFamily) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(family, SockType::Stream, flags, None)
}

/// Where a socket of any family is bound.
pub(super) fn local_address(fd: &OwnedFd) -> nix::Result<Option<Address>> {
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
