//! The flight recorder: what was executed can be seen, also after its backend's death.

use std::fs;

use nbd_control::status::BackendState;
use nbd_tests::command::{PROGRAM_TIMEOUT, Running};
use nbd_tests::ctl::{ctl, program, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_read};
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGINT, SIGKILL, SIGSTOP};
use serde_json::Value;

const MIB: u64 = 1 << 20;

kernel_tests!(
    requests_are_told_with_their_backends_and_survive_their_death,
    a_follower_sees_what_is_executed_until_the_device_is_gone,
);

/// The lines of a trace.
#[track_caller]
fn trace(device: &Device, options: &[&str]) -> Vec<Value> {
    let name = device.name();
    let output = ctl([&["trace", &name, "--json"], options].concat()).succeeds().stdout;
    output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn requests_are_told_with_their_backends_and_survive_their_death(api: Api) {
    let files = TempDir::new();
    let image = files.join("disk.img");
    fs::write(&image, vec![0; 8 * MIB as usize]).expect("an image");
    let (image, mine) = (image.display().to_string(), (6 * MIB).to_string());
    let options = ["--poison-limit", "2", "--", &program("examples/crasher"), &image, &mine];
    let device = Device::attach(api, options);
    let path = device.path();
    disk::write(&path, 3 * MIB, &vec![b't'; 4096]);
    let range = format!("{}+4096", 3 * MIB);
    let writes = || trace(&device, &["--kind", "write", "--range", &range]);
    let [first] = &writes()[..] else { panic!("one write: {:?}", writes()) };
    assert_eq!((&first["command"], &first["error"]), (&"write".into(), &0.into()));
    assert_eq!((number(first, "backend"), number(first, "attempts")), (1, 1));
    let times = ["received_at", "started_at", "finished_at"].map(|name| number(first, name));
    assert!(times[0] > 0 && times.is_sorted(), "{times:?}");
    assert!(first["took_ms"].as_f64().expect("a time") >= 0.0);
    assert!(trace(&device, &["--errors"]).is_empty());
    assert!(trace(&device, &["--slower-than", "1e9"]).is_empty());

    // The next backend goes on in the same book; a request that crashed two has its line as well.
    start_read(&path, 6 * MIB).finish(PROGRAM_TIMEOUT).fails_with(1);
    device.wait_running();
    let [given_up] = &trace(&device, &["--errors"])[..] else { panic!("one error") };
    assert_eq!((number(given_up, "offset"), number(given_up, "error")), (6 * MIB, 5));
    assert_eq!((number(given_up, "attempts"), number(given_up, "backend")), (2, 3));
    assert_eq!(&writes()[0], first, "what was written down stays");

    // Also with neither backend nor holder.
    device.signal_backend(SIGSTOP);
    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    assert_eq!(&writes()[0], first);
    let last = ctl(["trace", &device.name(), "--last", "1"]).succeeds().stdout;
    assert_eq!(last.lines().count(), 1, "{last}");

    // More than the recorder holds.
    device.signal_backend(SIGKILL);
    wait_until("it is served", EVENT_TIMEOUT, || {
        device.status().backend.state == BackendState::Running
    });
    let lanes = u64::from(device.status().lanes);
    let input = format!("if={}", path.display());
    let options = ["of=/dev/null", "iflag=direct", "bs=512", "count=5000"];
    nbd_tests::command::run("dd", [&[&*input], &options[..]].concat()).succeeds();
    let all = trace(&device, &[]);
    assert!(all.len() as u64 <= 4096 * lanes && all.len() >= 4000, "{}", all.len());
    let ends: Vec<u64> = all.iter().map(|line| number(line, "finished_at")).collect();
    assert!(ends.is_sorted(), "in the order of time");
    device.detach();
}

fn a_follower_sees_what_is_executed_until_the_device_is_gone(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let name = device.name();
    let options = ["--follow", "--kind", "read", "--range", "4194304+512"];
    let mut first = start_ctl([&["trace", &name], &options[..]].concat());
    let second = start_ctl([&["trace", &name], &options[..]].concat());
    let has_seen = |follower: &Running| follower.output().contains("4194304+4096");
    start_read(&device.path(), 4 * MIB).finish(PROGRAM_TIMEOUT).succeeds();
    wait_until("the read", EVENT_TIMEOUT, || has_seen(&first) && has_seen(&second));
    assert!(first.is_running());
    first.signal(SIGINT);
    first.finish(PROGRAM_TIMEOUT).succeeds();
    device.detach();
    let seen = second.finish(PROGRAM_TIMEOUT).succeeds().stdout;
    assert!(seen.contains("read") && seen.contains("ok"), "{seen}");
}
