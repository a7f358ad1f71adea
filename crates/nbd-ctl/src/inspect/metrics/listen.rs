//! Where metrics are told, and who may connect there.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group};

use super::HostNames;

/// Only the user that the process runs as.
const OWN_MODE: u32 = 0o600;
/// Also the members of a group.
const GROUP_MODE: u32 = 0o660;

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
        return Err("only loopback addresses, as there is no authentication: for other machines, \
                    put a proxy that has it in front of unix:PATH"
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

/// Removes a socket that a killed predecessor has left.
pub(super) fn bind_unix(path: &Path, group: Option<Gid>) -> io::Result<UnixListener> {
    let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    let probed = is_socket.then(|| UnixStream::connect(path));
    // Another error is a sign of life, such as a full backlog.
    if let Some(Err(error)) = probed
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        fs::remove_file(path)?;
    }
    // There is no moment at which other users can connect. No thread is running yet.
    let before = umask(Mode::from_bits_truncate(!OWN_MODE & 0o777));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound?;
    if let Some(group) = group {
        chown(path, None, Some(group.as_raw()))?;
        fs::set_permissions(path, Permissions::from_mode(GROUP_MODE))?;
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
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

    #[test]
    fn options_of_the_other_kind_of_socket_are_refused() {
        let host = || vec!["disks.example".to_string()];
        assert!(Listen::check("9100", host(), None).is_ok());
        assert!(Listen::check("unix:/run/m", host(), None).unwrap_err().starts_with("--host"));
        assert!(Listen::check("9100", Vec::new(), Some("root")).unwrap_err().contains("unix:PATH"));
        let root = Listen::check("unix:/run/m", Vec::new(), Some("root")).unwrap();
        assert_eq!(root.group, Some(Gid::from_raw(0)));
        let nobody = Listen::check("unix:/run/m", Vec::new(), Some("no such"));
        assert!(nobody.unwrap_err().contains("no such group"));
    }
}
