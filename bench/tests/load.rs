//! bench-load against bench-limit: all that is planned is asked, answered and counted.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nbd_net::testing::Scratch;
use serde_json::Value;

const MIB: usize = 1 << 20;
const REQUESTS: usize = 200;
const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A running bench-limit.
struct Limit {
    process: Child,
    address: String,
    _directory: Scratch,
}

impl Limit {
    fn start() -> Self {
        let directory = Scratch::new();
        let socket = directory.path().join("socket");
        let address = format!("unix:{}", socket.display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench-limit"));
        let process = command.args([&address, "--size", "8"]).spawn().unwrap();
        let begin = Instant::now();
        while !socket.exists() {
            assert!(begin.elapsed() < EVENT_TIMEOUT, "{address}: bench-limit does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { process, address, _directory: directory }
    }

    /// Puts load on it; returns what bench-load said.
    fn load(&self, options: &str) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench-load"));
        command.arg(&self.address).args(options.split(' ')).args(["--requests", "200"]);
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{options}: {}", output.status);
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Asserts that a load had all of its answers, and how many bytes they moved.
fn assert_done(limit: &Limit, options: &str, requests: usize, bytes: usize) {
    let said = limit.load(options);
    assert_eq!((&said["requests"], &said["errors"]), (&requests.into(), &0.into()), "{options}");
    let moved = said["mb_per_second"].as_f64().unwrap() * said["seconds"].as_f64().unwrap() * 1e6;
    assert_eq!(moved.round() as usize, bytes, "{options}");
}

#[test]
fn all_that_is_planned_is_answered() {
    let limit = Limit::start();
    for (options, block) in [
        ("--pattern randread", 4096),
        ("--pattern randrw --depth 16 --fill", 4096),
        ("--pattern randwrite --depth 16 --lockstep", 4096),
        ("--pattern read --block 4096 --depth 16", 4096),
        ("--pattern read --block 131072", 128 << 10),
        ("--pattern read --block 131072 --depth 4 --sleep", 128 << 10),
        ("--pattern read --block 3145728 --depth 4", 3 * MIB),
        ("--pattern write --block 1048576 --depth 4", MIB),
        ("--pattern trim --block 65536", 64 << 10),
        ("--pattern flush --depth 4", 0),
    ] {
        assert_done(&limit, options, REQUESTS, REQUESTS * block);
    }
    assert_done(
        &limit,
        "--pattern read --block 131072 --jobs 3",
        3 * REQUESTS,
        3 * REQUESTS * MIB / 8,
    );
}

#[test]
fn a_server_that_dies_is_told() {
    let mut limit = Limit::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench-load"));
    command.args([&limit.address, "--pattern", "read", "--block", "131072", "--wait"]);
    command.args(["--seconds", "1000"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut load = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(load.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    limit.process.kill().unwrap();
    load.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let output = load.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{ready}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("bench-load: "), "{message}");
}
