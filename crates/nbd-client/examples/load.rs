//! Reads or writes at random places of a server for a while, and prints how fast that was:
//! `load TARGET [read|write] [DEPTH] [BYTES] [SECONDS] [CONNECTIONS]`.

use std::env;
use std::error::Error;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nbd_backend::{
    AsyncBackend, Backend, Command, Completion, Durability, ProcessDurability, Task,
};
use nbd_client::{Options, Remote, Target};

struct Load {
    remote: Remote,
    is_write: bool,
    bytes: u32,
    blocks: u64,
    data: Vec<u8>,
    random: AtomicU64,
    count: AtomicU64,
    is_over: AtomicBool,
    durability: ProcessDurability,
}

struct Request {
    load: Arc<Load>,
    command: Command,
}

impl Load {
    fn start(self: &Arc<Self>) {
        let number = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let offset = (number >> 20) % self.blocks * u64::from(self.bytes);
        let length = self.bytes;
        let command = if self.is_write {
            Command::Write { offset, length, fua: false }
        } else {
            Command::Read { offset, length }
        };
        self.remote.submit_async(Box::new(Request { load: Arc::clone(self), command }));
    }
}

impl Task for Request {
    fn command(&self) -> &Command {
        &self.command
    }

    fn payload(&self) -> &[u8] {
        if self.load.is_write { &self.load.data } else { &[] }
    }

    fn begin(&self) {}

    fn durability(&self) -> &dyn Durability {
        &self.load.durability
    }

    fn finish(self: Box<Self>, completion: Completion<'_>) {
        if let Completion::Error(error) = completion {
            eprintln!("{:?} failed: {error}", self.command);
        }
        self.load.count.fetch_add(1, Ordering::Relaxed);
        if !self.load.is_over.load(Ordering::Relaxed) {
            self.load.start();
        }
    }
}

fn argument<T: FromStr>(index: usize, default: T) -> T {
    env::args().nth(index).and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() -> Result<(), Box<dyn Error>> {
    let target: Target = env::args().nth(1).ok_or("which server?")?.parse()?;
    let bytes: u32 = argument(4, 4096);
    let options = Options { connections: Some(argument(6, 1)), ..Options::default() };
    let remote = Remote::connect(target, options)?;
    let load = Arc::new(Load {
        is_write: argument(2, String::from("read")) == "write",
        bytes,
        blocks: remote.geometry().size / u64::from(bytes),
        data: vec![0x55; bytes as usize],
        remote,
        random: AtomicU64::new(1),
        count: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        durability: ProcessDurability::default(),
    });
    let began = Instant::now();
    for _ in 0..argument(3, 1) {
        load.start();
    }
    std::thread::sleep(Duration::from_secs(argument(5, 5)));
    let rate = load.count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} requests/s, {:.1} MiB/s", rate * f64::from(bytes) / f64::from(1 << 20));
    load.is_over.store(true, Ordering::Relaxed);
    load.remote.close();
    Ok(())
}
