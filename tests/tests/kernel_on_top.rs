//! What operators put on a device, while its backend is killed: encryption, volumes, RAID, partitions,
//! file systems, swap; and what stops whole machines: memory that runs short, freezers, suspend.

use std::fs;
use std::path::{Path, PathBuf};

use nbd_tests::cgroup::Cgroup;
use nbd_tests::command::{launch, run, start};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::fio::Area;
use nbd_tests::killer::Killer;
use nbd_tests::mount::Mount;
use nbd_tests::process::children;
use nbd_tests::taken_down::TakenDown;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, disk, kernel_tests, not_run};

const MIB: u64 = 1 << 20;
/// What the load works on.
const AREA: u64 = 2 * MIB;
/// So often at least each backend is killed.
const KILLS: usize = 8;
const IN_USE: i32 = 4;
/// Tools of the device mapper that make and remove nodes themselves: there is no udev.
const NO_UDEV: &str = "DM_DISABLE_UDEV=1";

kernel_tests!(
    luks_keeps_its_data_while_the_backend_is_killed,
    a_logical_volume_keeps_its_data_while_the_backend_is_killed,
    no_half_of_a_mirror_is_thrown_out_when_backends_are_killed,
    a_partition_keeps_its_data_while_the_backend_is_killed,
    xfs_keeps_its_data_while_the_backend_is_killed,
    btrfs_keeps_its_data_while_the_backend_is_killed,
    swap_keeps_what_a_program_has_in_memory_while_the_backend_is_killed,
    pages_are_written_back_when_memory_is_short_and_the_backend_is_killed,
    a_frozen_backend_is_waited_for_and_can_be_killed,
);

/// Whether the kernel has that module, or has it built in.
fn has(module: &str) -> bool {
    let there = run("modprobe", [module]).code == 0;
    if !there {
        not_run(&format!("this kernel has no {module}"));
    }
    there
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Runs a verified load on something that lies on these devices, while their backends are killed.
#[track_caller]
fn survives_kills(devices: &[&Device], path: &Path) {
    let area = Area::of_device(path, AREA);
    area.fill();
    let mut load = area.start_verified();
    let killers: Vec<_> = devices.iter().map(|device| Killer::start(device, 100..=200)).collect();
    for killer in killers {
        wait_until("kills", EVENT_TIMEOUT, || {
            load.goes_on();
            killer.count() >= KILLS
        });
        let _ = killer.stop();
    }
    load.stop().is_good();
    area.check();
    for device in devices {
        assert_eq!(device.wait_running().totals.errors, 0);
    }
}

/// A detach is refused while something is on it.
#[track_caller]
fn is_in_use(device: &Device) {
    ctl(["detach", &device.name()]).fails_with(IN_USE);
}

fn luks_keeps_its_data_while_the_backend_is_killed(api: Api) {
    if !has("dm-crypt") {
        return;
    }
    let files = TempDir::new();
    let key = files.join("key");
    fs::write(&key, [7; 64]).expect("a key");
    let device = Device::attach(api, [files.spec("disk.img", 48 * MIB)]);
    let (path, name) = (device.path(), format!("luks-{}", device.name()));
    let cryptsetup = format!("{NO_UDEV} cryptsetup --key-file {}", key.display());
    let quick = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    run("sh", ["-c", &format!("{cryptsetup} -q luksFormat {quick} {}", path.display())]).succeeds();
    let mut luks = TakenDown::default();
    luks.set_up(
        &format!("{cryptsetup} open {} {name}", path.display()),
        &format!("{NO_UDEV} cryptsetup close {name}"),
    );
    survives_kills(&[&device], &Path::new("/dev/mapper").join(&name));
    is_in_use(&device);
    luks.now();
    device.detach();
}

fn a_logical_volume_keeps_its_data_while_the_backend_is_killed(api: Api) {
    if !has("dm-mod") {
        return;
    }
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 48 * MIB)]);
    let (path, group) = (device.path(), format!("group-{}", device.name()));
    let config = "--config 'activation { udev_sync=0 udev_rules=0 } \
        devices { use_devicesfile=0 obtain_device_list_from_udev=0 }'";
    let mut volume = TakenDown::default();
    volume.set_up(
        &format!("{NO_UDEV} vgcreate {config} {group} {}", path.display()),
        &format!("{NO_UDEV} vgremove {config} --force {group}"),
    );
    volume.set_up(
        &format!("{NO_UDEV} lvcreate {config} -W n -Z n --size 32M --name data {group}"),
        &format!("{NO_UDEV} vgchange {config} --activate n {group}"),
    );
    survives_kills(&[&device], &Path::new("/dev").join(&group).join("data"));
    is_in_use(&device);
    volume.now();
    device.detach();
}

