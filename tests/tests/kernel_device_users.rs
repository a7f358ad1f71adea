//! A device that is used is neither detached nor made smaller, whatever uses it: also those that
//! open it without claiming it, and that no process has open.

use std::fs;
use std::path::{Path, PathBuf};

use nbd_tests::command::{run, start};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::loop_device::{LoopDevice, load_driver};
use nbd_tests::mapping::Mapping;
use nbd_tests::mount::Mount;
use nbd_tests::sysfs::block_attribute;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, disk, kernel_tests};

const MIB: u64 = 1 << 20;
const IN_USE: i32 = 4;

kernel_tests!(
    a_loop_device_on_the_device_is_named_and_kept,
    a_file_system_on_a_loop_device_keeps_its_data,
    a_loop_device_on_a_partition_is_named,
    a_mapping_and_what_is_mounted_from_it_are_named_from_the_top,
    a_process_that_only_maps_the_device_is_named,
    a_mount_in_another_namespace_is_named,
    a_target_of_the_kernel_is_named,
);

/// Neither detached nor made smaller, with these words; then it has its size and answers.
#[track_caller]
fn is_kept(device: &Device, words: &[&str]) {
    let (name, size) = (device.name(), block_attribute(&device.name(), "size"));
    let refused = ctl(["detach", &name]).fails_with(IN_USE).says(words);
    refused.says(&[&format!("nbd-ctl detach --force {name}")]);
    let refused = ctl(["resize", &name, "16M"]).fails_with(IN_USE).says(words);
    refused.says(&["would lose the data beyond 16M", &format!("nbd-ctl resize --force {name}")]);
    assert_eq!(block_attribute(&name, "size"), size, "the size");
    let _ = disk::read(&device.path(), 0, 4096);
    assert_eq!(device.wait_running().totals.errors, 0);
}

fn attach(api: Api, files: &TempDir) -> Device {
    Device::attach(api, ["--no-spare", &files.spec("disk.img", 32 * MIB)])
}

/// A file system that fits in what is left after the resize that is refused.
#[track_caller]
fn make_ext4(device: &Path) {
    run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), device.as_os_str(), "8M".as_ref()]).succeeds();
}

fn a_loop_device_on_the_device_is_named_and_kept(api: Api) {
    let files = TempDir::new();
    let device = attach(api, &files);
    let upper = LoopDevice::on(&device.path());
    let close = format!("`losetup -d {}`", upper.path().display());
    is_kept(&device, &[&format!("the loop device {}", upper.name()), &close]);
    upper.remove();
    ctl(["resize", &device.name(), "16M"]).succeeds();
    device.detach();
}

fn a_file_system_on_a_loop_device_keeps_its_data(api: Api) {
    let files = TempDir::new();
    let device = attach(api, &files);
    make_ext4(&device.path());
    load_driver();
    let place = files.join("mnt");
    fs::create_dir_all(&place).expect("a directory to mount on");
    let path = device.path();
    let words = ["-o".as_ref(), "loop".as_ref(), path.as_os_str(), place.as_os_str()];
    run("mount", words).succeeds();
    let bytes = vec![b'x'; MIB as usize];
    fs::write(place.join("file"), &bytes).expect("a file");
    let place_text = place.display().to_string();
    let umount = format!("`umount {place_text}`");
    is_kept(&device, &[&format!("mounted on {place_text} by way of loop"), &umount]);
    run("sync", ["-f".as_ref(), place.as_os_str()]).succeeds();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("caches to drop");
    assert!(fs::read(place.join("file")).expect("the file") == bytes);
    // It is the loop device's only user, so that one goes with it, and no other command is needed.
    run("umount", [&place]).succeeds();
    wait_until("the end of the loop device", EVENT_TIMEOUT, || {
        ctl(["detach", &device.name()]).code == 0
    });
}

fn a_loop_device_on_a_partition_is_named(api: Api) {
    let files = TempDir::new();
    let device = attach(api, &files);
    let path = device.path().display().to_string();
    run("addpart", [&path, "1", "2048", "16384"]).succeeds();
    let partition = PathBuf::from(format!("{path}p1"));
    wait_until("the partition", EVENT_TIMEOUT, || partition.exists());
    let upper = LoopDevice::on(&partition);
    is_kept(&device, &[&format!("the loop device {}", upper.name())]);
    upper.remove();
    run("delpart", [&path, "1"]).succeeds();
    device.detach();
}

