//! A backend that is killed again and again, or replaced, and fio that must not notice.
//!
//! `scripts/soak --vm` makes it longer: `NBD_SOAK_KILLS`, `NBD_SOAK_REQUESTS`, `NBD_SOAK_REPLACES`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::fio::{Area, Report};
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::killer::{self, Killer};
use nbd_tests::process::Memory;
use nbd_tests::random::Random;
use nbd_tests::stall::{StallWatch, spread};
use nbd_tests::temp::TempDir;
use nbd_tests::{Api, kernel_tests, report};

const MIB: u64 = 1 << 20;
const KILLS: u64 = 100;
const REPLACES: u64 = 5;

kernel_tests!(
    fio_verifies_while_the_backend_is_killed_100_times,
    a_replacement_at_full_depth_is_a_short_stall_and_no_error,
);

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn fio_verifies_while_the_backend_is_killed_100_times(api: Api) {
    let kills = setting("NBD_SOAK_KILLS", KILLS) as usize;
    let requests = setting("NBD_SOAK_REQUESTS", 0);
    let mut random = Random::from_environment();
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 64 * MIB)]);
    let path = device.path();
    let area = Area::of_device(&path, 16 * MIB);
    area.fill();

    let killer = Killer::start(&device, 20..=220);
    let start = Instant::now();
    let mut result = Report::default();
    while killer.count() < kills || result.reads + result.writes < requests {
        result = result.and(area.verified_round(&mut random));
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
    // The driver complains of each reply that it does not expect, and drops the lane.
    log.has_no_complaints();
    let outages = outages(&device.log());
    let memory = [status.holder_pid, status.sitter_pid].map(|pid| Memory::of(pid).pss);
    assert!(memory.iter().sum::<u64>() < 6 * 1024, "{memory:?} KiB: it grows");
    device.detach();
    report(&format!(
        "soak: {}: {} requests ({} writes, each of them verified), {} kills in {took:.0} s: \
         {} errors, 0 double replies, 0 lost writes; longest stall {:.0} ms (killed before it had \
         answered: {outages} times); holder and sitter {memory:?} KiB",
        api.name(),
        result.reads + result.writes,
        result.writes,
        killed.len(),
        status.totals.errors,
        result.longest
    ));
}

fn a_replacement_at_full_depth_is_a_short_stall_and_no_error(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 16 * MIB)]);
    let path = device.path();
    let mut load = Area::of_device(&path, 8 * MIB).start_load();
    device.wait_progress();
    let watch = StallWatch::start(&device);
    let (stalls, idle): (Vec<_>, Vec<_>) = (0..setting("NBD_SOAK_REPLACES", REPLACES))
        .map(|_| {
            let backend = device.backend();
            watch.take();
            device.wait_progress();
            let idle = watch.take();
            ctl(["replace", &device.name()]).succeeds();
            assert_ne!(device.backend(), backend, "it was replaced");
            device.wait_progress();
            (watch.take(), idle)
        })
        .unzip();
    drop(watch);
    load.goes_on();
    let result = load.stop().is_good();
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
    report(&format!(
        "soak: {}: {} replacements at queue depth 16, {} requests: 0 errors; stall {}; without \
         a replacement {}",
        api.name(),
        stalls.len(),
        result.reads + result.writes,
        spread(stalls),
        spread(idle),
    ));
}

/// A backend that is killed before it has answered anything counts as one that crashes, and the
/// holder pauses before the next: part of the longest wait on a machine where that takes long.
fn outages(log: &str) -> usize {
    log.lines().filter(|line| line.contains("event=retrying")).count()
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