fn no_half_of_a_mirror_is_thrown_out_when_backends_are_killed(api: Api) {
    if !has("raid1") {
        return;
    }
    let files = TempDir::new();
    let attach = |name| Device::attach(api, [files.spec(name, 16 * MIB)]);
    let (left, right) = (attach("left.img"), attach("right.img"));
    let halves = format!("{} {}", left.path().display(), right.path().display());
    let shape = "--run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean --bitmap=none";
    let mut mirror = TakenDown::default();
    mirror.set_up(&format!("mdadm --create /dev/md9 {shape} {halves}"), "mdadm --stop /dev/md9");
    survives_kills(&[&left, &right], Path::new("/dev/md9"));
    let arrays = fs::read_to_string("/proc/mdstat").expect("/proc/mdstat");
    assert!(arrays.contains("[UU]"), "{arrays}");
    is_in_use(&left);
    mirror.now();
    run("sh", ["-c", &format!("cmp -i 2M -n 8M {halves}")]).succeeds();
    left.detach();
    right.detach();
}

fn a_partition_keeps_its_data_while_the_backend_is_killed(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 32 * MIB)]);
    let table = "label: gpt\nstart=1MiB, size=8MiB\nstart=16MiB, size=8MiB\n";
    let script = files.join("table");
    fs::write(&script, table).expect("a script of sfdisk");
    let path = device.path();
    let killer = Killer::start(&device, 100..=200);
    let shell = format!(
        "sfdisk -q --no-tell-kernel {0} <{1} && blockdev --rereadpt {0}",
        path.display(),
        script.display()
    );
    run("sh", ["-c", &shell]).succeeds();
    let _ = killer.stop();
    let partition = PathBuf::from(format!("{}p2", path.display()));
    wait_until("the partition", EVENT_TIMEOUT, || partition.exists());
    survives_kills(&[&device], &partition);
    // The partition is where the table says.
    assert_eq!(disk::read(&partition, 0, MIB), disk::read(&path, 16 * MIB, MIB));
    device.detach();
}

/// A file system of that many bytes, checked by `check` when it is unmounted.
fn file_system_survives_kills(api: Api, size: u64, make: &[&str], check: &[&str]) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", size)]);
    let (path, place) = (device.path(), files.join("mount"));
    run(make[0], make[1..].iter().copied().chain([text(&path)])).succeeds();
    let mount = Mount::new(&path, &place);
    survives_kills(&[&device], &place.join("file"));
    is_in_use(&device);
    mount.unmount();
    run(check[0], check[1..].iter().copied().chain([text(&path)])).succeeds();
    let mount = Mount::new(&path, &place);
    Area::of_device(&place.join("file"), AREA).check();
    mount.unmount();
    device.detach();
}

fn xfs_keeps_its_data_while_the_backend_is_killed(api: Api) {
    if has("xfs") {
        file_system_survives_kills(api, 320 * MIB, &["mkfs.xfs", "-q"], &["xfs_repair", "-n"]);
    }
}

fn btrfs_keeps_its_data_while_the_backend_is_killed(api: Api) {
    if has("btrfs") {
        let check = ["btrfs", "check", "--readonly", "--check-data-csum"];
        file_system_survives_kills(api, 128 * MIB, &["mkfs.btrfs", "--quiet"], &check);
    }
}

/// Fills its memory with numbers again and again and reads them back, until a file appears.
const USES_MEMORY: &str = "import os, sys
group, end = sys.argv[1:]
with open(group + '/cgroup.procs', 'w') as procs: procs.write(str(os.getpid()))
memory, step, times = bytearray(32 << 20), 4096, 0
while not os.path.exists(end):
    for at in range(0, len(memory), step): memory[at:at + 8] = (at ^ times).to_bytes(8, 'little')
    for at in range(0, len(memory), step):
        assert int.from_bytes(memory[at:at + 8], 'little') == at ^ times, at
    times += 1
    print(times, flush=True)";

fn swap_keeps_what_a_program_has_in_memory_while_the_backend_is_killed(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 64 * MIB)]);
    let path = device.path();
    run("mkswap", [&path]).succeeds();
    let mut swap = TakenDown::default();
    swap.set_up(&format!("swapon {}", path.display()), &format!("swapoff {}", path.display()));
    let group = Cgroup::new(&files.join("cgroup"));
    group.limit_memory(16 * MIB);
    let end = files.join("end");
    let mut program = start("python3", ["-c", USES_MEMORY, text(group.path()), text(&end)]);
    wait_until("memory that went to swap", EVENT_TIMEOUT, || {
        assert!(program.is_running(), "{}", program.words());
        !program.output().is_empty()
    });
    let killer = Killer::start(&device, 100..=200);
    wait_until("kills", EVENT_TIMEOUT, || {
        assert!(program.is_running(), "{}", program.words());
        killer.count() >= KILLS
    });
    let swapped = fs::read_to_string(group.path().join("memory.swap.current"));
    let swapped: u64 = swapped.expect("the group's swap").trim().parse().expect("a number");
    assert!(swapped > 8 * MIB, "only {swapped} bytes are in swap");
    is_in_use(&device);
    let _ = killer.stop();
    fs::write(&end, "").expect("a file that ends the program");
    program.finish(EVENT_TIMEOUT).succeeds();
    swap.now();
    assert_eq!(device.wait_running().totals.errors, 0);
    device.detach();
}

