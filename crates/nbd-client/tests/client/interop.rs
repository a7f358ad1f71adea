//! Servers of others, as far as they differ from nbdkit's plain ones. They have to be installed:
//! `scripts/setup` does that.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nbd_backend::{Backend, chain};
use nbd_client::{Cause, ClientError, Options, Remote, Target};
use nbd_net::testing::{Scratch, certificates};
use nbd_net::tls::TlsError;
use nbd_proto::handshake::HandshakeError;

use crate::script::EVENT_TIMEOUT;
use crate::tasks::{self, Outcome, pattern};

/// A process that is killed at the end.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        let program = command.get_program().to_owned();
        match command.stdin(Stdio::null()).spawn() {
            Ok(child) => Self(child),
            Err(error) => panic!("{program:?} must be installed, see scripts/setup: {error}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) {
    let program = command.get_program().to_owned();
    let status = command.stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{program:?}: see scripts/setup");
}

fn connect(target: &str) -> Result<Remote, ClientError> {
    Remote::connect(target.parse::<Target>().unwrap(), Options::default())
}

/// Connects when the server is ready.
fn connect_soon(target: &str) -> Remote {
    let began = Instant::now();
    loop {
        match connect(target) {
            Ok(remote) => return remote,
            Err(error) => assert!(began.elapsed() < EVENT_TIMEOUT, "{}", chain(&error)),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Writes, reads, and writes zeroes where the server can, in sizes from a sector to a mebibyte.
fn exercise(remote: &Remote) {
    for (seed, length) in [(1, 512), (2, 4096), (3, 65536), (4, 1 << 20)] {
        let offset = seed * (2 << 20);
        let data = pattern(seed, length);
        remote.write_at(&data, offset, false).unwrap();
        remote.flush().unwrap();
        let mut buffer = vec![0xaa; length + 512];
        remote.read_at(&mut buffer, offset).unwrap();
        assert!(buffer[..length] == data && buffer[length..] == [0; 512], "{length}");
        if remote.geometry().capabilities.write_zeroes {
            remote.write_zeroes(offset, length as u64, Default::default()).unwrap();
            remote.read_at(&mut buffer, offset).unwrap();
            assert!(buffer.iter().all(|byte| *byte == 0), "{length}");
        }
    }
    let extents = remote.extents(0, remote.geometry().size, false).unwrap();
    assert!(extents.iter().map(|extent| extent.length).sum::<u64>() <= remote.geometry().size);
}

/// nbdkit with TLS, and how its URI goes on.
fn nbdkit_tls(directory: &Path, arguments: &[&str]) -> (Process, String) {
    let socket = directory.join("s");
    let mut command = Command::new("nbdkit");
    command.args(["-f", "--tls=require", "-U"]).arg(&socket);
    command.arg(format!("--tls-certificates={}", directory.display()));
    command.args(arguments).args(["memory", "64M"]);
    let server = Process::start(&mut command);
    let began = Instant::now();
    while !socket.exists() {
        assert!(began.elapsed() < EVENT_TIMEOUT, "nbdkit does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    (server, format!("+unix:///?socket={}&retry=20", socket.display()))
}

#[test]
fn nbdkit_with_tls() {
    let scratch = Scratch::new();
    certificates(scratch.path()).unwrap();
    let (_server, uri) = nbdkit_tls(scratch.path(), &["--tls-verify-peer"]);
    let tls = format!("tls-certificates={}", scratch.path().display());
    let remote = connect_soon(&format!("nbds{uri}&{tls}&connections=3"));
    exercise(&remote);
    drop(remote);
    // Each of these would be a hole.
    let refused = |uri: &str| connect(uri).unwrap_err().cause;
    let cause = refused(&format!("nbd{uri}"));
    assert!(matches!(cause, Cause::Handshake(HandshakeError::Refused { .. })), "{cause:?}");
    let cause = refused(&format!("nbds{uri}&{tls}&tls-hostname=other.example"));
    assert!(matches!(cause, Cause::Tls(TlsError::Certificate(_))), "{cause:?}");
    for other in ["other", "expired"] {
        let cause = refused(&format!("nbds{uri}&{tls}/{other}"));
        assert!(matches!(cause, Cause::Tls(_)), "{other}: {cause:?}");
    }
}

/// nbdkit with the certificates of one directory, and our client with those of another one: what
/// the client says.
fn nbdkit_tls_refusal(server: &str, client: &str, arguments: &[&str]) -> String {
    let scratch = Scratch::new();
    certificates(scratch.path()).unwrap();
    let directory = scratch.path();
    if server != "revoked" {
        fs::copy(directory.join("revoked/ca-crl.pem"), directory.join("ca-crl.pem")).unwrap();
    }
    let (_server, uri) = nbdkit_tls(&directory.join(server), arguments);
    let uri = format!("nbds{uri}&tls-certificates={}", directory.join(client).display());
    let error = connect(&uri).unwrap_err();
    assert!(matches!(error.cause, Cause::Tls(_)), "{error:?}");
    chain(&error)
}

#[test]
fn nbdkit_with_a_revoked_certificate_is_refused() {
    let words = nbdkit_tls_refusal("revoked", "revoked", &[]);
    assert!(words.contains("our ca-crl.pem revokes it; the peer needs a new one"), "{words}");
}

#[test]
fn nbdkit_refuses_our_revoked_certificate() {
    let words = nbdkit_tls_refusal("", "revoked", &["--tls-verify-peer"]);
    // It says no more than that.
    assert!(words.contains("accept our certificate"), "{words}");
}

#[test]
fn nbdkit_that_is_killed_under_tls() {
    let scratch = Scratch::new();
    certificates(scratch.path()).unwrap();
    let (mut server, uri) = nbdkit_tls(scratch.path(), &[]);
    let tls = format!("tls-certificates={}", scratch.path().display());
    let remote = connect_soon(&format!("nbds{uri}&{tls}"));
    for _ in 0..5 {
        drop(server);
        fs::remove_file(scratch.path().join("s")).unwrap();
        let mut buffer = [1; 4096];
        server = std::thread::scope(|scope| {
            let read = scope.spawn(|| remote.read_at(&mut buffer, 0));
            let (server, _) = nbdkit_tls(scratch.path(), &[]);
            read.join().unwrap().unwrap();
            server
        });
        assert_eq!(buffer, [0; 4096]);
    }
}

#[test]
fn a_server_without_tls_is_not_talked_to_in_the_clear() {
    let scratch = Scratch::new();
    certificates(scratch.path()).unwrap();
    let socket = scratch.path().join("s");
    let mut command = Command::new("nbdkit");
    let _server = Process::start(command.args(["-f", "-U"]).arg(&socket).args(["memory", "1M"]));
    let uri = format!("+unix:///?socket={}", socket.display());
    drop(connect_soon(&format!("nbd{uri}")));
    let directory = scratch.path().display();
    let error = connect(&format!("nbds{uri}&tls-certificates={directory}")).unwrap_err();
    assert!(matches!(error.cause, Cause::Handshake(_)), "{error:?}");
}

#[test]
fn nbdkit_data_and_pattern() {
    let remote = connect("exec:nbdkit -s data '0x11*512 @0x400 \"hello\" @0x100000 0'").unwrap();
    let mut buffer = [0; 2048];
    remote.read_at(&mut buffer, 0).unwrap();
    assert!(buffer[..512] == [0x11; 512] && &buffer[1024..1029] == b"hello");
    let extents = remote.extents(0, 1 << 20, false).unwrap();
    assert!(extents.len() == 2 && extents[1].zero, "{extents:?}");
    let remote = connect("exec:nbdkit -s pattern 64M").unwrap();
    assert!(remote.geometry().capabilities.read_only);
    let mut buffer = vec![0; 1 << 20];
    remote.read_at(&mut buffer, 4096).unwrap();
    for (offset, bytes) in (4096_u64..).step_by(8).zip(buffer.chunks(8)) {
        assert_eq!(bytes, offset.to_be_bytes());
    }
}

#[test]
fn nbdkit_whose_plugin_fails_and_is_reopened() {
    let scratch = Scratch::new();
    let flag = scratch.path().join("fail").display().to_string();
    let remote = connect(&format!(
        "exec:nbdkit -s --filter=retry --filter=error memory 64M error-pread-rate=1 \
         error-file={flag} retry-delay=1 retry-exponential=no"
    ))
    .unwrap();
    fs::write(&flag, "").unwrap();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| remote.read_at(&mut [0; 512], 0));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!read.is_finished());
        fs::remove_file(&flag).unwrap();
        read.join().unwrap().unwrap();
    });
}

#[test]
fn qemu_nbd_with_raw_and_qcow2() {
    for format in ["raw", "qcow2"] {
        let scratch = Scratch::new();
        let disk = scratch.path().join("disk");
        run(Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&disk).arg("64M"));
        let socket = scratch.path().join("s");
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-e", "8", "-x", "disk", "-f", format, "--discard=unmap"]);
        let _server = Process::start(command.arg("-k").arg(&socket).arg(&disk));
        let uri = format!("nbd+unix:///disk?socket={}&connections=4", socket.display());
        let remote = connect_soon(&uri);
        assert_eq!(remote.geometry().size, 64 << 20);
        exercise(&remote);
        let other = uri.replace("///disk", "///other");
        let cause = connect(&other).unwrap_err().cause;
        assert!(
            matches!(&cause, Cause::Handshake(HandshakeError::UnknownExport(name)) if name == "other"),
            "{cause:?}"
        );
    }
}

/// Servers of 256 MiB that are started by the client.
fn large_servers(scratch: &Scratch) -> [String; 2] {
    let disk = scratch.path().join("disk").display().to_string();
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", &disk, "256M"]));
    ["exec:nbdkit -s memory 256M".into(), format!("exec+listen:qemu-nbd -t -f qcow2 {disk}")]
}

#[test]
fn a_thousand_requests_in_flight() {
    let scratch = Scratch::new();
    for target in large_servers(&scratch) {
        let remote = connect(&target).unwrap();
        let data = |index: u64| pattern(index, 4096);
        let written: Vec<_> =
            (0..1000).map(|index| tasks::write(&remote, index * 4096, &data(index))).collect();
        for pending in written {
            assert_eq!(pending.wait(), Outcome::Done);
        }
        let read: Vec<_> =
            (0..1000).map(|index| tasks::read(&remote, index * 4096, 4096)).collect();
        for (index, pending) in (0..).zip(read) {
            assert!(pending.wait() == Outcome::Data(data(index)), "{target}: {index}");
        }
    }
}

/// More than some servers take at once: nbdkit says so, and it is split.
#[test]
fn requests_of_64_mib() {
    let scratch = Scratch::new();
    for target in large_servers(&scratch) {
        let remote = connect(&target).unwrap();
        let data = pattern(7, 64 << 20);
        assert_eq!(tasks::write(&remote, 4096, &data).wait(), Outcome::Done, "{target}");
        let read = tasks::read(&remote, 4096, 64 << 20).wait();
        assert!(read == Outcome::Data(data), "{target}");
    }
}

#[test]
fn programs_take_options() {
    let scratch = Scratch::new();
    let [_, qemu] = large_servers(&scratch);
    let remote =
        connect(&qemu.replace("listen:", "listen,connections=3:").replace("-t", "-t -e 8"));
    let remote = remote.unwrap();
    let began = Instant::now();
    while remote.connections() < 3 {
        assert!(began.elapsed() < EVENT_TIMEOUT, "only {} connections", remote.connections());
        std::thread::sleep(Duration::from_millis(10));
    }
    exercise(&remote);
    drop(remote);
    // A program that does not come back.
    let flag = scratch.path().join("flag").display().to_string();
    let text = format!("exec,retry=1:sh -c 'rm {flag} && exec nbdkit -s memory 1M'");
    fs::write(&flag, "").unwrap();
    let remote = connect(&text).unwrap();
    let process = remote.child_pidfd().unwrap();
    nbd_client::fence_child(process, EVENT_TIMEOUT).unwrap();
    let error = remote.read_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
}

#[test]
fn nbd_server() {
    let scratch = Scratch::new();
    let directory = scratch.path().display();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    fs::File::create(scratch.path().join("disk")).unwrap().set_len(64 << 20).unwrap();
    let configuration = format!(
        "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n\
         [disk]\nexportname = {directory}/disk\nflush = true\nfua = true\ntrim = true\n"
    );
    let path = scratch.path().join("conf");
    fs::write(&path, configuration).unwrap();
    let mut command = Command::new("nbd-server");
    let pid_file = format!("{directory}/pid");
    let _server = Process::start(command.args(["-d", "-p", &pid_file, "-C"]).arg(&path));
    let remote = connect_soon(&format!("nbd://127.0.0.1:{port}/disk?connections=2"));
    assert_eq!(remote.geometry().size, 64 << 20);
    exercise(&remote);
}
