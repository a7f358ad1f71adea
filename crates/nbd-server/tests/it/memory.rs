//! The memory that all clients share.

use std::io::{Read, Write};
use std::time::Duration;

use nbd_proto::CommandType as Type;
use nbd_proto::handshake::ReplyStyle;
use nbd_server::Limits;
use nbd_server::testing::{Outcome, RawClient};

use crate::test_server::{Disk, SIZE, SLOW, SLOW_WRITE, TestServer, has_ended, is_hung_up};

/// Bytes of a request that needs common memory: more than a connection's own buffers hold.
const LARGE: usize = 900_000;
/// Reads at this offset are executed by a worker.
const WORKER_OFFSET: u64 = 1;
const SHORT_STALL: Duration = Duration::from_millis(50);

/// There is memory for one large request.
fn server(stall: Duration) -> TestServer {
    TestServer::with(Disk::new(1), Limits { memory: 1 << 20, stall, ..Limits::default() })
}

fn no_stall() -> Duration {
    Duration::from_secs(1000)
}

fn reads_and_writes(client: &mut RawClient, number: u8) {
    for _ in 0..10 {
        client.write(1, 0, &[number; LARGE]);
        assert_eq!(client.answer(0).outcome, Outcome::Done);
        // Three at once are more than there is memory for.
        for cookie in 0..3 {
            client.ask(Type::READ, cookie, WORKER_OFFSET, LARGE as u64);
        }
        for _ in 0..3 {
            assert!(matches!(client.answer(LARGE).outcome, Outcome::Data(..)));
        }
    }
}

#[test]
fn clients_with_large_requests_share_the_memory_and_none_starves() {
    let server = server(no_stall());
    std::thread::scope(|scope| {
        let greedy: Vec<_> = (1..=8)
            .map(|number| {
                let style =
                    if number % 2 == 0 { ReplyStyle::Simple } else { ReplyStyle::Structured };
                let mut client = server.client(style);
                scope.spawn(move || reads_and_writes(&mut client, number))
            })
            .collect();
        // Small requests go on meanwhile.
        let mut modest = server.client(ReplyStyle::Simple);
        let mut rounds = 0;
        while rounds < 100 || greedy.iter().any(|thread| !thread.is_finished()) {
            modest.write(1, SIZE - 512, &[7; 512]);
            assert_eq!(modest.answer(0).outcome, Outcome::Done);
            assert_eq!(modest.call(Type::READ, SIZE - 512, 512), Outcome::Data(0, vec![7; 512]));
            rounds += 1;
        }
    });
}

#[test]
fn requests_longer_than_all_memory_are_served_one_at_a_time() {
    let limits = Limits { memory: 4096, stall: no_stall(), ..Limits::default() };
    let server = TestServer::with(Disk::new(1), limits);
    std::thread::scope(|scope| {
        for number in 1..=3 {
            let mut client = server.client(ReplyStyle::Simple);
            scope.spawn(move || reads_and_writes(&mut client, number));
        }
    });
}

/// The header of a large write, and half of its data.
fn half_a_write(client: &mut RawClient) {
    let head = client.request(Type::WRITE, nbd_proto::CommandFlags::NONE, 1, 0, LARGE as u64);
    client.send(&[head, vec![1; LARGE / 2]].concat());
}

fn large_write(server: &TestServer) {
    let mut client = server.client(ReplyStyle::Simple);
    client.write(2, 0, &[2; LARGE]);
    assert_eq!(client.answer(0).outcome, Outcome::Done);
}

#[test]
fn a_half_sent_request_is_dropped_when_others_wait_for_its_memory() {
    let server = server(SHORT_STALL);
    let mut idle = server.client(ReplyStyle::Simple);
    half_a_write(&mut idle);
    // It may keep the memory while no other client waits.
    std::thread::sleep(4 * SHORT_STALL);
    idle.send(&vec![1; LARGE - LARGE / 2]);
    assert_eq!(idle.answer(0).outcome, Outcome::Done);
    half_a_write(&mut idle);
    // The first large write may get the memory before the half sent one.
    while !has_ended(&mut idle) {
        large_write(&server);
    }
    assert_eq!(server.disk.content()[..LARGE], [2; LARGE]);
}

