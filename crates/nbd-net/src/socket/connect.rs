//! Connecting to a server.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, VsockAddr,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;

use super::{Socket, time_value};
use crate::address::Address;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The host's name has no address.
    #[error("cannot look up the host of {address}: check the name, or give an IP address")]
    Lookup {
        /// Where to.
        address: Address,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
    /// The server cannot be reached.
    #[error("cannot connect to {address} (does a server listen there?)")]
    Failed {
        /// Where to.
        address: Address,
        /// The system's answer; `TimedOut` if there was none in time.
        #[source]
        source: io::Error,
    },
    /// The server cannot be reached at any address of its host.
    #[error("cannot connect to {address} (does a server listen there?)")]
    AllFailed {
        /// Where to.
        address: Address,
        /// What was tried.
        #[source]
        source: Attempts,
    },
}

/// The addresses that were tried, and what became of each.
#[derive(Debug)]
pub struct Attempts(pub Vec<(SocketAddr, io::Error)>);

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, error)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {error}")?;
        }
        Ok(())
    }
}

impl StdError for Attempts {}

impl Socket {
    /// Connects. `timeout` is for all attempts together where a host has several addresses;
    /// looking up its name comes on top.
    ///
    /// # Errors
    ///
    /// A [`ConnectError`] that names the address: its name is not found, or no address of it accepts the
    /// connection in time.
    pub fn connect(address: &Address, timeout: Duration) -> Result<Self, ConnectError> {
        let failed = |source| ConnectError::Failed { address: address.clone(), source };
        match address {
            Address::Unix(path) => unix_address(path)
                .map_err(io::Error::from)
                .and_then(|place| attempt(AddressFamily::Unix, &place, timeout))
                .map_err(failed),
            Address::Tcp { host, port } => {
                let looked_up = (host.as_str(), *port).to_socket_addrs();
                let places = looked_up
                    .map_err(|source| ConnectError::Lookup { address: address.clone(), source })?;
                connect_tcp(address, &places.collect::<Vec<_>>(), timeout)
            }
            Address::Vsock { cid, port } => {
                attempt(AddressFamily::Vsock, &VsockAddr::new(*cid, *port), timeout).map_err(failed)
            }
        }
    }
}

/// The address of a unix socket, in the abstract namespace if the path starts with a NUL byte.
fn unix_address(path: &Path) -> nix::Result<UnixAddr> {
    match path.as_os_str().as_bytes().split_first() {
        Some((0, name)) => UnixAddr::new_abstract(name),
        _ => UnixAddr::new(path),
    }
}

/// The family of a TCP address.
pub(crate) fn family(place: &SocketAddr) -> AddressFamily {
    if place.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn connect_tcp(
    address: &Address,
    places: &[SocketAddr],
    timeout: Duration,
) -> Result<Socket, ConnectError> {
    let started = Instant::now();
    let mut attempts = Vec::new();
    for (index, place) in places.iter().enumerate() {
        // One address that swallows everything must not use up the time of the others.
        let left = timeout.saturating_sub(started.elapsed());
        let share = left / u32::try_from(places.len() - index).unwrap_or(u32::MAX);
        match attempt(family(place), &SockaddrStorage::from(*place), share) {
            Ok(socket) => return Ok(socket),
            Err(error) => attempts.push((*place, error)),
        }
    }
    let address = address.clone();
    match attempts.pop() {
        Some((_, source)) if attempts.is_empty() => Err(ConnectError::Failed { address, source }),
        Some(last) => {
            attempts.push(last);
            Err(ConnectError::AllFailed { address, source: Attempts(attempts) })
        }
        None => {
            let source = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            Err(ConnectError::Lookup { address, source })
        }
    }
}

/// The kernel's own timeout for connect(2) works for all families, unlike connecting in the
/// background: a unix socket cannot do that.
fn attempt(
    family: AddressFamily,
    place: &dyn SockaddrLike,
    timeout: Duration,
) -> io::Result<Socket> {
    let fd: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::SendTimeout, &time_value(timeout))?;
    loop {
        match nix::sys::socket::connect(fd.as_raw_fd(), place) {
            Ok(()) | Err(Errno::EISCONN) => break,
            // Interrupted by a signal; the connection is still being made.
            Err(Errno::EINTR) => {}
            Err(Errno::EINPROGRESS | Errno::EAGAIN | Errno::EALREADY) => {
                let text = format!("no answer within {:.1} s", timeout.as_secs_f64());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::zero())?;
    Socket::from_fd(fd)
}
