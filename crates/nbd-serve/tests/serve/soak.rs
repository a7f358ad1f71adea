//! The whole engine, lanes' threads and workers, killed at random moments under a verified load.
//!
//! The other end is as strict as the kernel: a reply that it does not expect, or a second one,
//! fails the test. `scripts/soak` makes it longer, by `NBD_SOAK_KILLS` and `NBD_SOAK_REQUESTS`, and
//! `NBD_SOAK_SEED` repeats the load of a run.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nbd_proto::{CommandFlags, CommandType, NbdError, Request, SimpleReply};

use crate::holder::{Fate, Holder, Server};

mod report;

use report::{Report, Stall};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;
const DEPTH: usize = 16;
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

/// A small generator of numbers that can be repeated (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % below
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// What is expected of the device.
#[derive(Default)]
struct Expected {
    /// Sent and not answered, by cookie, and since when. At most one of them touches a block.
    pending: HashMap<u64, (Operation, Instant)>,
    /// What was last written to each block; `None` after a trim, when it may read as anything.
    blocks: HashMap<u64, Option<u64>>,
    report: Report,
    /// When the last answer came, and the longest time without any since that was last taken.
    answered: Option<Instant>,
    gap: Duration,
    /// The export offers flush and FUA.
    flushes: bool,
    over: bool,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Read(u64),
    Write(u64, u64),
    Trim(u64),
    Flush,
}

impl Operation {
    fn block(self) -> Option<u64> {
        match self {
            Self::Read(block) | Self::Write(block, _) | Self::Trim(block) => Some(block),
            Self::Flush => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Write(..) => "write",
            Self::Trim(_) => "trim",
            Self::Flush => "flush",
        }
    }

    fn request(self, cookie: u64, fua: bool) -> Request {
        let (command, length) = match self {
            Self::Read(_) => (CommandType::READ, BLOCK as u32),
            Self::Write(..) => (CommandType::WRITE, BLOCK as u32),
            Self::Trim(_) => (CommandType::TRIM, BLOCK as u32),
            Self::Flush => (CommandType::FLUSH, 0),
        };
        let flags = match self {
            // Some writes must be durable, which workers do and not the lane's thread.
            Self::Write(_, content) if fua && content % 8 == 0 => CommandFlags::FUA,
            _ => CommandFlags::NONE,
        };
        let offset = self.block().unwrap_or(0) * BLOCK as u64;
        Request { flags, command, cookie, offset, length }
    }
}

#[derive(Clone, Default)]
struct Kernel(Arc<(Mutex<Expected>, Condvar)>);

impl Kernel {
    fn expected(&self) -> std::sync::MutexGuard<'_, Expected> {
        self.0.0.lock().unwrap()
    }

    /// Sends requests, as many at a time as the driver might, until the test is over.
    fn send(&self, mut socket: UnixStream, mut numbers: Numbers) {
        for cookie in 1.. {
            let (operation, fua) = {
                let mut expected = self.expected();
                while expected.pending.len() >= DEPTH && !expected.over {
                    expected = self.0.1.wait(expected).unwrap();
                }
                if expected.over {
                    return;
                }
                let operation = choose(&mut numbers, &expected, cookie);
                expected.pending.insert(cookie, (operation, Instant::now()));
                (operation, expected.flushes)
            };
            let mut bytes = operation.request(cookie, fua).encode().to_vec();
            if let Operation::Write(_, content) = operation {
                bytes.extend_from_slice(&content.to_le_bytes().repeat(BLOCK / 8));
            }
            if let Err(error) = socket.write_all(&bytes) {
                assert!(self.expected().over, "a request was not taken: {error}");
                return;
            }
        }
    }

    /// Checks every reply until the test is over.
    fn receive(&self, mut socket: UnixStream) {
        loop {
            let mut header = [0; SimpleReply::LEN];
            if let Err(error) = socket.read_exact(&mut header) {
                // The end of the test closes the socket, when nothing is waited for any more.
                assert!(self.expected().over, "no reply: {error}");
                return;
            }
            let reply = SimpleReply::decode(&header).expect("a reply");
            let pending = self.expected().pending.get(&reply.cookie).copied();
            let Some((operation, since)) = pending else {
                // Whether data follows, nobody can know.
                self.expected().report.doubled += 1;
                self.end();
                return;
            };
            let mut data = [0; BLOCK];
            let good = reply.error == NbdError::SUCCESS;
            if good && matches!(operation, Operation::Read(_)) {
                socket.read_exact(&mut data).unwrap();
            }
            let mut expected = self.expected();
            expected.pending.remove(&reply.cookie);
            expected.report.requests += 1;
            let stall = Stall { time: since.elapsed(), of: operation.name() };
            expected.report.longest = expected.report.longest.max(stall);
            expected.note_answer();
            if good {
                expected.settle(operation, &data);
            } else {
                expected.report.errors += 1;
            }
            self.0.1.notify_all();
        }
    }

    /// No more requests.
    fn end(&self) {
        self.expected().over = true;
        self.0.1.notify_all();
    }
}

