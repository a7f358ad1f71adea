//! File systems on exports that are made to go wrong, and on what a power cut leaves.

use std::fs;

use nbd_tests::command::run;
use nbd_tests::ctl::{ctl, program};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::killer::Killer;
use nbd_tests::mount::Mount;
use nbd_tests::temp::TempDir;
use nbd_tests::{Api, kernel_tests, report};

const MIB: u64 = 1 << 20;

kernel_tests!(
    a_disk_goes_bad_and_gets_well_while_it_is_in_use,
    layers_that_move_no_data_come_and_go,
    ext4_is_whole_after_every_power_cut,
);

/// The journal may be played back and counters be put right, as happens at every boot; then there
/// is nothing left to complain of.
const CHECKER: &str = "e2fsck -fp \"$0\"; [ $? -le 1 ] && e2fsck -fn \"$0\"";

fn make_ext4(path: &std::path::Path) {
    run("mkfs.ext4", ["-q".as_ref(), path.as_os_str()]).succeeds();
}

fn a_disk_goes_bad_and_gets_well_while_it_is_in_use(api: Api) {
    let files = TempDir::new();
    let base = files.image("base.img", 32 * MIB);
    let diff = files.join("changes.cow");
    let cow = format!("cow:{}+{}", base.display(), diff.display());
    let device = Device::attach(api, [format!("error@delay:1ms@{cow}")]);
    let (name, path) = (device.name(), device.path());
    make_ext4(&path);
    let mount = Mount::new(&path, &files.join("mount"));
    let file = files.join("mount").join("file");
    fs::write(&file, vec![b'x'; MIB as usize]).expect("a file");
    run("sync", ["-f".as_ref(), file.as_os_str()]).succeeds();
    mount.unmount();

    assert!(disk::read(&path, 0, 4096).len() == 4096);
    ctl(["set", &name, "error.read=1", "delay.read=0"]).succeeds();
    run("dd", [&format!("if={}", path.display()), "of=/dev/null", "iflag=direct", "count=8"])
        .fails_with(1)
        .says(&["Input/output error"]);
    // It is no better with another backend.
    ctl(["restart", &name]).succeeds();
    run("dd", [&format!("if={}", path.display()), "of=/dev/null", "iflag=direct", "count=8"])
        .fails_with(1);
    ctl(["set", &name, "error.read=0", "error.rate=2"]).fails_with(2).says(&[
        &name,
        "error.rate",
        "`2` is not a share",
    ]);
    let now = ctl(["set", &name]).succeeds();
    assert!(now.stdout.contains("error.read=1\n"), "half of it was done: {}", now.stdout);
    ctl(["set", &name, "error.read=0"]).succeeds();

    let mount = Mount::new(&path, &files.join("mount"));
    assert!(fs::read(&file).expect("the file") == vec![b'x'; MIB as usize]);
    mount.unmount();
    device.detach();
    assert!(fs::read(&base).expect("the base").iter().all(|byte| *byte == 0));
    run(program("nbd-serve"), ["commit", &cow]).succeeds();
    run("e2fsck", ["-f".as_ref(), "-n".as_ref(), base.as_os_str()]).succeeds();
}

fn layers_that_move_no_data_come_and_go(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let device = Device::attach(api, [&spec]);
    let (name, path) = (device.name(), device.path());
    disk::write(&path, 0, &[b'x'; 4096]);
    ctl(["set", &name]).fails_with(1).says(&[&name, "has no settings", "attach it with a layer"]);
    ctl(["replace", &name, &format!("error:read=1@{spec}")]).succeeds();
    run("dd", [&format!("if={}", path.display()), "of=/dev/null", "iflag=direct", "count=8"])
        .fails_with(1);
    ctl(["set", &name, "error.read=0"]).fails_with(1).says(&["has no settings"]);
    // This would change what the device is.
    ctl(["replace", &name, &format!("readonly@{spec}")]).fails_with(1).says(&[&name]);
    ctl(["replace", &name, &spec]).succeeds();
    assert!(disk::read(&path, 0, 4096) == [b'x'; 4096]);
    device.detach();
}

fn ext4_is_whole_after_every_power_cut(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 16 * MIB);
    make_ext4(&image);
    let before = files.join("before.img");
    fs::copy(&image, &before).expect("a copy");
    let log = files.join("disk.log");
    let spec = format!("record:{}@file:{}", log.display(), image.display());
    let device = Device::attach(api, [spec]);
    let killer = Killer::start(&device, 200..=400);
    let mount = Mount::new(&device.path(), &files.join("mount"));
    for number in 0..12 {
        let place = files.join("mount");
        let new = place.join("new");
        fs::write(&new, format!("{number}\n").repeat(5000)).expect("a file");
        fs::File::open(&new).and_then(|file| file.sync_all()).expect("a durable file");
        fs::rename(&new, place.join(format!("file{}", number % 4))).expect("another name");
        fs::create_dir(place.join(format!("directory{number}"))).expect("a directory");
    }
    mount.unmount();
    let kills = killer.stop().len();
    device.wait_running();
    device.detach();

    let (log, before) = (log.display().to_string(), before.display().to_string());
    let cut = ["powercut", &log, "--image", &before, "--points", "10", "--subsets", "1", "--torn"];
    let checked = run(program("nbd-serve"), cut.iter().chain(&["--", "sh", "-c", CHECKER, "{}"]));
    let words = checked.succeeds().stdout;
    assert!(words.contains(" 0 failed"), "{words}");
    report(&format!("{}: {kills} kills, {}", api.name(), words.trim_end()));
}
