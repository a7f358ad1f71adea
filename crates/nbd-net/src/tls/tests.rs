use std::fs;

use super::*;
use crate::testing::{Scratch, certificates};

impl ServerTls {
    /// For the tests of connections: with one version only.
    pub(crate) fn of_version(
        directory: &Path,
        verify_peer: bool,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        Self::load_versions(directory, verify_peer, &[version]).unwrap()
    }
}

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    certificates(scratch.path()).unwrap();
    scratch
}

#[test]
fn each_role_needs_its_own_files_only() {
    let scratch = scratch();
    let directory = scratch.path();
    let only = |names: &[&str]| {
        let copy = Scratch::new();
        for name in names {
            fs::copy(directory.join(name), copy.path().join(name)).unwrap();
        }
        copy
    };
    let server = only(&["server-cert.pem", "server-key.pem"]);
    ServerTls::load(server.path(), false).unwrap();
    let server = only(&["server-cert.pem", "server-key.pem", "ca-cert.pem"]);
    ServerTls::load(server.path(), true).unwrap();
    let client = only(&["ca-cert.pem"]);
    ClientTls::load(Some(client.path()), true).unwrap();
    let client = only(&["client-cert.pem", "client-key.pem"]);
    ClientTls::load(Some(client.path()), false).unwrap();
    ClientTls::load(Some(only(&[]).path()), false).unwrap();
    ClientTls::load(None, false).unwrap();
}

#[test]
fn the_systems_authorities_are_the_default() {
    let loaded = ClientTls::load(None, true);
    assert!(matches!(loaded, Ok(_) | Err(CredentialsError::NoAuthorities)));
}

#[test]
fn missing_files_are_named() {
    for name in ["server-cert.pem", "server-key.pem", "ca-cert.pem"] {
        let scratch = scratch();
        fs::remove_file(scratch.path().join(name)).unwrap();
        let error = ServerTls::load(scratch.path(), true).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    for name in ["client-cert.pem", "client-key.pem", "ca-cert.pem"] {
        let scratch = scratch();
        fs::remove_file(scratch.path().join(name)).unwrap();
        let error = ClientTls::load(Some(scratch.path()), true).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn damaged_files_are_named() {
    let broken = "-----BEGIN CERTIFICATE-----\nno base64!\n-----END CERTIFICATE-----\n";
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cases = [
        ("server-cert.pem", ""),
        ("server-cert.pem", broken),
        ("server-cert.pem", no_certificate),
        ("server-key.pem", "text"),
        ("server-key.pem", encrypted),
        ("ca-cert.pem", ""),
        ("ca-cert.pem", broken),
        ("ca-cert.pem", no_certificate),
        ("ca-crl.pem", ""),
    ];
    for (name, content) in cases {
        let scratch = scratch();
        fs::write(scratch.path().join(name), content).unwrap();
        let error = ServerTls::load(scratch.path(), true).unwrap_err();
        assert!(error.to_string().contains(name), "{name} {content}: {error}");
    }
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let scratch = scratch();
    let other = scratch.path().join("other");
    for role in ["server", "client"] {
        let name = format!("{role}-key.pem");
        fs::copy(other.join(&name), scratch.path().join(&name)).unwrap();
    }
    let errors = [
        ServerTls::load(scratch.path(), false).unwrap_err(),
        ClientTls::load(Some(scratch.path()), true).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, CredentialsError::Unusable { .. }), "{error}");
    }
}

/// A key of which rustls only says that it cannot be used, with the certificate's name.
#[test]
fn a_key_that_cannot_be_used_is_named_and_why() {
    let damaged = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (key, why) in [
        (include_str!("keys/rsa-1024.pem"), "less than 2048 bits"),
        (damaged, "it is damaged, or of another kind"),
    ] {
        for role in ["server", "client"] {
            let scratch = scratch();
            let path = scratch.path();
            fs::write(path.join(format!("{role}-key.pem")), key).unwrap();
            let error = match role {
                "server" => ServerTls::load(path, false).unwrap_err(),
                _ => ClientTls::load(Some(path), true).unwrap_err(),
            };
            let error = error.to_string();
            assert!(error.contains(&format!("{role}-key.pem")) && error.contains(why), "{error}");
        }
    }
}

/// Else a backend takes 50 ms longer before its first handshake, and aborts where the clock is too coarse.
#[test]
fn cryptography_is_built_to_take_its_entropy_from_the_system() {
    assert_eq!(option_env!("AWS_LC_SYS_NO_JITTER_ENTROPY"), Some("1"), "see .cargo/config.toml");
}
