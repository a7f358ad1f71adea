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

use crate::world::{Disk, World};

const LARGE: usize = 900_000;
/// Only a hang takes as long; the system gives up after a quarter of an hour.
const PATIENCE: Duration = Duration::from_secs(120);

/// One client at a time, which is given up soon where nothing is heard of it.
fn world() -> World {
    let limits = Limits {
        connections: 1,
        vanished: Duration::from_millis(500),
        stall: Duration::from_millis(200),
        ..Limits::default()
    };
    World::with(Disk::new(1), limits)
}

fn client(stream: UnixStream) -> RawClient {
    let wishes = ClientOptions { structured: false, extended: false, ..ClientOptions::new("") };
    RawClient::shake_hands(stream, wishes).unwrap()
}

/// Waits until another client is let in.
fn wait_for_room(world: &World) {
    let begun = Instant::now();
    while world.connect().read(&mut [0]).unwrap() == 0 {
        assert!(begun.elapsed() < PATIENCE, "the client that has vanished keeps its connection");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_vanished_client_with_unread_replies_is_dropped() {
    // More than there is room for, and so little that the system takes all of it.
    for (reads, length) in [(64, LARGE), (1, 4096)] {
        let world = world();
        let mut gone = client(world.connect_tcp());
        for cookie in 0..reads {
            if cookie == reads - 1 {
                vanish(gone.stream.as_fd()).unwrap();
            }
            gone.ask(Type::READ, cookie, 1, length as u64);
        }
        assert_eq!(world.connect().read(&mut [0]).unwrap(), 0);
        wait_for_room(&world);
    }
}

#[test]
fn a_client_that_is_slow_to_read_is_waited_for() {
    let world = world();
    let mut slow = client(world.connect_tcp());
    for cookie in 0..64 {
        slow.ask(Type::READ, cookie, 1, LARGE as u64);
    }
    // Several times as long as a client may be silent that is not there.
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..64 {
        assert!(matches!(slow.answer(LARGE).outcome, Outcome::Data(..)));
    }
    // It may be silent for as long, too.
    std::thread::sleep(Duration::from_secs(2));
    assert!(matches!(slow.call(Type::READ, 1, 512), Outcome::Data(..)));
}
