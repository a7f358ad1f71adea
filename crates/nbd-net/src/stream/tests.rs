use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;

use rustls::version::{TLS12, TLS13};

use super::*;
use crate::address::Address;
use crate::testing::{Scratch, certificates, certificates_of_2432_bits};

mod duplex;
mod handshake;

const MOMENT: Duration = Duration::from_millis(20);
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

/// How a test's connection is made.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Unix,
    Tcp,
}

fn sockets(transport: Transport) -> (Socket, Socket) {
    match transport {
        Transport::Unix => {
            let (left, right) = UnixStream::pair().unwrap();
            let socket = |end| Socket::from_fd(OwnedFd::from(end)).unwrap();
            (socket(left), socket(right))
        }
        Transport::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let address = Address::Tcp { host: "127.0.0.1".into(), port };
            let client = Socket::connect(&address, EVENT_TIMEOUT).unwrap();
            (Socket::from_fd(listener.accept().unwrap().0.into()).unwrap(), client)
        }
    }
}

fn plain(transport: Transport) -> (Stream, Stream) {
    let (left, right) = sockets(transport);
    (patient(left), patient(right))
}

fn patient(socket: Socket) -> Stream {
    let mut stream = Stream::plain(socket);
    stream.set_deadline(Some(Instant::now() + EVENT_TIMEOUT));
    stream
}

/// The server's and the client's view of a TLS handshake.
fn try_secured(
    transport: Transport,
    server: &ServerTls,
    client: &ClientTls,
    name: &str,
) -> (Result<Stream, TlsError>, Result<Stream, TlsError>) {
    let (left, right) = plain(transport);
    thread::scope(|scope| {
        let serving = scope.spawn(|| left.into_tls_server(server));
        let client = right.into_tls_client(client, name);
        (serving.join().unwrap(), client)
    })
}

/// A connection for each way to make one: in the clear and secured, over both transports.
fn all_kinds() -> Vec<(String, Stream, Stream)> {
    let scratch = Scratch::new();
    certificates(scratch.path()).unwrap();
    let client = ClientTls::load(Some(scratch.path()), true).unwrap();
    let mut all = Vec::new();
    for transport in [Transport::Unix, Transport::Tcp] {
        let (left, right) = plain(transport);
        all.push((format!("{transport:?}"), left, right));
        for version in [&TLS12, &TLS13] {
            let server = ServerTls::of_version(scratch.path(), true, version);
            let (left, right) = try_secured(transport, &server, &client, "localhost");
            all.push((format!("{transport:?} {version:?}"), left.unwrap(), right.unwrap()));
        }
    }
    all
}

/// The lines of a conversation in which both sides take turns.
#[test]
fn conversations_in_turns() {
    for (kind, mut left, mut right) in all_kinds() {
        for turn in 0..10u8 {
            let question = vec![turn; 1 << turn];
            let mut heard = vec![0; question.len()];
            left.write_all(&question).unwrap();
            right.read_exact(&mut heard).unwrap();
            assert_eq!(heard, question, "{kind}");
            right.write_all(b"answer").unwrap();
            left.read_exact(&mut heard[..0]).unwrap();
            let mut answer = [0; 6];
            left.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer", "{kind}");
        }
        drop(right);
        assert_eq!(left.read(&mut [0]).unwrap(), 0, "{kind}");
    }
}

#[test]
fn large_writes_wait_for_the_reader() {
    for (kind, mut left, mut right) in all_kinds() {
        let sent = vec![42; 10 << 20];
        let mut received = vec![0; sent.len()];
        thread::scope(|scope| {
            scope.spawn(|| left.write_all(&sent).unwrap());
            right.read_exact(&mut received).unwrap();
        });
        assert!(received == sent, "{kind}");
    }
}

#[test]
fn deadlines_hold_for_readers_and_writers() {
    for (kind, mut left, mut right) in all_kinds() {
        left.set_deadline(Some(Instant::now() + MOMENT));
        let error = left.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{kind}");
        left.set_deadline(Some(Instant::now() + MOMENT));
        let error = left.write_all(&vec![0; 64 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{kind}");
        // One that has passed holds as well, even if there is something to read.
        right.set_deadline(Some(Instant::now()));
        let error = right.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{kind}");
    }
}

#[test]
fn a_stream_that_ends_too_early_is_told_from_one_that_does_not() {
    let (mut left, mut right) = plain(Transport::Unix);
    left.write_all(b"half").unwrap();
    drop(left);
    let error = right.read_exact(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let error = right.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}
