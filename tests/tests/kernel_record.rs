//! `nbd-ctl record` and `nbd-ctl replay`: what crashed a backend crashes it again without a device.

use std::fs;
use std::path::Path;

use nbd_control::status::BackendState;
use nbd_tests::command::{Output, PROGRAM_TIMEOUT, Running, run};
use nbd_tests::ctl::{ctl, program, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_read};
use nbd_tests::mount::Mount;
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGINT, SIGKILL};

const MIB: u64 = 1 << 20;
/// Where the crasher's assertion is.
const FATAL: u64 = 6 * MIB;

kernel_tests!(
    replay_crashes_a_backend_again_and_minimise_finds_the_one_request,
    a_capture_survives_the_holder_and_nbd_ctl,
    a_full_disk_ends_the_capture_and_not_the_device,
);

/// A backend with a planted assertion; it is quick to die without the names of its functions.
fn crasher(image: &Path, fatal: Option<u64>) -> Vec<String> {
    let program = program("examples/crasher");
    let command = ["--", "env", "RUST_BACKTRACE=0", &program, &image.display().to_string()];
    let fatal = fatal.map(|fatal| fatal.to_string());
    command.into_iter().map(str::to_owned).chain(fatal).collect()
}

#[track_caller]
fn start_record(device: &Device, file: &str, options: &[&str]) -> Running {
    let running = start_ctl([&["record", &device.name(), file], options].concat());
    wait_until("a recording", EVENT_TIMEOUT, || running.words().contains("recording to"));
    running
}

fn replay(file: &str, options: &[&str], backend: &[String]) -> Output {
    let words = [&["replay", file], options].concat();
    ctl(words.into_iter().map(str::to_owned).chain(backend.iter().cloned()))
}

fn replay_crashes_a_backend_again_and_minimise_finds_the_one_request(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 8 * MIB);
    let options = ["--poison-limit", "2"].map(str::to_owned).into_iter();
    let device = Device::attach(api, options.chain(crasher(&image, Some(FATAL))));
    let path = device.path();
    disk::write(&path, MIB, &[1; 4096]);
    ctl(["pause", &device.name()]).succeeds();
    let before = files.join("before.img");
    fs::copy(&image, &before).expect("a copy");
    ctl(["resume", &device.name()]).succeeds();

    let file = files.join("crash.nbdrec").display().to_string();
    let recorder = start_record(&device, &file, &[]);
    let started = device.status().backend.restarts;
    for block in 0..20 {
        disk::write(&path, 2 * MIB + block * 4096, &[2; 4096]);
    }
    start_read(&path, FATAL).finish(PROGRAM_TIMEOUT).fails_with(1);
    device.wait_running();
    disk::write(&path, 3 * MIB, &[3; 4096]);
    assert_eq!(device.status().backend.restarts - started, 2, "and the recording went on");
    assert_eq!(device.status().recording.as_ref(), Some(&file));
    ctl(["trace", &device.name(), "--last", "1"]).succeeds().says(&["nbd-ctl replay", &file]);
    let second = files.join("second").display().to_string();
    ctl(["record", &device.name(), &second])
        .fails_with(4)
        .says(&["is being recorded to", "--stop"]);
    recorder.signal(SIGINT);
    let told = recorder.finish(PROGRAM_TIMEOUT).succeeds();
    told.says(&["of 3 backends", "had by another backend", &format!("read {FATAL}+4096")]);
    assert_eq!(device.status().recording, None);
    disk::write(&path, 4 * MIB, &[4; 4096]);
    device.detach();

    // From here on without the driver.
    let copy = files.join("copy.img");
    let fresh = format!("cp {} {}", before.display(), copy.display());
    let guilty = crasher(&copy, Some(FATAL));
    replay(&file, &["--before", &fresh], &guilty).fails_with(7).says(&[
        "sent and not answered",
        &format!("read {FATAL}+4096"),
        "SIGABRT",
    ]);
    replay(&file, &["--before", &fresh], &crasher(&copy, None)).succeeds();
    let mut expected = fs::read(&before).expect("the image");
    expected[2 * MIB as usize..][..20 * 4096].fill(2);
    expected[3 * MIB as usize..][..4096].fill(3);
    assert!(fs::read(&copy).expect("a copy") == expected, "all that was recorded, and no more");

    let small = files.join("small.nbdrec").display().to_string();
    replay(&file, &["--minimise", &small, "--before", &fresh], &guilty)
        .succeeds()
        .says(&["1 request of", &format!("read {FATAL}+4096")]);
    replay(&small, &[], &guilty).fails_with(7);
    replay(&small, &["--minimise", &small], &guilty).fails_with(1).says(&["exists"]);
    replay(&file, &["--minimise", &second], &crasher(&copy, None))
        .fails_with(1)
        .says(&["does not crash"]);

    // nbd-serve is its own player, so that a debugger has one process before it.
    let spec = format!("cow:{}+{}", before.display(), files.join("diff").display());
    run(program("nbd-serve"), ["--replay", &file, &spec]).succeeds().says(&["requests replayed"]);
}

