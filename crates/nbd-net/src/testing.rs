//! What tests of this crate and of others need.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};

/// The serial number of all certificates that are revoked.
const REVOKED: u64 = 4711;

/// Makes a directory for [`ServerTls::load`](crate::tls::ServerTls::load) and
/// [`ClientTls::load`](crate::tls::ClientTls::load): an authority, a server's certificate for
/// localhost, 127.0.0.1 and ::1, and a client's.
///
/// In it are three more such directories: `other`, of another authority, `expired`, of the same
/// authority with certificates whose time is over, and `revoked`, of the same authority with
/// certificates that its `ca-crl.pem` revokes.
///
/// # Errors
///
/// Those of writing a file there.
pub fn certificates(directory: &Path) -> io::Result<()> {
    let ours = Authority::new("nbd test authority")?;
    ours.fill(directory, Validity::Current)?;
    ours.fill(&directory.join("expired"), Validity::Over)?;
    ours.fill(&directory.join("revoked"), Validity::Revoked)?;
    std::fs::write(directory.join("revoked/ca-crl.pem"), ours.revocations()?)?;
    Authority::new("another nbd test authority")?.fill(&directory.join("other"), Validity::Current)
}

/// Makes such a directory with one certificate for both sides. Its RSA key, and that of the authority, have
/// 2,432 bits, as GnuTLS's certtool made them for years.
///
/// # Errors
///
/// Those of writing a file there.
pub fn certificates_of_2432_bits(directory: &Path) -> io::Result<()> {
    const KEY: &str = include_str!("tls/keys/rsa-2432.pem");
    const CERTIFICATE: &str = include_str!("tls/keys/rsa-2432-cert.pem");
    const AUTHORITY: &str = include_str!("tls/keys/rsa-2432-ca.pem");
    std::fs::create_dir_all(directory)?;
    for role in ["server", "client"] {
        std::fs::write(directory.join(format!("{role}-key.pem")), KEY)?;
        std::fs::write(directory.join(format!("{role}-cert.pem")), CERTIFICATE)?;
    }
    std::fs::write(directory.join("ca-cert.pem"), AUTHORITY)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Validity {
    Current,
    Over,
    Revoked,
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> io::Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let pem = parameters.self_signed(&key).map_err(io::Error::other)?.pem();
        Ok(Self { pem, issuer: Issuer::new(parameters, key) })
    }

    fn fill(&self, directory: &Path, validity: Validity) -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("ca-cert.pem"), &self.pem)?;
        let hosts = ["localhost", "127.0.0.1", "::1"].map(String::from);
        let server = ExtendedKeyUsagePurpose::ServerAuth;
        self.sign(directory, "server", hosts.into(), server, validity)?;
        let client = ExtendedKeyUsagePurpose::ClientAuth;
        self.sign(directory, "client", Vec::new(), client, validity)
    }

    /// A list of revoked certificates.
    fn revocations(&self) -> io::Result<String> {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(REVOKED),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let parameters = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = parameters.signed_by(&self.issuer).map_err(io::Error::other)?;
        list.pem().map_err(io::Error::other)
    }

    fn sign(
        &self,
        directory: &Path,
        role: &str,
        hosts: Vec<String>,
        purpose: ExtendedKeyUsagePurpose,
        validity: Validity,
    ) -> io::Result<()> {
        let mut parameters = CertificateParams::new(hosts).map_err(io::Error::other)?;
        parameters.distinguished_name.push(DnType::CommonName, format!("nbd test {role}"));
        parameters.extended_key_usages = vec![purpose];
        // qemu wants the second one as well.
        parameters.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        match validity {
            Validity::Current => {}
            Validity::Over => {
                parameters.not_before = date_time_ymd(2001, 1, 1);
                parameters.not_after = date_time_ymd(2002, 1, 1);
            }
            Validity::Revoked => parameters.serial_number = Some(SerialNumber::from(REVOKED)),
        }
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        std::fs::write(directory.join(format!("{role}-cert.pem")), certificate.pem())?;
        std::fs::write(directory.join(format!("{role}-key.pem")), key.serialize_pem())
    }
}

/// A directory of its own for each test, removed at the end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes the directory.
    ///
    /// # Panics
    /// If it cannot.
    #[expect(clippy::new_without_default, reason = "it does something")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-net-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        if let Err(error) = std::fs::create_dir(&path) {
            panic!("cannot make {}: {error}", path.display());
        }
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Has a socket's peer find that this machine has vanished: from now on, whatever comes is thrown away
/// before the socket hears of it, so nothing is acknowledged, and nothing is reset.
#[allow(unsafe_code)]
///
/// # Errors
///
/// Those of the system calls, as where the process may not.
pub fn vanish(socket: BorrowedFd<'_>) -> io::Result<()> {
    // Takes none of the bytes of each packet.
    let code = libc::BPF_RET | libc::BPF_K;
    let mut nothing = [libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: nothing.as_mut_ptr() };
    // SAFETY: the kernel reads one program of the given size, and as many instructions as that
    // says; it keeps copies.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
