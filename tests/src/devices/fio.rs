//! fio: I/O that knows what it wrote.
//!
//! The area that is written to is filled first, so that every block of it always has a header
//! with its checksum and its place, and can be checked by another run as well.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::command::{Running, start};
use crate::random::Random;
use crate::temp::fresh_path;
use crate::wait::{EVENT_TIMEOUT, wait_until};

/// How long a run may take after it was told to stop, or if it ends by itself: for a device that
/// answers 20 requests a second.
const FIO_TIMEOUT: Duration = Duration::from_secs(600);
const BLOCK: u64 = 4096;
const VERIFIED: [&str; 4] =
    ["--rw=randrw", "--verify=crc32c", "--verify_backlog=64", "--serialize_overlap=1"];

/// What fio works on.
#[derive(Clone, Copy, Debug)]
pub struct Area<'a> {
    /// The file or device.
    pub path: &'a Path,
    /// Bytes from its beginning.
    pub size: u64,
    /// Past the page cache.
    pub direct: bool,
}

/// A run that is under way, until it is stopped or fails.
#[derive(Debug)]
pub struct Fio {
    running: Running,
    json: PathBuf,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Reads that were completed.
    pub reads: u64,
    /// Writes that were completed.
    pub writes: u64,
    /// The longest that one of them took, in milliseconds.
    pub longest: f64,
}

/// A run's end.
#[derive(Debug)]
pub struct Ended {
    /// What came of it, if fio could tell.
    report: Option<Report>,
    code: i32,
    /// Whether the job counted no error.
    without_error: bool,
    /// Whether fio is content.
    good: bool,
    words: String,
}

impl<'a> Area<'a> {
    /// So much of a device, past the page cache.
    #[must_use]
    pub fn of_device(path: &'a Path, size: u64) -> Self {
        let direct = true;
        Self { path, size, direct }
    }

    /// How many blocks it has.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.size / BLOCK
    }

    /// Writes all of it once.
    #[track_caller]
    pub fn fill(&self) -> Report {
        let fio = self.start("fill", &["--rw=write", "--verify=crc32c", "--do_verify=0"]);
        fio.end(FIO_TIMEOUT).is_good()
    }

    /// Reads all of it and checks every block.
    #[track_caller]
    pub fn check(&self) -> Report {
        let report = self.try_check().is_good();
        assert_eq!(report.reads, self.blocks(), "every block is checked");
        report
    }

    /// The same, whatever comes of it.
    #[track_caller]
    #[must_use]
    pub fn try_check(&self) -> Ended {
        let fio = self.start("check", &["--rw=read", "--verify=crc32c"]);
        fio.end(FIO_TIMEOUT)
    }

    /// Reads and writes at random, 16 at a time, and reads what it wrote again to check it.
    #[track_caller]
    #[must_use]
    pub fn start_verified(&self) -> Fio {
        self.start("verified", &[&VERIFIED[..], &["--time_based=1", "--runtime=3600"]].concat())
    }

    /// The same with flushes, until each block was either read or written, and all that was
    /// written was read again: so much work, whatever time it takes.
    #[track_caller]
    pub fn verified_round(&self, random: &mut Random) -> Report {
        let seed = format!("--randseed={}", random.number() >> 1);
        let options = [&VERIFIED[..], &["--fsync=64", &seed]].concat();
        let report = self.start("verified", &options).end(FIO_TIMEOUT).is_good();
        assert_eq!(report.reads, self.blocks(), "not all that was written was verified");
        report
    }

    /// Reads and writes at random, always 16 at a time, and checks nothing.
    #[track_caller]
    #[must_use]
    pub fn start_load(&self) -> Fio {
        self.start(
            "load",
            &[
                "--rw=randrw",
                // No neighbours, or the block layer makes one request of two.
                "--blockalign=8k",
                "--norandommap=1",
                "--time_based=1",
                "--runtime=3600",
            ],
        )
    }

    #[track_caller]
    fn start(&self, name: &str, options: &[&str]) -> Fio {
        let json = fresh_path();
        let mut arguments = vec![
            format!("--name={name}"),
            format!("--filename={}", self.path.display()),
            format!("--size={}", self.size),
            format!("--direct={}", u8::from(self.direct)),
            format!("--output={}", json.display()),
        ];
        let always = [
            "--output-format=json",
            "--ioengine=libaio",
            "--bs=4k",
            "--iodepth=16",
            "--randrepeat=0",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--thread",
        ];
        let options = always.iter().chain(options);
        arguments.extend(options.map(|&option| option.to_owned()));
        Fio { running: start("fio", arguments), json }
    }
}

impl Fio {
    /// Panics if it has failed already.
    #[track_caller]
    pub fn goes_on(&mut self) {
        if !self.running.is_running() {
            let words = self.running.words();
            let text = fs::read_to_string(&self.json).unwrap_or_default();
            panic!("fio has ended too early:\n{words}{text}");
        }
    }

    /// Lets it finish what is under way.
    #[track_caller]
    #[must_use]
    pub fn stop(mut self) -> Ended {
        self.goes_on();
        self.running.signal(Signal::SIGINT);
        let ended = self.end(FIO_TIMEOUT);
        // 128 says that it was told to stop, and nothing of errors: these the report has.
        let good = matches!(ended.code, 0 | 128) && ended.without_error;
        Ended { good, ..ended }
    }

    /// Waits for its own end.
    #[track_caller]
    #[must_use]
    pub fn ends(mut self) -> Ended {
        wait_until("the end of fio", EVENT_TIMEOUT, || !self.running.is_running());
        self.end(FIO_TIMEOUT)
    }

    #[track_caller]
    fn end(self, limit: Duration) -> Ended {
        let output = self.running.finish(limit);
        let text = fs::read_to_string(&self.json).unwrap_or_default();
        let _ = fs::remove_file(&self.json);
        // Words of fio's may come before the report and after it.
        let json = text.find('{').map_or("", |begin| &text[begin..]);
        let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
        let report = values.next().and_then(Result::ok);
        let job = report.as_ref().map(|report| &report["jobs"][0]);
        let without_error = job.is_some_and(|job| job["error"] == 0);
        Ended {
            code: output.code,
            without_error,
            good: output.code == 0 && without_error,
            report: job.and_then(read_report),
            words: format!("status {}\n{}{}", output.code, output.stderr, head(&text)),
        }
    }
}

/// Its messages, without the statistics.
fn head(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with([' ', '{', '}']));
    lines.collect::<Vec<_>>().join("\n")
}

fn read_report(job: &Value) -> Option<Report> {
    let longest = |way: &str| job[way]["lat_ns"]["max"].as_f64();
    Some(Report {
        reads: job["read"]["total_ios"].as_u64()?,
        writes: job["write"]["total_ios"].as_u64()?,
        longest: longest("read")?.max(longest("write")?) / 1e6,
    })
}

impl Ended {
    /// Panics unless all requests succeeded and all that was checked was right.
    #[track_caller]
    pub fn is_good(self) -> Report {
        assert!(self.good, "fio has found an error: {}", self.words);
        self.report.expect("a report of fio")
    }

    /// Panics unless something was wrong; the result is what fio says of it.
    #[track_caller]
    pub fn is_bad(self) -> String {
        assert!(!self.good, "fio has not noticed anything: {}", self.words);
        self.words
    }
}

impl Report {
    /// Both, one after the other.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            longest: self.longest.max(other.longest),
        }
    }
}
