//! What cannot be attached is refused in clear words, and nothing is changed by the attempt.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nbd_tests::command::{Output, PROGRAM_TIMEOUT, run, start};
use nbd_tests::ctl::{ctl, program, require_machine};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::machine_state::MachineState;
use nbd_tests::process;
use nbd_tests::sysfs::block_attribute;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::wait_until;
use nbd_tests::{Api, kernel_tests};

const MIB: u64 = 1 << 20;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NO_DEVICE: i32 = 3;
const IN_USE: i32 = 4;
const TIMED_OUT: i32 = 5;

kernel_tests!(
    attach_refuses_a_file_that_cannot_be_a_device,
    attach_refuses_a_misspelt_spec,
    bytes_after_the_last_whole_block_are_left_out_with_a_warning,
    attach_refuses_a_program_that_does_not_serve,
    attach_refuses_a_device_in_use_and_names_that_are_none,
    attach_refuses_a_file_that_another_device_serves,
    attach_without_root_is_refused,
);

#[track_caller]
fn attach(api: Api, arguments: &[&str]) -> Output {
    let always = ["attach", "--kernel-api", api.name()];
    ctl(always.iter().chain(arguments))
}

/// Attaches in vain: once in one sentence, with all these words, and without any trace.
#[track_caller]
fn is_refused(api: Api, arguments: &[&str], code: i32, words: &[&str]) {
    let before = MachineState::now();
    let output = attach(api, arguments).fails_with(code).says(words);
    assert_eq!(output.stdout, "", "{}", output.command);
    let lines = output.stderr.lines().count();
    assert_eq!(lines, 1, "{}:\n{}", output.command, output.stderr);
    before.assert_unchanged();
}

fn attach_refuses_a_file_that_cannot_be_a_device(api: Api) {
    let files = TempDir::new();
    let missing = files.join("missing.img").display().to_string();
    let folder = files.path().display().to_string();
    let pipe = files.join("pipe").display().to_string();
    run("mkfifo", [&pipe]).succeeds();
    let cases: [(String, &[&str]); 8] = [
        (format!("file:{missing}"), &["missing.img", "no such file", "create=SIZE"]),
        (format!("file:{missing}/x"), &["missing.img/x", "no such file"]),
        (format!("file:{folder}"), &[&folder, "is a directory"]),
        (format!("file:{pipe}"), &["is a named pipe"]),
        (files.spec("empty.img", 0), &["empty.img", "is empty", "truncate -s SIZE"]),
        (files.spec("tiny.img", 100), &["tiny.img", "100 bytes", "block of 512"]),
        ("file:/dev/null".into(), &["/dev/null", "is a character device"]),
        (
            format!("{},block=4096", files.spec("small.img", 2048)),
            &["small.img", "2048 bytes", "block of 4096"],
        ),
    ];
    for (spec, words) in cases {
        is_refused(api, &[&spec], FAILED, words);
    }
    assert!(!files.join("missing.img").exists(), "it was made");
    let exists = files.spec("disk.img", MIB);
    let larger = format!("{exists},create=2M");
    is_refused(api, &[&larger], FAILED, &["disk.img", "exists", "1048576", "2M"]);
}

fn attach_refuses_a_misspelt_spec(api: Api) {
    let files = TempDir::new();
    let path = files.image("disk.img", MIB).display().to_string();
    let cases: [(String, &[&str]); 8] = [
        (format!("fil:{path}"), &["`fil:`", "did you mean `file:`?"]),
        (format!("fiel:{path}"), &["`fiel:`", "did you mean `file:`?"]),
        ("men:1M".into(), &["`men:`", "did you mean `mem:`?"]),
        (path.clone(), &["write file:/"]),
        (format!("file:{path},direkt"), &["`direkt`", "did you mean `direct`?"]),
        ("mem:0".into(), &["size of 0"]),
        ("mem:10X".into(), &["`10X` is not a size"]),
        ("mem:8E".into(), &["`8E` is more than a device can have"]),
    ];
    for (spec, words) in cases {
        is_refused(api, &[&spec], USAGE, words);
    }
}

fn bytes_after_the_last_whole_block_are_left_out_with_a_warning(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("odd.img", MIB + 100);
    let output = attach(api, &[&spec]).succeeds();
    let device = Device::printed_by(&output);
    output.says(&["odd.img", "last 100 bytes", "multiple of 512"]);
    assert_eq!(block_attribute(&device.name(), "size"), Some(MIB / 512));
    device.detach();
    let length = fs::metadata(files.join("odd.img")).expect("the file").len();
    assert_eq!(length, MIB + 100, "the file keeps its size");
}

