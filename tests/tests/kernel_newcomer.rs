//! What a new user meets in the first hour: answers name what is meant, and what fails leaves nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nbd_tests::command::run;
use nbd_tests::ctl::{ctl, program};
use nbd_tests::device::Device;
use nbd_tests::machine_state::MachineState;
use nbd_tests::mount::Mount;
use nbd_tests::temp::TempDir;
use nbd_tests::{Api, kernel_tests};

const MIB: u64 = 1 << 20;

kernel_tests!(
    the_name_and_the_mount_of_a_device_are_listed,
    a_backend_that_differs_is_told_by_its_abilities,
    the_user_that_may_not_open_a_file_is_named,
    more_memory_than_there_is_gives_a_warning,
    a_program_that_is_no_backend_is_told_what_one_is,
    an_attach_whose_path_cannot_be_printed_is_undone,
    an_attach_without_a_free_device_makes_no_runtime_directory,
);

fn the_name_and_the_mount_of_a_device_are_listed(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", 16 * MIB);
    let device = Device::attach(api, ["--name", "backup", &spec]);
    run("mkfs.ext4", ["-q", &device.path().display().to_string()]).succeeds();
    let place = files.join("mnt");
    let mount = Mount::new(&device.path(), &place);
    let place = place.display().to_string();
    let list = ctl(["list", "-o", "device,name,used-by,access"]).succeeds().stdout;
    let wanted = [&device.name(), "backup", &place, "rw"];
    assert!(list.lines().any(|line| line.split_whitespace().eq(wanted)), "{list}");
    let mounted = format!("  in use     mounted on {place}\n");
    let status = ctl(["status", "backup"]).succeeds().stdout;
    assert!(status.contains("  name       backup\n") && status.contains(&mounted), "{status}");
    let json = ctl(["list", "--json"]).succeeds().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let entry = json.as_array().expect("a list").iter().find(|it| it["name"] == "backup");
    assert_eq!(entry.expect("the device")["used_by"][0], format!("mounted on {place}"));
    let top = ctl(["top", "--once", "--interval", "0.1"]).succeeds().stdout;
    assert!(top.contains("backup"), "{top}");
    mount.unmount();
    device.detach();
    let log = ctl(["logs", "backup"]).succeeds().stdout;
    assert!(log.contains("can be used"), "{log}");
}

fn a_backend_that_differs_is_told_by_its_abilities(api: Api) {
    let device = Device::attach(api, ["mem:8M"]);
    let name = device.name();
    ctl(["replace", &name, "readonly@mem:8M"]).fails_with(1).says(&[
        &format!("it offers read-only, and {name} was attached without"),
        "it does not offer trim, write zeroes",
        &format!("or detach {name} first"),
    ]);
    ctl(["replace", &name, "mem:8M,block=4096"])
        .fails_with(1)
        .says(&[&format!("its blocks have 4096 bytes, and those of {name} 512")]);
    device.detach();
}

fn the_user_that_may_not_open_a_file_is_named(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", MIB);
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).expect("its owner");
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).expect("its owner");
    let spec = format!("file:{}", image.display());
    ctl(["attach", "--kernel-api", api.name(), "--user", "nobody", &spec]).fails_with(1).says(&[
        "disk.img",
        "cannot be written to",
        "as user nobody (uid ",
        "change its owner",
    ]);
}

fn more_memory_than_there_is_gives_a_warning(api: Api) {
    let output = ctl(["attach", "--kernel-api", api.name(), "mem:1T"]).succeeds();
    let device = Device::printed_by(&output);
    let output =
        output.says(&["warning: mem:1T: 1T is more than the ", " MiB of memory of this machine"]);
    assert_eq!(output.stderr.matches("is more than").count(), 1, "{}", output.stderr);
    device.detach();
}

fn a_program_that_is_no_backend_is_told_what_one_is(api: Api) {
    ctl(["attach", "--kernel-api", api.name(), "--", "/bin/true"]).fails_with(1).says(&[
        "exited with status 0 before it joined the device",
        "nbd-backend-protocol(7)",
        "exec:PROGRAM",
    ]);
}

fn an_attach_whose_path_cannot_be_printed_is_undone(api: Api) {
    let before = MachineState::now();
    let command =
        format!("{} attach --kernel-api {} mem:8M >/dev/full", program("nbd-ctl"), api.name());
    run("sh", ["-c", &command])
        .fails_with(1)
        .says(&["to standard output; it is detached again: No space left on device"]);
    before.assert_unchanged();
}

/// Only with ioctl can there be too few devices: netlink makes another one.
fn an_attach_without_a_free_device_makes_no_runtime_directory(api: Api) {
    if api == Api::Netlink {
        return;
    }
    let directory = "/run/nbd-newcomer";
    let attach = ["attach", "--device", "nbd4000", "mem:1M"];
    ctl(["--runtime-dir", directory].iter().chain(&attach)).fails_with(3).says(&["nbd4000"]);
    assert!(!Path::new(directory).exists());
}
