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

mod error;
mod parse;
mod percent;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::address::{Address, PORT};
pub use error::{LONGEST_EXPORT, UriError};
use percent::Encoded;

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
