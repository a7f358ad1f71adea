//! Programs under a recording: what they did until they crashed is in it, and makes others crash.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use nbd_control::backend::ExportInfo;
use nbd_proto::{CommandFlags, CommandType, NbdError, Request};
use nbd_record::fake_holder::FakeHolder;
use nbd_record::minimise::{Attempt, minimise};
use nbd_record::program::{self, run};
use nbd_record::replayer::{ReplayEnd, replay};
use nbd_record::{Capture, CaptureState, CaptureWriter, ReplayOptions, ReplayReport, writer};

/// Only a hang takes so long.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);
const SIZE: u64 = 1 << 20;
/// Where the crasher's assertion is.
const FATAL: u64 = 64 << 10;
/// `crasher` has flushes and no more; the second flag is that several lanes are fine.
const EXPORT: ExportInfo = ExportInfo { size: SIZE, block_size: 512, flags: 0x105 };

/// A directory that goes away with its test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nbd-replay-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        File::create(path.join("disk.img")).unwrap().set_len(SIZE).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The example with the assertion, as a command line.
    fn crasher(&self, fatal: Option<u64>) -> Vec<String> {
        let exe = std::env::current_exe().unwrap();
        let examples = exe.parent().unwrap().parent().unwrap().join("examples");
        let program = examples.join("crasher").display().to_string();
        let image = self.path("disk.img").display().to_string();
        [program, image].into_iter().chain(fatal.map(|fatal| fatal.to_string())).collect()
    }

    fn new_file(&self, name: &str) -> File {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).open(self.path(name)).unwrap()
    }

    /// A recording of these requests on two lanes, each answered before the next one or none.
    fn recording(&self, name: &str, requests: &[(u32, Request)], answered: bool) -> Capture {
        let file = self.new_file(name);
        writer::begin(&file, "nbd0", EXPORT, 2, u64::MAX).unwrap();
        let mut writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
        writer.backend_started(1, 1, 0);
        for (lane, request) in requests {
            let payload = vec![request.cookie as u8; request.payload_len() as usize];
            writer.request(*lane, request, &payload, false, 0);
            if answered {
                writer.answer(*lane, request.cookie, NbdError::SUCCESS, 0);
            }
        }
        assert_eq!(writer.commit(), CaptureState::Going);
        Capture::read(file).unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn request(cookie: u64, command: CommandType, offset: u64) -> Request {
    let (offset, length) = if command == CommandType::FLUSH { (0, 0) } else { (offset, 4096) };
    Request { flags: CommandFlags::NONE, command, cookie, offset, length }
}

/// Reads, writes and flushes on two lanes, and one that is fatal at the given place.
fn mixture(count: u64, fatal: u64) -> Vec<(u32, Request)> {
    let commands = [CommandType::WRITE, CommandType::READ, CommandType::FLUSH];
    let one = |cookie: u64| match cookie {
        cookie if cookie == fatal => request(cookie, CommandType::WRITE, FATAL),
        cookie => request(cookie, commands[cookie as usize % 3], cookie % 16 * 4096),
    };
    (0..count).map(|cookie| (cookie as u32 % 2, one(cookie))).collect()
}

fn patient() -> ReplayOptions {
    ReplayOptions { answer_timeout: Some(EVENT_TIMEOUT), quiet: true, ..ReplayOptions::default() }
}

/// Starts a backend that is recorded, and sends it the requests of another recording.
fn record(source: &Capture, file: &File, program: &[String]) -> (ReplayReport, Child) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = program::start(program, theirs.into(), true).unwrap();
    let mut holder = FakeHolder::accept(ours, Some(EVENT_TIMEOUT)).unwrap();
    let lanes = holder.grant(source.header.lanes, Some(file)).unwrap();
    (replay(source, &lanes, &patient()), child)
}

