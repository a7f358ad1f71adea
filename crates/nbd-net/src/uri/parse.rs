//! From text to [`Uri`].

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::percent::{decode, decode_text, may_stand};
use super::{LONGEST_EXPORT, MOST_CONNECTIONS, Retry, Uri, UriError};
use crate::address::{Address, PORT, number, split_port};

/// The context identifier of the machine that a virtual machine runs on.
const HOST_CID: u32 = 2;

/// How bytes travel, as the scheme says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Unix,
    Vsock,
}

/// A URI in its parts, still encoded.
struct Parts<'a> {
    user: Option<&'a str>,
    /// Host and port.
    place: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        uri(text)
    }
}

fn uri(text: &str) -> Result<Uri, UriError> {
    let (scheme, rest) = text.split_once(':').ok_or_else(|| UriError::Scheme(text.to_owned()))?;
    let (tls, transport) = match scheme.to_ascii_lowercase().as_str() {
        "nbd" => (false, Transport::Tcp),
        "nbds" => (true, Transport::Tcp),
        "nbd+unix" => (false, Transport::Unix),
        "nbds+unix" => (true, Transport::Unix),
        "nbd+vsock" => (false, Transport::Vsock),
        "nbds+vsock" => (true, Transport::Vsock),
        _ => return Err(UriError::Scheme(text.to_owned())),
    };
    if let Some(character) = text.chars().find(|character| !may_stand(*character)) {
        return Err(UriError::Character(character));
    }
    if text.contains('#') {
        return Err(UriError::Fragment);
    }
    let parts = split(rest);
    let export = decode_text(parts.path.strip_prefix('/').unwrap_or(parts.path), "export name")?;
    if export.len() > LONGEST_EXPORT {
        return Err(UriError::LongExport(export.len()));
    }
    let user = parts.user.map(|user| decode_text(user, "user name")).transpose()?;
    let parameters = Parameters::parse(parts.query.unwrap_or(""))?;
    if let (false, Some(name)) = (tls, parameters.needs_tls) {
        return Err(UriError::NeedsTls(name));
    }
    let address = match transport {
        Transport::Unix => unix(&parts, parameters.socket)?,
        _ if parameters.socket.is_some() => return Err(UriError::SocketOfOther),
        Transport::Tcp => tcp(&parts)?,
        Transport::Vsock => vsock(&parts)?,
    };
    Ok(Uri {
        tls,
        address,
        export,
        user,
        tls_certificates: parameters.certificates,
        tls_hostname: parameters.hostname,
        tls_verify: parameters.verify.unwrap_or(true),
        connections: parameters.connections,
        retry: parameters.retry,
    })
}

fn split(rest: &str) -> Parts<'_> {
    let (hierarchy, query) = match rest.split_once('?') {
        Some((hierarchy, query)) => (hierarchy, Some(query)),
        None => (rest, None),
    };
    let Some(behind) = hierarchy.strip_prefix("//") else {
        return Parts { user: None, place: None, path: hierarchy, query };
    };
    let (authority, path) = behind.split_at(behind.find('/').unwrap_or(behind.len()));
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, authority),
    };
    Parts { user, place: Some(place), path, query }
}

fn unix(parts: &Parts<'_>, socket: Option<PathBuf>) -> Result<Address, UriError> {
    match parts.place {
        None | Some("") => socket.map(Address::Unix).ok_or(UriError::NoSocket),
        Some(place) => Err(UriError::PlaceOfUnix(place.to_owned())),
    }
}

fn tcp(parts: &Parts<'_>) -> Result<Address, UriError> {
    // Without slashes it may be the way in which qemu wrote addresses before there were URIs.
    let place = parts.place.ok_or(UriError::NoPlace("nbd://HOST:PORT/EXPORT"))?;
    let wrong = || UriError::Host(place.to_owned());
    let (host, port) = split_host(place).ok_or_else(wrong)?;
    let port = match port {
        None | Some("") => PORT,
        Some(port) => {
            let number = number(port).filter(|number| *number != 0);
            number.ok_or_else(|| UriError::Port(port.to_owned()))?
        }
    };
    let mut host = decode_text(host, "host")?;
    if host.is_empty() {
        host.push_str("localhost");
    }
    if host.contains(':') != place.starts_with('[') {
        return Err(wrong());
    }
    Ok(Address::Tcp { host, port })
}

