//! Requests about devices that cannot be met: clear words, and the device goes on as it was.

use std::fs;
use std::path::Path;

use nbd_control::status::BackendState;
use nbd_tests::command::{PROGRAM_TIMEOUT, run};
use nbd_tests::ctl::{ctl, program, start_serve};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::machine_state::MachineState;
use nbd_tests::mount::Mount;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NO_DEVICE: i32 = 3;
const IN_USE: i32 = 4;
const DATA_LOST: i32 = 6;

kernel_tests!(
    commands_refuse_devices_that_are_not_attached,
    a_device_in_use_is_not_detached,
    backends_that_do_not_fit_are_refused,
    a_path_that_leads_to_another_file_costs_no_backend,
    a_backend_that_dies_while_its_path_leads_elsewhere_is_followed_once_the_file_is_back,
    a_replacement_that_fails_late_does_not_lose_the_device,
    detach_does_not_swallow_what_could_not_be_written,
);

fn commands_refuse_devices_that_are_not_attached(api: Api) {
    let device = Device::attach(api, ["--no-spare", "mem:1M"]);
    let name = device.name();
    let before = MachineState::now();
    for command in ["detach", "status", "restart", "replace", "wait", "adopt"] {
        let refused = ctl([command, "nbd5"]).fails_with(NO_DEVICE);
        refused.says(&["nbd5", "no such attached device", &format!("attached: {name}")]);
        if command != "status" {
            // A status of what lies on a device is that device's.
            ctl([command, "nbd0p1"]).fails_with(USAGE).says(&["a partition"]);
        }
        ctl([command, "/dev/sda"]).fails_with(USAGE).says(&["not an NBD device"]);
    }
    ctl(["status", "nbd0p1"]).succeeds();
    ctl(["detahc", "nbd0"]).fails_with(USAGE).says(&["detach"]);
    let serve = start_serve(["--join", "nbd5", "mem:1M"]).finish(PROGRAM_TIMEOUT);
    serve.fails_with(FAILED).says(&["nbd5", "is the device attached?"]);
    let serve = start_serve(["--join", "sda", "mem:1M"]).finish(PROGRAM_TIMEOUT);
    serve.fails_with(USAGE).says(&["sda", "nbd0"]);
    before.assert_unchanged();
    device.detach();
    ctl(["detach", &name]).fails_with(NO_DEVICE).says(&["nothing is attached"]);
    ctl(["detach", "--all"]).succeeds();
}

fn a_device_in_use_is_not_detached(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, ["--no-spare", &files.spec("disk.img", 16 * MIB)]);
    let (name, path) = (device.name(), device.path());
    let before = MachineState::now();

    let open = fs::File::open(&path).expect("the device");
    let refused = ctl(["detach", &name]).fails_with(IN_USE);
    let me = format!("(pid {})", std::process::id());
    refused.says(&[&name, "opened by", &me, "--force"]);
    drop(open);

    run("mkfs.ext4", ["-q".as_ref(), path.as_os_str()]).succeeds();
    let mount = Mount::new(&path, &files.join("a mount"));
    let refused = ctl(["detach", &name]).fails_with(IN_USE);
    let place = format!("mounted on {}", files.join("a mount").display());
    refused.says(&[&name, &place, "--force"]);
    ctl(["detach", "--all"]).fails_with(IN_USE).says(&[&place]);
    mount.unmount();

    before.assert_unchanged();
    assert_eq!(device.wait_running().totals.errors, 0);
    device.detach();
}

/// The device still serves what it has served.
#[track_caller]
fn still_works(device: &Device, file: &Path) {
    ctl(["wait", &device.name(), "--timeout", "300"]).succeeds();
    let image = fs::read(file).expect("the file");
    assert!(disk::read(&device.path(), 0, 4096) == image[..4096]);
    assert_eq!(device.wait_running().totals.errors, 0);
}

fn backends_that_do_not_fit_are_refused(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    // A larger one may be the same storage, grown: that is found out later.
    let smaller = files.spec("smaller.img", MIB / 2);
    let device = Device::attach(api, [&spec]);
    let (name, backend) = (device.name(), device.backend());
    let sizes = ["smaller.img", "524288", "1048576", &name];

    let join = ["--join", &name, "--takeover", &smaller];
    let other = ["smaller.img", "is another file than the attached one"];
    start_serve(join).finish(PROGRAM_TIMEOUT).fails_with(FAILED).says(&other);
    ctl(["replace", &name, &smaller]).fails_with(FAILED).says(&other);
    // One that does not look before is refused by the holder.
    let rash = format!("unset NBD_EXAMINE; exec {} {smaller}", program("nbd-serve"));
    ctl(["replace", &name, "--", "/bin/sh", "-c", &rash]).fails_with(FAILED).says(&sizes);
    for program in [vec!["/bin/false"], vec!["/bin/sh", "-c", "exit 3"]] {
        let command = ["replace", &name, "--"].into_iter().chain(program);
        ctl(command).fails_with(FAILED).says(&["the present backend goes on"]);
    }
    let command = ["replace", &name, "--", "no-such-program"];
    ctl(command).fails_with(FAILED).says(&["no-such-program"]);
    ctl(["replace", &name, "fil:x"]).fails_with(USAGE).says(&["`file:`"]);

    assert_eq!(device.backend(), backend, "the backend was not touched");
    still_works(&device, &files.join("disk.img"));
    device.detach();
}