fn attach_refuses_a_program_that_does_not_serve(api: Api) {
    let files = TempDir::new();
    let text = files.image("text", 10).display().to_string();
    let refused_within = |limit: &str, program: &[&str], code, words: &[&str]| {
        let arguments = [["--ready-timeout", limit, "--"].as_slice(), program].concat();
        is_refused(api, &arguments, code, words);
    };
    let refused = |program: &[&str], code, words: &[&str]| {
        refused_within("600", program, code, words);
    };
    refused(&["no-such-program"], FAILED, &["no-such-program", "in PATH"]);
    refused(&["/no/such/program"], FAILED, &["/no/such/program", "no such program"]);
    refused(&[&text], FAILED, &[&text, "not executable"]);
    refused(&["/bin/false"], FAILED, &["exited with status 1"]);
    refused(&["/bin/true"], FAILED, &["exited with status 0"]);
    let words = "echo these are my words >&2; exit 7";
    refused(&["/bin/sh", "-c", words], FAILED, &["status 7", "these are my words"]);
    refused(&["/bin/sh", "-c", "kill -SEGV $$"], FAILED, &["SIGSEGV"]);
    let joins = ["within 2 s", "--ready-timeout"];
    refused_within("2", &["/bin/sleep", "987"], TIMED_OUT, &joins);
    let left = run("pgrep", ["-f", "sleep 987"]);
    assert_eq!(left.code, 1, "the program runs on: {}", left.stdout);
    let serve = program("nbd-serve");
    refused(&[&serve, "mem:10X"], FAILED, &["`10X` is not a size"]);
}

fn attach_refuses_a_device_in_use_and_names_that_are_none(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let refused = |device: &str, code, words: &[&str]| {
        is_refused(api, &["--device", device, &spec], code, words);
    };
    refused("sda", USAGE, &["sda", "not an NBD device", "nbd0"]);
    refused("/dev/sda", USAGE, &["/dev/sda", "not an NBD device"]);
    refused("nbd0p1", USAGE, &["a partition", "nbd0"]);
    if api == Api::Ioctl {
        let words = ["/dev/nbd99", "does not exist", "16 devices", "nbds_max"];
        refused("nbd99", NO_DEVICE, &words);
    }

    let ours = Device::attach(api, ["--no-spare", "mem:1M"]);
    let name = ours.name();
    refused(&name, IN_USE, &[&name, "in use", "nbd-ctl status"]);
    ours.detach();

    // Somebody else's device is neither taken nor harmed.
    let socket = files.join("socket").display().to_string();
    let server = ["--foreground", "--unix", &socket, "memory", "3M"];
    let mut server = start("nbdkit", server);
    wait_until("nbdkit", PROGRAM_TIMEOUT, || fs::metadata(&socket).is_ok());
    assert!(server.is_running());
    let client = start("nbd-client", ["-unix", &socket, "/dev/nbd1"]).finish(PROGRAM_TIMEOUT);
    client.succeeds();
    refused("nbd1", IN_USE, &["/dev/nbd1", "in use", "has set it up"]);
    let first = Device::attach(api, ["mem:1M"]);
    let second = Device::attach(api, ["mem:1M"]);
    assert_eq!((first.name(), second.name()), ("nbd0".into(), "nbd2".into()));
    assert_eq!(block_attribute("nbd1", "size"), Some(3 * MIB / 512));
    ctl(["detach", "nbd1"]).fails_with(NO_DEVICE);
    second.detach();
    first.detach();
    disk::read_all(Path::new("/dev/nbd1"));
    run("nbd-client", ["-d", "/dev/nbd1"]).succeeds();
    // Its kernel thread is the last to let go.
    wait_until("nbd1 is free", PROGRAM_TIMEOUT, || block_attribute("nbd1", "pid").is_none());
}

fn attach_refuses_a_file_that_another_device_serves(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let device = Device::attach(api, ["--no-spare", &spec]);
    let name = device.name();
    let pid = device.backend().to_string();
    let words = ["disk.img", "is in use", &pid, &name, "nbd-ctl detach"];
    is_refused(api, &[&spec], FAILED, &words);
    let link = files.join("link.img");
    fs::hard_link(files.join("disk.img"), &link).expect("a link");
    let link = format!("file:{}", link.display());
    is_refused(api, &[&link], FAILED, &["link.img", "is in use", &pid]);
    is_refused(api, &[&format!("{spec},ro")], FAILED, &["is in use", &pid]);
    assert_eq!(device.wait_running().backend.restarts, 0);
    device.detach();
    // Readers share it.
    let spec = format!("{spec},ro");
    let first = Device::attach(api, [&spec]);
    let second = Device::attach(api, [&spec]);
    assert_eq!(block_attribute(&second.name(), "ro"), Some(1));
    second.detach();
    first.detach();
    // The holder answers before it ends.
    wait_until("no process is left", PROGRAM_TIMEOUT, || process::ours().is_empty());
}

fn attach_without_root_is_refused(api: Api) {
    require_machine();
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    let permissions = fs::Permissions::from_mode(0o777);
    fs::set_permissions(files.path(), permissions).expect("permissions");
    let before = MachineState::now();
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let ctl = program("nbd-ctl");
    let arguments = [&*ctl, "attach", "--kernel-api", api.name(), &spec];
    let output = run("setpriv", user.into_iter().chain(arguments));
    output.fails_with(FAILED).says(&["attach needs root", "sudo"]);
    before.assert_unchanged();
}
