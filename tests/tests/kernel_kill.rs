//! A backend that is killed again and again, and fio that must not notice.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nbd_tests::device::Device;
use nbd_tests::fio::{Area, Report};
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::killer::{self, Killer};
use nbd_tests::process::Memory;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::{Api, kernel_tests, report};

const MIB: u64 = 1 << 20;
const KILLS: usize = 100;

kernel_tests!(fio_verifies_while_the_backend_is_killed_100_times);

fn fio_verifies_while_the_backend_is_killed_100_times(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 64 * MIB)]);
    let path = device.path();
    let area = Area::of_device(&path, 16 * MIB);
    area.fill();

    let killer = Killer::start(&device, 20..=220);
    let start = Instant::now();
    let mut result = Report::default();
    while killer.count() < KILLS {
        result = result.and(area.verified_round());
    }
    let killed = killer.stop();
    let took = start.elapsed().as_secs_f64();

    // Each of the killed was another process, and nobody else died.
    let status = device.wait_running();
    assert!(!killed.contains(&status.backend.pid.expect("a backend")));
    killer::check_restarts(&device, killed.len());
    assert_eq!(status.totals.errors, 0);
    assert!(status.in_flight.is_empty(), "{:?}", status.in_flight);
    area.check();
    log.has_no_complaints();
    let pause = longest_pause(&device.log());
    let memory = [status.holder_pid, status.sitter_pid].map(|pid| Memory::of(pid).rss);
    assert!(memory.iter().sum::<u64>() < 6 * 1024, "{memory:?} KiB: it grows");
    device.detach();
    report(&format!(
        "{}: {} kills in {took:.0} s, {} reads and {} writes, each of which was verified, \
         longest wait {:.0} ms (longest pause before a restart {pause} ms); \
         holder and sitter {memory:?} KiB",
        api.name(),
        killed.len(),
        result.reads,
        result.writes,
        result.longest
    ));
}

/// A backend that is killed before it has answered anything counts as one that crashes, and the
/// holder lets it wait: part of the longest wait on a machine where that takes long.
fn longest_pause(log: &str) -> u64 {
    let pauses = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("starting the backend again in ")?;
        rest.strip_suffix(" ms")?.parse().ok()
    });
    pauses.max().unwrap_or(0)
}

/// What the test above relies on, tried on a file that somebody else scribbles over.
#[test]
#[ignore = "needs fio, like the tests beside it"]
fn fio_notices_damage() {
    let files = TempDir::new();
    let path = files.image("file", 4 * MIB);
    let area = Area { path: &path, size: 4 * MIB, direct: false };
    area.fill();
    area.check();
    let fio = area.start_verified();
    let noticed = AtomicBool::new(false);
    let words = std::thread::scope(|scope| {
        scope.spawn(|| scribble_until(&noticed, &path));
        let words = fio.ends().is_bad();
        noticed.store(true, Ordering::Relaxed);
        words
    });
    assert!(words.contains("verify"), "{words}");
    area.try_check().is_bad();
}

/// Changes a byte of the file at random places, again and again.
fn scribble_until(stop: &AtomicBool, path: &Path) {
    let image = File::options().write(true).open(path).expect("the file");
    let mut random = Random::by_clock();
    while !stop.load(Ordering::Relaxed) {
        let at = random.within(&(0..=4 * MIB / 4096 - 1)) * 4096 + 1000;
        image.write_at(&random.bytes(1), at).expect("a scribble");
        std::thread::sleep(Duration::from_millis(1));
    }
}