/// Like [`split_port`], but the zone of an IPv6 address begins with an encoded `%`.
fn split_host(place: &str) -> Option<(&str, Option<&str>)> {
    let zone_is_encoded = place.split_once(']').is_none_or(|(host, _)| {
        host.split_once('%').is_none_or(|(_, zone)| zone.starts_with("25"))
    });
    split_port(place).filter(|_| zone_is_encoded)
}

fn vsock(parts: &Parts<'_>) -> Result<Address, UriError> {
    let place = parts.place.ok_or(UriError::NoPlace("nbd+vsock://CID:PORT/EXPORT"))?;
    let (cid, port) = place.split_once(':').unwrap_or((place, ""));
    let parse = |text: &str, default: u32| match text {
        "" => Some(default),
        _ => number(text),
    };
    let cid = parse(cid, HOST_CID).ok_or_else(|| UriError::Cid(cid.to_owned()))?;
    let port = parse(port, PORT.into()).ok_or_else(|| UriError::Port(port.to_owned()))?;
    Ok(Address::Vsock { cid, port })
}

#[derive(Default)]
struct Parameters {
    socket: Option<PathBuf>,
    certificates: Option<PathBuf>,
    hostname: Option<String>,
    verify: Option<bool>,
    connections: Option<u32>,
    retry: Option<Retry>,
    /// One of those that would be without effect, and make people believe in it, without TLS.
    needs_tls: Option<&'static str>,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, UriError> {
        let mut parameters = Self::default();
        let mut seen = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let name = decode_text(name, "name of a parameter")?;
            if seen.contains(&name) {
                return Err(UriError::Twice(name));
            }
            parameters.set(&name, value)?;
            seen.push(name);
        }
        Ok(parameters)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), UriError> {
        let wrong =
            |expected| UriError::Value { name: name.to_owned(), value: value.to_owned(), expected };
        match name {
            "socket" => self.socket = Some(path(value, true).ok_or(wrong("the path of a socket"))?),
            "tls-certificates" => {
                self.needs_tls = Some("tls-certificates");
                let directory = path(value, false).ok_or(wrong("the path of a directory"))?;
                self.certificates = Some(directory);
            }
            "tls-hostname" => {
                self.needs_tls = Some("tls-hostname");
                let hostname = decode_text(value, "value of tls-hostname")?;
                self.hostname = Some(hostname).filter(|name| !name.is_empty());
                self.hostname.as_ref().ok_or(wrong("the name of a host"))?;
            }
            "tls-verify-peer" => {
                self.needs_tls = Some("tls-verify-peer");
                self.verify = Some(match value {
                    "0" => false,
                    "1" => true,
                    _ => return Err(wrong("0 or 1")),
                });
            }
            "tls-type" if value == "x509" => self.needs_tls = Some("tls-type"),
            "tls-type" | "tls-psk-file" => return Err(UriError::TlsKind),
            "connections" => {
                let count = number(value).filter(|count| (1..=MOST_CONNECTIONS).contains(count));
                self.connections = Some(count.ok_or(wrong("a number from 1 to 16"))?);
            }
            "retry" if value == "forever" => self.retry = Some(Retry::Forever),
            "retry" => {
                let seconds = number(value).ok_or(wrong("a number of seconds, or forever"))?;
                self.retry = Some(Retry::For(Duration::from_secs(seconds)));
            }
            _ => return Err(UriError::Unknown(name.to_owned())),
        }
        Ok(())
    }
}

/// A path, if it can be one. A NUL may only stand at the front, where it makes a name in the
/// abstract namespace.
fn path(value: &str, may_be_abstract: bool) -> Option<PathBuf> {
    let bytes = decode(value).ok()?;
    let name = match bytes.split_first()? {
        (0, name) if may_be_abstract => name,
        _ => &bytes,
    };
    if name.is_empty() || name.contains(&0) {
        return None;
    }
    Some(OsString::from_vec(bytes).into())
}
