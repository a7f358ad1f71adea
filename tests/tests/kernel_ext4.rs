//! A file system on a device whose backend does not live long.

use std::ffi::OsStr;
use std::fs;

use nbd_control::status::BackendState;
use nbd_tests::command::run;
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::killer::{self, Killer};
use nbd_tests::mount::Mount;
use nbd_tests::temp::TempDir;
use nbd_tests::{Api, kernel_tests, report, tree};

const MIB: u64 = 1 << 20;
/// So often at least while files are copied.
const KILLS: usize = 20;

kernel_tests!(
    ext4_keeps_a_tree_of_files_while_the_backend_is_killed,
    detach_by_force_takes_a_mounted_device_away,
);

fn make_ext4(device: &Device) {
    run("mkfs.ext4", ["-q".as_ref(), device.path().as_os_str()]).succeeds();
}

fn ext4_keeps_a_tree_of_files_while_the_backend_is_killed(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let source = files.join("source");
    let made = tree::make(&source);
    assert!(made.files >= 2000);
    let device = Device::attach(api, [files.spec("disk.img", 192 * MIB)]);
    let killer = Killer::start(&device, 100..=200);

    make_ext4(&device);
    let mount = Mount::new(&device.path(), &files.join("mount"));
    let copy = files.join("mount").join("copy");
    // From the second round on over what is there, which is another kind of load.
    let options = ["-aT", "--remove-destination"].map(OsStr::new);
    let arguments = options.into_iter().chain([source.as_os_str(), copy.as_os_str()]);
    let mut rounds = 0;
    while killer.count() < KILLS {
        run("cp", arguments.clone()).succeeds();
        run("sync", ["-f".as_ref(), copy.as_os_str()]).succeeds();
        rounds += 1;
    }
    mount.unmount();
    let kills = killer.count();

    let path = device.path();
    run("e2fsck", ["-f".as_ref(), "-n".as_ref(), path.as_os_str()]).succeeds();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("caches to drop");
    let mount = Mount::new(&path, &files.join("mount"));
    tree::compare(&source, &copy);
    mount.unmount();
    let all = killer.stop().len();

    let status = device.wait_running();
    killer::check_restarts(&device, all);
    assert_eq!(status.totals.errors, 0);
    log.has_no_complaints();
    device.detach();
    report(&format!(
        "{}: {} files, {} MiB, copied {rounds} times; {kills} kills until unmounted, {all} in all",
        api.name(),
        made.files,
        made.bytes / MIB,
    ));
}

/// What was not written is lost, and the kernel says so; but it ends, and the device can be used
/// again once the mount is gone.
fn detach_by_force_takes_a_mounted_device_away(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", 32 * MIB);
    let device = Device::attach(api, [&spec]);
    make_ext4(&device);
    let mount = Mount::new(&device.path(), &files.join("mount"));
    let file = files.join("mount").join("file").display().to_string();
    run("cp", ["/proc/version", &file]).succeeds();

    let name = device.name();
    let refused = ctl(["detach", &name]).fails_with(4);
    let place = files.join("mount").display().to_string();
    refused.says(&[&format!("mounted on {place}"), "--force"]);
    assert_eq!(device.status().backend.state, BackendState::Running);

    // Its lanes and backend are gone, and the driver keeps the rest for the mount.
    let held = ctl(["detach", "--force", &name]).fails_with(4);
    held.says(&["is disconnected", &format!("mounted on {place}")]);
    ctl(["status", &name]).fails_with(3);
    mount.unmount();
    drop(device);
    let again = Device::attach(api, ["--device", &name, &spec]);
    again.detach();
}
