//! `nbd-ctl why` and the orders that it advises, where the storage above or below the device
//! matters: mappings and partitions on it, and a backend that its own storage keeps.

use nbd_control::status::BackendState;
use nbd_tests::command::{PROGRAM_TIMEOUT, start};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::disk::start_read;
use nbd_tests::mapping::Mapping;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const USAGE: i32 = 2;
const TIMED_OUT: i32 = 5;

kernel_tests!(
    a_process_that_waits_for_a_mapping_and_the_mapping_are_named,
    partitions_and_mappings_lead_to_their_device,
    a_backend_stuck_in_its_storage_gets_no_late_failure,
    a_command_that_times_out_names_what_it_waits_for,
);

fn why(target: &str) -> String {
    ctl(["why", target]).succeeds().stdout
}

fn json(target: &str) -> Value {
    let output = ctl(["why", target, "--json"]).succeeds().stdout;
    serde_json::from_str(&output).expect("JSON")
}

#[track_caller]
fn has_words(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "nothing of \"{word}\" in:\n{text}");
    }
}

fn mapping(device: &Device) -> (Mapping, String) {
    let name = format!("why-{}", device.name());
    (Mapping::on(&device.path(), 4 * MIB, &name, &format!("CRYPT-PLAIN-{name}")), name)
}

fn a_process_that_waits_for_a_mapping_and_the_mapping_are_named(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, ["--no-spare", &files.spec("disk.img", 8 * MIB)]);
    let name = device.name();
    let (mapping, mapped) = mapping(&device);
    device.signal_backend(SIGSTOP);
    let read = start_read(&mapping.path(), MIB);
    wait_until("the read", EVENT_TIMEOUT, || {
        device.status().in_flight.iter().any(|it| it.offset == MIB)
    });

    let waits = format!("dd (pid {}) waits", read.pid());
    wait_until(&waits, EVENT_TIMEOUT, || why(&name).contains(&waits));
    let close = format!("`cryptsetup close {mapped}`");
    has_words(&why(&name), &["stopped by a signal", "is on ", &name, &mapped, &close]);
    // The same, asked about the process that hangs.
    let told = why(&read.pid().to_string());
    has_words(&told, &["cannot be interrupted", &format!("{name}: "), "stopped by a signal"]);
    assert!(!told.contains("no attached NBD device"), "{told}");
    let above = &json(&name)["above"][0];
    assert_eq!(
        (&above["below"], &above["closed_by"]),
        (&name.as_str().into(), &close.trim_matches('`').into())
    );

    device.signal_backend(SIGCONT);
    read.finish(PROGRAM_TIMEOUT).succeeds();
    mapping.remove();
    assert_eq!(json(&name)["above"], Value::Array(Vec::new()));
    device.detach();
}

fn partitions_and_mappings_lead_to_their_device(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let name = device.name();
    let (mapping, mapped) = mapping(&device);
    let node = mapping.path().display().to_string();
    for part in [format!("{name}p1"), format!("/dev/{name}p1"), node.clone()] {
        assert_eq!(json(&part)["device"], name.as_str(), "{part}");
        let status = ctl(["status", &part, "--json"]).succeeds().stdout;
        has_words(&status, &[&format!("\"/dev/{name}\"")]);
    }
    ctl(["detach", &format!("{name}p1")]).fails_with(USAGE).says(&["a partition", &name]);
    let close = format!("`cryptsetup close {mapped}`");
    ctl(["detach", &node]).fails_with(USAGE).says(&[&format!("made of {name}"), &close]);
    mapping.remove();
    device.detach();
}

/// A device whose backend waits in the kernel, as the device below it has a stopped backend.
fn kept_by_storage(api: Api, below: &Device) -> (Device, nbd_tests::command::Running) {
    let spec = format!("file:{}", below.path().display());
    let device = Device::attach(api, ["--no-spare", &spec]);
    below.signal_backend(SIGSTOP);
    // What is written waits in the cache of the device below until it is flushed, and a flush
    // cannot be interrupted.
    let output = format!("of={}", device.path().display());
    let options = ["if=/dev/zero", &output, "bs=4096", "count=1", "oflag=direct", "conv=fsync"];
    let write = start("dd", options);
    wait_until("a backend in uninterruptible sleep", EVENT_TIMEOUT, || {
        json(&device.name())["verdict"] == "blocked"
    });
    (device, write)
}

fn a_backend_stuck_in_its_storage_gets_no_late_failure(api: Api) {
    let below = Device::attach(api, ["--no-spare", "mem:16M"]);
    let (device, write) = kept_by_storage(api, &below);
    let name = device.name();
    let told = why(&name);
    has_words(
        &told,
        &["its own storage", &format!("nbd-ctl why {}", below.name()), "detach --force"],
    );
    assert!(!told.contains("nbd-ctl fail"), "{told}");

    let refused = ctl(["fail", "--kill", &name]).fails_with(TIMED_OUT);
    refused.says(&["not answered with EIO", "waits in the kernel", "withdrawn", "detach --force"]);
    assert!(device.status().in_flight.iter().any(|it| it.command == "flush"), "it still waits");
    below.signal_backend(SIGCONT);
    write.finish(PROGRAM_TIMEOUT).succeeds();
    assert_eq!(device.wait_running().totals.errors, 0);
    device.detach();
    below.detach();
}

fn a_command_that_times_out_names_what_it_waits_for(api: Api) {
    let below = Device::attach(api, ["--no-spare", "mem:16M"]);
    let (device, write) = kept_by_storage(api, &below);
    let name = device.name();
    for order in ["pause --kill", "restart"] {
        let words = order.split(' ').chain(["--timeout", "2", &name]);
        let late = ctl(words).fails_with(TIMED_OUT);
        late.says(&["not dead yet", "its own storage", &format!("nbd-ctl why {name}")]);
        ctl(["resume", "--timeout", "1", &name]);
    }
    below.signal_backend(SIGCONT);
    write.finish(PROGRAM_TIMEOUT).succeeds();
    wait_until("a backend", EVENT_TIMEOUT, || {
        device.status().backend.state == BackendState::Running
    });
    device.detach();
    below.detach();
}
