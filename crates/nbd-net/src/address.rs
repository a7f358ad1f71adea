//! Where a server is, and where to listen, as people write it.

use std::fmt;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// The TCP port that IANA has assigned to NBD; used for vsock as well.
pub const PORT: u16 = 10809;
/// The CID of a server that is found under all of this machine's (VMADDR_CID_ANY).
pub(crate) const ANY_CID: u32 = u32::MAX;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket. A path that starts with a NUL byte is a name in the abstract namespace.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// A host name or an IP address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A port of a virtual machine, or of the machine that it runs on.
    Vsock {
        /// The machine; 2 is the one that a virtual machine runs on.
        cid: u32,
        /// The port.
        port: u32,
    },
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// `unix:PATH`: a unix socket, which is created.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`: a TCP port on all addresses of a host.
    Tcp {
        /// A host name or an IP address, without brackets. Empty is all interfaces.
        host: String,
        /// The port. 0 lets the system choose.
        port: u16,
    },
    /// `vsock:PORT`: a port of this (virtual) machine.
    Vsock {
        /// The port.
        port: u32,
    },
    /// `-`: the single connection that stdin is.
    Stdin,
    /// `systemd`: the sockets that a service manager passes (`LISTEN_FDS`).
    Activated,
}

/// What is wrong with a text that should say where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ListenSyntaxError {
    /// It starts with nothing known.
    #[error(
        "cannot listen on {0:?}: write unix:PATH, tcp:HOST:PORT, vsock:PORT, systemd, or - for stdin"
    )]
    Kind(String),
    /// Nothing follows `unix:`.
    #[error("the path of the unix socket is missing: write it like unix:/run/nbd.sock")]
    Path,
    /// Too many colons, or brackets in the wrong place.
    #[error(
        "{0:?} is no host and port: write tcp:HOST:PORT, with an IPv6 address in brackets like tcp:[::1]:10809"
    )]
    Host(String),
    /// A number alone may be meant as a port, and would be taken for an address.
    #[error("{0:?} may be a port or a host: write tcp::{0} for this port on all interfaces")]
    PortAlone(String),
    /// Not the number of a port.
    #[error("{0:?} is no port: write a number from 0 to {1}, like 10809")]
    Port(String, u32),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => fmt_unix(path, f),
            Self::Tcp { host, port } => fmt_tcp(host, *port, f),
            Self::Vsock { cid: ANY_CID, port } => write!(f, "vsock:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => fmt_unix(path, f),
            Self::Tcp { host, port } => fmt_tcp(host, *port, f),
            Self::Vsock { port } => write!(f, "vsock:{port}"),
            Self::Stdin => f.write_str("-"),
            Self::Activated => f.write_str("systemd"),
        }
    }
}

fn fmt_unix(path: &Path, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // The kernel shows names in the abstract namespace like this, too.
    match path.as_os_str().as_bytes().split_first() {
        Some((0, name)) => write!(f, "unix:@{}", String::from_utf8_lossy(name)),
        _ => write!(f, "unix:{}", path.display()),
    }
}

fn fmt_tcp(host: &str, port: u16, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if host.contains(':') {
        return write!(f, "tcp:[{host}]:{port}");
    }
    write!(f, "tcp:{host}:{port}")
}

impl FromStr for Listen {
    type Err = ListenSyntaxError;

    fn from_str(text: &str) -> Result<Self, ListenSyntaxError> {
        match text.split_once(':') {
            None if text == "-" => Ok(Self::Stdin),
            None if text == "systemd" => Ok(Self::Activated),
            Some(("unix", "")) => Err(ListenSyntaxError::Path),
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("tcp", place)) => tcp(place),
            Some(("vsock", "")) => Ok(Self::Vsock { port: PORT.into() }),
            Some(("vsock", port)) => {
                let number = number(port).ok_or(ListenSyntaxError::Port(port.into(), u32::MAX))?;
                Ok(Self::Vsock { port: number })
            }
            _ => Err(ListenSyntaxError::Kind(text.into())),
        }
    }
}

fn tcp(place: &str) -> Result<Listen, ListenSyntaxError> {
    let (host, port) =
        split_port(place).ok_or_else(|| ListenSyntaxError::Host(place.to_owned()))?;
    if port.is_none() && number::<u64>(host).is_some() {
        return Err(ListenSyntaxError::PortAlone(host.into()));
    }
    let port = match port {
        None | Some("") => PORT,
        Some(port) => {
            let wrong = || ListenSyntaxError::Port(port.into(), u16::MAX.into());
            number(port).ok_or_else(wrong)?
        }
    };
    Ok(Listen::Tcp { host: host.into(), port })
}

