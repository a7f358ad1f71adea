//! Memory of the whole process, with clients that ask for much and read nothing.

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use nbd_proto::CommandType as Type;
use nbd_server::testing::Outcome;

use crate::content::pattern;
use crate::server::Server;

/// Only a hang takes as long.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);
const CLIENTS: usize = 8;
const REQUESTS: u64 = 4;
const LENGTH: usize = 16 << 20;

/// The most that the process has had, in MiB.
fn peak(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

/// Reads of half a GiB altogether, to which nobody listens before the server has taken `least` MiB;
/// and what it has needed at most.
fn greedy_reads(option: &str, least: u64) -> u64 {
    let server = Server::new(&[option, "pattern:1G"]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.client("")).collect();
    for client in &mut clients {
        for cookie in 0..REQUESTS {
            client.ask(Type::READ, cookie, cookie * LENGTH as u64, LENGTH as u64);
        }
        client.stream.set_read_timeout(None).unwrap();
    }
    let began = Instant::now();
    while peak(&server) < least {
        assert!(began.elapsed() < EVENT_TIMEOUT, "only {} MiB", peak(&server));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                let mut rest = vec![0; REQUESTS as usize * (LENGTH + 16)];
                client.stream.read_exact(&mut rest).unwrap();
            });
        }
    });
    let peak = peak(&server);
    assert_eq!(server.stop(), [""; 0]);
    peak
}

#[test]
fn greedy_clients_do_not_exceed_what_there_is_for_all() {
    let much = greedy_reads("--max-memory=2G", 300);
    let little = greedy_reads("--max-memory=32M", 32);
    eprintln!("{little} MiB with a limit of 32, {much} without");
    // A reply may lie in a worker and in its connection's buffer for a moment, and the C library
    // keeps some of what each thread has freed: on a busy machine 219 MiB were seen where it is 165
    // else.
    assert!(little < much * 2 / 3, "{little} MiB with a limit, {much} without");
}

/// A long write to a hole is received into common memory, and what has come of it goes to its place
/// as soon as that is no hole any more.
#[test]
fn whoever_stalls_has_no_memory_that_others_wait_for() {
    const WRITE: usize = 3 << 20;
    let server = Server::new(&["--max-memory=4M", "mem:64M"]);
    let (mut slow, mut quick) = (server.client(""), server.client(""));
    let data = pattern(WRITE);
    let message = slow.write_message(1, 0, &data);
    slow.send(&message[..100_000]);
    for place in (0..WRITE).step_by(32 << 10) {
        quick.write(2, place as u64, &[7; 32 << 10]);
        assert_eq!(quick.answer(0).outcome, Outcome::Done);
    }
    slow.send(&message[100_000..100_001]);
    let began = Instant::now();
    while quick.call(Type::READ, 0, 512) != Outcome::Data(0, data[..512].into()) {
        assert!(began.elapsed() < EVENT_TIMEOUT, "what has come stays away from its place");
    }
    quick.write(3, 32 << 20, &data);
    assert_eq!(quick.answer(0).outcome, Outcome::Done);
    slow.send(&message[100_001..]);
    assert_eq!(slow.answer(0).outcome, Outcome::Done);
    let found = quick.call(Type::READ, 0, WRITE as u64);
    assert!(found == Outcome::Data(0, data), "something else was written");
}
