//! Clients that keep to no rule, in every way at once: at each step of the protocol noise, pieces, floods, silence
//! and leaving. An honest client is served meanwhile, and afterwards the server has what it had before.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nbd_proto::handshake::ClientOptions;
use nbd_proto::{CommandFlags, CommandType as Type};
use nbd_server::testing::{Outcome, RawClient};

use crate::content::pattern;
use crate::server::Server;

const EXPORT: u64 = 64 << 20;
/// How long each attack goes on.
const ATTACK_TIME: Duration = Duration::from_secs(2);
/// Only a hang takes as long.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);
/// Common memory.
const MEMORY: &str = "--max-memory=64M";
/// What the process has at most with that, in MiB: 64 are the export's. 140 to 160 were seen, and 430 with
/// common memory without a limit.
const MOST_MEMORY: u64 = 320;
const BEGIN_OPTIONS: &[u8] = b"\0\0\0\x03";
const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const LIST: u32 = 3;

/// Where the server listens.
struct Target(PathBuf);

impl Target {
    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.0).unwrap()
    }

    fn client(&self) -> RawClient {
        RawClient::shake_hands(self.connect(), ClientOptions::new("")).unwrap()
    }
}

/// Noise that is the same each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn bytes(&mut self, count: u64) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// A client that the server may throw out at any time, so errors of sending are none.
fn say(mut stream: &UnixStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).is_ok()
}

fn option(number: u32, length: u32, data: &[u8]) -> Vec<u8> {
    [OPTION_MAGIC, &number.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

/// Again and again for a while, with noise of its own.
fn repeat(seed: u64, mut act: impl FnMut(&mut Noise)) {
    let (mut noise, began) = (Noise(seed), Instant::now());
    while began.elapsed() < ATTACK_TIME {
        act(&mut noise);
    }
}

fn noise_from_the_beginning(target: &Target) {
    repeat(1, |noise| {
        let stream = target.connect();
        let count = noise.below(3000);
        say(&stream, &noise.bytes(count));
    });
}

fn noise_in_options(target: &Target) {
    repeat(2, |noise| {
        let stream = target.connect();
        say(&stream, BEGIN_OPTIONS);
        let lengths = [0, 4, 64, 4096, 65536, 1 << 20, u32::MAX];
        for _ in 0..noise.below(5) {
            let length = lengths[noise.below(7) as usize];
            let sent = noise.below(u64::from(length.min(4096)) + 1);
            let data = noise.bytes(sent);
            say(&stream, &option(noise.below(20) as u32, length, &data));
        }
    });
}

fn options_without_listening(target: &Target) {
    let stream = target.connect();
    stream.set_write_timeout(Some(ATTACK_TIME)).unwrap();
    say(&stream, BEGIN_OPTIONS);
    repeat(3, |_| {
        if !say(&stream, &option(LIST, 0, b"").repeat(100)) {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

fn handshakes_in_pieces(target: &Target) {
    let greeting = [BEGIN_OPTIONS, &option(LIST, 0, b"").repeat(20)].concat();
    let crowd: Vec<_> = (0..30).map(|_| target.connect()).collect();
    let mut at = 0;
    repeat(4, |_| {
        for stream in &crowd {
            say(stream, &greeting[at..=at]);
        }
        at = (at + 1) % greeting.len();
        std::thread::sleep(Duration::from_millis(20));
    });
}

fn noise_in_requests(target: &Target) {
    repeat(5, |noise| {
        let mut client = target.client();
        for _ in 0..noise.below(20) {
            let command = [Type::READ, Type::TRIM, Type::FLUSH, Type::BLOCK_STATUS, Type(99)];
            let command = command[noise.below(5) as usize];
            let flags = CommandFlags::from_bits(noise.next() as u16);
            // Beyond what the honest client has.
            let offset = EXPORT / 2 + noise.below(EXPORT);
            let request =
                client.request(command, flags, noise.next(), offset, noise.below(1 << 26));
            if client.stream.write_all(&request).is_err() {
                break;
            }
        }
        say(&client.stream, &noise.bytes(100));
    });
}

fn long_writes_that_are_left(target: &Target) {
    repeat(6, |noise| {
        let client = target.client();
        let flags = CommandFlags::PAYLOAD_LEN;
        let request = client.request(Type::WRITE, flags, 1, EXPORT / 2, 16 << 20);
        say(&client.stream, &request);
        let count = noise.below(1 << 20);
        say(&client.stream, &vec![0; count as usize]);
    });
}

fn reads_without_listening(target: &Target) {
    repeat(7, |_| {
        let mut clients: Vec<_> = (0..10).map(|_| target.client()).collect();
        for client in &mut clients {
            for cookie in 0..64 {
                client.ask(Type::READ, cookie, 0, 8 << 20);
            }
        }
        std::thread::sleep(ATTACK_TIME / 4);
    });
}

fn silence(target: &Target) {
    let crowd: Vec<_> = (0..100).map(|_| target.connect()).collect();
    std::thread::sleep(ATTACK_TIME);
    drop(crowd);
}

/// What an honest client has written is what it reads, as long as the attacks last.
fn honest_work(target: &Target) {
    let mut client = target.client();
    let data = pattern(1 << 20);
    repeat(8, |noise| {
        let offset = noise.below(24) << 20;
        client.write(1, offset, &data);
        assert_eq!(client.answer(0).outcome, Outcome::Done);
        let found = client.call(Type::READ, offset, data.len() as u64);
        assert!(found == Outcome::Data(offset, data.clone()), "other data at {offset}");
    });
}

/// What the descriptors of the process are.
fn descriptors(server: &Server) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    entries.map(|entry| fs::read_link(entry.unwrap().path()).unwrap_or_default()).collect()
}

/// The most that the process has had, in MiB.
fn peak(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn attacks_in_every_way_at_once_cost_no_other_client_its_service() {
    const ATTACKS: [fn(&Target); 9] = [
        noise_from_the_beginning,
        noise_in_options,
        options_without_listening,
        handshakes_in_pieces,
        noise_in_requests,
        long_writes_that_are_left,
        reads_without_listening,
        silence,
        honest_work,
    ];
    let server = Server::new(&[MEMORY, "mem:64M"]);
    drop(server.client(""));
    let before = descriptors(&server);
    let target = Target(server.path("socket"));
    std::thread::scope(|scope| {
        for attack in ATTACKS {
            let target = &target;
            scope.spawn(move || attack(target));
        }
    });
    let began = Instant::now();
    loop {
        let now = descriptors(&server);
        if now.len() <= before.len() {
            break;
        }
        assert!(began.elapsed() < EVENT_TIMEOUT, "descriptors: {now:?}, and {before:?} before");
        std::thread::sleep(Duration::from_millis(20));
    }
    let peak = peak(&server);
    eprintln!("{peak} MiB at most");
    assert!(peak < MOST_MEMORY, "{peak} MiB");
    // One that comes late finds everything in order.
    let mut client = server.client("");
    client.write(1, 0, &[7; 512]);
    assert_eq!(client.answer(0).outcome, Outcome::Done);
    let mut silent = server.connect();
    silent.read_exact(&mut [0; 18]).unwrap();
    drop((client, silent));
    let lines = server.stop();
    assert!(lines.len() < 1000, "{} lines in the log", lines.len());
}