/// More dirty pages than a group may have: each new one waits for another that is written back, and
/// that waits for a backend that has to be started.
fn pages_are_written_back_when_memory_is_short_and_the_backend_is_killed(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 96 * MIB)]);
    let (path, place) = (device.path(), files.join("mount"));
    run("mkfs.ext4", ["-q".as_ref(), path.as_os_str()]).succeeds();
    let mount = Mount::new(&path, &place);
    let group = Cgroup::new(&files.join("cgroup"));
    group.limit_memory(12 * MIB);
    let killer = Killer::start(&device, 100..=200);
    let copy = "echo $$ >\"$1/cgroup.procs\" && for time in 1 2; do
        openssl enc -aes-128-ctr -pass pass:x -iter 1 -in /dev/zero 2>/dev/null | head -c 40M >\"$2\" || exit; done
        sha256sum <\"$2\"";
    let mut writer = std::process::Command::new("sh");
    writer.args(["-c", copy, "sh", text(group.path()), text(&place.join("file"))]);
    let written = launch(writer).finish(EVENT_TIMEOUT * 4).succeeds().stdout;
    wait_until("kills", EVENT_TIMEOUT, || killer.count() >= KILLS);
    mount.unmount();
    let _ = killer.stop();
    run("e2fsck", ["-f", "-n", text(&path)]).succeeds();
    let mount = Mount::new(&path, &place);
    let file = place.join("file");
    let read = run("sh", ["-c", "sha256sum <\"$1\"", "sh", text(&file)]).succeeds().stdout;
    assert_eq!(read, written);
    mount.unmount();
    device.detach();
}

/// The backend alone by ioctl, where the process in NBD_DO_IT must not be frozen; everything by netlink.
fn a_frozen_backend_is_waited_for_and_can_be_killed(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, ["--no-spare", &files.spec("disk.img", 16 * MIB)]);
    let group = Cgroup::new(&files.join("cgroup"));
    let area_path = device.path();
    let area = Area::of_device(&area_path, AREA);
    area.fill();
    let mut load = area.start_verified();
    device.wait_progress();

    let backend = device.backend();
    let holder = device.state().expect("a state").holder.pid;
    let all =
        if api == Api::Netlink { [vec![holder], children(holder)].concat() } else { vec![backend] };
    assert!(all.contains(&backend), "{all:?}");
    for pid in &all {
        group.add(*pid);
    }
    group.freeze(true);
    let frozen_at = device.completed();
    let reader = disk::start_read(&device.path(), 8 * MIB);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(device.completed(), frozen_at, "nothing is answered by frozen processes");
    group.freeze(false);
    reader.finish(EVENT_TIMEOUT).succeeds();
    device.wait_progress();

    // A frozen process can be killed, and is followed by another.
    group.freeze(true);
    device.signal_backend(nix::sys::signal::Signal::SIGKILL);
    if api == Api::Netlink {
        group.freeze(false);
    }
    wait_until("another backend", EVENT_TIMEOUT, || {
        device.state().and_then(|state| state.backend).is_some_and(|next| next.pid != backend)
    });
    group.freeze(false);
    device.wait_progress();
    load.goes_on();
    load.stop().is_good();
    area.check();
    assert_eq!(device.wait_running().totals.errors, 0);
    device.detach();
}

/// A suspend freezes all processes first. Here it goes no further, because a device of the virtual
/// machine refuses. By ioctl the freezer takes the process out of the driver, which ends the device.
#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn a_suspend_disturbs_no_io_by_netlink() {
    let state = fs::read_to_string("/sys/power/state").unwrap_or_default();
    if !state.contains("mem") {
        return not_run("this machine cannot be suspended");
    }
    let files = TempDir::new();
    let device = Device::attach(Api::Netlink, [files.spec("disk.img", 16 * MIB)]);
    let path = device.path();
    let area = Area::of_device(&path, AREA);
    area.fill();
    let mut load = area.start_verified();
    for _ in 0..3 {
        device.wait_progress();
        let before = freezes();
        // Fails at a device that cannot, when all processes were frozen.
        let _ = run("sh", ["-c", "echo mem >/sys/power/state"]);
        assert!(freezes() > before, "no process was frozen");
    }
    device.wait_progress();
    load.goes_on();
    load.stop().is_good();
    area.check();
    assert_eq!(device.wait_running().totals.errors, 0);
    device.detach();
}

/// How often the kernel has frozen all processes.
fn freezes() -> usize {
    let log = run("dmesg", [] as [&str; 0]).succeeds().stdout;
    log.lines().filter(|line| line.contains("Freezing user space processes completed")).count()
}