/// Each byte comes before the timeout of a receive.
#[test]
fn a_trickling_request_is_dropped_when_others_wait_for_its_memory() {
    let server = server(SHORT_STALL);
    let mut trickling = server.client(ReplyStyle::Simple);
    half_a_write(&mut trickling);
    let others = std::thread::scope(|scope| {
        let others = scope.spawn(|| (0..2).for_each(|_| large_write(&server)));
        let begun = std::time::Instant::now();
        while !others.is_finished() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(SHORT_STALL / 10);
            if trickling.stream.write_all(&[1]).is_err() {
                break;
            }
        }
        // If they still wait, this lets them continue.
        drop(trickling);
        begun.elapsed()
    });
    assert!(others < Duration::from_secs(60), "the others waited for {others:?}");
    assert_eq!(server.disk.content()[..LARGE], [2; LARGE]);
}

/// There are more clients than the memory could serve if each got what its header asks for.
#[test]
fn headers_of_large_writes_hold_no_memory() {
    let limits = Limits { memory: 8 << 20, stall: no_stall(), ..Limits::default() };
    let server = TestServer::with(Disk::new(1), limits);
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut client = server.client(ReplyStyle::Simple);
        let head = client.request(Type::WRITE, nbd_proto::CommandFlags::NONE, 1, 0, LARGE as u64);
        client.send(&[head, vec![1; 4096]].concat());
        idle.push(client);
    }
    large_write(&server);
    for mut client in idle {
        client.send(&vec![1; LARGE - 4096]);
        assert_eq!(client.answer(0).outcome, Outcome::Done);
    }
}

/// Each client has announced a quarter of the memory that there is for long writes, and sent a piece.
#[test]
fn half_sent_long_writes_hold_only_what_has_come() {
    const LENGTH: usize = 16 << 20;
    const SENT: usize = 1 << 20;
    let limits = Limits { memory: 8 * LENGTH as u64, stall: no_stall(), ..Limits::default() };
    let server = TestServer::with(Disk::new(1), limits);
    let mut slow: Vec<_> = (0..8).map(|_| server.client(ReplyStyle::Simple)).collect();
    for client in &mut slow {
        let message = client.write_message(1, 0, &vec![1; LENGTH]);
        client.send(&message[..SENT]);
    }
    // More than was left when memory was granted for all that was announced.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| long_write(&mut server.client(ReplyStyle::Simple), LENGTH));
        }
    });
    large_write(&server);
    // All of them together announced twice that memory, and get it in some order.
    std::thread::scope(|scope| {
        for mut client in slow {
            scope.spawn(move || {
                let message = client.write_message(1, 0, &vec![1; LENGTH]);
                client.send(&message[SENT..]);
                assert!(matches!(client.answer(0).outcome, Outcome::Failed(..)));
            });
        }
    });
}

/// Clients whose long writes use all the memory that there is for such, and come no further.
#[test]
fn reads_and_short_writes_go_on_while_long_writes_wait_for_memory() {
    const LENGTH: usize = 7 << 20;
    const SENT: usize = 5 << 20;
    let limits = Limits { memory: 16 << 20, stall: no_stall(), ..Limits::default() };
    let server = TestServer::with(Disk::new(1), limits);
    for _ in 0..6 {
        let mut client = server.client(ReplyStyle::Simple);
        // The server takes no more than a part of most of them: their threads end with the test.
        std::thread::spawn(move || {
            let message = client.write_message(1, 0, &vec![1; LENGTH]);
            client.send(&message[..SENT]);
            client.answer(0)
        });
    }
    let mut honest = server.client(ReplyStyle::Simple);
    for _ in 0..100 {
        let read = honest.call(Type::READ, WORKER_OFFSET, LARGE as u64);
        assert!(matches!(read, Outcome::Data(..)));
        large_write(&server);
    }
}

