//! Who gets a secured connection, and who does not.

use rustls::{Error as RustlsError, SupportedProtocolVersion};

use super::*;

/// A directory with certificates of every kind, and the servers and clients that load them.
struct CertificateDir {
    scratch: Scratch,
}

impl CertificateDir {
    fn new() -> Self {
        let scratch = Scratch::new();
        certificates(scratch.path()).unwrap();
        Self { scratch }
    }

    /// A server with certificates of this kind, which verifies clients with the good authority.
    fn server(
        &self,
        kind: &str,
        verify: bool,
        version: &'static SupportedProtocolVersion,
    ) -> ServerTls {
        ServerTls::of_version(&self.scratch.path().join(kind), verify, version)
    }

    fn client(&self, kind: &str) -> ClientTls {
        ClientTls::load(Some(&self.scratch.path().join(kind)), true).unwrap()
    }

    /// Whom a good server that insists on certificates lets in. It is the server that must be
    /// sure, and the client that must learn of it.
    fn assert_client_refused(&self, client: &ClientTls, server_kind: &str) {
        for version in [&TLS12, &TLS13] {
            let server = self.server(server_kind, true, version);
            let (left, right) = try_secured(Transport::Unix, &server, client, "localhost");
            let error = left.unwrap_err();
            assert!(matches!(error, TlsError::Certificate(_)), "{version:?}: {error}");
            match right {
                Err(error) => assert!(matches!(error, TlsError::Refused(_)), "{error}"),
                Ok(mut stream) => {
                    let error = stream.read(&mut [0]).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
                }
            }
        }
    }

    /// Whom a client does not trust.
    fn assert_server_refused(&self, kind: &str, client: &ClientTls, name: &str) {
        for version in [&TLS12, &TLS13] {
            let server = self.server(kind, false, version);
            let (left, right) = try_secured(Transport::Unix, &server, client, name);
            let error = right.unwrap_err();
            assert!(matches!(error, TlsError::Certificate(_)), "{version:?}: {error}");
            assert!(matches!(left.unwrap_err(), TlsError::Refused(_)));
        }
    }
}

#[test]
fn names_and_addresses_in_a_certificate_are_good() {
    let certificate_dir = CertificateDir::new();
    for name in ["localhost", "127.0.0.1", "::1"] {
        let server = certificate_dir.server("", true, &TLS13);
        let (left, right) = try_secured(Transport::Tcp, &server, &certificate_dir.client(""), name);
        assert!(left.unwrap().is_tls() && right.unwrap().is_tls());
    }
}

/// ring signs only with lengths that are a multiple of 512 bits.
#[test]
fn rsa_keys_of_2432_bits_identify_both_sides() {
    let scratch = Scratch::new();
    certificates_of_2432_bits(scratch.path()).unwrap();
    let client = ClientTls::load(Some(scratch.path()), true).unwrap();
    for version in [&TLS12, &TLS13] {
        let server = ServerTls::of_version(scratch.path(), true, version);
        let (left, right) = try_secured(Transport::Unix, &server, &client, "localhost");
        assert!(left.unwrap().is_tls() && right.unwrap().is_tls(), "{version:?}");
    }
}

#[test]
fn servers_of_the_wrong_kind_are_refused() {
    let certificate_dir = CertificateDir::new();
    certificate_dir.assert_server_refused("", &certificate_dir.client(""), "example.com");
    certificate_dir.assert_server_refused("", &certificate_dir.client(""), "127.0.0.2");
    certificate_dir.assert_server_refused("other", &certificate_dir.client(""), "localhost");
    certificate_dir.assert_server_refused("expired", &certificate_dir.client(""), "localhost");
    certificate_dir.assert_server_refused(
        "revoked",
        &certificate_dir.client("revoked"),
        "localhost",
    );
}

#[test]
fn clients_of_the_wrong_kind_are_refused() {
    let certificate_dir = CertificateDir::new();
    let ours = certificate_dir.scratch.path();
    certificate_dir.assert_client_refused(&certificate_dir.client("expired"), "");
    // What the clients think of the server must not get in the way.
    std::fs::copy(ours.join("ca-cert.pem"), ours.join("other/ca-cert.pem")).unwrap();
    certificate_dir.assert_client_refused(&certificate_dir.client("other"), "");
    let revoked = ours.join("revoked/ca-crl.pem");
    let list = std::fs::read(&revoked).unwrap();
    std::fs::remove_file(&revoked).unwrap();
    let client = certificate_dir.client("revoked");
    std::fs::write(&revoked, list).unwrap();
    certificate_dir.assert_client_refused(&client, "revoked");
}

#[test]
fn a_client_without_certificate_gets_in_where_none_is_asked_for() {
    let certificate_dir = CertificateDir::new();
    for name in ["client-cert.pem", "client-key.pem"] {
        std::fs::remove_file(certificate_dir.scratch.path().join(name)).unwrap();
    }
    let client = certificate_dir.client("");
    certificate_dir.assert_client_refused(&client, "");
    let server = certificate_dir.server("", false, &TLS13);
    let (left, right) = try_secured(Transport::Unix, &server, &client, "localhost");
    assert!(left.is_ok() && right.is_ok());
}