fn a_capture_survives_the_holder_and_nbd_ctl(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 8 * MIB);
    let device = Device::attach(api, crasher(&image, None));
    let name = device.name();
    let file = files.join("recording").display().to_string();
    ctl(["record", &name, &file, "--background"]).succeeds().says(&["--stop"]);
    disk::write(&device.path(), MIB, &[1; 4096]);

    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    disk::write(&device.path(), 2 * MIB, &[2; 4096]);
    device.signal_backend(SIGKILL);
    wait_until("it is served", EVENT_TIMEOUT, || {
        device.status().backend.state == BackendState::Running
    });
    assert_eq!(device.status().recording.as_ref(), Some(&file));
    disk::write(&device.path(), 3 * MIB, &[3; 4096]);
    ctl(["record", "--stop", &name]).succeeds().says(&["of 2 backends"]);
    ctl(["record", "--stop", &name]).fails_with(4).says(&["is not being recorded"]);
    device.detach();

    let listed = ctl(["replay", &file, "--list"]).succeeds().stdout;
    let written = |line: &str| line.contains(" write ") && line.contains("3145728+4096");
    assert!(listed.lines().any(|line| written(line) && line.ends_with(": ok")), "{listed}");
    let other = files.image("other.img", 8 * MIB);
    replay(&file, &[], &crasher(&other, None)).succeeds();
    assert!(fs::read(&image).expect("an image") == fs::read(&other).expect("an image"));
}

fn a_full_disk_ends_the_capture_and_not_the_device(api: Api) {
    let files = TempDir::new();
    let place = files.join("small");
    let small = Mount::of_memory("size=1M", &place);
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let file = place.join("recording").display().to_string();
    let recorder = start_record(&device, &file, &["--limit", "1G"]);
    for round in 0..3 {
        disk::write(&device.path(), round * MIB, &vec![7; MIB as usize]);
    }
    let ended = recorder.finish(PROGRAM_TIMEOUT).fails_with(1);
    ended.says(&["cut short", "No space left on device", "the device goes on"]);
    assert!(device.log().contains("the recording is over"), "{}", device.log());
    assert_eq!(disk::read(&device.path(), 2 * MIB, 4096), [7; 4096]);
    ctl(["replay", &file]).succeeds();

    // Room for the next one is made by itself, and its limit is no error.
    let file = files.join("limited").display().to_string();
    let recorder = start_record(&device, &file, &["--limit", "100K"]);
    disk::write(&device.path(), 0, &vec![8; MIB as usize]);
    recorder.finish(PROGRAM_TIMEOUT).succeeds().says(&["its limit is reached"]);
    assert!(fs::metadata(&file).expect("a recording").len() <= 100 << 10);
    device.detach();
    small.unmount();
}
