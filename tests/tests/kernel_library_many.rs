//! One daemon in C that serves many devices. Alone in its file, as it loads the driver anew.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use nbd_control::registry::Registry;
use nbd_control::status::BackendState;
use nbd_tests::c_program::compile;
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, run, start};
use nbd_tests::ctl::{ctl, require_machine, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::process::Memory;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, report};
use nix::sys::signal::Signal::SIGKILL;

const DEVICES: u32 = 64;
const KILLS: usize = 3;
const BLOCKS: u64 = 16;
const MAX_LOCKED_BYTES: u64 = 512 << 20;
/// Proportional memory of holder and sitter of a device, in KiB.
const MAX_HOLDER_MEMORY: u64 = 1536;

/// A thread that writes blocks one after the other, each durably.
struct Writer {
    stop: Arc<AtomicBool>,
    /// How many blocks it has written.
    written: Arc<AtomicU64>,
    /// The longest write, in microseconds.
    longest: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

fn block(number: u64) -> [u8; 4096] {
    [number as u8 ^ (number >> 8) as u8; 4096]
}

impl Writer {
    fn start(path: &Path) -> Self {
        let file = File::options().write(true).open(path).expect("a device");
        let (stop, written, longest) = (Arc::default(), Arc::default(), Arc::default());
        let (stops, count, most) = (
            Arc::clone(&stop),
            Arc::<AtomicU64>::clone(&written),
            Arc::<AtomicU64>::clone(&longest),
        );
        let stops: Arc<AtomicBool> = stops;
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                if stops.load(Ordering::Relaxed) {
                    break;
                }
                let begun = Instant::now();
                file.write_all_at(&block(number), number % BLOCKS * 4096).expect("a write");
                file.sync_data().expect("a flush");
                let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                most.fetch_max(took, Ordering::Relaxed);
                count.store(number + 1, Ordering::Relaxed);
            }
        });
        Self { stop, written, longest, thread }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Ends it; how many blocks it wrote.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no write fails");
        self.written.load(Ordering::Relaxed)
    }
}

/// Waits until every writer has written more.
fn wait_for_progress(writers: &[Writer]) {
    let before: Vec<_> = writers.iter().map(Writer::written).collect();
    wait_until("every device goes on", EVENT_TIMEOUT, || {
        writers.iter().zip(&before).all(|(writer, before)| writer.written() > *before + 1)
    });
}

fn start_daemon(program: &str, files: &TempDir, options: &[&str]) -> Running {
    let disks = (0..DEVICES).map(|index| {
        let image = files.join(&format!("{index}.img"));
        format!("nbd{index}={}", image.display())
    });
    // With a limit of locked memory that the ledgers of a few devices reach: locking all that will be
    // mapped would keep the others from being served.
    let limit = format!("--memlock={MAX_LOCKED_BYTES}:{MAX_LOCKED_BYTES}");
    let limited = ["--bounding-set", "-ipc_lock", "--", "prlimit", &limit, "--", program];
    let words = limited.into_iter().chain(options.iter().copied()).map(str::to_owned);
    start("setpriv", words.chain(disks))
}

/// Attaches devices that wait for a backend from outside, half of them by ioctl, half by netlink.
fn attach(files: &TempDir) -> Vec<Running> {
    let attaching = (0..DEVICES).map(|index| {
        assert!(files.image(&format!("{index}.img"), 1 << 20).exists());
        let (device, api) = (index.to_string(), Api::ALL[index as usize % 2].name());
        let words = ["attach", "--external", "--lanes", "1", "--kernel-api", api];
        start_ctl(words.into_iter().chain(["--device", &device]))
    });
    let attaching = attaching.collect();
    wait_until("holders that invite", EVENT_TIMEOUT, || {
        (0..DEVICES).all(|index| Registry::new(None).join_socket(index).exists())
    });
    attaching
}

#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn a_daemon_of_64_devices_is_killed_under_load_and_replaced_and_no_write_fails() {
    require_machine();
    run("busybox", ["rmmod", "nbd"]).succeeds();
    run("modprobe", ["nbd", &format!("nbds_max={DEVICES}")]).succeeds();
    wait_until("the driver", EVENT_TIMEOUT, || Path::new("/dev/nbd63").exists());
    let files = TempDir::new();
    let program = compile("examples/c/async_epoll.c", &files);
    let attaching = attach(&files);
    let mut daemon = start_daemon(&program, &files, &[]);
    let attached = attaching.into_iter().map(|it| it.finish(PROGRAM_TIMEOUT).succeeds());
    let mut devices: Vec<_> = attached.map(|output| Device::printed_by(&output)).collect();

    let writers: Vec<_> = devices.iter().map(|device| Writer::start(&device.path())).collect();
    for _ in 0..KILLS {
        wait_for_progress(&writers);
        daemon.signal(SIGKILL);
        daemon.finish(PROGRAM_TIMEOUT);
        daemon = start_daemon(&program, &files, &[]);
    }
    wait_for_progress(&writers);
    writers.iter().for_each(|writer| writer.longest.store(0, Ordering::Relaxed));
    let green = start_daemon(&program, &files, &["--takeover"]);
    assert_eq!(daemon.finish(PROGRAM_TIMEOUT).code, 128 + SIGKILL as i32);
    wait_for_progress(&writers);
    let longest = writers.iter().map(|writer| writer.longest.load(Ordering::Relaxed));
    let mut stalls: Vec<_> = longest.map(|micros| micros as f64 / 1e3).collect();
    stalls.sort_by(f64::total_cmp);

    writers.iter().for_each(|writer| writer.stop.store(true, Ordering::Relaxed));
    let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
    for (device, written) in devices.iter().zip(written) {
        let found = disk::read(&device.path(), 0, BLOCKS * 4096);
        for number in written.saturating_sub(BLOCKS)..written {
            let place = (number % BLOCKS) as usize * 4096;
            assert!(found[place..][..4096] == block(number), "{}: {place}", device.name());
        }
        let status = device.status();
        assert_eq!(status.totals.errors, 0);
        assert_eq!(status.backend.state, BackendState::Running);
        assert_eq!(status.backend.pid, Some(green.pid()));
    }
    let memory = devices.iter().map(|device| {
        let status = device.status();
        [status.holder_pid, status.sitter_pid].map(|pid| Memory::of(pid).pss).iter().sum::<u64>()
    });
    let memory = memory.sum::<u64>() / u64::from(DEVICES);
    assert!(memory < MAX_HOLDER_MEMORY, "{memory} KiB a device");

    // One is detached, and the daemon serves the others.
    devices.remove(0).detach_from(green.pid());
    assert_eq!(devices[0].status().backend.pid, Some(green.pid()));
    ctl(["detach", "--all"]).succeeds();
    drop(devices);
    let said = green.finish(PROGRAM_TIMEOUT).succeeds();
    assert_eq!(said.stdout.matches("ended: Success").count(), DEVICES as usize);
    report(&format!(
        "{DEVICES} devices of one process, taken over by another: longest stall {:.1} ms, median \
         {:.1} ms; holder and sitter {memory} KiB a device",
        stalls[stalls.len() - 1],
        stalls[stalls.len() / 2],
    ));
}
