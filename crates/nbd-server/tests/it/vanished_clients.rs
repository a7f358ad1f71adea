//! Clients whose machine has vanished, and those whose machine is only slow to read.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_net::testing::vanish;
use nbd_proto::CommandType as Type;
use nbd_proto::handshake::ClientOptions;
use nbd_server::Limits;
use nbd_server::testing::{Outcome, RawClient};

use crate::test_server::{Disk, TestServer};

const LARGE: usize = 900_000;
/// Deadline of the test; without the server's check, TCP gives up after a quarter of an hour.
const DROP_TIMEOUT: Duration = Duration::from_secs(120);

/// A server for one client at a time, which drops a vanished one soon.
fn server() -> TestServer {
    let limits = Limits {
        connections: 1,
        vanished: Duration::from_millis(500),
        stall: Duration::from_millis(200),
        ..Limits::default()
    };
    TestServer::with(Disk::new(1), limits)
}

fn client(stream: UnixStream) -> RawClient {
    let wishes = ClientOptions { structured: false, extended: false, ..ClientOptions::new("") };
    RawClient::shake_hands(stream, wishes).unwrap()
}

/// Waits until another client is let in.
fn wait_for_room(server: &TestServer) {
    let begun = Instant::now();
    while server.connect().read(&mut [0]).unwrap() == 0 {
        assert!(
            begun.elapsed() < DROP_TIMEOUT,
            "the client that has vanished keeps its connection"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_vanished_client_with_unread_replies_is_dropped() {
    // Once more than the socket holds, and once so little that it holds all of it.
    for (reads, length) in [(64, LARGE), (1, 4096)] {
        let server = server();
        let mut gone = client(server.connect_tcp());
        for cookie in 0..reads {
            if cookie == reads - 1 {
                vanish(gone.stream.as_fd()).unwrap();
            }
            gone.ask(Type::READ, cookie, 1, length as u64);
        }
        assert_eq!(server.connect().read(&mut [0]).unwrap(), 0);
        wait_for_room(&server);
    }
}

#[test]
fn a_client_that_reads_slowly_stays_connected() {
    let server = server();
    let mut slow = client(server.connect_tcp());
    for cookie in 0..64 {
        slow.ask(Type::READ, cookie, 1, LARGE as u64);
    }
    // Several times as long as the limit for a vanished machine.
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..64 {
        assert!(matches!(slow.answer(LARGE).outcome, Outcome::Data(..)));
    }
    // A client without requests in flight may be silent as long.
    std::thread::sleep(Duration::from_secs(2));
    assert!(matches!(slow.call(Type::READ, 1, 512), Outcome::Data(..)));
}