#[test]
fn the_capture_has_the_request_that_crashed_the_backend() {
    let place = Directory::new("crash");
    let source = place.recording("source", &mixture(60, 40), true);
    let file = place.new_file("crash");
    writer::begin(&file, "nbd0", EXPORT, 2, 1 << 30).unwrap();
    let (report, mut child) = record(&source, &file, &place.crasher(Some(FATAL)));
    assert_eq!(report.end, ReplayEnd::LaneClosed);
    assert_eq!(report.in_flight, [40]);
    assert_eq!(child.wait().unwrap().signal(), Some(nix::libc::SIGABRT));

    let recording = Capture::read(file).unwrap();
    assert_eq!(
        (recording.state, recording.torn, recording.backend_count()),
        (CaptureState::Going, 0, 1)
    );
    assert_eq!(recording.requests.len(), 41);
    assert_eq!(recording.unanswered().collect::<Vec<_>>(), [40]);
    for (index, recorded) in recording.requests.iter().enumerate() {
        let original = &source.requests[index];
        assert_eq!(
            (recorded.lane, recorded.request.offset),
            (original.lane, original.request.offset)
        );
        assert_eq!(recording.data(index).unwrap(), source.data(index).unwrap());
    }

    // It crashes another process in the same way, and does not crash a better one.
    let outcome = run(&recording, &place.crasher(Some(FATAL)), &patient()).unwrap();
    assert_eq!(outcome.crash().as_deref(), Some("killed by SIGABRT"));
    assert_eq!(outcome.played.unwrap().in_flight, [40]);
    let outcome = run(&recording, &place.crasher(None), &patient()).unwrap();
    assert_eq!(outcome.crash(), None, "{:?}", outcome.status);
    let report = outcome.played.unwrap();
    assert_eq!((report.count(), report.end), (41, ReplayEnd::Complete));
    assert_eq!(report.differences, []);
    let written = fs::read(place.path("disk.img")).unwrap();
    assert_eq!(written[FATAL as usize..][..4096], [40; 4096]);
}

/// As many at once as there are, with a backend that is killed at any moment.
#[test]
fn a_killed_backend_leaves_whole_entries_and_all_its_replies_in_the_capture() {
    let place = Directory::new("kill");
    let source = place.recording("source", &mixture(200, 1000), false);
    let (sender, receiver) = std::sync::mpsc::channel();
    for turn in 0..12 {
        let file = place.new_file(&format!("kill-{turn}"));
        writer::begin(&file, "nbd0", EXPORT, 2, 1 << 30).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut child = program::start(&place.crasher(None), theirs.into(), true).unwrap();
        let mut holder = FakeHolder::accept(ours, Some(EVENT_TIMEOUT)).unwrap();
        let lanes = holder.grant(2, Some(&file)).unwrap();
        let sender = sender.clone();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(300 * turn));
            child.kill().unwrap();
            child.wait().unwrap();
            sender.send(()).unwrap();
        });
        let report = replay(&source, &lanes, &patient());
        killer.join().unwrap();
        receiver.recv().unwrap();
        let recording = Capture::read(file.try_clone().unwrap()).unwrap();
        // The next backend continues after the last whole entry.
        let writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
        drop(writer);
        let resumed = Capture::read(file).unwrap();
        assert_eq!(resumed.torn, 0);
        let answered = report.count() - report.in_flight.len();
        let recorded = resumed.requests.iter().filter(|it| it.error.is_some()).count();
        assert!(recorded >= answered, "{turn}: {recorded} recorded, {answered} answered");
        assert!(recording.requests.len() <= report.count());
    }
}

#[test]
fn a_crash_is_minimised_to_the_request_that_causes_it() {
    let place = Directory::new("minimise");
    let recording = place.recording("source", &mixture(60, 40), true);
    let program = place.crasher(Some(FATAL));
    let attempt = |chosen: &[bool]| {
        let options = ReplayOptions { chosen: Some(chosen.to_vec()), ..patient() };
        let outcome = run(&recording, &program, &options)?;
        let crash = outcome.crash();
        let report = outcome.played.unwrap();
        Ok::<_, std::io::Error>(Attempt { crash, sent: report.sent, in_flight: report.in_flight })
    };
    let found = minimise(60, attempt, |_| Ok(())).unwrap().unwrap();
    assert_eq!(found.iter().filter(|chosen| **chosen).count(), 1);
    assert!(found[40]);
    let file = place.new_file("small");
    recording.excerpt(&file, &found).unwrap();
    let small = Capture::read(file).unwrap();
    let outcome = run(&small, &program, &patient()).unwrap();
    assert_eq!(outcome.crash().as_deref(), Some("killed by SIGABRT"));
}

