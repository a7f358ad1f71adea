//! A server that dies all the time, under load, with all data checked.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nbd_backend::Backend;
use nbd_client::{Options, Remote};

use crate::memory::{Memory, Mortal, serve};
use crate::script::{ALL, MULTI, Offer, Server, Style};
use crate::tasks::{Outcome, pattern, read, write};

const DEATHS: usize = 300;
const USERS: u64 = 4;
const BLOCK: usize = 4096;
/// Blocks of one user.
const BLOCKS: u64 = 16;

/// Numbers without a system, the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % most
    }
}

/// Writes to blocks of its own, many at a time, and checks all that it reads.
fn use_device(remote: &Remote, user: u64, is_over: &AtomicBool) -> usize {
    let mut random = Random(user + 1);
    let mut contents = vec![vec![0; BLOCK]; BLOCKS as usize];
    let mut count = 0;
    while !is_over.load(Ordering::Relaxed) {
        let mut writes = Vec::new();
        let mut reads = Vec::new();
        for (block, content) in (0..).zip(&mut contents) {
            let offset = (user * BLOCKS + block) * BLOCK as u64;
            if random.below(2) == 0 {
                *content = pattern(random.0, BLOCK);
                writes.push(write(remote, offset, content));
            } else {
                reads.push((read(remote, offset, BLOCK as u32), content.clone()));
            }
            count += 1;
        }
        for write in writes {
            assert_eq!(write.wait(), Outcome::Done);
        }
        for (read, content) in reads {
            assert!(read.wait() == Outcome::Data(content));
        }
    }
    for (block, content) in (0..).zip(&contents) {
        let offset = (user * BLOCKS + block) * BLOCK as u64;
        assert!(read(remote, offset, BLOCK as u32).wait() == Outcome::Data(content.clone()));
    }
    count
}

fn survive(style: Style, connections: u32) {
    let server = Server::new();
    let size = USERS * BLOCKS * BLOCK as u64;
    let offer = Offer::new(style).size(size).flags(ALL | MULTI);
    let memory: Memory = Mutex::new(vec![0; size as usize]);
    let (is_over, is_done) = (AtomicBool::new(false), AtomicBool::new(false));
    let deaths = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let options = Options { connections: Some(connections), ..Options::default() };
            let remote = Remote::connect(server.target(), options).unwrap();
            let requests: usize = std::thread::scope(|scope| {
                let users: Vec<_> = (0..USERS)
                    .map(|user| {
                        scope.spawn({
                            let (remote, is_over) = (&remote, &is_over);
                            move || use_device(remote, user, is_over)
                        })
                    })
                    .collect();
                users.into_iter().map(|user| user.join().unwrap()).sum()
            });
            println!("{requests} requests, {} deaths", deaths.load(Ordering::Relaxed));
            remote.flush().unwrap();
            drop(remote);
            is_done.store(true, Ordering::Relaxed);
            drop(std::os::unix::net::UnixStream::connect(server.path()));
        });
        let mut random = Random(4711);
        let mut is_first = true;
        loop {
            let stream = server.accept_raw();
            if is_done.load(Ordering::Relaxed) {
                break;
            }
            let mut mortal = Mortal::immortal(stream);
            if !is_over.load(Ordering::Relaxed) && !is_first {
                let life = random.below(200_000) as usize + 600;
                if random.below(2) == 0 { mortal.input = life } else { mortal.output = life }
            }
            if is_first {
                (mortal.input, mortal.output) = (100_000, 100_000);
                is_first = false;
            }
            let (memory, is_over, deaths) = (&memory, &is_over, &deaths);
            scope.spawn(move || {
                if serve(mortal, offer, memory).is_err()
                    && deaths.fetch_add(1, Ordering::Relaxed) + 1 >= DEATHS
                {
                    is_over.store(true, Ordering::Relaxed);
                }
            });
        }
    });
}

#[test]
fn simple_replies() {
    survive(Style::Simple, 1);
}

#[test]
fn structured_replies() {
    survive(Style::Structured, 1);
}

#[test]
fn extended_headers_and_several_connections() {
    survive(Style::Extended, 4);
}
