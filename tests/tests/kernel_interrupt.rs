//! nbd-ctl is killed with SIGKILL at any of its system calls: the device is attached or it is not.
//!
//! `NBD_SOAK_STEPS` says at how many of them, of the hundreds that there are.

use std::fs;

use nbd_control::registry::Registry;
use nbd_tests::command::{PROGRAM_TIMEOUT, start};
use nbd_tests::ctl::{ctl, program, require_machine};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::machine_state::MachineState;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests, report};
use nix::sys::signal::Signal::SIGKILL;

const STEPS: usize = 8;
const SUCCESS: i32 = 0;
const NO_DEVICE: i32 = 3;
const IN_USE: i32 = 4;

kernel_tests!(
    nbd_ctl_killed_while_it_attaches_leaves_all_or_nothing,
    nbd_ctl_killed_while_it_detaches_leaves_all_or_nothing,
);

/// A system call: its name, and which of those with this name it is.
type Step = (String, u32);

/// The system calls that nbd-ctl makes with these arguments, once it is started.
fn steps_of(arguments: &[&str]) -> Vec<Step> {
    let files = TempDir::new();
    let trace = files.join("trace").display().to_string();
    let ctl = program("nbd-ctl");
    let strace = ["-qq", "-o", &trace, &ctl];
    start("strace", strace.iter().chain(arguments)).finish(PROGRAM_TIMEOUT).succeeds();
    let text = fs::read_to_string(&trace).expect("a trace");
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines() {
        let Some((name, _)) = line.split_once('(').filter(|(name, _)| is_name(name)) else {
            continue;
        };
        let before = steps.iter().filter(|(other, _)| other == name).count() as u32;
        steps.push((name.to_owned(), before + 1));
    }
    assert!(steps.len() > 40, "these cannot be all: {text}");
    // Killed at the first one it would not have been started.
    steps.split_off(1)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Some of them, spread over all.
fn sample(steps: &[Step]) -> Vec<Step> {
    let count =
        std::env::var("NBD_SOAK_STEPS").map_or(STEPS, |text| text.parse().expect("a number"));
    let share = (steps.len() / count).max(1);
    let mut random = Random::from_environment();
    let within = 0..=share as u64 - 1;
    steps.chunks_exact(share).map(|some| some[random.within(&within) as usize].clone()).collect()
}

/// Runs nbd-ctl until it enters that system call, and kills it there. It may end before, when it
/// does not make so many this time.
fn run_until((name, count): &Step, arguments: &[&str]) {
    let inject = format!("inject={name}:signal=KILL:when={count}");
    let ctl = program("nbd-ctl");
    let strace = ["-qq", "-o", "/dev/null", "-e", &inject, &ctl];
    let ended = start("strace", strace.iter().chain(arguments)).finish(PROGRAM_TIMEOUT);
    let expected = [SUCCESS, 128 + SIGKILL as i32];
    assert!(expected.contains(&ended.code), "{name} {count}: {ended:?}");
}

/// Waits until nothing is left, or a device that serves, which is detached then. Whether it was.
#[track_caller]
fn settles(step: &Step, before: &MachineState) -> bool {
    let mut served = false;
    wait_until(&format!("all or nothing, killed at {step:?}"), EVENT_TIMEOUT, || {
        if MachineState::now() == *before {
            return true;
        }
        // If nobody hears of a device that gets ready, its holder takes it away again.
        let attached = Registry::new(None).read_state(0).ok().flatten().is_some();
        if attached && ctl(["wait", "nbd0", "--timeout", "60"]).code == SUCCESS {
            let detached = ctl(["detach", "nbd0"]);
            // The detach that the killed command has ordered may still be under way.
            assert!([SUCCESS, NO_DEVICE, IN_USE].contains(&detached.code), "{detached:?}");
            served |= detached.code == SUCCESS;
        }
        false
    });
    served
}

fn nbd_ctl_killed_while_it_attaches_leaves_all_or_nothing(api: Api) {
    require_machine();
    let files = TempDir::new();
    let spec = files.spec("disk.img", 1 << 20);
    let attach = ["attach", "--kernel-api", api.name(), "--device", "nbd0", &spec];
    let before = MachineState::now();
    let steps = steps_of(&attach);
    Device::numbered(0).detach();
    let sample = sample(&steps);
    let mut served = 0;
    for step in &sample {
        run_until(step, &attach);
        served += usize::from(settles(step, &before));
    }
    // Nothing bars the way of the next one.
    let device = Device::attach(api, ["--device", "nbd0", &spec]);
    disk::read_all(&device.path());
    device.detach();
    before.assert_unchanged();
    report(&format!(
        "{}: killed at {} of {} system calls of an attach: {served} devices were there",
        api.name(),
        sample.len(),
        steps.len()
    ));
}

fn nbd_ctl_killed_while_it_detaches_leaves_all_or_nothing(api: Api) {
    require_machine();
    let files = TempDir::new();
    let spec = files.spec("disk.img", 1 << 20);
    let before = MachineState::now();
    let attach = || {
        let device = Device::attach(api, ["--device", "nbd0", &spec]);
        disk::write_to_cache(&device.path(), 0, &[7; 4096]);
        device
    };
    let detach = ["detach", "nbd0"];
    let first = attach();
    let steps = steps_of(&detach);
    drop(first);
    let sample = sample(&steps);
    let mut served = 0;
    for step in &sample {
        let device = attach();
        run_until(step, &detach);
        served += usize::from(settles(step, &before));
        drop(device);
    }
    before.assert_unchanged();
    let image = fs::read(files.join("disk.img")).expect("the image");
    assert_eq!(image[..4096], [7; 4096]);
    report(&format!(
        "{}: killed at {} of {} system calls of a detach: {served} devices stayed",
        api.name(),
        sample.len(),
        steps.len()
    ));
}
