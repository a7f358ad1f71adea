//! Certificates and keys, in the files that nbdkit, libnbd and qemu use.
//!
//! | file | server | client |
//! |---|---|---|
//! | `ca-cert.pem` | to verify clients | to verify servers |
//! | `ca-crl.pem` | revoked certificates, if there is one | the same |
//! | `server-cert.pem`, `server-key.pem` | needed | |
//! | `client-cert.pem`, `client-key.pem` | | for servers that ask for them |
//!
//! TLS 1.3 and 1.2 are spoken, with certificates only: rustls offers neither pre-shared keys
//! (`tls-psk-file` of other programs) nor anonymous TLS. Names of hosts must be in a certificate's
//! subject alternative names; its common name is not looked at. Sessions are not resumed, so each
//! connection verifies certificates anew.

mod accept_any;
mod error;
mod files;
mod provider;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use accept_any::AcceptAny;
use files::Files;
use provider::provider;

pub use error::{CredentialsError, TlsError};

/// What a server needs to secure connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
}

/// What a client needs to secure connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
}

impl ServerTls {
    /// Reads `server-cert.pem` and `server-key.pem` in a directory, and with `verify_peer` also
    /// `ca-cert.pem`: then clients need a certificate that is signed by one of these authorities.
    ///
    /// # Errors
    ///
    /// A [`CredentialsError`] that names the file: it is missing, unreadable, no PEM, or key and certificate
    /// do not fit each other.
    pub fn load(directory: &Path, verify_peer: bool) -> Result<Self, CredentialsError> {
        Self::load_versions(directory, verify_peer, ALL_VERSIONS)
    }

    fn load_versions(
        directory: &Path,
        verify_peer: bool,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Self, CredentialsError> {
        let files = Files::new(directory);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(CredentialsError::Unavailable)?;
        let builder = match verify_peer {
            true => builder.with_client_cert_verifier(client_verifier(&files)?),
            false => builder.with_no_client_auth(),
        };
        let (chain, key) = files.identity("server")?;
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|source| files.unusable("server-cert.pem", source))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config) })
    }
}

impl ClientTls {
    /// Reads `ca-cert.pem`, `client-cert.pem` and `client-key.pem` in a directory; the latter two
    /// are needed only by servers that ask for them. Without a directory, the authorities that
    /// the system trusts are trusted.
    ///
    /// # Danger
    /// Without `verify`, **any** server is accepted, and so is anybody who pretends to be it and
    /// reads and changes everything on the way. The connection is then safe from mere listeners
    /// only.
    ///
    /// # Errors
    ///
    /// As for [`ServerTls::load`]; also if the system trusts no authority and no directory is given.
    pub fn load(directory: Option<&Path>, verify: bool) -> Result<Self, CredentialsError> {
        Self::load_versions(directory, verify, ALL_VERSIONS)
    }

    fn load_versions(
        directory: Option<&Path>,
        verify: bool,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Self, CredentialsError> {
        let files = directory.map(Files::new);
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(CredentialsError::Unavailable)?
            .dangerous()
            .with_custom_certificate_verifier(match verify {
                true => server_verifier(files.as_ref())?,
                false => Arc::new(AcceptAny::new(&provider())),
            });
        let identity = files.as_ref().map(|files| files.optional_identity("client"));
        let mut config = match (files, identity.transpose()?.flatten()) {
            (Some(files), Some((chain, key))) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|source| files.unusable("client-cert.pem", source))?,
            _ => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }
}

fn client_verifier(files: &Files<'_>) -> Result<Arc<dyn ClientCertVerifier>, CredentialsError> {
    WebPkiClientVerifier::builder_with_provider(files.authorities()?, provider())
        .with_crls(files.revocations()?)
        // A list is of use to those authorities that have one.
        .allow_unknown_revocation_status()
        .build()
        .map_err(|source| files.bad_authorities(source))
}

fn server_verifier(
    files: Option<&Files<'_>>,
) -> Result<Arc<dyn ServerCertVerifier>, CredentialsError> {
    let Some(files) = files else {
        return system_verifier();
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(files.authorities()?, provider())
        .with_crls(files.revocations()?)
        .allow_unknown_revocation_status()
        .build()
        .map_err(|source| files.bad_authorities(source))?;
    Ok(verifier)
}

fn system_verifier() -> Result<Arc<dyn ServerCertVerifier>, CredentialsError> {
    let mut roots = RootCertStore::empty();
    // Systems have some that are not to our taste. The others may do.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    // There is nothing else to be wrong than that nobody is trusted.
    verifier.map(|verifier| verifier as _).map_err(|_| CredentialsError::NoAuthorities)
}
