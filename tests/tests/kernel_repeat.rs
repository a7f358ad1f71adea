//! Attaching and detaching again and again, and several at the same time.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nbd_tests::command::LIMIT;
use nbd_tests::ctl::{ctl, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{LONG, wait_until};
use nbd_tests::world::World;
use nbd_tests::{Api, kernel_tests, report};

const ROUNDS: u32 = 10;
const AT_ONCE: usize = 5;

kernel_tests!(ten_rounds_leave_nothing, several_at_once_get_a_device_each);

/// Unix sockets in the whole system: a lane that somebody kept would be one of them.
fn sockets() -> usize {
    let text = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    text.lines().count()
}

fn ten_rounds_leave_nothing(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", 1 << 20);
    let (before, sockets_before) = (World::now(), sockets());
    before.is_empty();
    let mut log = KernelLog::from_now();
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let arguments = ["attach", "--kernel-api", api.name(), &spec];
        let output = ctl(arguments).succeeds();
        assert_eq!(output.stdout, "/dev/nbd0\n");
        fastest = fastest.min(output.took);
        Device::printed_by(&output).detach();
    }
    log.has_no_complaints();
    before.is_unchanged();
    wait_until("all sockets are closed", LONG, || sockets() == sockets_before);
    report(&format!(
        "{}: the fastest attach of {ROUNDS} took {} ms",
        api.name(),
        fastest.as_millis()
    ));
}

fn several_at_once_get_a_device_each(api: Api) {
    let before = World::now();
    let attach = ["attach", "--kernel-api", api.name(), "mem:1M"];
    let running: Vec<_> = (0..AT_ONCE).map(|_| start_ctl(attach)).collect();
    let outputs: Vec<_> = running.into_iter().map(|ctl| ctl.finish(LIMIT)).collect();
    // All of them first, so that none is left if one has failed.
    let good = outputs.iter().filter(|output| output.code == 0);
    let devices: Vec<_> = good.map(Device::printed_by).collect();
    for output in outputs {
        output.succeeds();
    }
    let names: BTreeSet<_> = devices.iter().map(Device::name).collect();
    assert_eq!(names.len(), AT_ONCE, "{names:?}");
    ctl(["detach", "--all"]).succeeds();
    drop(devices);
    before.is_unchanged();
}
