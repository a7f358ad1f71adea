//! Another size for a device while it is in use.

use std::fs::{self, OpenOptions};
use std::path::Path;

use nbd_tests::command::{run, start};
use nbd_tests::ctl::{ctl, start_serve};
use nbd_tests::device::Device;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::killer::Killer;
use nbd_tests::mount::Mount;
use nbd_tests::nbdkit::Nbdkit;
use nbd_tests::process::signal;
use nbd_tests::random::Random;
use nbd_tests::sysfs::block_attribute;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, disk, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

const MIB: u64 = 1 << 20;

kernel_tests!(
    ext4_grows_while_it_is_in_use_and_the_backend_is_killed,
    the_size_survives_backends_and_holders,
    resize_refuses_to_shrink_below_what_is_used,
    a_stalled_device_keeps_its_size,
    resize_refuses_impossible_sizes,
    a_backend_from_outside_brings_its_size_along,
    another_server_is_asked_for_its_size,
);

fn set_length(path: &Path, size: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("an image");
    file.set_len(size).expect("another size");
}

/// What the kernel shows.
fn size(device: &Device) -> u64 {
    block_attribute(&device.name(), "size").expect("a size") * 512
}

/// The kernel, the holder, and what a successor of it would read.
#[track_caller]
fn has_size(device: &Device, expected: u64) {
    assert_eq!(size(device), expected, "the kernel");
    assert_eq!(device.status().export.size, expected, "the holder");
    assert_eq!(device.state().expect("a state").export.size, expected, "the state");
}

fn ext4_grows_while_it_is_in_use_and_the_backend_is_killed(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let source = files.join("source");
    fs::write(&source, Random::by_clock().bytes(24 * MIB as usize)).expect("something to copy");
    let image = files.image("disk.img", 16 * MIB);
    let device = Device::attach(api, [format!("file:{}", image.display())]);
    let path = device.path();
    run("mkfs.ext4", ["-q".as_ref(), path.as_os_str()]).succeeds();
    let mount = Mount::new(&path, &files.join("mount"));
    let copy = files.join("mount").join("copy");

    set_length(&image, 64 * MIB);
    let killer = Killer::start(&device, 100..=200);
    let ballast = files.join("mount").join("ballast");
    let write = format!("of={}", ballast.display());
    let busy = start("dd", ["if=/dev/zero", &write, "bs=64k", "count=64", "conv=fsync"]);
    // A backend that is killed before it has taken over is no reason to give up.
    wait_until("it has grown", EVENT_TIMEOUT, || {
        let output = ctl(["resize", &device.name(), "--to-backend"]);
        output.code == 0 || size(&device) == 64 * MIB
    });
    busy.finish(EVENT_TIMEOUT).succeeds();
    run("resize2fs", [&path]).succeeds();
    run("cp", [&source, &copy]).succeeds();
    run("sync", ["-f".as_ref(), copy.as_os_str()]).succeeds();
    let before = killer.count();
    wait_until("another kill", EVENT_TIMEOUT, || killer.count() > before);
    mount.unmount();
    let _ = killer.stop();
    device.wait_running();
    has_size(&device, 64 * MIB);

    run("e2fsck", ["-f".as_ref(), "-n".as_ref(), path.as_os_str()]).succeeds();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("caches to drop");
    let mount = Mount::new(&path, &files.join("mount"));
    run("cmp", [&source, &copy]).succeeds();
    mount.unmount();
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
}

fn the_size_survives_backends_and_holders(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 4 * MIB);
    let device = Device::attach(api, [format!("file:{},create=4M", image.display())]);
    let name = device.name();
    set_length(&image, 16 * MIB);
    ctl(["resize", &name, "8M"]).succeeds().says(&[&format!("{name} has 8M now, after 4M")]);
    has_size(&device, 8 * MIB);
    disk::write(&device.path(), 8 * MIB - 4096, &[7; 4096]);

    // The backend has more, and so has every successor.
    for _ in 0..2 {
        let before = device.backend();
        device.signal_backend(SIGKILL);
        wait_until("another backend", EVENT_TIMEOUT, || {
            device.state().and_then(|state| state.backend).is_some_and(|it| it.pid != before)
        });
        device.wait_running();
        has_size(&device, 8 * MIB);
    }
    ctl(["restart", &name]).succeeds();
    assert_eq!(disk::read(&device.path(), 8 * MIB - 4096, 4096), [7; 4096]);

    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    device.signal_backend(SIGKILL);
    ctl(["adopt", &name]).succeeds();
    device.wait_running();
    has_size(&device, 8 * MIB);

    ctl(["resize", &name, "--to-backend"]).succeeds();
    has_size(&device, 16 * MIB);
    ctl(["resize", &name, "--to-backend"]).succeeds().says(&["has 16M already"]);
    ctl(["resize", &name, "16M"]).succeeds().says(&["has 16M already"]);
    disk::read_all(&device.path());

    // A storage that has shrunk cannot serve it.
    set_length(&image, 8 * MIB);
    ctl(["restart", &name]).fails_with(1).says(&["8388608 bytes", "16777216"]);
    ctl(["resize", &name, "--to-backend"]).fails_with(1).says(&["8388608 bytes", "16777216"]);
    set_length(&image, 16 * MIB);
    ctl(["restart", &name]).succeeds();
    device.detach();
}