fn a_mapping_and_what_is_mounted_from_it_are_named_from_the_top(api: Api) {
    let files = TempDir::new();
    let device = attach(api, &files);
    let name = format!("users-{}", device.name());
    let mapping = Mapping::on(&device.path(), 16 * MIB, &name, &format!("CRYPT-PLAIN-{name}"));
    is_kept(
        &device,
        &["part of dm-", &format!("({name}, dm-crypt)"), &format!("`cryptsetup close {name}`")],
    );
    make_ext4(&mapping.path());
    let place = files.join("mnt");
    let mount = Mount::new(&mapping.path(), &place);
    let place = place.display().to_string();
    let both = format!("`umount {place}; cryptsetup close {name}`");
    is_kept(&device, &[&format!("mounted on {place} by way of dm-"), &both]);
    mount.unmount();
    mapping.remove();
    device.detach();
}

/// Maps a file shared, closes it, says so, and waits to be ended.
const MAPS: &str = "import ctypes, os, sys, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
fd = os.open(sys.argv[1], os.O_RDWR)
at = libc.mmap(None, ctypes.c_size_t(4096), 3, 1, fd, ctypes.c_long(0))
os.close(fd)
ctypes.memset(at, 7, 4096)
print('mapped', flush=True)
while True: time.sleep(1)";

fn a_process_that_only_maps_the_device_is_named(api: Api) {
    let files = TempDir::new();
    let device = attach(api, &files);
    let path = device.path().display().to_string();
    let mut program = start("python3", ["-c", MAPS, &path]);
    wait_until("the mapping", EVENT_TIMEOUT, || program.output().contains("mapped"));
    is_kept(&device, &["mapped by python3", &format!("(pid {})", program.pid())]);
    assert!(program.is_running(), "{}", program.words());
    drop(program);
    device.detach();
}

fn a_mount_in_another_namespace_is_named(api: Api) {
    let files = TempDir::new();
    let device = attach(api, &files);
    make_ext4(&device.path());
    let place = files.join("mnt");
    fs::create_dir_all(&place).expect("a directory to mount on");
    let place = place.display().to_string();
    let script = format!("mount {} {place} && echo mounted && sleep 600", device.path().display());
    let program = start("unshare", ["--mount", "/bin/sh", "-c", &script]);
    wait_until("the mount", EVENT_TIMEOUT, || program.output().contains("mounted"));
    let words = [
        format!("mounted on {place} (in the mount namespace of pid "),
        "`nsenter -m -t ".into(),
        format!(" umount {place}`"),
    ];
    is_kept(&device, &words.each_ref().map(String::as_str));
    drop(program);
    // The mount ends a little after the last process of its namespace.
    wait_until("the end of the mount", EVENT_TIMEOUT, || ctl(["detach", &device.name()]).code == 0);
}

/// A target that takes the device for a file claims it as little as any program would.
fn a_target_of_the_kernel_is_named(api: Api) {
    let files = TempDir::new();
    let device = attach(api, &files);
    for module in ["configfs", "target_core_mod", "target_core_file"] {
        run("modprobe", [module]).succeeds();
    }
    let core = Path::new("/sys/kernel/config/target/core");
    if !core.exists() {
        run("mount", ["-t", "configfs", "none", "/sys/kernel/config"]).succeeds();
        wait_until("the target", EVENT_TIMEOUT, || {
            fs::create_dir_all("/sys/kernel/config/target").is_ok() && core.exists()
        });
    }
    let adapter = core.join(format!("fileio_{}", device.index()));
    let target = adapter.join("disk");
    fs::create_dir_all(&target).expect("a target");
    let path = device.path().display().to_string();
    let control = format!("fd_dev_name={path},fd_dev_size={}", 8 * MIB);
    fs::write(target.join("control"), control).expect("a target on the device");
    fs::write(target.join("enable"), "1").expect("a target that works");
    let info = fs::read_to_string(target.join("info")).expect("a description");
    assert!(info.contains(&path), "{info}");
    is_kept(&device, &["used by the LIO target", "`targetcli /backstores/fileio delete disk`"]);
    fs::remove_dir(&target).expect("an end of the target");
    fs::remove_dir(&adapter).expect("an end of its adapter");
    device.detach();
}
