//! Whoever does I/O while gdb holds the backend: what Ctrl-C and SIGKILL do to them, and that a
//! detach by force frees those whom nothing else can.

use std::fs::File;

use nbd_control::process;
use nbd_control::status::BackendState;
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, start};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::disk::{start_read, start_write};
use nbd_tests::gdb::Gdb;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGINT, SIGKILL};

const MIB: u64 = 1 << 20;

kernel_tests!(
    buffered_reads_die_by_signals_and_direct_io_waits_until_the_backend_goes_on,
    detach_by_force_frees_what_waits_for_a_backend_in_gdb,
);

/// Waits until a process sits in the kernel, where only some signals reach it.
#[track_caller]
fn sits_in_the_kernel(running: &mut Running) {
    wait_until("it sits in the kernel", EVENT_TIMEOUT, || {
        process::stat(running.pid()).is_some_and(|stat| stat.state == 'D')
    });
    assert!(running.is_running(), "{}", running.words());
}

fn buffered_reads_die_by_signals_and_direct_io_waits_until_the_backend_goes_on(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let (path, backend) = (device.path(), device.backend());
    let input = format!("if={}", path.display());
    let block = [b'x'; 4096];
    // As a mounted filesystem does. Whoever opens a device first looks for partitions on it, and
    // waits for them within the call to open.
    let open = File::open(&path).expect("a device");

    let mut gdb = Gdb::attach(backend);
    // One after the other: in some kernels a buffered read holds a lock of the device that a seek
    // wants for itself, and who waits for that dies by nothing.
    let mut cat = start("cat", [&path]);
    sits_in_the_kernel(&mut cat);
    cat.signal(SIGINT);
    cat.finish(PROGRAM_TIMEOUT).fails_with(128 + SIGINT as i32);
    let mut dd = start("dd", [&*input, "of=/dev/null", "bs=4096", "count=1", "skip=512"]);
    sits_in_the_kernel(&mut dd);
    dd.signal(SIGINT);
    // Where cat leaves Ctrl-C to the system, dd wants to count first, which it cannot before
    // its read returns.
    sits_in_the_kernel(&mut dd);
    dd.signal(SIGKILL);
    dd.finish(PROGRAM_TIMEOUT).fails_with(128 + SIGKILL as i32);

    let mut read = start_read(&path, 4 * MIB);
    sits_in_the_kernel(&mut read);
    let mut write = start_write(&path, 5 * MIB, &files.join("block"), &block);
    // Memory of theirs is promised to the driver: they cannot go before it is done with that.
    for running in [&mut read, &mut write] {
        sits_in_the_kernel(running);
        running.signal(SIGINT);
        running.signal(SIGKILL);
    }
    wait_until("direct I/O waits", EVENT_TIMEOUT, || {
        let offsets: Vec<_> = device.status().in_flight.iter().map(|it| it.offset).collect();
        [4 * MIB, 5 * MIB].iter().all(|offset| offsets.contains(offset))
    });
    for running in [&mut read, &mut write] {
        sits_in_the_kernel(running);
    }
    assert_eq!(device.status().backend.state, BackendState::Stopped);

    gdb.begin("continue");
    read.finish(PROGRAM_TIMEOUT).fails_with(128 + SIGKILL as i32);
    write.finish(PROGRAM_TIMEOUT).fails_with(128 + SIGKILL as i32);
    gdb.interrupt(device.backend());
    gdb.quit();
    drop(open);
    let status = device.wait_running();
    assert_eq!((status.backend.restarts, status.totals.errors), (0, 0));
    wait_until("nothing waits", EVENT_TIMEOUT, || device.status().in_flight.is_empty());
    log.has_no_complaints();
    device.detach();
    let image = std::fs::read(files.join("disk.img")).expect("the image");
    assert!(image[5 * MIB as usize..].starts_with(&block), "what a killed dd wrote is written");
}

fn detach_by_force_frees_what_waits_for_a_backend_in_gdb(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let (path, backend) = (device.path(), device.backend());
    let mut gdb = Gdb::attach(backend);
    let mut killed = start_read(&path, 4 * MIB);
    let mut write = start_write(&path, 5 * MIB, &files.join("block"), &[b'x'; 4096]);
    for running in [&mut killed, &mut write] {
        sits_in_the_kernel(running);
    }
    killed.signal(SIGKILL);
    sits_in_the_kernel(&mut killed);

    ctl(["detach", &device.name()]).fails_with(4).says(&["opened by dd", "--force"]);
    device.detach_by_force();
    killed.finish(PROGRAM_TIMEOUT).fails_with(128 + SIGKILL as i32);
    write.finish(PROGRAM_TIMEOUT).fails_with(1).says(&["Input/output error"]);
    // The backend is gone from under gdb, which takes note of it.
    let answer = gdb.ask("continue");
    assert!(answer.contains("terminated") || answer.contains("exited"), "{answer}");
    gdb.quit();
}
