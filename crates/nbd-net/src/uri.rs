//! NBD URIs, as NBD's `doc/uri.md` defines them, with the parameters of libnbd and two of ours.
//!
//! ```
//! use nbd_net::uri::Uri;
//!
//! let uri: Uri = "nbds://example.com/my%20disk?tls-certificates=/etc/pki/nbd".parse()?;
//! assert!(uri.tls);
//! assert_eq!(uri.address.to_string(), "tcp:example.com:10809");
//! assert_eq!(uri.export, "my disk");
//! # Ok::<(), nbd_net::uri::UriError>(())
//! ```
//!
//! What that document leaves to clients: a TCP URI without a host means localhost, and a vsock
//! one without a CID the machine that a virtual machine runs on; a unix URI with a host is
//! refused, and so are unknown parameters, parameters that come twice, and those that are about
//! TLS in a URI without TLS.

mod parse;
mod percent;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use crate::address::{Address, PORT};
use percent::Encoded;

/// Longest name of an export, in bytes.
pub const LONGEST_EXPORT: usize = 4096;
/// Most connections that a URI can ask for.
pub const MOST_CONNECTIONS: u32 = 16;

/// What an NBD URI says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// TLS is required (`nbds:`).
    pub tls: bool,
    /// Where the server is.
    pub address: Address,
    /// Name of the export; empty for the server's default one.
    pub export: String,
    /// `USER@`: for kinds of TLS that we do not offer.
    pub user: Option<String>,
    /// `tls-certificates=DIRECTORY`: see [`ClientTls::load`](crate::tls::ClientTls::load).
    pub tls_certificates: Option<PathBuf>,
    /// `tls-hostname=NAME`: what the server's certificate must be made out to.
    pub tls_hostname: Option<String>,
    /// `tls-verify-peer=0|1`: whether the server's certificate is verified. It is by default.
    pub tls_verify: bool,
    /// `connections=N`, 1 to 16.
    pub connections: Option<u32>,
    /// `retry=SECONDS|forever`.
    pub retry: Option<Retry>,
}

/// How long to try to reach a server that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Until it is back.
    Forever,
    /// For so long (whole seconds).
    For(Duration),
}

