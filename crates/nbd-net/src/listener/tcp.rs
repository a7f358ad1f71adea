//! TCP ports, on all addresses of a host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    Backlog, SockaddrStorage, bind as bind_socket, listen as listen_on, setsockopt, sockopt,
};

use super::ListenError;
use super::source::{Listener, failed, local_address, stream_socket};
use crate::address::{Address, Listen};
use crate::socket::family;

pub(super) fn bind(host: &str, port: u16) -> Result<Vec<Listener>, ListenError> {
    let listen = Listen::Tcp { host: host.into(), port };
    if host.is_empty() {
        let everywhere = (IpAddr::V6(Ipv6Addr::UNSPECIFIED), port).into();
        return match bind_one(everywhere, Some(false)) {
            // A system without IPv6.
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
                let everywhere = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), port).into();
                bind_one(everywhere, None)
            }
            other => other,
        }
        .map(|listener| vec![listener])
        .map_err(|errno| failed(&listen, errno));
    }
    let lookup = |source| ListenError::Lookup { listen: listen.clone(), source };
    let mut places: Vec<_> = (host, port).to_socket_addrs().map_err(lookup)?.collect();
    let mut seen = Vec::new();
    places.retain(|place| {
        !seen.contains(place) && {
            seen.push(*place);
            true
        }
    });
    bind_all(&listen, &places)
}

/// Binds all addresses that this machine has; a name like localhost may stand for one that it
/// has not.
fn bind_all(listen: &Listen, places: &[SocketAddr]) -> Result<Vec<Listener>, ListenError> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut refusal = None;
    for place in places {
        let mut place = *place;
        if let (0, Some(Address::Tcp { port, .. })) =
            (place.port(), listeners.first().and_then(Listener::address))
        {
            // The port that the system has chosen is good for the other addresses as well.
            place.set_port(port);
        }
        match bind_one(place, None) {
            Ok(listener) => listeners.push(listener),
            Err(errno @ (Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)) => refusal = Some(errno),
            Err(errno) => return Err(failed(listen, errno)),
        }
    }
    match (listeners.is_empty(), refusal) {
        (false, _) => Ok(listeners),
        (true, Some(errno)) => Err(failed(listen, errno)),
        (true, None) => {
            let source = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            Err(ListenError::Lookup { listen: listen.clone(), source })
        }
    }
}

fn bind_one(place: SocketAddr, only_v6: Option<bool>) -> nix::Result<Listener> {
    let fd: OwnedFd = stream_socket(family(&place))?;
    // Connections of an earlier server that linger in TIME_WAIT are no reason to wait.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if let Some(only_v6) = only_v6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &only_v6)?;
    }
    bind_socket(fd.as_raw_fd(), &SockaddrStorage::from(place))?;
    listen_on(&fd, Backlog::MAXCONN)?;
    let address = local_address(&fd)?;
    Ok(Listener::many(fd, address))
}
