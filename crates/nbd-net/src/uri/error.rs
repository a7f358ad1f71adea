//! What is wrong with a URI.

use thiserror::Error;

/// Longest name of an export, in bytes.
pub const LONGEST_EXPORT: usize = 4096;

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