fn choose(numbers: &mut Numbers, expected: &Expected, cookie: u64) -> Operation {
    loop {
        let block = numbers.next(BLOCKS);
        let busy = |(operation, _): &(Operation, Instant)| operation.block() == Some(block);
        if expected.pending.values().any(busy) {
            continue;
        }
        return match numbers.next(20) {
            0 if expected.flushes => Operation::Flush,
            1 => Operation::Trim(block),
            2..10 => Operation::Write(block, cookie),
            _ => Operation::Read(block),
        };
    }
}

impl Expected {
    fn note_answer(&mut self) {
        let now = Instant::now();
        self.gap = self.gap.max(self.answered.map_or(Duration::ZERO, |before| now - before));
        self.answered = Some(now);
    }

    fn settle(&mut self, operation: Operation, data: &[u8]) {
        match operation {
            Operation::Write(block, content) => {
                self.blocks.insert(block, Some(content));
            }
            Operation::Trim(block) => {
                self.blocks.insert(block, None);
            }
            Operation::Read(block) => {
                let content = self.blocks.get(&block).copied().unwrap_or(Some(0));
                if let Some(content) = content {
                    let right = data.chunks(8).all(|word| word == content.to_le_bytes());
                    self.report.lost += u64::from(!right);
                }
            }
            Operation::Flush => {}
        }
    }
}

#[test]
fn nothing_is_lost_or_answered_twice_however_often_the_server_is_killed() {
    let (kills, requests) = (setting("NBD_SOAK_KILLS", 200), setting("NBD_SOAK_REQUESTS", 0));
    let seed = setting("NBD_SOAK_SEED", u64::from(std::process::id()));
    eprintln!("NBD_SOAK_SEED={seed}");
    let specs = ["mem:1M", "file", "cow", "record"];
    let share = |all: u64| all.div_ceil(specs.len() as u64);
    let mut all = Report::default();
    for spec in specs {
        let report = soak(spec, share(kills), share(requests), seed);
        eprintln!("{spec}: {report}");
        all = all.and(report);
    }
    eprintln!("soak: {all}");
    assert!(all.is_good(), "{all}");
    assert!(all.requests > all.kills, "nothing was served between the kills: {all}");
}

/// A server under load, by somebody who checks everything.
struct Scene {
    holder: Holder,
    spec: String,
    kernel: Kernel,
    server: Server,
    threads: [std::thread::JoinHandle<()>; 2],
}

