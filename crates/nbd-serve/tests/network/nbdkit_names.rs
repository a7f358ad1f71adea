//! nbdkit's plugins that ask for more than a file: the name of the export, a program that makes an image,
//! another server, an interpreter with one thread.
//!
//! They come with nbdkit, xorriso and openssh-server (`scripts/setup`).

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nbd_net::testing::Scratch;

use crate::content::pattern;
use crate::nbdkit::{Nbdkit, START_TIMEOUT, check_same, make_files};
use crate::programs::{output, run};
use crate::server::{PROGRAM, Server};

const READ_ALL: &str = "print(h.pread(h.get_size(), 0).hex())";

/// What two clients of nbdkit and of nbd-serve read, who ask for an export by name.
fn by_name(arguments: &[&str], name: &str, read: impl Fn(&str) -> String) -> [String; 2] {
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().unwrap().to_owned();
    let arguments: Vec<_> =
        arguments.iter().map(|text| text.replace("{dir}", &directory)).collect();
    let socket = scratch.path().join("nbdkit.sock");
    let nbdkit = Nbdkit::start(&socket, &arguments);
    let theirs = read(&format!("nbd+unix:///{name}?socket={}", socket.display()));
    drop(nbdkit);
    let server =
        Server::in_directory(scratch, &[&format!("{name}=nbdkit:{}", arguments.join(","))]);
    [theirs, read(&server.uri(name))]
}

#[test]
fn a_plugin_is_told_the_name_of_its_export() {
    // The data is the name. It must be as long as a block.
    let name = "x".repeat(1024);
    let read = |uri: &str| output("nbdsh", &["-u", uri, "-c", READ_ALL]);
    let [theirs, ours] = by_name(&["info"], &name, read);
    assert_eq!(ours, theirs);
    assert_eq!(ours.trim(), "78".repeat(1024));
    // The name is that of a file, which is made when it is first asked for, and kept.
    let write = "h.pwrite(b'kept' * 128, 4096) if h.pread(4, 4096) != b'kept' else print('found')";
    let look = |uri: &str| output("nbdsh", &["-u", uri, "-c", write]);
    let arguments = ["ondemand", "dir={dir}", "size=1M", "command=truncate -s $size \"$disk\""];
    let [theirs, ours] = by_name(&arguments, "disk-7", look);
    assert_eq!([theirs.as_str(), ours.as_str()], ["", "found\n"]);
}

#[test]
fn a_device_has_no_name_and_no_peer() {
    for (parameters, expected) in [
        ("info", "has 0 bytes"),
        ("info,mode=time", "has 12 bytes"),
        (
            "info,mode=address",
            "a device has no peer, and the clients of an export share one handle",
        ),
    ] {
        let spec = format!("nbdkit:{parameters}");
        let (code, _, stderr) = run(PROGRAM, &["--print-geometry", &spec]);
        assert_eq!(code, 1, "{spec}: {stderr}");
        assert!(stderr.contains(expected), "{spec}: {stderr}");
    }
}

#[test]
fn an_image_of_a_directory_is_the_same() {
    // Without dates of its own it is another one for each backend.
    let dates =
        "params=-JrT --modification-date=2020020202020200 --set_all_file_dates 2020020202020200";
    check_same(&["iso", "{dir}/files", dates], make_files);
}

#[test]
fn ruby_is_refused_and_served_by_nbdkit_itself() {
    let scratch = Scratch::new();
    make_files(scratch.path());
    let script = scratch.path().join("script.rb");
    let text = "def open(readonly)\n {}\nend\ndef get_size(h)\n 1048576\nend\n\
                def pread(h, count, offset)\n 'R' * count\nend\n";
    fs::write(&script, text).unwrap();
    let (code, _, stderr) =
        run(PROGRAM, &["--print-geometry", &format!("nbdkit:ruby,{}", script.display())]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("write exec:nbdkit -s ruby SCRIPT"), "{stderr}");
}

/// An SSH server on this machine, of this user, and the key that it lets in.
struct SshServer {
    child: Child,
    port: u16,
}

impl SshServer {
    fn start(directory: &Path) -> Self {
        let path = |name: &str| directory.join(name).display().to_string();
        for name in ["host-key", "key"] {
            output("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &path(name)]);
        }
        // A port that is free now. Only another program that takes it meanwhile could be in the way.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n",
            path("host-key"),
            path("key.pub")
        );
        fs::write(path("sshd_config"), text).unwrap();
        // The daemon wants this directory where it runs as root.
        let _ = fs::create_dir_all("/run/sshd");
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &path("sshd_config")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self { child, port };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(server.child.try_wait().unwrap().is_none(), "sshd ends");
            assert!(began.elapsed() < START_TIMEOUT, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        let key = fs::read_to_string(path("host-key.pub")).unwrap();
        fs::write(path("known"), format!("[127.0.0.1]:{port} {key}")).unwrap();
        server
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_file_by_ssh_is_the_same() {
    let scratch = Scratch::new();
    let disk = scratch.path().join("disk");
    fs::write(&disk, pattern(3 << 20)).unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = SshServer::start(scratch.path());
    let place = scratch.path().display();
    let user = output("id", &["-un"]);
    let arguments = [
        "ssh".to_owned(),
        "host=127.0.0.1".into(),
        format!("port={}", server.port),
        format!("user={}", user.trim()),
        format!("path={}", disk.display()),
        format!("identity={place}/key"),
        format!("known-hosts={place}/known"),
        "config=".into(),
    ];
    check_same(&arguments.each_ref().map(String::as_str), |_| {});
    let spec = format!("nbdkit:{}", arguments.join(","));
    let serving = Server::new(&[&spec]);
    output("nbdsh", &["-u", &serving.uri(""), "-c", "h.pwrite(b'by ssh!!' * 64, 1024); h.flush()"]);
    assert_eq!(fs::read(&disk).unwrap()[1024..1536], *b"by ssh!!".repeat(64));
}
