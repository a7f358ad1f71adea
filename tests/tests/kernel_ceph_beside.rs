//! rbd-nbd itself, on the same cluster and driver: what becomes of its device when its daemon is killed,
//! and how quick both are. The guide tells people who come from it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nbd_tests::ceph::{Cluster, Image};
use nbd_tests::command::{PROGRAM_TIMEOUT, run};
use nbd_tests::ctl::require_machine;
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_read};
use nbd_tests::fio::Area;
use nbd_tests::process::signal;
use nbd_tests::sysfs::block_attribute;
use nbd_tests::{Api, kernel_tests, report};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 3;
/// How long rbd-nbd has the driver wait for another daemon, where it uses netlink.
const REATTACH: Duration = Duration::from_secs(5);

kernel_tests!(
    a_device_of_rbd_nbd_fails_when_its_daemon_is_killed,
    our_device_is_measured_beside_one_of_rbd_nbd,
);

/// A device of rbd-nbd.
struct Mapped<'a> {
    cluster: &'a Cluster,
    path: PathBuf,
}

impl<'a> Mapped<'a> {
    fn new(api: Api, cluster: &'a Cluster, image: &Image<'_>) -> Self {
        require_machine();
        let timeout = REATTACH.as_secs().to_string();
        let netlink = ["--try-netlink", "--reattach-timeout", &timeout];
        let options = if api == Api::Netlink { &netlink[..] } else { &[] };
        let name = image.name();
        let words = ["map", &name].into_iter().chain(options.iter().copied());
        let output = cluster.run("rbd-nbd", words).succeeds();
        Self { cluster, path: PathBuf::from(output.stdout.trim()) }
    }

    fn name(&self) -> &str {
        self.path.file_name().and_then(OsStr::to_str).expect("a name of a device")
    }

    /// Its daemon.
    fn pid(&self) -> i32 {
        let pid = block_attribute(self.name(), "pid").expect("a mapped device");
        i32::try_from(pid).expect("a pid")
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        let path = self.path.display().to_string();
        let _ = self.cluster.run("rbd-nbd", ["unmap", &path]);
        let _ = run("nbd-client", ["-d", &path]);
    }
}

fn a_device_of_rbd_nbd_fails_when_its_daemon_is_killed(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let image = cluster.image("theirs", 4 * MIB);
    let mapped = Mapped::new(api, cluster, &image);
    disk::write(&mapped.path, 0, &[b'1'; 4096]);
    let daemon = mapped.pid();
    assert!(signal(daemon, SIGKILL));
    let killed = Instant::now();
    let read = start_read(&mapped.path, 0).finish(PROGRAM_TIMEOUT);
    // Where the daemon sat in the ioctl, the driver has made the device empty with its death.
    let is_empty = read.stderr.contains("0+0 records in");
    assert!(read.code != 0 || is_empty, "a read has been answered without a daemon");
    report(&format!(
        "{}: a read of rbd-nbd's device fails {:.1} s after the death of its daemon: {}",
        api.name(),
        killed.elapsed().as_secs_f64(),
        read.stderr.lines().next().unwrap_or_default()
    ));
}

/// Requests a second for 4 KiB at random, so many at a time.
fn rate(path: &Path, way: &str, depth: usize) -> f64 {
    let output = run(
        "fio",
        [
            "--name=rate",
            &format!("--filename={}", path.display()),
            &format!("--rw=rand{way}"),
            &format!("--iodepth={depth}"),
            "--bs=4k",
            "--size=16M",
            "--direct=1",
            "--ioengine=libaio",
            "--thread",
            "--time_based",
            "--runtime=4",
            "--output-format=json",
        ],
    );
    let text = output.succeeds().stdout;
    let value: Value = serde_json::from_str(&text[text.find('{').expect("JSON")..]).expect("JSON");
    value["jobs"][0][way]["iops"].as_f64().expect("a rate")
}

fn middle(mut numbers: [f64; ROUNDS]) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers[ROUNDS / 2]
}

/// Both in turns, so that what else goes on concerns both.
fn our_device_is_measured_beside_one_of_rbd_nbd(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let images = [cluster.image("ours", 16 * MIB), cluster.image("theirs", 16 * MIB)];
    let device = Device::attach(api, [images[0].spec()]);
    let mapped = Mapped::new(api, cluster, &images[1]);
    let path = device.path();
    for path in [&path, &mapped.path] {
        Area::of_device(path, 16 * MIB).fill();
    }
    for (way, depth) in [("read", 1), ("read", 16), ("write", 1), ("write", 16)] {
        let rounds = [(); ROUNDS].map(|()| [&path, &mapped.path].map(|it| rate(it, way, depth)));
        let [ours, theirs] = [0, 1].map(|which| middle(rounds.map(|round| round[which])));
        let ratio = middle(rounds.map(|[ours, theirs]| ours / theirs));
        report(&format!(
            "{}: rand{way} depth {depth}: ours {ours:.0}/s, rbd-nbd {theirs:.0}/s, ratio {ratio:.2}",
            api.name()
        ));
    }
    device.detach();
}
