//! Sockets, signals, and one log line for each odd client.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use nbd_net::testing::Scratch;
use nbd_proto::CommandType as Type;
use nbd_proto::handshake::ClientOptions;
use nbd_server::testing::{Outcome, RawClient};
use nix::sys::signal::Signal;

use crate::programs::output;
use crate::server::{PROGRAM, Server};

#[test]
fn signals_end_it_in_order_and_the_socket_goes() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let server = Server::new(&["mem:1M"]);
        let socket = server.path("socket");
        let mode = socket.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let client = server.client("");
        server.signal(signal);
        client.expect_end();
        let scratch = socket.parent().unwrap().to_owned();
        let (status, lines) = {
            // The directory goes with the server, so look while it is still there.
            while socket.exists() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            assert!(scratch.exists());
            server.end()
        };
        assert_eq!((status.code(), lines), (Some(0), vec![]));
    }
}

#[test]
fn a_dead_servers_socket_is_replaced_and_its_mode_is_ours_to_choose() {
    let scratch = Scratch::new();
    drop(UnixListener::bind(scratch.path().join("socket")).unwrap());
    let server = Server::in_directory(scratch, &["--socket-mode=660", "mem:1M"]);
    let mode = server.path("socket").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(server.client("").call(Type::READ, 0, 4096), Outcome::Hole(0, 4096));
}

#[test]
fn several_places_at_once() {
    let server = Server::new(&["--listen=tcp:127.0.0.1:0", "mem:1M"]);
    let line = server.line("tcp:127.0.0.1:");
    let (_, port) = line.rsplit_once(':').unwrap();
    let uri = format!("nbd://127.0.0.1:{port}");
    assert_eq!(output("nbdinfo", &["--size", &uri]).trim(), "1048576");
    assert_eq!(output("nbdinfo", &["--size", &server.uri("")]).trim(), "1048576");
}

/// Each of them has its line, once, which says who did what.
#[test]
fn odd_clients_cost_one_line_each_and_nobody_elses_service() {
    let server = Server::new(&["mem:1M"]);
    let mut witness = server.client("");
    let write_of = |length| {
        let client = server.client("");
        let flags = nbd_proto::CommandFlags::PAYLOAD_LEN;
        let request = client.request(Type::WRITE, flags, 1, 0, length);
        (client, request)
    };
    let odd: &[(&str, &dyn Fn())] = &[
        ("handshake failed: wrong magic number 0x474554202f204854", &|| {
            server.connect().write_all(b"\0\0\0\x03GET / HTTP/1.1\r\n").unwrap();
        }),
        ("unknown client flags 0x47455420", &|| {
            server.connect().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        }),
        ("closed the connection during the handshake", &|| {
            server.connect().write_all(b"\0\0\0\x03IHAVE").unwrap();
        }),
        ("export name: unknown export", &|| {
            let name = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04none";
            server.connect().write_all(name).unwrap();
        }),
        ("sent something that is no request", &|| {
            let mut client = server.client("");
            client.send(&[0; 32]);
            client.expect_end();
        }),
        ("closed the connection in the middle of a request", &|| {
            let (mut client, request) = write_of(512);
            client.send(&request[..20]);
        }),
        ("closed the connection in the middle of a request", &|| {
            let (mut client, request) = write_of(512);
            client.send(&request);
        }),
        ("announced a payload of 1099511627776 bytes", &|| {
            let (mut client, request) = write_of(1 << 40);
            client.send(&request);
            client.expect_end();
        }),
        ("write of 512 bytes at 1048576 passes the end of the export", &|| {
            let mut client = server.client("");
            for _ in 0..10 {
                client.write(1, 1 << 20, &[0; 512]);
                assert!(matches!(client.answer(0).outcome, Outcome::Failed(..)));
            }
        }),
    ];
    let me = format!("process {} of user ", std::process::id());
    for (words, act) in odd {
        act();
        let line = server.line("");
        assert!(line.contains(words), "{words}: {line}");
        assert!(line.starts_with(&format!("nbd-serve: {me}")), "{line}");
        assert_eq!(witness.call(Type::READ, 0, 4096), Outcome::Hole(0, 4096));
    }
    assert_eq!(server.stop(), [""; 0]);
}

