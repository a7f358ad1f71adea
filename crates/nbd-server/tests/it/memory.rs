//! The memory that all clients have together.

use std::io::{Read, Write};
use std::time::Duration;

use nbd_proto::CommandType as Type;
use nbd_proto::handshake::ReplyStyle;
use nbd_server::Limits;
use nbd_server::testing::{Outcome, RawClient};

use crate::world::{Disk, SIZE, SLOW, SLOW_WRITE, World, has_ended, is_hung_up};

/// Long enough for no client of the server's to have it in its own buffers.
const LARGE: usize = 900_000;
/// Where the server hands reads on to a worker.
const ASIDE: u64 = 1;
const MOMENT: Duration = Duration::from_millis(50);

/// There is memory for one large request.
fn world(stall: Duration) -> World {
    World::with(Disk::new(1), Limits { memory: 1 << 20, stall, ..Limits::default() })
}

fn never() -> Duration {
    Duration::from_secs(1000)
}

fn reads_and_writes(client: &mut RawClient, number: u8) {
    for _ in 0..10 {
        client.write(1, 0, &[number; LARGE]);
        assert_eq!(client.answer(0).outcome, Outcome::Done);
        // Three at once are more than there is memory for.
        for cookie in 0..3 {
            client.ask(Type::READ, cookie, ASIDE, LARGE as u64);
        }
        for _ in 0..3 {
            assert!(matches!(client.answer(LARGE).outcome, Outcome::Data(..)));
        }
    }
}

#[test]
fn greedy_clients_wait_for_each_other_and_none_starves() {
    let world = world(never());
    std::thread::scope(|scope| {
        let greedy: Vec<_> = (1..=8)
            .map(|number| {
                let style =
                    if number % 2 == 0 { ReplyStyle::Simple } else { ReplyStyle::Structured };
                let mut client = world.client(style);
                scope.spawn(move || reads_and_writes(&mut client, number))
            })
            .collect();
        // Small requests go on meanwhile.
        let mut modest = world.client(ReplyStyle::Simple);
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
    let limits = Limits { memory: 4096, stall: never(), ..Limits::default() };
    let world = World::with(Disk::new(1), limits);
    std::thread::scope(|scope| {
        for number in 1..=3 {
            let mut client = world.client(ReplyStyle::Simple);
            scope.spawn(move || reads_and_writes(&mut client, number));
        }
    });
}

/// The header of a large write, and half of its data.
fn half_a_write(client: &mut RawClient) {
    let head = client.request(Type::WRITE, nbd_proto::CommandFlags::NONE, 1, 0, LARGE as u64);
    client.send(&[head, vec![1; LARGE / 2]].concat());
}

fn large_write(world: &World) {
    let mut client = world.client(ReplyStyle::Simple);
    client.write(2, 0, &[2; LARGE]);
    assert_eq!(client.answer(0).outcome, Outcome::Done);
}

#[test]
fn client_takes_memory_from_others_with_half_a_request() {
    let world = world(MOMENT);
    let mut idle = world.client(ReplyStyle::Simple);
    half_a_write(&mut idle);
    // Nobody minds as long as nobody waits.
    std::thread::sleep(4 * MOMENT);
    idle.send(&vec![1; LARGE - LARGE / 2]);
    assert_eq!(idle.answer(0).outcome, Outcome::Done);
    half_a_write(&mut idle);
    // The first of these may still be ahead of it.
    while !has_ended(&mut idle) {
        large_write(&world);
    }
    assert_eq!(world.disk.content()[..LARGE], [2; LARGE]);
}

/// Each byte comes in time.
#[test]
fn client_takes_memory_from_others_with_a_request_that_trickles() {
    let world = world(MOMENT);
    let mut trickling = world.client(ReplyStyle::Simple);
    half_a_write(&mut trickling);
    let others = std::thread::scope(|scope| {
        let others = scope.spawn(|| (0..2).for_each(|_| large_write(&world)));
        let begun = std::time::Instant::now();
        while !others.is_finished() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(MOMENT / 10);
            if trickling.stream.write_all(&[1]).is_err() {
                break;
            }
        }
        // So that the others get on if they have not.
        drop(trickling);
        begun.elapsed()
    });
    assert!(others < Duration::from_secs(60), "the others waited for {others:?}");
    assert_eq!(world.disk.content()[..LARGE], [2; LARGE]);
}

/// More of them than there is memory for, if each got all that its header asks for.
#[test]
fn headers_of_large_writes_do_not_take_the_memory_from_others() {
    let limits = Limits { memory: 4 << 20, stall: never(), ..Limits::default() };
    let world = World::with(Disk::new(1), limits);
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut client = world.client(ReplyStyle::Simple);
        let head = client.request(Type::WRITE, nbd_proto::CommandFlags::NONE, 1, 0, LARGE as u64);
        client.send(&[head, vec![1; 4096]].concat());
        idle.push(client);
    }
    large_write(&world);
    for mut client in idle {
        client.send(&vec![1; LARGE - 4096]);
        assert_eq!(client.answer(0).outcome, Outcome::Done);
    }
}