/// What is wrong with a URI.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UriError {
    /// Not one of the schemes.
    #[error(
        "{0:?} is no NBD URI: write nbd://HOST/EXPORT, nbds:// for TLS, nbd+unix:///EXPORT?socket=PATH or nbd+vsock://CID/EXPORT"
    )]
    Scheme(String),
    /// Nothing but ASCII, and not all of that, may stand in a URI.
    #[error("{0:?} cannot stand in a URI: write its bytes as %XX, a space as %20")]
    Character(char),
    /// A `%` without two digits.
    #[error("{0:?} is no encoded byte: write a percent sign as %25")]
    Escape(String),
    /// A `#`.
    #[error("an NBD URI has no fragment: write a # as %23")]
    Fragment,
    /// No `//`.
    #[error("the URI lacks // before the host: write {0}")]
    NoPlace(&'static str),
    /// Not a host.
    #[error("{0:?} is no host and port: write HOST:PORT, with an IPv6 address in brackets")]
    Host(String),
    /// Not a port.
    #[error("{0:?} is no port: write a number like 10809")]
    Port(String),
    /// Not a CID.
    #[error("{0:?} is no vsock CID: write a number, or none for the host of this machine")]
    Cid(String),
    /// A unix socket with a host.
    #[error("a unix socket has no host {0:?}: write nbd+unix:///EXPORT?socket=PATH")]
    PlaceOfUnix(String),
    /// A unix socket without its path.
    #[error("the URI does not name its unix socket: add ?socket=PATH")]
    NoSocket,
    /// The path of a unix socket where there is none.
    #[error("socket= is for unix sockets: write nbd+unix:///EXPORT?socket=PATH, or leave it out")]
    SocketOfOther,
    /// Not text.
    #[error("the {0} is not UTF-8")]
    NotUtf8(&'static str),
    /// A NUL character.
    #[error("the {0} contains a NUL character")]
    Nul(&'static str),
    /// An export name that the protocol cannot carry.
    #[error("the export name has {0} bytes, and {LONGEST_EXPORT} are the most that NBD allows")]
    LongExport(usize),
    /// A parameter that we do not know.
    #[error("unknown parameter {0:?} in the URI: check its spelling, or leave it out")]
    Unknown(String),
    /// A parameter that was there before.
    #[error("the URI has its parameter {0:?} twice: leave one of them out")]
    Twice(String),
    /// A parameter's value does not fit.
    #[error("{name}={value} in the URI is not understood: write {expected}")]
    Value {
        /// The parameter.
        name: String,
        /// Its value, as it was written.
        value: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A parameter that is about TLS.
    #[error("{0} has no effect on a connection in the clear: write nbds instead of nbd for TLS")]
    NeedsTls(&'static str),
    /// Pre-shared keys, or no certificates at all.
    #[error(
        "only certificates are offered for TLS, neither pre-shared keys nor anonymous TLS: write tls-certificates=DIRECTORY"
    )]
    TlsKind,
}

impl Uri {
    /// The name that the server's certificate must be made out to: `tls-hostname`, else the host,
    /// else `localhost`.
    pub fn server_name(&self) -> &str {
        match (&self.tls_hostname, &self.address) {
            (Some(name), _) => name,
            // A certificate does not know what the interfaces of this machine are called.
            (None, Address::Tcp { host, .. }) if host.contains(':') => {
                host.split_once('%').map_or(host, |(address, _zone)| address)
            }
            (None, Address::Tcp { host, .. }) => host,
            (None, _) => "localhost",
        }
    }

    fn fmt_scheme_and_place(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "nbds" } else { "nbd" })?;
        f.write_str(match self.address {
            Address::Tcp { .. } => "://",
            Address::Unix(_) => "+unix://",
            Address::Vsock { .. } => "+vsock://",
        })?;
        if let Some(user) = &self.user {
            // Slashes would end the authority.
            let user = Encoded(user.as_bytes()).to_string().replace('/', "%2F");
            write!(f, "{user}@")?;
        }
        match &self.address {
            Address::Unix(_) => Ok(()),
            Address::Tcp { host, port } => {
                let host = match host.contains(':') {
                    true => format!("[{}]", host.replace('%', "%25")),
                    false => Encoded(host.as_bytes()).to_string().replace('/', "%2F"),
                };
                f.write_str(&host)?;
                if *port == PORT { Ok(()) } else { write!(f, ":{port}") }
            }
            Address::Vsock { cid, port } if *port == u32::from(PORT) => write!(f, "{cid}"),
            Address::Vsock { cid, port } => write!(f, "{cid}:{port}"),
        }
    }

    fn parameters(&self) -> Vec<String> {
        let encoded = |name, value| format!("{name}={}", Encoded(value));
        let mut parameters = Vec::new();
        if let Address::Unix(path) = &self.address {
            parameters.push(encoded("socket", path.as_os_str().as_bytes()));
        }
        if let Some(directory) = &self.tls_certificates {
            parameters.push(encoded("tls-certificates", directory.as_os_str().as_bytes()));
        }
        if let Some(name) = &self.tls_hostname {
            parameters.push(encoded("tls-hostname", name.as_bytes()));
        }
        if !self.tls_verify {
            parameters.push("tls-verify-peer=0".into());
        }
        if let Some(count) = self.connections {
            parameters.push(format!("connections={count}"));
        }
        match self.retry {
            Some(Retry::Forever) => parameters.push("retry=forever".into()),
            Some(Retry::For(time)) => parameters.push(format!("retry={}", time.as_secs())),
            None => {}
        }
        parameters
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_scheme_and_place(f)?;
        write!(f, "/{}", Encoded(self.export.as_bytes()))?;
        for (index, parameter) in self.parameters().iter().enumerate() {
            write!(f, "{}{parameter}", if index == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        parse::uri(text)
    }
}