/// A write that is longer than the disk: all of it is received before it is refused.
fn long_write(client: &mut RawClient, length: usize) {
    client.write(1, 0, &vec![1; length]);
    assert!(matches!(client.answer(0).outcome, Outcome::Failed(..)));
}

/// Each alone would fit, and no two of them.
#[test]
fn long_writes_that_grow_at_once_do_not_block_each_other() {
    let limits = Limits { memory: 16 << 20, stall: no_stall(), ..Limits::default() };
    let server = TestServer::with(Disk::new(1), limits);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let mut client = server.client(ReplyStyle::Simple);
            scope.spawn(move || {
                for round in 0..5 {
                    long_write(&mut client, (7 + (number + round) % 6) << 20);
                    client.ask(Type::READ, 1, WORKER_OFFSET, LARGE as u64);
                    assert!(matches!(client.answer(LARGE).outcome, Outcome::Data(..)));
                }
            });
        }
    });
}

#[test]
fn unread_replies_are_dropped_when_others_wait_for_their_memory() {
    let server = server(SHORT_STALL);
    let mut lazy = server.client(ReplyStyle::Simple);
    // More than the sockets have room for.
    for cookie in 0..32 {
        lazy.ask(Type::READ, cookie, WORKER_OFFSET, LARGE as u64);
    }
    // Something has come, so its replies are under way.
    lazy.stream.read_exact(&mut [0]).unwrap();
    // The first of these may come between two of its replies.
    while !is_hung_up(&lazy) {
        large_write(&server);
    }
    let rest = lazy.rest();
    assert!(rest.len() < 32 * LARGE, "{}", rest.len());
}

#[test]
fn a_disconnected_client_releases_its_memory() {
    let server = server(no_stall());
    for _ in 0..5 {
        let mut half = server.client(ReplyStyle::Simple);
        half_a_write(&mut half);
        let mut lazy = server.client(ReplyStyle::Simple);
        for cookie in 0..8 {
            lazy.ask(Type::READ, cookie, WORKER_OFFSET, LARGE as u64);
        }
        lazy.stream.flush().unwrap();
        drop((half, lazy));
        large_write(&server);
    }
}

/// The memory is given back at once; the connection stays open for as long as something of the
/// client may still change the storage.
#[test]
fn a_dropped_client_sees_the_end_only_after_its_writes_are_executed() {
    let server = server(SHORT_STALL);
    let mut lazy = server.client(ReplyStyle::Simple);
    lazy.write(100, SLOW_WRITE, &[7; 4096]);
    for cookie in 0..32 {
        lazy.ask(Type::READ, cookie, WORKER_OFFSET, LARGE as u64);
    }
    server.disk.wait_for_slow();
    // The others get the memory each time, so the client was dropped.
    for _ in 0..40 {
        large_write(&server);
    }
    assert!(!is_hung_up(&lazy));
    server.disk.open();
    let rest = lazy.rest();
    assert!(rest.len() < 32 * LARGE, "{}", rest.len());
    assert_eq!(server.disk.content()[SLOW_WRITE as usize..][..4096], [7; 4096]);
}

/// No client would read the replies. Reads that a worker has begun are finished, the others
/// skipped.
#[test]
fn reads_of_disconnected_clients_are_skipped() {
    let limits = Limits { memory: 64 << 20, ..Limits::default() };
    let server = TestServer::with(Disk::new(1), limits);
    const WORKERS: u32 = 32;
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let mut client = server.client(ReplyStyle::Simple);
            for cookie in 0..256 {
                client.ask(Type::READ, cookie, SLOW, 4096);
            }
            client
        })
        .collect();
    while server.disk.begun() < WORKERS {
        std::thread::yield_now();
    }
    drop(clients);
    server.disk.open();
    // Workers execute tasks in order, so this reply comes after the tasks before it were skipped.
    let mut next = server.client(ReplyStyle::Simple);
    assert!(matches!(next.call(Type::READ, WORKER_OFFSET, 100_000), Outcome::Data(..)));
    assert_eq!(server.disk.begun(), WORKERS);
}

