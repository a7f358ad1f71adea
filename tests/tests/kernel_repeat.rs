//! Attaching and detaching again and again, and several at the same time.
//!
//! `NBD_SOAK_ROUNDS` makes it longer, see `scripts/soak --rounds`.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nbd_tests::command::PROGRAM_TIMEOUT;
use nbd_tests::ctl::{ctl, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::machine_state::MachineState;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests, report};

const ROUNDS: u64 = 10;
const AT_ONCE: usize = 5;

kernel_tests!(rounds_leave_nothing, several_at_once_get_a_device_each);

/// Unix sockets in the whole system: a lane that somebody kept would be one of them.
fn sockets() -> usize {
    let text = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    text.lines().count()
}

/// Open files in the whole system.
fn open_files() -> u64 {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").expect("/proc/sys/fs/file-nr");
    let number = text.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    number.expect("a number of files")
}

/// Memory of the kernel's own, in KiB.
fn kernel_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    number.expect("the size of its objects")
}

fn rounds_leave_nothing(api: Api) {
    let rounds = std::env::var("NBD_SOAK_ROUNDS")
        .map_or(ROUNDS, |text| text.parse().expect("NBD_SOAK_ROUNDS is a number"));
    let files = TempDir::new();
    let spec = files.spec("disk.img", 1 << 20);
    // What is made once and stays shall not count.
    Device::attach(api, [&spec]).detach();
    let (before, sockets_before) = (MachineState::now(), sockets());
    let (files_before, memory_before) = (open_files(), kernel_memory());
    before.assert_nothing_attached();
    let mut log = KernelLog::from_now();
    let mut fastest = Duration::MAX;
    for _ in 0..rounds {
        let arguments = ["attach", "--kernel-api", api.name(), &spec];
        let output = ctl(arguments).succeeds();
        assert_eq!(output.stdout, "/dev/nbd0\n");
        fastest = fastest.min(output.took);
        Device::printed_by(&output).detach();
    }
    log.has_no_complaints();
    before.assert_unchanged();
    wait_until("all sockets are closed", EVENT_TIMEOUT, || sockets() == sockets_before);
    // The kernel counts a few files that are being closed, one or two for each processor.
    wait_until("all files are closed", EVENT_TIMEOUT, || open_files() < files_before + 32);
    let grown = kernel_memory().saturating_sub(memory_before);
    assert!(grown < 2048 + 8 * rounds, "the kernel's memory has grown by {grown} KiB");
    report(&format!(
        "soak: {}: {rounds} rounds of attach and detach left nothing; the kernel's memory grew by \
         {grown} KiB; the fastest attach took {} ms",
        api.name(),
        fastest.as_millis()
    ));
}

fn several_at_once_get_a_device_each(api: Api) {
    let before = MachineState::now();
    let attach = ["attach", "--kernel-api", api.name(), "mem:1M"];
    let running: Vec<_> = (0..AT_ONCE).map(|_| start_ctl(attach)).collect();
    let outputs: Vec<_> = running.into_iter().map(|ctl| ctl.finish(PROGRAM_TIMEOUT)).collect();
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
    before.assert_unchanged();
}
