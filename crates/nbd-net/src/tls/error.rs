//! What can go wrong with certificates, and what to do about it.

use std::io;
use std::path::PathBuf;

use rustls::pki_types::pem;
use rustls::server::VerifierBuilderError;
use rustls::{AlertDescription, CertificateError, Error as RustlsError};
use thiserror::Error;

/// Why certificates cannot be used.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {path}, which is needed for TLS")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file has something else in it.
    #[error(
        "there is no {what} in {path}: it must be in PEM format, and keys must not be encrypted"
    )]
    Empty {
        /// The file.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
    },
    /// A file is damaged.
    #[error("{path} is not a valid PEM file")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// A certificate is not acceptable, or does not belong to the key beside it.
    #[error("the content of {path} cannot be used")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: RustlsError,
    },
    /// A key is none that can be used.
    #[error("the key in {path} cannot be used: {what}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        what: &'static str,
    },
    /// The authorities, or their lists of revoked certificates, are not acceptable.
    #[error("the authorities in {directory} cannot be used (ca-cert.pem, ca-crl.pem)")]
    Authorities {
        /// Where they are.
        directory: PathBuf,
        /// Why.
        #[source]
        source: VerifierBuilderError,
    },
    /// A certificate without key, or the other way round.
    #[error("{missing} is missing: a certificate needs its key, and a key its certificate")]
    Incomplete {
        /// The file.
        missing: PathBuf,
    },
    /// The system trusts nobody.
    #[error(
        "this system has no certificates of authorities: install them (ca-certificates), or name a directory with a ca-cert.pem"
    )]
    NoAuthorities,
    /// The cryptography was built in vain.
    #[error("this build of the TLS library has no usable cryptography")]
    Unavailable(#[source] RustlsError),
}

/// Why a connection could not be secured.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The deadline has passed.
    #[error("the peer did not finish the TLS handshake in time")]
    TimedOut,
    /// The connection has ended.
    #[error(
        "the peer closed the connection during the TLS handshake (does it accept our certificate? its log may tell)"
    )]
    Closed,
    /// No certificate can be made out to this.
    #[error("{0:?} is no name of a server: give a host name or an IP address (tls-hostname)")]
    ServerName(String),
    /// We do not accept the peer's certificate, or that it has none.
    #[error("the peer's certificate is not acceptable: {}", about_theirs(.0))]
    Certificate(#[source] RustlsError),
    /// The peer does not accept something of ours.
    #[error("the peer has refused to secure the connection: {}", about_ours(.0))]
    Refused(#[source] RustlsError),
    /// The peer speaks something else.
    #[error("the peer does not speak TLS as it should")]
    Protocol(#[source] RustlsError),
    /// The connection is broken.
    #[error("TLS handshake failed")]
    Io(#[source] io::Error),
}

impl From<RustlsError> for TlsError {
    fn from(error: RustlsError) -> Self {
        match error {
            RustlsError::InvalidCertificate(_) | RustlsError::NoCertificatesPresented => {
                Self::Certificate(error)
            }
            RustlsError::AlertReceived(_) => Self::Refused(error),
            _ => Self::Protocol(error),
        }
    }
}

/// What to do about a certificate that we do not accept.
fn about_theirs(error: &RustlsError) -> &'static str {
    use CertificateError as Fault;
    let RustlsError::InvalidCertificate(fault) = error else {
        return "it has none; give it one that an authority in our ca-cert.pem has signed";
    };
    match fault {
        Fault::Revoked => "our ca-crl.pem revokes it; the peer needs a new one",
        Fault::Expired | Fault::ExpiredContext { .. } => {
            "it has expired; renew it, or set this machine's clock"
        }
        Fault::NotValidYet | Fault::NotValidYetContext { .. } => {
            "it is not valid yet; set this machine's clock"
        }
        Fault::UnknownIssuer | Fault::BadSignature => {
            "no authority that we trust has signed it; see ca-cert.pem"
        }
        Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
            "it is for another host name; connect by that name, or name it with tls-hostname"
        }
        Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. } => {
            "it is for something else; servers and clients need certificates of their own kind"
        }
        _ => "see ca-cert.pem and ca-crl.pem",
    }
}

/// What to do where the peer does not accept something of ours.
fn about_ours(error: &RustlsError) -> &'static str {
    let RustlsError::AlertReceived(alert) = error else {
        return "its log may tell why";
    };
    match *alert {
        AlertDescription::CertificateRequired => {
            "it asks for a certificate; name a directory with client-cert.pem and client-key.pem (tls-certificates)"
        }
        AlertDescription::CertificateRevoked => "our certificate is revoked; a new one is needed",
        AlertDescription::CertificateExpired => {
            "our certificate has expired; renew it, or set the clocks"
        }
        AlertDescription::UnknownCA => {
            "it does not know the authority that has signed our certificate; it needs our ca-cert.pem"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => "it does not accept our certificate",
        _ => "does it accept our certificate? its log may tell",
    }
}

/// Also of an error of a connection that was thought to be secured: with TLS 1.3, that is where a
/// client learns what the server has against its certificate.
impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<RustlsError>()) {
            return error.clone().into();
        }
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}
