//! Why we cannot listen, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

use crate::address::Listen;

/// Why we cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A living server has the address.
    #[error(
        "cannot listen on {0}: another server does; stop it (`ss -lp` tells which one), or choose another address"
    )]
    InUse(Listen),
    /// There is a socket of which only others may find out whether its server lives.
    #[error(
        "cannot listen on unix:{0}: the socket there is another user's, who may find out whether its server lives; remove it if not, or choose another path"
    )]
    Foreign(PathBuf),
    /// The socket of a dead server cannot be removed.
    #[error(
        "cannot listen on unix:{path}: the socket that a dead server has left there cannot be removed; do that as its owner, or choose another path"
    )]
    Stale {
        /// Where it is.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Where the unix socket should be, there is something else.
    #[error("{0} is in the way and no socket: remove it, or choose another path")]
    InTheWay(PathBuf),
    /// Unix sockets must be near the root.
    #[error("the path of the unix socket has {length} bytes, and 107 are the most: shorten {path}")]
    LongPath {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// The host's name has no address.
    #[error("cannot look up the host of {listen}: check the name, or give an IP address")]
    Lookup {
        /// Where.
        listen: Listen,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
    /// Another refusal of the system.
    #[error("cannot listen on {listen}{}", way_out(listen, source))]
    Failed {
        /// Where.
        listen: Listen,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// `-` without a socket.
    #[error(
        "stdin is no connected socket: `-` is for programs that are started for one connection; use unix:PATH to listen"
    )]
    Stdin(#[source] io::Error),
    /// `systemd` without sockets.
    #[error(
        "no sockets were passed to this process (LISTEN_PID and LISTEN_FDS): start it from a systemd socket unit or with systemd-socket-activate, or use unix:PATH to listen"
    )]
    NotActivated,
    /// A passed descriptor is of no use.
    #[error("the passed descriptor {fd} is no stream socket: check the socket unit")]
    Passed {
        /// Its number.
        fd: i32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// What to do about an error, behind the name of the place.
fn way_out(listen: &Listen, error: &io::Error) -> String {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    match (listen, errno) {
        (Listen::Unix(path), Errno::EACCES | Errno::EPERM | Errno::EROFS) => format!(
            ": this user may not make a socket in {}; choose another path, or have root allow it",
            directory(path).display()
        ),
        (Listen::Unix(path), Errno::ENOENT | Errno::ENOTDIR) => format!(
            ": there is no directory {}; make it, or choose another path",
            directory(path).display()
        ),
        (Listen::Tcp { .. } | Listen::Vsock { .. }, Errno::EACCES) => {
            ": low ports are for root or CAP_NET_BIND_SERVICE; choose one above 1023, like 10809"
                .into()
        }
        (Listen::Tcp { .. }, Errno::EADDRNOTAVAIL) => {
            ": this machine does not have that address (`ip address` shows which it has); choose one of them, or write tcp::PORT for all"
                .into()
        }
        (Listen::Vsock { .. }, Errno::EAFNOSUPPORT | Errno::ENODEV | Errno::EADDRNOTAVAIL) => {
            ": this kernel has no vsock; load a transport for it, like `modprobe vhost_vsock` on a host of virtual machines"
                .into()
        }
        _ => String::new(),
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_done_is_said() {
        let tcp = || Listen::Tcp { host: "example.com".into(), port: 80 };
        let vsock = || Listen::Vsock { port: 80 };
        let unix = |path: &str| Listen::Unix(path.into());
        for (listen, errno, words) in [
            (unix("/run/a/b"), Errno::EACCES, "may not make a socket in /run/a; choose"),
            (unix("a"), Errno::EROFS, "may not make a socket in .; choose"),
            (unix("/run/a/b"), Errno::ENOENT, "no directory /run/a; make it"),
            (tcp(), Errno::EACCES, "above 1023"),
            (vsock(), Errno::EACCES, "above 1023"),
            (tcp(), Errno::EADDRNOTAVAIL, "`ip address`"),
            (vsock(), Errno::EAFNOSUPPORT, "modprobe"),
        ] {
            let error = ListenError::Failed { listen: listen.clone(), source: errno.into() };
            let text = error.to_string();
            assert!(text.starts_with(&format!("cannot listen on {listen}: ")), "{text}");
            assert!(text.contains(words), "{text}");
        }
        let source = Errno::ENOMEM.into();
        let error = ListenError::Failed { listen: tcp(), source };
        assert_eq!(error.to_string(), "cannot listen on tcp:example.com:80");
    }
}