#[test]
fn a_client_that_is_cut_off_by_the_end_of_the_server_is_not_blamed() {
    for length in [512, 1 << 20] {
        let server = Server::new(&["mem:1M"]);
        let mut client = server.client("");
        let request = client.request(Type::WRITE, nbd_proto::CommandFlags::NONE, 1, 0, length);
        client.send(&request);
        let lines = server.stop();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let words = "was in the middle of sending a request when the server was stopped";
        assert!(lines[0].contains(words), "{lines:?}");
    }
}

#[test]
fn well_behaved_clients_cost_no_line() {
    let server = Server::new(&["mem:1M"]);
    for _ in 0..3 {
        output("nbdinfo", &["--json", &server.uri("")]);
        let mut client = server.client("");
        client.ask(Type::DISC, 0, 0, 0);
        client.expect_end();
        // Looking, and hanging up, is no offence; neither is hanging up between two requests.
        drop(server.connect());
        drop(server.client(""));
    }
    assert_eq!(server.stop(), [""; 0]);
}

#[test]
fn a_single_connection_on_stdin() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["--listen=-", "mem:1M"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut client = RawClient::shake_hands(ours, ClientOptions::new("")).unwrap();
    client.write(1, 0, &[7; 512]);
    assert_eq!(client.answer(0).outcome, Outcome::Done);
    assert_eq!(client.call(Type::READ, 0, 512), Outcome::Data(0, vec![7; 512]));
    client.ask(Type::DISC, 0, 0, 0);
    client.expect_end();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn sockets_of_a_service_manager() {
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = Command::new("sh")
        .args([
            "-c",
            "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --listen=systemd mem:1M 3<&0 </dev/null",
        ])
        .arg(PROGRAM)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let uri = format!("nbd+unix:///?socket={}", path.display());
    assert_eq!(output("nbdinfo", &["--size", &uri]).trim(), "1048576");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // It is the manager's.
    assert!(path.exists());
}

#[test]
fn a_service_manager_is_told_when_clients_can_come() {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let manager = UnixDatagram::bind(path("manager")).unwrap();
    let listen = format!("unix:{}", path("socket"));
    let mut child = Command::new(PROGRAM)
        .args(["--listen", &listen, "mem:1M"])
        // A server that is started by this one has nothing to say to its manager.
        .arg("b=exec:sh -c 'test -z \"$NOTIFY_SOCKET\" && exec nbdkit -s memory 1M'")
        .env("NOTIFY_SOCKET", path("manager"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut buffer = [0; 4096];
    let length = manager.recv(&mut buffer).unwrap();
    let words = String::from_utf8_lossy(&buffer[..length]);
    assert!(words.lines().any(|line| line == "READY=1"), "{words}");
    let status = words.lines().find_map(|line| line.strip_prefix("STATUS="));
    let status = status.unwrap_or_else(|| panic!("{words}"));
    assert!(status.starts_with("serving mem:1M, b=exec:"), "{status}");
    assert!(status.ends_with(&format!(" on {listen}")), "{status}");
    let uri = format!("nbd+unix:///b?socket={}", path("socket"));
    assert_eq!(output("nbdinfo", &["--size", &uri]).trim(), "1048576");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_does_not_wait() {
    let server = Server::new(&["--grace=1000", "mem:64M"]);
    // Its answers are not read, so it never ends by itself.
    let mut client = server.client("");
    client.write(1, 0, &vec![1; 32 << 20]);
    assert_eq!(client.answer(0).outcome, Outcome::Done);
    client.ask(Type::READ, 2, 0, 32 << 20);
    client.stream.read_exact(&mut [0]).unwrap();
    server.signal(Signal::SIGTERM);
    while server.path("socket").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    server.signal(Signal::SIGINT);
    assert_eq!(server.end().0.code(), Some(130));
}

/// Is killed when the test ends, in whatever way.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The soft limit is raised; a client for whom there is no descriptor is turned away and does not
/// wait for ever. One line at the start says how many clients there can be, if that is fewer.
#[test]
fn as_many_clients_as_promised_are_served_whatever_the_limit_of_open_files() {
    for (limit, privileges, clients, served) in [
        ("ulimit -S -n 64", "", 200, 200),
        ("ulimit -n 100", "setpriv --bounding-set=-all --inh-caps=-all", 200, 1),
    ] {
        let scratch = Scratch::new();
        let (socket, log) = (scratch.path().join("socket"), scratch.path().join("log"));
        let is_root = nix::unistd::geteuid().is_root();
        let privileges = if is_root { privileges } else { "" };
        let shell = format!("{limit}; exec {privileges} \"$0\" \"$@\"");
        let server = Command::new("/bin/sh")
            .args(["-c", &shell, PROGRAM])
            .arg(format!("--listen=unix:{}", socket.display()))
            .args(["--max-connections=200", "--handshake-timeout=600", "mem:1M"])
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let _server = Killed(server);
        while UnixStream::connect(&socket).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let mut all = Vec::new();
        let mut greeted = 0;
        for _ in 0..clients {
            let mut client = UnixStream::connect(&socket).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
            // The one that was there to find out may not have left yet.
            greeted += usize::from(client.read(&mut [0; 18]).unwrap() > 0);
            all.push(client);
        }
        assert!(greeted + 1 >= served, "{limit}: {greeted} of {clients} clients were served");
        let log = std::fs::read_to_string(log).unwrap();
        let lines = log.matches("clients at a time, and not 200: this process may have").count();
        assert_eq!(lines, usize::from(served < 200), "{limit}: {log}");
    }
}

/// The next descriptor that a process opens would have this number.
fn next_descriptor(pid: u32) -> usize {
    let path = |number| format!("/proc/{pid}/fd/{number}");
    (0..).find(|number| std::fs::symlink_metadata(path(*number)).is_err()).unwrap()
}

/// Files of others, for example, have taken the descriptors that were meant for clients.
#[test]
fn without_a_descriptor_clients_wait_and_others_go_on() {
    let server = Server::new(&["mem:1M"]);
    let mut first = server.client("");
    assert_eq!(first.call(Type::READ, 0, 512), Outcome::Hole(0, 512));
    let limit = format!("--nofile={}:", next_descriptor(server.pid()));
    output("prlimit", &["--pid", &server.pid().to_string(), &limit]);
    let waiting: Vec<_> = (0..3).map(|_| server.connect()).collect();
    server.line("cannot accept connections at the moment");
    for count in 0..100 {
        first.write(count, 0, &[7; 512]);
        assert_eq!(first.answer(0).outcome, Outcome::Done);
    }
    // Its descriptor is for the next one, and so on.
    drop(first);
    for stream in waiting {
        let mut client = RawClient::shake_hands(stream, ClientOptions::new("")).unwrap();
        assert_eq!(client.call(Type::READ, 0, 512), Outcome::Data(0, vec![7; 512]));
    }
    // A line for each attempt would be the sign of a server that spins.
    assert_eq!(server.stop(), [""; 0]);
}

/// Neither the sockets that a service manager has passed nor the variables that say so.
#[test]
fn programs_inherit_nothing_that_is_for_the_service() {
    let scratch = Scratch::new();
    let (socket, seen) = (scratch.path().join("socket"), scratch.path().join("seen"));
    let listening = UnixListener::bind(&socket).unwrap();
    let see = "{ env; ls -l /proc/self/fd; }";
    let export = format!("exec:sh -c '{see} >{}; exec nbdkit -s memory 1M'", seen.display());
    let shell = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=nbd exec \"$0\" \"$@\" 3<&0 </dev/null";
    let server = Command::new("/bin/sh")
        .args(["-c", shell, PROGRAM, "--listen=systemd", &export])
        .stdin(OwnedFd::from(listening))
        .spawn()
        .unwrap();
    let _server = Killed(server);
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    assert_eq!(output("nbdinfo", &["--size", &uri]).trim(), "1048576");
    let text = std::fs::read_to_string(seen).unwrap();
    assert!(text.contains("PATH="), "{text}");
    assert!(!text.contains("LISTEN_"), "{text}");
    // What it talks to us by.
    assert_eq!(text.matches("socket:[").count(), 1, "{text}");
}

/// A client that asks on and on for what a disk does not give.
#[test]
fn thousands_of_errors_are_a_few_lines() {
    let server = Server::new(&["error:read=1@mem:1M"]);
    let mut client = server.client("");
    for count in 0..3000 {
        let outcome = client.call(Type::READ, count % 256 * 4096, 4096);
        let is_read = matches!(outcome, Outcome::Data(..) | Outcome::Hole(..));
        assert!(!is_read, "a read succeeded");
    }
    let lines = server.stop();
    assert!(lines.len() < 10, "{} lines", lines.len());
    assert!(lines.iter().any(|line| line.contains("2995 more in the last ")), "{lines:#?}");
}