/// Takes `HOST` or `HOST:PORT` apart, and the brackets off an IPv6 address. `None` if there are
/// colons or brackets where none belong.
pub(crate) fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let address = host.split_once('%').map_or(host, |(address, _zone)| address);
        address.parse::<Ipv6Addr>().ok()?;
        return match rest.strip_prefix(':') {
            None if rest.is_empty() => Some((host, None)),
            port => port.filter(|port| !port.contains(':')).map(|port| (host, Some(port))),
        };
    }
    if text.contains(['[', ']']) {
        return None;
    }
    match text.split_once(':') {
        None => Some((text, None)),
        Some((host, port)) if !port.contains(':') => Some((host, Some(port))),
        Some(_) => None,
    }
}

/// A decimal number without sign.
pub(crate) fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16) -> Listen {
        Listen::Tcp { host: host.into(), port }
    }

    #[test]
    fn places_to_listen_are_understood() {
        let cases = [
            ("unix:/run/nbd.sock", Listen::Unix("/run/nbd.sock".into())),
            ("unix:a:b", Listen::Unix("a:b".into())),
            ("tcp:localhost:99", tcp("localhost", 99)),
            ("tcp:localhost", tcp("localhost", PORT)),
            ("tcp:localhost:", tcp("localhost", PORT)),
            ("tcp::10810", tcp("", 10810)),
            ("tcp:", tcp("", PORT)),
            ("tcp:[::1]:99", tcp("::1", 99)),
            ("tcp:[::]", tcp("::", PORT)),
            ("tcp:[fe80::1%eth0]", tcp("fe80::1%eth0", PORT)),
            ("tcp:127.0.0.1:0", tcp("127.0.0.1", 0)),
            ("vsock:1234", Listen::Vsock { port: 1234 }),
            ("vsock:", Listen::Vsock { port: 10809 }),
            ("-", Listen::Stdin),
            ("systemd", Listen::Activated),
        ];
        for (text, listen) in cases {
            assert_eq!(text.parse(), Ok(listen), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "unix:PATH"),
            ("/run/nbd.sock", "unix:PATH"),
            ("unix:", "path"),
            ("tcp:10809", "tcp::10809"),
            ("tcp:::1", "brackets"),
            ("tcp:::1:99", "brackets"),
            ("tcp:[::1", "brackets"),
            ("tcp:[localhost]:99", "brackets"),
            ("tcp:[::1]x", "brackets"),
            ("tcp:[::1]:9:9", "brackets"),
            ("tcp:host:65536", "65535"),
            ("tcp:host:+99", "no port"),
            ("tcp:host:nbd", "no port"),
            ("vsock:4294967296", "no port"),
            ("vsock:2:99", "no port"),
            ("systemd:", "unix:PATH"),
        ];
        for (text, hint) in cases {
            let error = text.parse::<Listen>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_read_like_what_is_typed() {
        let tcp = Address::Tcp { host: "::1".into(), port: 1 };
        assert_eq!(tcp.to_string(), "tcp:[::1]:1");
        assert_eq!(Address::Vsock { cid: 2, port: 3 }.to_string(), "vsock:2:3");
        assert_eq!(Address::Vsock { cid: ANY_CID, port: 3 }.to_string(), "vsock:3");
        assert_eq!(Address::Unix("\0name".into()).to_string(), "unix:@name");
    }

    proptest! {
        #[test]
        fn places_survive_a_round_trip(
            listen in prop_oneof![
                "[^\0]+".prop_map(|path| Listen::Unix(path.into())),
                ("[a-z.-]*|[0-9a-f]{1,4}::[0-9a-f]{1,4}", any::<u16>())
                    .prop_map(|(host, port)| Listen::Tcp { host, port }),
                any::<u32>().prop_map(|port| Listen::Vsock { port }),
            ]
        ) {
            prop_assert_eq!(listen.to_string().parse(), Ok(listen));
        }

        #[test]
        fn no_text_is_too_strange(text in "\\PC*|(tcp:|vsock:)[0-9:\\[\\]%.]*") {
            let _ = text.parse::<Listen>();
        }
    }
}