/// They hold memory that others wait for, and it may take long until a worker skips them.
#[test]
fn reads_of_disconnected_clients_hold_no_memory_while_workers_are_busy() {
    const WORKERS: u32 = 32;
    let server = server(no_stall());
    let mut busy = server.client(ReplyStyle::Simple);
    for cookie in 0..u64::from(WORKERS) {
        busy.ask(Type::READ, cookie, SLOW, 4096);
    }
    while server.disk.begun() < WORKERS {
        std::thread::yield_now();
    }
    // One read needs no grant, the next one has it, and others wait for theirs.
    for reads in [2, 4] {
        let mut leaving = server.client(ReplyStyle::Simple);
        for cookie in 0..reads {
            leaving.ask(Type::READ, cookie, WORKER_OFFSET, LARGE as u64);
        }
        if reads == 2 {
            // They are queued when this is answered.
            assert!(matches!(leaving.call(Type::READ, 0, 512), Outcome::Data(..)));
        }
        drop(leaving);
        large_write(&server);
    }
    assert_eq!(server.disk.begun(), WORKERS);
    server.disk.open();
    for _ in 0..WORKERS {
        assert!(matches!(busy.answer(4096).outcome, Outcome::Data(..)));
    }
}

/// A client may close the connection behind its last write, without waiting for answers.
#[test]
fn writes_of_disconnected_clients_are_executed() {
    let server = TestServer::new();
    let mut client = server.client(ReplyStyle::Simple);
    client.ask(Type::READ, 1, SLOW, 4096);
    for block in 0..100u8 {
        client.write(2, u64::from(block) * 1024 + 1, &[block + 1; 1000]);
    }
    let disconnect = client.request(Type::DISC, nbd_proto::CommandFlags::NONE, 3, 0, 0);
    client.send(&disconnect);
    drop(client);
    server.disk.open();
    let begun = std::time::Instant::now();
    let is_there = |content: &[u8]| {
        (0..100).all(|block| content[block * 1024 + 1..][..1000] == [block as u8 + 1; 1000])
    };
    while !is_there(&server.disk.content()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "some writes were not carried out");
        std::thread::yield_now();
    }
}

/// The replies to later reads fill the socket, before workers begin the first ones.
#[test]
fn unread_replies_are_dropped_while_reads_before_them_hold_memory() {
    const WORKERS: u32 = 32;
    for workers_are_busy in [false, true] {
        let server = server(SHORT_STALL);
        let mut busy = server.client(ReplyStyle::Simple);
        for cookie in 0..if workers_are_busy { WORKERS } else { 0 } {
            busy.ask(Type::READ, cookie.into(), SLOW, 4096);
        }
        while workers_are_busy && server.disk.begun() < WORKERS {
            std::thread::yield_now();
        }
        let mut lazy = server.client(ReplyStyle::Simple);
        let read = |(cookie, (offset, length))| {
            let none = nbd_proto::CommandFlags::NONE;
            lazy.request(Type::READ, none, cookie, offset, length)
        };
        // The second one needs a grant. The later ones are more than the sockets have room for.
        let large = [(WORKER_OFFSET, LARGE as u64); 2];
        let requests: Vec<_> = (0..).zip([&large[..], &[(0, LARGE as u64); 40]].concat()).collect();
        let requests: Vec<_> = requests.into_iter().flat_map(read).collect();
        lazy.send(&requests);
        lazy.stream.read_exact(&mut [0]).unwrap();
        large_write(&server);
    }
}