fn resize_refuses_to_shrink_below_what_is_used(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 16 * MIB)]);
    let (name, path) = (device.name(), device.path());
    run("mkfs.ext4", ["-q".as_ref(), path.as_os_str(), "8M".as_ref()]).succeeds();
    let mount = Mount::new(&path, &files.join("mount"));
    let refused = ctl(["resize", &name, "12M"]).fails_with(4);
    refused.says(&["mounted on", "would lose the data beyond 12M", "--force"]);
    mount.unmount();
    has_size(&device, 16 * MIB);
    let refused = ctl(["resize", &name, "4M"]).fails_with(4);
    refused.says(&["a file system or a partition on it needs more than 4M", "--force"]);
    has_size(&device, 16 * MIB);

    ctl(["resize", &name, "12M"]).succeeds();
    has_size(&device, 12 * MIB);
    run("e2fsck", ["-f".as_ref(), "-n".as_ref(), path.as_os_str()]).succeeds();
    ctl(["resize", &name, "--force", "4M"]).succeeds();
    has_size(&device, 4 * MIB);
    ctl(["restart", &name]).succeeds();
    has_size(&device, 4 * MIB);
    disk::read_all(&path);
    ctl(["resize", &name, "16M"]).succeeds();
    has_size(&device, 16 * MIB);
    device.detach();
}

fn a_stalled_device_keeps_its_size(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 4 * MIB);
    let device = Device::attach(api, [format!("file:{}", image.display())]);
    let name = device.name();
    set_length(&image, 8 * MIB);
    device.signal_backend(SIGSTOP);
    wait_until("it is stopped", EVENT_TIMEOUT, || {
        device.status().backend.state == nbd_control::status::BackendState::Stopped
    });
    let refused = ctl(["resize", &name, "--to-backend"]).fails_with(4);
    refused.says(&["stalled: its backend is stopped", &format!("nbd-ctl why {name}")]);
    device.signal_backend(SIGCONT);
    device.wait_running();

    ctl(["pause", &name]).succeeds();
    ctl(["resize", &name, "--to-backend"]).fails_with(4).says(&["is paused", "nbd-ctl resume"]);
    ctl(["resume", &name]).succeeds();
    has_size(&device, 4 * MIB);
    ctl(["resize", &name, "--to-backend"]).succeeds();
    has_size(&device, 8 * MIB);
    device.detach();
}

fn resize_refuses_impossible_sizes(api: Api) {
    let device = Device::attach(api, ["mem:4M"]);
    let name = device.name();
    let backend = device.backend();
    for (size, code, words) in [
        ("1000", 2, "use a positive multiple of 512"),
        ("8M", 1, "has 4M and not 8M"),
        ("0", 2, "size of 0"),
        ("9E", 2, "more than a device can have"),
        ("4MB", 2, "is not a size"),
    ] {
        ctl(["resize", &name, size]).fails_with(code).says(&[words]);
    }
    ctl(["resize", &name]).fails_with(2).says(&["--to-backend"]);
    ctl(["resize", &name, "1M", "--to-backend"]).fails_with(2);
    ctl(["resize", "nbd15", "1M"]).fails_with(3);
    ctl(["resize", &name, "--to-backend"]).succeeds().says(&["has 4M already"]);
    assert_eq!(device.backend(), backend, "nobody was replaced for nothing");
    has_size(&device, 4 * MIB);
    device.detach();
}

fn a_backend_from_outside_brings_its_size_along(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 4 * MIB);
    let spec = format!("file:{}", image.display());
    let device = Device::attach(api, ["--no-spare", &spec]);
    let name = device.name();
    let first = start_serve(["--join", &name, "--takeover", &spec]);
    wait_until("it has joined", EVENT_TIMEOUT, || device.status().backend.pid == Some(first.pid()));
    device.wait_running();
    let refused = ctl(["resize", &name, "--to-backend"]).fails_with(4);
    refused.says(&["joined by hand", "--takeover"]);
    set_length(&image, 8 * MIB);
    let second = start_serve(["--join", &name, "--takeover", &spec]);
    wait_until("it has joined", EVENT_TIMEOUT, || {
        device.status().backend.pid == Some(second.pid())
    });
    device.wait_running();
    has_size(&device, 4 * MIB);
    ctl(["resize", &name, "--to-backend"]).succeeds();
    has_size(&device, 8 * MIB);
    disk::read_all(&device.path());
    device.detach();
}

fn another_server_is_asked_for_its_size(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 4 * MIB);
    let server = Nbdkit::start(&files.join("socket"), &image);
    let device = Device::attach(api, [server.uri()]);
    let name = device.name();
    set_length(&image, 8 * MIB);
    ctl(["resize", &name, "--to-backend"]).succeeds();
    has_size(&device, 8 * MIB);
    disk::write(&device.path(), 8 * MIB - 4096, &[9; 4096]);
    device.signal_backend(SIGKILL);
    assert_eq!(disk::read(&device.path(), 8 * MIB - 4096, 4096), [9; 4096]);
    let bytes = fs::read(&image).expect("its content");
    assert_eq!(bytes[(8 * MIB - 4096) as usize..], [9; 4096]);
    device.detach();
}