/// The same device would show other data. The successor finds that out while the present backend
/// serves, and nothing is lost but the order.
fn a_path_that_leads_to_another_file_costs_no_backend(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let other = files.spec("other.img", 2 * MIB);
    let device = Device::attach(api, [&spec]);
    let (name, backend) = (device.name(), device.backend());
    let reason = "is another file than the attached one";
    ctl(["replace", &name, &other]).fails_with(FAILED).says(&["other.img", reason]);
    let join = ["--join", &name, "--takeover", &other];
    start_serve(join).finish(PROGRAM_TIMEOUT).fails_with(FAILED).says(&["other.img", reason]);

    let (path, kept) = (files.join("disk.img"), files.join("kept.img"));
    fs::rename(&path, &kept).expect("a file put aside");
    let _image = files.image("disk.img", 2 * MIB);
    let refused = ctl(["restart", &name]).fails_with(FAILED);
    refused.says(&["the present backend goes on", "disk.img", reason]);
    ctl(["replace", &name]).fails_with(FAILED).says(&[reason]);
    ctl(["resize", &name, "--to-backend"]).fails_with(FAILED).says(&[reason]);
    assert_eq!(device.backend(), backend, "the backend was not touched");
    assert_eq!(device.wait_running().backend.restarts, 0);
    still_works(&device, &kept);

    fs::rename(&kept, &path).expect("the file back in its place");
    ctl(["restart", &name]).succeeds();
    still_works(&device, &path);
    device.detach();
}

fn a_backend_that_dies_while_its_path_leads_elsewhere_is_followed_once_the_file_is_back(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, ["--no-spare", &files.spec("disk.img", MIB)]);
    let (path, kept) = (files.join("disk.img"), files.join("kept.img"));
    fs::rename(&path, &kept).expect("a file put aside");
    let _image = files.image("disk.img", MIB);
    device.signal_backend(Signal::SIGKILL);
    // kernel_retry tells that there is no end of them.
    wait_until("failed tries", EVENT_TIMEOUT, || {
        let backend = device.status().backend;
        assert_ne!(backend.state, BackendState::Down, "{}", backend.detail);
        backend.retry.is_some_and(|retry| retry.tries > 4)
    });
    let read = disk::start_read(&device.path(), 0);
    fs::rename(&kept, &path).expect("the file back in its place");
    read.finish(PROGRAM_TIMEOUT).succeeds();
    still_works(&device, &path);
    device.detach();
}

/// One that gets the lanes, and only then finds that it cannot serve: here because it knows nothing
/// of looking before. By then the old backend is dead.
fn a_replacement_that_fails_late_does_not_lose_the_device(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let other = files.spec("other.img", 2 * MIB);
    let device = Device::attach(api, [&spec]);
    let name = device.name();
    let rash = format!("unset NBD_EXAMINE; exec {} {other}", program("nbd-serve"));
    let refused = ctl(["replace", &name, "--", "/bin/sh", "-c", &rash]).fails_with(FAILED);
    refused.says(&["other.img", "is another file than the attached one"]);

    still_works(&device, &files.join("disk.img"));
    let backend = device.wait_running().backend;
    assert_eq!(backend.description, spec);
    assert!(backend.restarts <= 2, "{} restarts", backend.restarts);
    ctl(["restart", &name]).succeeds();
    ctl(["replace", &name, &spec]).succeeds();
    still_works(&device, &files.join("disk.img"));
    device.detach();
}

fn detach_does_not_swallow_what_could_not_be_written(api: Api) {
    let files = TempDir::new();
    let full = files.join("full");
    let mount = Mount::of_memory("size=1M", &full);
    // More than there is room for. Nobody hears of it before the detach.
    let spec = format!("file:{},create=4M", full.join("disk.img").display());
    let device = Device::attach(api, [&spec]);
    disk::write_to_cache(&device.path(), 0, &vec![b'x'; 3 * MIB as usize]);

    let name = device.name();
    let refused = ctl(["detach", &name]).fails_with(DATA_LOST);
    refused.says(&[&name, "is not detached", "writing back failed", "--force"]);
    let status = device.status();
    assert_eq!(status.backend.state, BackendState::Running);
    assert!(status.totals.errors > 0);
    device.detach_by_force();
    mount.unmount();
}