impl Scene {
    fn begin(spec: &str, seed: u64) -> Self {
        let mut holder = Holder::new();
        let spec = match spec {
            "file" => holder.file("disk"),
            "cow" => {
                let base = holder.file("base");
                format!("cow:{base}+{base}.cow").replace("+file:", "+")
            }
            "record" => {
                let disk = holder.file("disk");
                format!("record:{disk}.log@log:on=off@{disk}").replace("record:file:", "record:")
            }
            memory => memory.to_owned(),
        };
        let socket = holder.kernel();
        socket.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        let kernel = Kernel::default();
        kernel.expected().flushes = !spec.starts_with("mem:");
        let server = holder.serve(&spec);
        let (sender, receiver) = (kernel.clone(), kernel.clone());
        let (out, back) = (socket.try_clone().unwrap(), socket);
        let numbers = Numbers(seed);
        let threads = [
            std::thread::spawn(move || sender.send(out, numbers)),
            std::thread::spawn(move || receiver.receive(back)),
        ];
        Self { holder, spec, kernel, server, threads }
    }

    fn end(self) -> Report {
        let report = finish(&self.kernel, &self.holder.kernel(), self.threads);
        drop(self.server);
        report
    }
}

fn soak(spec: &str, kills: u64, requests: u64, seed: u64) -> Report {
    let mut scene = Scene::begin(spec, seed);
    let kernel = scene.kernel.clone();
    let mut numbers = Numbers(!seed);
    for killed in 1..=kills {
        // A moment to be killed in: any will do, so nothing depends on its length.
        std::thread::sleep(Duration::from_micros(numbers.next(5000)));
        scene.server.kill();
        scene.server = scene.holder.serve(&scene.spec);
        let mut expected = kernel.expected();
        expected.report.kills = killed;
        if killed.is_multiple_of(1000) {
            eprintln!("{spec}: {}", expected.report);
        }
        if expected.over {
            break;
        }
    }
    while kernel.expected().report.requests < requests && !scene.threads[1].is_finished() {
        std::thread::sleep(Duration::from_millis(5));
    }
    scene.end()
}

/// What `nbd-ctl replace` does: the successor introduces itself, its predecessor is killed, and when
/// it is dead the successor gets the lane. The stall is the longest time without an answer.
#[test]
fn a_replacement_at_full_depth_is_a_short_stall_and_no_error() {
    let replaces = setting("NBD_SOAK_REPLACES", 10);
    for spec in ["mem:1M", "file"] {
        let mut scene = Scene::begin(spec, 1);
        let (mut stalls, mut idle) = (Vec::new(), Vec::new());
        for _ in 0..replaces {
            let next = scene.holder.start_attached(&[&scene.spec]);
            let (_, channel) = scene.holder.hear();
            scene.watch();
            scene.answers(100);
            idle.push(scene.watch());
            std::mem::replace(&mut scene.server, next).kill();
            let fate = scene.holder.grant(channel);
            assert!(matches!(fate, Fate::Ready { .. }), "{fate:?}");
            scene.answers(100);
            stalls.push(scene.watch());
        }
        let report = scene.end();
        assert!(report.is_good(), "{report}");
        eprintln!(
            "soak: {spec}: {replaces} replacements at queue depth {DEPTH}: 0 errors; stall {}; \
             without a replacement {}",
            report::spread(stalls),
            report::spread(idle)
        );
    }
}

impl Scene {
    /// Waits for so many more answers.
    fn answers(&self, count: u64) {
        let goal = self.kernel.expected().report.requests + count;
        while self.kernel.expected().report.requests < goal {
            assert!(!self.threads[1].is_finished(), "{}", self.kernel.expected().report);
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The longest time without an answer since this was last asked.
    fn watch(&self) -> Duration {
        std::mem::take(&mut self.kernel.expected().gap)
    }
}

/// Every request that was sent must be answered, with nobody killed any more.
fn finish(
    kernel: &Kernel,
    socket: &UnixStream,
    threads: [std::thread::JoinHandle<()>; 2],
) -> Report {
    kernel.end();
    let deadline = Instant::now() + EVENT_TIMEOUT;
    while !kernel.expected().pending.is_empty()
        && !threads[1].is_finished()
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    let left = kernel.expected().pending.len() as u64;
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    for thread in threads {
        thread.join().unwrap();
    }
    Report { unanswered: left, ..kernel.expected().report }
}
