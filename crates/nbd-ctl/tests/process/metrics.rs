//! Metrics by HTTP: whom they are told to, and clients that do not get on.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Group, getgid};

use crate::runtime_dir::RuntimeDir;
use crate::sample::{signal, until};

/// More than are answered at the same time.
const MANY_CLIENTS: usize = 40;
/// Only a hang meets this.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

/// A server of metrics, ended with the test.
struct Server {
    child: Child,
    /// What it listens on, by its own words.
    place: String,
}

impl Server {
    fn start(runtime: &RuntimeDir, arguments: &[&str]) -> Self {
        let arguments = [&["metrics"], arguments].concat();
        let mut child = runtime.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let place = line.strip_prefix("nbd-ctl: listening on ").unwrap_or_else(|| panic!("{line}"));
        let place = place.split_whitespace().next().unwrap().trim_end_matches(':').to_owned();
        Self { child, place }
    }

    fn on_tcp(runtime: &RuntimeDir, arguments: &[&str]) -> Self {
        Self::start(runtime, &[&["--listen", "127.0.0.1:0"], arguments].concat())
    }

    fn connect(&self) -> TcpStream {
        let stream = until(|| TcpStream::connect(&self.place).ok());
        stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream
    }

    /// The answer to a client that asks for a host.
    fn ask(&self, host: &str) -> String {
        let mut stream = self.connect();
        // It may have been closed already.
        let _ = write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n");
        read_all(&mut stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a peer sends until it ends the connection.
fn read_all(stream: &mut impl Read) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no end comes"),
        _ => String::from_utf8(answer).unwrap(),
    }
}

fn is_metrics(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("# EOF\n")
}

#[test]
fn a_page_whose_name_was_rebound_to_this_machine_reads_nothing() {
    let runtime = RuntimeDir::new();
    let server = Server::on_tcp(&runtime, &[]);
    for ours in [server.place.as_str(), "localhost:9103", "[::1]"] {
        let answer = server.ask(ours);
        assert!(is_metrics(&answer), "{ours}: {answer}");
    }
    for other in ["rebound.example", "rebound.example:9103", "192.0.2.1"] {
        let answer = server.ask(other);
        assert!(answer.starts_with("HTTP/1.1 421 "), "{other}: {answer}");
        assert!(!answer.contains("nbd_"), "{other}: {answer}");
    }
}

#[test]
fn names_that_the_operator_gives_are_answered() {
    let runtime = RuntimeDir::new();
    let server = Server::on_tcp(&runtime, &["--host", "disks.example", "--host", "192.0.2.1"]);
    for ours in ["Disks.example:80", "192.0.2.1:9103", "localhost"] {
        let answer = server.ask(ours);
        assert!(is_metrics(&answer), "{ours}: {answer}");
    }
    assert!(server.ask("rebound.example").starts_with("HTTP/1.1 421 "));
}

/// Neither those that say nothing nor those that stop in the middle.
#[test]
fn a_scraper_is_answered_while_many_clients_are_slow() {
    let runtime = RuntimeDir::new();
    let server = Server::on_tcp(&runtime, &[]);
    let mut slow = Vec::new();
    for round in 0..3 {
        for _ in 0..MANY_CLIENTS {
            let mut stream = server.connect();
            // The first ones have been dropped by the time of the last ones.
            let _ = stream.write_all(&b"GET /metrics HTTP/1.1\r\nHost: "[..round * 14]);
            slow.push(stream);
        }
        let answer = server.ask("localhost");
        assert!(is_metrics(&answer), "{answer}");
    }
    // The oldest one had to go.
    assert_eq!(read_all(&mut slow[0]), "");
}

/// A client that sends a byte now and then has no more time than others.
#[test]
fn a_client_that_trickles_is_dropped() {
    let runtime = RuntimeDir::new();
    let server = Server::on_tcp(&runtime, &[]);
    let mut stream = server.connect();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ").unwrap();
    until(|| {
        let has_ended = match stream.read(&mut [0; 16]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        (stream.write_all(b"x").is_err() || has_ended).then_some(())
    });
    assert!(is_metrics(&server.ask("localhost")));
}

#[test]
fn a_socket_is_for_its_owner_or_a_group() {
    let runtime = RuntimeDir::new();
    let socket = runtime.directory.join("metrics");
    let listen = format!("unix:{}", socket.display());
    let group = Group::from_gid(getgid()).unwrap().unwrap();
    for (arguments, mode) in [
        (vec!["--listen", &listen], 0o600),
        (vec!["--listen", &listen, "--group", &group.name], 0o660),
    ] {
        // The one before was killed and has left its socket.
        let server = Server::start(&runtime, &arguments);
        assert_eq!(PathBuf::from(&server.place), socket);
        let metadata = fs::metadata(&socket).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{arguments:?}");
        assert_eq!(metadata.gid(), group.gid.as_raw());
        let mut stream = UnixStream::connect(&socket).unwrap();
        // What a proxy in front of it is asked for is for the proxy to check.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: disks.example\r\n\r\n").unwrap();
        assert!(is_metrics(&read_all(&mut stream)));
    }
}

#[test]
fn the_socket_of_a_server_that_lives_is_left_alone() {
    let runtime = RuntimeDir::new();
    let socket = runtime.directory.join("metrics");
    let listen = format!("unix:{}", socket.display());
    let mut server = Server::start(&runtime, &["--listen", &listen]);
    let second = runtime.run(&["metrics", "--listen", &listen]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("cannot listen on"), "{second:?}");
    assert!(UnixStream::connect(&socket).is_ok());
    signal(&server.child, Signal::SIGINT);
    assert!(server.child.wait().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn options_that_would_not_protect_are_refused() {
    let runtime = RuntimeDir::new();
    for (arguments, words) in [
        (
            &["--listen", "0.0.0.0:9103"][..],
            "put a proxy with authentication in front of unix:PATH",
        ),
        (&["--listen", "9103", "--group", "root"], "TCP answers every user of this machine"),
        (&["--listen", "unix:/run/m", "--host", "a"], "may ask by any name"),
        (&["--host", "a"], "--listen"),
    ] {
        let ran = runtime.run(&[&["metrics"], arguments].concat());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
}
