//! Other servers as exports. nbdkit has to be installed: `scripts/setup` does that.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use nbd_proto::{CommandType, NbdError};

use crate::holder::{Directory, Holder, PROGRAM, wait_for};

/// A server that somebody else runs, for a file.
struct Nbdkit {
    child: Child,
    socket: PathBuf,
}

impl Nbdkit {
    fn start(socket: PathBuf, disk: &Path) -> Self {
        let _ = fs::remove_file(&socket);
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(&socket).arg("file").arg(disk);
        let child = command.spawn().expect("nbdkit must be installed: see scripts/setup");
        wait_for("nbdkit listens", || UnixStream::connect(&socket).is_ok());
        Self { child, socket }
    }

    fn uri(&self) -> String {
        uri(&self.socket)
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

fn new_disk(directory: &Directory) -> PathBuf {
    directory.file("disk");
    directory.path("disk")
}

#[test]
fn a_successor_goes_on_where_its_predecessor_died() {
    go_on_under("", &["server", "server-outlet"]);
}

#[test]
fn layers_above_a_server_change_nothing_about_that() {
    go_on_under("log:on=off@delay:read=1ms@", &["settings", "server", "server-outlet"]);
}

#[test]
fn a_server_cannot_be_below_what_needs_to_know_it_beforehand() {
    let directory = Directory::new();
    let server = Nbdkit::start(directory.path("s"), &new_disk(&directory));
    let diff = directory.path("diff");
    let cow = format!("cow:{}+{}", server.uri(), diff.display());
    for spec in [format!("offset:1K@{}", server.uri()), cow] {
        let output = Command::new(PROGRAM).args(["--print-geometry", &spec]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{spec}: {stderr}");
        assert!(stderr.contains("let that server choose the part"), "{spec}: {stderr}");
    }
    assert!(!diff.exists());
}

fn go_on_under(layers: &str, names: &[&str]) {
    let directory = Directory::new();
    let disk = new_disk(&directory);
    let server = Nbdkit::start(directory.path("s"), &disk);
    let mut holder = Holder::new();
    let spec = format!("{layers}{}", server.uri());
    let mut backend = holder.serve(&spec);
    assert_eq!(holder.stored_fd_names(), names);
    for round in 0..5_u8 {
        let offset = u64::from(round) * 4096;
        holder.write(offset, &[round + 1; 4096]);
        backend.kill();
        // While nobody is there.
        holder.send(CommandType::WRITE, offset + 512, 512, &[0xee; 512]);
        backend = holder.serve(&spec);
        assert_eq!(holder.reply(), NbdError::SUCCESS);
        let data = holder.read(offset, 2048);
        assert_eq!(data[..512], [round + 1; 512]);
        assert_eq!(data[512..1024], [0xee; 512]);
    }
    assert_eq!(holder.stored_fd_names(), names);
    holder.detach();
    let (status, words) = backend.end();
    assert_eq!(status.code(), Some(0), "{words}");
    assert_eq!(fs::read(disk).unwrap()[..512], [1; 512]);
}

#[test]
fn a_server_that_is_killed_and_comes_back_is_waited_for() {
    let directory = Directory::new();
    let disk = new_disk(&directory);
    let mut holder = Holder::new();
    let mut server = Nbdkit::start(directory.path("s"), &disk);
    let backend = holder.serve(&server.uri());
    for round in 0..10_u8 {
        holder.write(0, &[round; 512]);
        drop(server);
        holder.send(CommandType::READ, 0, 512, &[]);
        server = Nbdkit::start(directory.path("s"), &disk);
        assert_eq!(holder.reply(), NbdError::SUCCESS);
        let mut data = [0; 512];
        holder.kernel().read_exact(&mut data).unwrap();
        assert_eq!(data, [round; 512]);
    }
    holder.detach();
    let (status, words) = backend.end();
    assert_eq!(status.code(), Some(0), "{words}");
    assert!(words.contains("connection lost") && words.contains("connected again"), "{words}");
}

#[test]
fn a_program_is_started_anew_by_each_successor() {
    let directory = Directory::new();
    let disk = new_disk(&directory);
    for program in ["exec:nbdkit -s", "exec:nbdkit -f -U $unixsocket", "exec+listen:nbdkit -f"] {
        let pid_file = directory.path("pid");
        let spec = format!("{program} -P {} file {}", pid_file.display(), disk.display());
        let mut holder = Holder::new();
        let mut backend = holder.serve(&spec);
        for round in 0..3_u8 {
            holder.write(8192, &[round; 512]);
            let pid = fs::read_to_string(&pid_file).unwrap();
            backend.kill();
            backend = holder.serve(&spec);
            assert_eq!(holder.read(8192, 512), [round; 512], "{program}");
            // The old one is gone, and this is another one.
            assert_ne!(fs::read_to_string(&pid_file).unwrap(), pid);
            assert!(!Path::new("/proc").join(pid.trim()).join("exe").exists(), "{program}");
        }
        holder.detach();
        let (status, words) = backend.end();
        assert_eq!(status.code(), Some(0), "{words}");
    }
}

/// Between a client and a server: what the client has closed, the server hears of later.
struct Between {
    listener: UnixListener,
    server: PathBuf,
}

/// A connection through it.
struct Through(JoinHandle<()>, JoinHandle<UnixStream>);

impl Between {
    fn new(path: &Path, server: &Path) -> Self {
        let _ = fs::remove_file(path);
        Self { listener: UnixListener::bind(path).unwrap(), server: server.into() }
    }

    fn accept(&self) -> Through {
        let (client, _) = self.listener.accept().unwrap();
        let server = UnixStream::connect(&self.server).unwrap();
        let (mut from_client, mut to_server) =
            (client.try_clone().unwrap(), server.try_clone().unwrap());
        let forth = std::thread::spawn(move || {
            let _ = io::copy(&mut from_client, &mut to_server);
        });
        let back = std::thread::spawn(move || {
            let (mut server, mut client) = (server, client);
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = server.read(&mut bytes) {
                if client.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            client
        });
        Through(forth, back)
    }

    fn is_left_alone(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        let result = self.listener.accept();
        self.listener.set_nonblocking(false).unwrap();
        result.is_err()
    }
}

#[test]
fn nothing_is_sent_before_the_predecessors_connection_is_closed() {
    let directory = Directory::new();
    let disk = new_disk(&directory);
    let server = Nbdkit::start(directory.path("s"), &disk);
    let path = directory.path("between");
    let between = Between::new(&path, &server.socket);
    let mut holder = Holder::new();
    let backend = holder.start(&[&uri(&path)]);
    let first = between.accept();
    holder.receive();
    holder.write(0, &[1; 512]);
    backend.kill();
    // It lives on in what the holder keeps.
    std::thread::sleep(Duration::from_millis(100));
    assert!(!first.0.is_finished());
    // The shape of what was attached is told to those who are started; this one finds out.
    let _backend = holder.start_attached(&[&uri(&path)]);
    let (_, fate) = holder.receive();
    assert!(matches!(fate, crate::holder::Fate::Ready { .. }), "{fate:?}");
    holder.send(CommandType::READ, 0, 512, &[]);
    // It is told that nothing more comes, and waits for the other side to say the same.
    first.0.join().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(between.is_left_alone());
    UnixStream::connect(&server.socket).unwrap();
    drop(server);
    first.1.join().unwrap().shutdown(Shutdown::Both).unwrap();
    let server = Nbdkit::start(directory.path("s"), &disk);
    let _second = between.accept();
    assert_eq!(holder.reply(), NbdError::SUCCESS);
    let mut data = [0; 512];
    holder.kernel().read_exact(&mut data).unwrap();
    assert_eq!(data, [1; 512]);
    drop(server);
}

/// What is to replace a backend by hand is told no shape, and looks at the server while the other one
/// still serves: that connection is for nothing else.
#[test]
fn a_replacement_sends_nothing_over_the_connection_by_which_it_has_looked() {
    let directory = Directory::new();
    let disk = new_disk(&directory);
    let server = Nbdkit::start(directory.path("s"), &disk);
    let path = directory.path("between");
    let between = Between::new(&path, &server.socket);
    let mut holder = Holder::new();
    let backend = holder.start(&[&uri(&path)]);
    let first = between.accept();
    holder.receive();
    holder.write(0, &[1; 512]);
    let _replacement = holder.start(&[&uri(&path)]);
    let look = between.accept();
    holder.write(0, &[2; 512]);
    backend.kill();
    let (_, fate) = holder.receive();
    assert!(matches!(fate, crate::holder::Fate::Ready { .. }), "{fate:?}");
    holder.send(CommandType::READ, 0, 512, &[]);
    // It is over before the request could go over it, and nobody is connected to before the server
    // has closed what the predecessor left.
    look.0.join().unwrap();
    drop(look.1.join().unwrap());
    first.0.join().unwrap();
    assert!(between.is_left_alone());
    drop(server);
    first.1.join().unwrap().shutdown(Shutdown::Both).unwrap();
    let _server = Nbdkit::start(directory.path("s"), &disk);
    let _third = between.accept();
    assert_eq!(holder.reply(), NbdError::SUCCESS);
    let mut data = [0; 512];
    holder.kernel().read_exact(&mut data).unwrap();
    assert_eq!(data, [2; 512]);
}

#[test]
fn a_server_that_has_changed_is_not_used() {
    let directory = Directory::new();
    let disk = new_disk(&directory);
    let set_size = |size| {
        fs::File::options().write(true).open(&disk).unwrap().set_len(size).unwrap();
        Nbdkit::start(directory.path("s"), &disk)
    };
    let mut holder = Holder::new();
    let server = set_size(1 << 20);
    holder.serve(&server.uri()).kill();
    drop(server);
    let server = set_size(512 << 10);
    let path = directory.path("between");
    let between = Between::new(&path, &server.socket);
    let backend = holder.start_attached(&[&uri(&path)]);
    holder.receive();
    holder.send(CommandType::WRITE, 0, 512, &[1; 512]);
    // It looks at what is offered, and leaves.
    between.accept().0.join().unwrap();
    drop(server);
    assert_eq!(fs::read(&disk).unwrap()[..512], [0; 512]);
    let _server = set_size(1 << 20);
    let _through = between.accept();
    assert_eq!(holder.reply(), NbdError::SUCCESS);
    holder.detach();
    let (_, words) = backend.end();
    assert!(words.contains("has 524288 bytes where the device has 1048576"), "{words}");
}

#[test]
fn a_server_that_is_not_there_is_reported_with_what_to_do() {
    let directory = Directory::new();
    for (spec, words) in [
        (uri(&directory.path("none")), "(does a server listen there?): No such file"),
        ("nbd://localhost:1/".into(), "cannot connect to tcp:localhost:1 (does a server listen"),
        ("exec:false".into(), "exec:false: the program ended (exit status: 1)"),
        ("exec:nbdkit -s memory 100".into(), "100: the export has 100 bytes, less than one block"),
        ("exec:nbdkit -s no-such-plugin".into(), "no-such-plugin"),
    ] {
        let output = Command::new(PROGRAM).args(["--print-geometry", &spec]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{spec}: {stderr}");
        assert!(stderr.contains(words), "{spec}: {stderr}");
        assert!(stderr.lines().all(|line| line.starts_with("nbd-serve: ")), "{spec}: {stderr}");
    }
}

#[test]
fn the_shape_of_a_server_is_printed() {
    let output = Command::new(PROGRAM)
        .args(["--print-geometry", "exec:nbdkit -s memory 1G"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("\"size\":1073741824,\"block_size\":512"), "{stdout}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_device_does_not_become_a_server() {
    let directory = Directory::new();
    let disk = new_disk(&directory);
    let server = Nbdkit::start(directory.path("s"), &disk);
    let mut holder = Holder::new();
    holder.serve("mem:1M").kill();
    let complaint = holder.serve_in_vain(&server.uri());
    assert!(complaint.contains("serves memory and not server since it was"), "{complaint}");
    let mut holder = Holder::new();
    holder.serve(&server.uri()).kill();
    let complaint = holder.serve_in_vain("mem:1M");
    assert!(complaint.contains("serves server and not memory since it was"), "{complaint}");
}
