use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

use nix::sys::socket::sockopt::{KeepAlive, TcpNoDelay};

use super::*;
use crate::address::Address;
use crate::testing::Scratch;

/// Longer than anything that succeeds takes.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);
const MOMENT: Duration = Duration::from_millis(20);

fn pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Socket::from_fd(ours.into()).unwrap(), theirs)
}

fn tcp_address(listener: &TcpListener, host: &str) -> Address {
    Address::Tcp { host: host.into(), port: listener.local_addr().unwrap().port() }
}

#[test]
fn bytes_go_both_ways() {
    let (socket, mut peer) = pair();
    peer.write_all(b"hello").unwrap();
    let mut buffer = [0; 16];
    assert_eq!(socket.receive(&mut buffer).unwrap(), 5);
    let parts = [IoSlice::new(b"good"), IoSlice::new(b"bye")];
    assert_eq!(socket.try_send(&parts).unwrap(), 7);
    drop(socket);
    let mut text = String::new();
    peer.read_to_string(&mut text).unwrap();
    assert_eq!(text, "goodbye");
}

#[test]
fn nothing_waits_longer_than_it_was_told_to() {
    let (socket, _peer) = pair();
    let mut buffer = [0; 16];
    let error = socket.try_receive(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(!socket.wait_readable(Some(MOMENT)).unwrap());
    assert!(socket.wait_writable(Some(Duration::MAX)).unwrap());
    socket.set_receive_timeout(Some(MOMENT)).unwrap();
    assert_eq!(socket.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_full_socket_says_so_and_tells_when_there_is_room() {
    let (socket, mut peer) = pair();
    let block = vec![7; 1 << 20];
    let mut sent = 0;
    let error = loop {
        match socket.try_send(&[IoSlice::new(&block)]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(!socket.wait_writable(Some(MOMENT)).unwrap());
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; sent];
        peer.read_exact(&mut bytes).unwrap();
        peer
    });
    assert!(socket.wait_writable(Some(EVENT_TIMEOUT)).unwrap());
    reader.join().unwrap();
}

#[test]
fn shutdown_wakes_a_thread_that_receives() {
    let (socket, mut peer) = pair();
    let socket = Arc::new(socket);
    let waiting = Arc::clone(&socket);
    let waiter = thread::spawn(move || waiting.receive(&mut [0; 16]));
    thread::sleep(MOMENT);
    socket.shutdown();
    assert_eq!(waiter.join().unwrap().unwrap(), 0);
    assert_eq!(peer.read(&mut [0; 16]).unwrap(), 0);
    let error = socket.try_send(&[IoSlice::new(b"x")]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert!(socket.wait_writable(Some(EVENT_TIMEOUT)).unwrap());
}

#[test]
fn half_of_a_connection_can_end_alone() {
    let (socket, mut peer) = pair();
    socket.shutdown_send();
    assert_eq!(peer.read(&mut [0; 16]).unwrap(), 0);
    peer.write_all(b"late").unwrap();
    assert_eq!(socket.receive(&mut [0; 16]).unwrap(), 4);

    let (socket, mut peer) = pair();
    peer.write_all(b"early").unwrap();
    socket.shutdown_receive();
    assert_eq!(socket.receive(&mut [0; 16]).unwrap(), 5);
    assert_eq!(socket.receive(&mut [0; 16]).unwrap(), 0);
    assert_eq!(socket.try_send(&[IoSlice::new(b"reply")]).unwrap(), 5);
}

#[test]
fn a_socket_that_does_not_block_is_made_to() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let socket = Socket::from_fd(ours.into()).unwrap();
    socket.set_receive_timeout(Some(MOMENT)).unwrap();
    let started = Instant::now();
    assert!(socket.receive(&mut [0]).is_err());
    assert!(started.elapsed() >= MOMENT);
}

#[test]
fn what_is_no_stream_socket_is_refused() {
    let datagram = Socket::from_fd(UnixDatagram::unbound().unwrap().into()).unwrap_err();
    assert!(datagram.to_string().contains("stream"), "{datagram}");
    let (pipe, _writer) = io::pipe().unwrap();
    assert!(Socket::from_fd(pipe.into()).is_err());
}

#[test]
fn tcp_connects_to_any_address_of_a_host() {
    for (bound, host) in [("127.0.0.1:0", "localhost"), ("127.0.0.1:0", "127.0.0.1")] {
        let listener = TcpListener::bind(bound).unwrap();
        let socket = Socket::connect(&tcp_address(&listener, host), EVENT_TIMEOUT).unwrap();
        assert!(socket.peer().starts_with("127.0.0.1:"), "{}", socket.peer());
        assert!(getsockopt(&socket.fd, TcpNoDelay).unwrap());
        assert!(getsockopt(&socket.fd, KeepAlive).unwrap());
    }
    if let Ok(listener) = TcpListener::bind("[::1]:0") {
        let socket = Socket::connect(&tcp_address(&listener, "::1"), EVENT_TIMEOUT).unwrap();
        assert!(socket.peer().starts_with("[::1]:"), "{}", socket.peer());
    }
}

#[test]
fn unix_sockets_have_names_of_both_kinds_and_large_buffers() {
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let socket = Socket::connect(&Address::Unix(path), EVENT_TIMEOUT).unwrap();
    let user = scratch.path().metadata().unwrap().uid();
    assert_eq!(socket.peer(), format!("process {} of user {user}", std::process::id()));
    assert!(getsockopt(&socket.fd, sockopt::SndBuf).unwrap() > 200_000);

    let name = format!("nbd-net-test-{}", std::process::id());
    let place = SocketAddr::from_abstract_name(&name);
    let _listener = UnixListener::bind_addr(&place.unwrap()).unwrap();
    Socket::connect(&Address::Unix(format!("\0{name}").into()), EVENT_TIMEOUT).unwrap();
}

#[test]
fn errors_name_what_was_to_be_reached() {
    let scratch = Scratch::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let long = scratch.path().join("x".repeat(200));
    let cases = [
        Address::Unix(scratch.path().join("absent")),
        Address::Unix(long),
        Address::Tcp { host: "127.0.0.1".into(), port },
        Address::Tcp { host: "host.invalid".into(), port },
        Address::Vsock { cid: 1, port: 9 },
    ];
    for address in cases {
        let error = Socket::connect(&address, EVENT_TIMEOUT).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert!(error.source().is_some());
    }
}

#[test]
fn a_server_that_accepts_nobody_is_given_up_in_time() {
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    let fd = nix::sys::socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    )
    .unwrap();
    let place = nix::sys::socket::UnixAddr::new(&path).unwrap();
    nix::sys::socket::bind(fd.as_raw_fd(), &place).unwrap();
    nix::sys::socket::listen(&fd, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let error = Socket::connect(&Address::Unix(path), 5 * MOMENT).unwrap_err();
    let ConnectError::Failed { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_tcp_peer_is_named_on_both_ends() {
    if let Ok(listener) = TcpListener::bind("[::]:0") {
        let place = ("127.0.0.1", listener.local_addr().unwrap().port());
        let client = TcpStream::connect(place).unwrap();
        let socket = Socket::from_fd(listener.accept().unwrap().0.into()).unwrap();
        assert_eq!(socket.peer(), client.local_addr().unwrap().to_string());
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = Socket::from_fd(listener.accept().unwrap().0.into()).unwrap();
    assert_eq!(socket.peer(), client.local_addr().unwrap().to_string());
}

/// A connection over TCP, whose peer has read nothing.
fn tcp_pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp_address(&listener, "127.0.0.1");
    let socket = Socket::connect(&address, EVENT_TIMEOUT).unwrap();
    (socket, listener.accept().unwrap().0)
}

/// Fills the buffers of both sides, so that the kernel has bytes that the peer has not acknowledged.
fn fill(socket: &Socket) {
    let block = vec![7; 1 << 20];
    while socket.try_send(&[IoSlice::new(&block)]).is_ok() {}
}

#[test]
fn a_connection_that_forgets_what_is_unsent_is_reset_by_its_end() {
    let (socket, mut peer) = tcp_pair();
    socket.forget_unsent_at_end().unwrap();
    fill(&socket);
    drop(socket);
    let error = peer.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let (socket, mut peer) = pair();
    socket.forget_unsent_at_end().unwrap();
    drop(socket);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "what needs no forgetting");
}

#[test]
fn an_aborted_connection_is_over_for_whoever_has_it() {
    let (socket, mut peer) = tcp_pair();
    let other = Socket::from_fd(socket.as_fd().try_clone_to_owned().unwrap()).unwrap();
    fill(&socket);
    abort(socket.as_fd()).unwrap();
    assert!(other.try_send(&[IoSlice::new(b"x")]).is_err());
    let error = peer.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
