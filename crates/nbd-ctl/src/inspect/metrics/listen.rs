//! Where metrics are told, and who may connect there.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, fchownat};

use super::HostNames;

/// For a socket of the user that the process runs as.
const OWN_MASK: u32 = 0o177;
/// For one that is also for the members of a group.
const GROUP_MASK: u32 = 0o117;

/// Where to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Loopback(SocketAddr),
}

/// Where to answer, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) address: Address,
    /// Names by which clients may ask over TCP.
    pub(crate) hosts: HostNames,
    /// Whose members may connect to the unix socket.
    pub(crate) group: Option<Gid>,
}

impl Listen {
    /// Checks what was typed for `--listen`, `--host` and `--group`.
    pub(crate) fn check(
        address: &str,
        hosts: Vec<String>,
        group: Option<&str>,
    ) -> Result<Self, String> {
        let address = parse(address).map_err(|text| format!("--listen: {text}"))?;
        let hosts = HostNames::check(hosts).map_err(|text| format!("--host: {text}"))?;
        match address {
            Address::Unix(_) if !hosts.is_empty() => {
                return Err("--host: clients of a unix socket may ask by any name".into());
            }
            Address::Loopback(_) if group.is_some() => {
                return Err("--group: TCP answers every user of this machine: use \
                            --listen unix:PATH"
                    .into());
            }
            _ => {}
        }
        let group = group.map(group_id).transpose().map_err(|text| format!("--group: {text}"))?;
        Ok(Self { address, hosts, group })
    }
}

fn group_id(name: &str) -> Result<Gid, String> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(format!("{name}: no such group")),
        Err(errno) => Err(format!("{name}: {}", io::Error::from(errno))),
    }
}

/// `unix:PATH`, a port, or a loopback address with a port. TCP has no users, and other machines must not
/// read what is counted here.
fn parse(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(Address::Unix(path.into()));
    }
    let local = IpAddr::from([127, 0, 0, 1]);
    let port = text.parse().map(|port: u16| SocketAddr::new(local, port));
    let address = port.or_else(|_| text.parse::<SocketAddr>());
    let address =
        address.map_err(|_| "give unix:PATH, a port, or an address like 127.0.0.1:9100")?;
    if !address.ip().is_loopback() {
        return Err("only loopback addresses are allowed, because there is no authentication: for other machines, put a proxy with authentication in front of unix:PATH"
            .into());
    }
    Ok(Address::Loopback(address))
}

pub(super) fn bind_tcp(at: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(at)?;
    // A client that is gone again must not have us wait in accept(2) for the next one.
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A unix socket that we have bound.
pub(super) struct UnixSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// As long as it is open, the socket's number is no other file's.
    file: File,
}

impl UnixSocket {
    /// Removes a socket that a killed predecessor has left.
    pub(super) fn bind(path: &Path, group: Option<Gid>) -> io::Result<Self> {
        let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
        if is_socket && is_left(path)? {
            fs::remove_file(path)?;
        }
        // There is no moment at which others than our own group can connect. No thread is running yet.
        let mask = if group.is_some() { GROUP_MASK } else { OWN_MASK };
        let before = umask(Mode::from_bits_truncate(mask));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound?;
        let file = open_socket(path)?;
        if group.is_some() {
            fchownat(&file, "", None, group, AtFlags::AT_EMPTY_PATH)?;
        }
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.into(), file })
    }

    /// Removes the socket, unless another one is in its place.
    pub(super) fn remove(self) -> io::Result<()> {
        let (own, found) = (self.file.metadata()?, self.path.symlink_metadata()?);
        if (own.dev(), own.ino()) == (found.dev(), found.ino()) {
            fs::remove_file(&self.path)?;
        }
        Ok(())
    }
}

/// Whether no process listens at a socket. Another error is a sign of life, such as a full backlog, for
/// which we do not wait.
fn is_left(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let connected = connect(probe.as_raw_fd(), &UnixAddr::new(path)?);
    Ok(connected == Err(Errno::ECONNREFUSED))
}

/// The directory may be another user's, who puts a link to any file in the place of the socket. So what
/// is there is opened without following links, and used only if it is a socket.
fn open_socket(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let socket = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    if !socket.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("another file has replaced the socket"));
    }
    Ok(socket)
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "{}", path.display()),
            Self::Loopback(address) => write!(formatter, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{Backlog, listen};

    use super::*;

    #[test]
    fn only_this_machine_is_answered() {
        assert_eq!(parse("unix:/run/m"), Ok(Address::Unix("/run/m".into())));
        assert_eq!(parse("9100").unwrap().to_string(), "127.0.0.1:9100");
        assert_eq!(parse("[::1]:9100").unwrap().to_string(), "[::1]:9100");
        for wrong in ["0.0.0.0:9100", "192.0.2.1:80", "unix:", "here", "99999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let error = parse("0.0.0.0:9100").unwrap_err();
        assert!(error.contains("proxy") && error.contains("unix:PATH"), "{error}");
    }

    /// A path, at which nothing is left.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("nbd-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn only_a_socket_is_taken_for_the_socket() {
        let (socket, link, file) = (Place::new("socket"), Place::new("link"), Place::new("file"));
        let _listener = UnixListener::bind(&socket.0).unwrap();
        symlink(&socket.0, &link.0).unwrap();
        fs::write(&file.0, "").unwrap();
        assert!(open_socket(&socket.0).is_ok());
        assert!(open_socket(&link.0).is_err());
        assert!(open_socket(&file.0).is_err());
    }

    #[test]
    fn a_socket_with_a_full_backlog_is_in_use() {
        let place = Place::new("full");
        let listener = UnixListener::bind(&place.0).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let _waiting = UnixStream::connect(&place.0).unwrap();
        assert!(!is_left(&place.0).unwrap());
        drop(listener);
        assert!(is_left(&place.0).unwrap());
    }

    #[test]
    fn a_socket_in_the_place_of_ours_is_not_removed() {
        let (place, other) = (Place::new("ours"), Place::new("other"));
        let bind = || UnixSocket {
            listener: UnixListener::bind(&place.0).unwrap(),
            path: place.0.clone(),
            file: open_socket(&place.0).unwrap(),
        };
        let ours = bind();
        let _listener = UnixListener::bind(&other.0).unwrap();
        fs::rename(&other.0, &place.0).unwrap();
        ours.remove().unwrap();
        assert!(place.0.exists());
        fs::remove_file(&place.0).unwrap();
        bind().remove().unwrap();
        assert!(!place.0.exists());
    }

    #[test]
    fn options_of_the_other_kind_of_socket_are_refused() {
        let host = || vec!["disks.example".to_string()];
        assert!(Listen::check("9100", host(), None).is_ok());
        assert!(Listen::check("unix:/run/m", host(), None).unwrap_err().starts_with("--host"));
        assert!(Listen::check("9100", Vec::new(), Some("root")).unwrap_err().contains("unix:PATH"));
        let root = Listen::check("unix:/run/m", Vec::new(), Some("root")).unwrap();
        assert_eq!(root.group, Some(Gid::from_raw(0)));
        let unknown = Listen::check("unix:/run/m", Vec::new(), Some("no such"));
        assert!(unknown.unwrap_err().contains("no such group"));
    }
}