#[test]
fn without_verification_every_server_is_accepted() {
    let certificate_dir = CertificateDir::new();
    let careless = ClientTls::load(None, false).unwrap();
    for kind in ["", "other", "expired"] {
        for version in [&TLS12, &TLS13] {
            let server = certificate_dir.server(kind, false, version);
            let (left, right) = try_secured(Transport::Unix, &server, &careless, "example.com");
            assert!(left.is_ok() && right.is_ok());
        }
    }
}

#[test]
fn what_cannot_be_the_name_of_a_server_is_said_so() {
    let certificate_dir = CertificateDir::new();
    let (_left, right) = plain(Transport::Unix);
    let error = right.into_tls_client(&certificate_dir.client(""), "no name").unwrap_err();
    assert!(matches!(error, TlsError::ServerName(_)), "{error}");
}

/// What becomes of a server's and of a client's handshake when the peer says this.
fn answers_to(bytes: &[u8]) -> [TlsError; 2] {
    let certificate_dir = CertificateDir::new();
    let run = |secure: &dyn Fn(Stream) -> Result<Stream, TlsError>| {
        let (left, mut right) = UnixStream::pair().unwrap();
        right.write_all(bytes).unwrap();
        right.shutdown(std::net::Shutdown::Write).unwrap();
        let error = secure(patient(Socket::from_fd(left.into()).unwrap())).unwrap_err();
        // Whoever says nonsense is told so, and the connection ends.
        right.read_to_end(&mut Vec::new()).unwrap();
        error
    };
    let client = certificate_dir.client("");
    let server = certificate_dir.server("", true, &TLS13);
    [
        run(&|stream| stream.into_tls_server(&server)),
        run(&|stream| stream.into_tls_client(&client, "localhost")),
    ]
}

#[test]
fn peers_that_do_not_speak_tls_are_told_from_those_that_leave() {
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"NBDMAGICIHAVEOPT\0\x03", &[0xff; 100_000]] {
        for error in answers_to(garbage) {
            assert!(matches!(error, TlsError::Protocol(_)), "{error}");
        }
    }
    for start in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00"] {
        for error in answers_to(start) {
            assert!(matches!(error, TlsError::Closed), "{error}");
        }
    }
}

#[test]
fn a_peer_that_sends_byte_after_byte_does_not_extend_the_deadline() {
    let certificate_dir = CertificateDir::new();
    let server = certificate_dir.server("", true, &TLS13);
    let (left, mut right) = UnixStream::pair().unwrap();
    let started = Instant::now();
    let sloth = thread::spawn(move || {
        // The beginning of a record that claims to be long.
        let mut bytes = b"\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb".iter().chain(std::iter::repeat(&0));
        while right.write_all(&[*bytes.next().unwrap()]).is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    });
    let mut stream = Stream::plain(Socket::from_fd(left.into()).unwrap());
    stream.set_deadline(Some(started + 10 * MOMENT));
    let error = stream.into_tls_server(&server).unwrap_err();
    assert!(matches!(error, TlsError::TimedOut), "{error}");
    assert!(started.elapsed() < EVENT_TIMEOUT / 4);
    sloth.join().unwrap();
}

#[test]
fn what_comes_right_behind_the_handshake_is_not_lost() {
    let certificate_dir = CertificateDir::new();
    let server = certificate_dir.server("", true, &TLS13);
    let client = certificate_dir.client("");
    let (left, right) = plain(Transport::Unix);
    let sent: Vec<u8> = (0..1 << 20).map(|index| (index % 251) as u8).collect();
    let mut received = vec![0; sent.len()];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = right.into_tls_client(&client, "localhost").unwrap();
            stream.write_all(&sent).unwrap();
        });
        // All of it has come before we begin.
        thread::sleep(5 * MOMENT);
        let mut stream = left.into_tls_server(&server).unwrap();
        stream.read_exact(&mut received[..10]).unwrap();
        let (mut receiver, _sender) = stream.split();
        let mut have = 10;
        while have < received.len() {
            have += receiver.receive(&mut received[have..]).unwrap();
        }
    });
    assert!(received == sent);
}

#[test]
fn a_connection_is_not_secured_twice() {
    let certificate_dir = CertificateDir::new();
    let server = certificate_dir.server("", true, &TLS13);
    let (left, _) = try_secured(Transport::Unix, &server, &certificate_dir.client(""), "localhost");
    assert!(matches!(left.unwrap().into_tls_server(&server), Err(TlsError::Io(_))));
}

#[test]
fn errors_of_rustls_are_told_apart() {
    let error = TlsError::from(RustlsError::HandshakeNotComplete);
    assert!(matches!(error, TlsError::Protocol(_)), "{error}");
}