#[test]
fn a_device_is_served_on_when_its_capture_fails() {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let place = Directory::new("full");
    let source = place.recording("source", &mixture(60, 1000), true);
    for cause in ["limit", "device"] {
        let flags = MFdFlags::MFD_ALLOW_SEALING;
        let file: File = memfd_create(c"recording", flags).unwrap().into();
        let limit = if cause == "limit" { 20_000 } else { 1 << 30 };
        writer::begin(&file, "nbd0", EXPORT, 2, limit).unwrap();
        if cause == "device" {
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
        }
        let (report, mut child) = record(&source, &file, &place.crasher(Some(SIZE)));
        assert_eq!((report.count(), report.end), (60, ReplayEnd::Complete));
        assert!(child.wait().unwrap().success());
        let recording = Capture::read(file).unwrap();
        assert_eq!(recording.torn, 0);
        match cause {
            "limit" => {
                assert_eq!(recording.state, CaptureState::Full);
                assert!((1..60).contains(&recording.requests.len()));
            }
            _ => {
                assert_eq!(recording.state, CaptureState::Failed(nix::libc::EPERM));
                assert_eq!(recording.requests, []);
            }
        }
    }
}

/// What an engineer types: `NBD_REPLAY=crash.nbdrec ./my-backend`.
fn by_hand(place: &Directory, fatal: Option<u64>, recording: &Path) -> Output {
    let program = place.crasher(fatal);
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).env("NBD_REPLAY", recording).output().unwrap()
}

#[test]
fn nbd_replay_replays_inside_the_backend() {
    let place = Directory::new("hand");
    place.recording("recording", &mixture(60, 40), true);
    let path = place.path("recording");
    let crashed = by_hand(&place, Some(FATAL), &path);
    assert_eq!(crashed.status.signal(), Some(nix::libc::SIGABRT));
    let fine = by_hand(&place, None, &path);
    let words = String::from_utf8_lossy(&fine.stderr).into_owned();
    assert!(fine.status.success() && words.contains("60 of 60 requests replayed"), "{words}");

    for (name, bytes, expected) in [
        ("missing", None, "No such file"),
        ("foreign", Some(vec![7; 5000]), "is no recording"),
        ("empty", Some(Vec::new()), "is no recording"),
    ] {
        let path = place.path(name);
        if let Some(bytes) = bytes {
            fs::write(&path, bytes).unwrap();
        }
        let refused = by_hand(&place, None, &path);
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{words}");
        assert!(words.contains(expected) && words.contains(name), "{words}");
    }

    // Another device's.
    File::options().write(true).open(place.path("disk.img")).unwrap().set_len(SIZE / 2).unwrap();
    let refused = by_hand(&place, None, &path);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && words.contains("524288 bytes"), "{words}");
}

/// The recorded results are those of a backend that had no disk.
#[test]
fn replay_reports_results_that_differ() {
    let place = Directory::new("differ");
    let file = place.new_file("recording");
    writer::begin(&file, "nbd0", EXPORT, 1, u64::MAX).unwrap();
    let mut writer = CaptureWriter::resume(file.try_clone().unwrap()).unwrap();
    for (cookie, offset, error) in [(0, 0, NbdError::SUCCESS), (1, 4096, NbdError::EIO)] {
        writer.request(0, &request(cookie, CommandType::READ, offset), &[], false, 0);
        writer.answer(0, cookie, error, 0);
    }
    writer.commit();
    let recording = Capture::read(file).unwrap();
    let report = run(&recording, &place.crasher(None), &patient()).unwrap().played.unwrap();
    let [difference] = report.differences[..] else { panic!("{report:?}") };
    assert_eq!((difference.index, difference.then), (1, NbdError::EIO));
    let words = report.describe(&recording);
    assert!(words.contains("read 4096+4096 (number 2, lane 0)"), "{words}");
}
