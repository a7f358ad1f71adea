//! The files of a certificate directory.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::rsa::KeyPair;
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::VerifierBuilderError;

use super::error::CredentialsError;
use super::provider::provider;

/// A chain of certificates and the key of its first one.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(super) struct Files<'a> {
    directory: &'a Path,
}

impl<'a> Files<'a> {
    pub(super) fn new(directory: &'a Path) -> Self {
        Self { directory }
    }

    /// The authorities that sign the certificates of peers.
    pub(super) fn authorities(&self) -> Result<Arc<RootCertStore>, CredentialsError> {
        const NAME: &str = "ca-cert.pem";
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(NAME)? {
            roots.add(certificate).map_err(|source| self.unusable(NAME, source))?;
        }
        Ok(Arc::new(roots))
    }

    /// The lists of revoked certificates, if there are any.
    pub(super) fn revocations(
        &self,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, CredentialsError> {
        let path = self.directory.join("ca-crl.pem");
        if !exists(&path)? {
            return Ok(Vec::new());
        }
        all(&path, "list of revoked certificates")
    }

    /// `ROLE-cert.pem` and `ROLE-key.pem`.
    pub(super) fn identity(&self, role: &str) -> Result<Identity, CredentialsError> {
        let chain = self.certificates(&format!("{role}-cert.pem"))?;
        let path = self.directory.join(format!("{role}-key.pem"));
        let key = PrivateKeyDer::from_pem_file(&path);
        let key = key.map_err(|error| explain(error, &path, "private key"))?;
        // Where a key goes with its certificate, only the latter would be named.
        match provider().key_provider.load_private_key(key.clone_key()) {
            Ok(_) => Ok((chain, key)),
            Err(_) => Err(CredentialsError::Key { path, what: unfit(&key) }),
        }
    }

    /// The same, if both files are there or none is.
    pub(super) fn optional_identity(
        &self,
        role: &str,
    ) -> Result<Option<Identity>, CredentialsError> {
        let paths = ["cert", "key"].map(|kind| self.directory.join(format!("{role}-{kind}.pem")));
        let [certificate, key] = paths;
        match (exists(&certificate)?, exists(&key)?) {
            (true, true) => self.identity(role).map(Some),
            (false, false) => Ok(None),
            (true, false) => Err(CredentialsError::Incomplete { missing: key }),
            (false, true) => Err(CredentialsError::Incomplete { missing: certificate }),
        }
    }

    pub(super) fn unusable(&self, name: &str, source: rustls::Error) -> CredentialsError {
        CredentialsError::Unusable { path: self.directory.join(name), source }
    }

    pub(super) fn bad_authorities(&self, source: VerifierBuilderError) -> CredentialsError {
        CredentialsError::Authorities { directory: self.directory.to_owned(), source }
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
        all(&self.directory.join(name), "certificate")
    }
}

/// Everything of one kind that is in a file; at least one.
fn all<T: PemObject>(path: &Path, what: &'static str) -> Result<Vec<T>, CredentialsError> {
    let items = T::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<T>, _>>);
    let items = items.map_err(|error| explain(error, path, what))?;
    match items.is_empty() {
        true => Err(CredentialsError::Empty { path: path.to_owned(), what }),
        false => Ok(items),
    }
}

fn explain(error: pem::Error, path: &Path, what: &'static str) -> CredentialsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => CredentialsError::Read { path, source },
        pem::Error::NoItemsFound => CredentialsError::Empty { path, what },
        source => CredentialsError::Malformed { path, source },
    }
}

/// Why a key cannot be used, and what to do about it. Only aws-lc-rs says more of an RSA key than that.
fn unfit(key: &PrivateKeyDer<'_>) -> &'static str {
    let rsa = match key {
        PrivateKeyDer::Pkcs1(key) => KeyPair::from_der(key.secret_pkcs1_der()),
        PrivateKeyDer::Pkcs8(key) => KeyPair::from_pkcs8(key.secret_pkcs8_der()),
        _ => return UNKNOWN_KEY,
    };
    match rsa.map_err(|rejected| rejected.to_string()) {
        Err(why) if why.contains("TooSmall") => {
            "it is an RSA key of less than 2048 bits, which is not secure; make a key and a \
             certificate anew, of 3072 bits or with ECDSA"
        }
        Err(why) if why.contains("TooLarge") => {
            "it is an RSA key of more than 8192 bits, which the cryptography in this program \
             (AWS-LC) does not sign with; make a key and a certificate anew, of 4096 bits or with \
             ECDSA"
        }
        _ => UNKNOWN_KEY,
    }
}

const UNKNOWN_KEY: &str = "it is damaged, or of another kind than RSA, ECDSA (P-256, P-384, P-521) and \
    Ed25519; make a key and a certificate of one of these";

/// A file that we may not see is no missing one.
fn exists(path: &Path) -> Result<bool, CredentialsError> {
    path.try_exists().map_err(|source| CredentialsError::Read { path: path.to_owned(), source })
}