#[test]
fn client_takes_memory_from_others_with_replies_that_it_does_not_read() {
    let world = world(MOMENT);
    let mut lazy = world.client(ReplyStyle::Simple);
    // More than the sockets have room for.
    for cookie in 0..32 {
        lazy.ask(Type::READ, cookie, ASIDE, LARGE as u64);
    }
    // Something has come, so its replies are under way.
    lazy.stream.read_exact(&mut [0]).unwrap();
    // The first of these may come between two of its replies.
    while !is_hung_up(&lazy) {
        large_write(&world);
    }
    let rest = lazy.rest();
    assert!(rest.len() < 32 * LARGE, "{}", rest.len());
}

#[test]
fn a_client_that_leaves_gives_back_what_it_had() {
    let world = world(never());
    for _ in 0..5 {
        let mut half = world.client(ReplyStyle::Simple);
        half_a_write(&mut half);
        let mut lazy = world.client(ReplyStyle::Simple);
        for cookie in 0..8 {
            lazy.ask(Type::READ, cookie, ASIDE, LARGE as u64);
        }
        lazy.stream.flush().unwrap();
        drop((half, lazy));
        large_write(&world);
    }
}

/// The memory is given back at once; the connection stays open for as long as something of the
/// client may still change the storage.
#[test]
fn a_client_that_is_dropped_sees_the_end_when_its_writes_have_landed() {
    let world = world(MOMENT);
    let mut lazy = world.client(ReplyStyle::Simple);
    lazy.write(100, SLOW_WRITE, &[7; 4096]);
    for cookie in 0..32 {
        lazy.ask(Type::READ, cookie, ASIDE, LARGE as u64);
    }
    world.disk.wait_for_slow();
    // Others get the memory again and again, so it was dropped.
    for _ in 0..40 {
        large_write(&world);
    }
    assert!(!is_hung_up(&lazy));
    world.disk.open();
    let rest = lazy.rest();
    assert!(rest.len() < 32 * LARGE, "{}", rest.len());
    assert_eq!(world.disk.content()[SLOW_WRITE as usize..][..4096], [7; 4096]);
}

/// Nobody would read the answers. What is with a worker already goes on, and no more.
#[test]
fn reads_of_clients_that_have_left_are_not_carried_out() {
    let limits = Limits { memory: 64 << 20, ..Limits::default() };
    let world = World::with(Disk::new(1), limits);
    const WORKERS: u32 = 32;
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let mut client = world.client(ReplyStyle::Simple);
            for cookie in 0..256 {
                client.ask(Type::READ, cookie, SLOW, 4096);
            }
            client
        })
        .collect();
    while world.disk.begun() < WORKERS {
        std::thread::yield_now();
    }
    drop(clients);
    world.disk.open();
    // One that comes later is served when those before it have been seen to.
    let mut next = world.client(ReplyStyle::Simple);
    assert!(matches!(next.call(Type::READ, ASIDE, 100_000), Outcome::Data(..)));
    assert_eq!(world.disk.begun(), WORKERS);
}

/// A client may close the connection behind its last write, without waiting for answers.
#[test]
fn writes_of_clients_that_have_left_are_carried_out() {
    let world = World::new();
    let mut client = world.client(ReplyStyle::Simple);
    client.ask(Type::READ, 1, SLOW, 4096);
    for block in 0..100u8 {
        client.write(2, u64::from(block) * 1024 + 1, &[block + 1; 1000]);
    }
    let disconnect = client.request(Type::DISC, nbd_proto::CommandFlags::NONE, 3, 0, 0);
    client.send(&disconnect);
    drop(client);
    world.disk.open();
    let begun = std::time::Instant::now();
    let is_there = |content: &[u8]| {
        (0..100).all(|block| content[block * 1024 + 1..][..1000] == [block as u8 + 1; 1000])
    };
    while !is_there(&world.disk.content()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "some writes were not carried out");
        std::thread::yield_now();
    }
}
