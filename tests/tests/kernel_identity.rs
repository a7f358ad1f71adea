//! One holder, one owner: whatever is full, whatever is damaged, and however many try to become it.

use std::fs;

use nbd_control::process::ProcessId;
use nbd_control::registry::Registry;
use nbd_control::status::BackendState;
use nbd_tests::command::PROGRAM_TIMEOUT;
use nbd_tests::ctl::{ctl, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::full_run::SmallRun;
use nbd_tests::machine_state::MachineState;
use nbd_tests::process::{ours, signal};
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::SIGKILL;

const MIB: u64 = 1 << 20;

kernel_tests!(
    four_adopters_with_a_full_run_make_one_holder_and_one_owner,
    attach_without_room_for_its_state_is_refused_and_leaves_nothing,
    a_backend_gets_no_lanes_before_the_state_that_names_it_is_written,
    an_entry_with_an_unreadable_state_is_kept_while_its_processes_live,
    all_processes_killed_at_once_leave_nothing_after_the_next_command,
    a_device_without_holder_and_sitter_is_explained_and_taken_down_in_order,
    a_device_without_entry_and_holder_is_found_by_the_doctor_and_detached_by_force,
    detach_of_a_device_whose_sitter_is_frozen_says_what_was_done,
);

/// Kills the holder and waits until it is gone.
fn kill_holder(device: &Device) -> ProcessId {
    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    holder
}

/// Holders of all devices; sitters run the same program under another name.
fn holders() -> Vec<i32> {
    let of_name = |pid: &i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim() == "nbd-kernel-hold"
    };
    let pids = ours().into_iter().filter(|(_, name)| name == "nbd-kernel-holder");
    pids.map(|(pid, _)| pid).filter(of_name).collect()
}

/// Those that serve, or wait to.
fn backends() -> usize {
    ours().iter().filter(|(_, name)| name == "nbd-serve").count()
}

fn four_adopters_with_a_full_run_make_one_holder_and_one_owner(api: Api) {
    let run = SmallRun::new();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    run.fill();
    kill_holder(&device);
    let adopters: Vec<_> = (0..4).map(|_| start_ctl(["adopt", &device.name()])).collect();
    let ended: Vec<_> =
        adopters.into_iter().map(|adopter| adopter.finish(PROGRAM_TIMEOUT)).collect();
    assert!(ended.iter().any(|output| output.code == 0), "{ended:?}");
    for refused in ended.iter().filter(|output| output.code != 0) {
        assert!(!refused.stderr.is_empty(), "{refused:?}");
    }
    // Its room was kept.
    let holder = device.state().expect("a state").holder;
    wait_until("no holder but one", EVENT_TIMEOUT, || holders() == [holder.pid]);

    // The next one too, while there still is no room.
    device.signal_backend(SIGKILL);
    disk::start_read(&device.path(), 0).finish(PROGRAM_TIMEOUT).succeeds();
    let second = device.wait_running().backend.pid;
    assert_eq!(device.state().expect("a state").backend.map(|it| it.pid), second);
    run.make_room();
    device.signal_backend(SIGKILL);
    disk::write(&device.path(), 0, &[7; 4096]);
    assert_eq!(disk::read(&device.path(), 0, 4096), [7; 4096]);
    wait_until("an owner and a spare at most", EVENT_TIMEOUT, || backends() <= 2);
    assert_eq!(holders(), [holder.pid]);
    device.detach();
    run.end();
}

fn attach_without_room_for_its_state_is_refused_and_leaves_nothing(api: Api) {
    let run = SmallRun::new();
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    run.fill();
    let before = MachineState::now();
    let attach = ["attach", "--kernel-api", api.name(), &spec];
    ctl(attach).fails_with(1).says(&["room", "No space left on device"]);
    before.assert_unchanged();
    run.make_room();
    Device::attach(api, [&spec]).detach();
    run.end();
}

/// The state is not written to where there is a directory of its name.
fn a_backend_gets_no_lanes_before_the_state_that_names_it_is_written(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    let next = Registry::new(None).folder(device.index()).join("state.new");
    let lost = device.state().expect("a state").backend;
    let aside = next.with_extension("aside");
    fs::rename(&next, &aside).expect("room for a state");
    fs::create_dir(&next).expect("a directory");
    device.signal_backend(SIGKILL);
    let read = disk::start_read(&device.path(), 0);
    let status = wait_for("words of it", EVENT_TIMEOUT, || {
        let status = device.status();
        status.backend.detail.contains("cannot write its state").then_some(status)
    });
    assert_eq!(status.backend.state, BackendState::Starting);
    assert_eq!(device.state().expect("a state").backend, lost);
    assert!(device.log().contains("state-not-saved"), "{}", device.log());
    // A holder that adopts the device now knows of the dead one only, and that is right.
    assert_eq!(device.status().in_flight.len(), 1);

    fs::remove_dir(&next).expect("a directory to remove");
    fs::rename(&aside, &next).expect("room for a state");
    read.finish(PROGRAM_TIMEOUT).succeeds();
    let status = device.wait_running();
    assert_eq!(status.backend.pid, Some(device.backend()));
    assert!(device.log().contains("could be written again"), "{}", device.log());
    device.detach();
}

fn an_entry_with_an_unreadable_state_is_kept_while_its_processes_live(api: Api) {
    let before = MachineState::now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    let processes = device.processes();
    let file = Registry::new(None).folder(device.index()).join("state.json");
    kill_holder(&device);
    fs::write(&file, "{\"version\": 2,").expect("a damaged state");

    let (name, spec) = (device.name(), files.spec("other.img", MIB));
    let attach = ["attach", "--kernel-api", api.name(), "--device", &name, &spec];
    ctl(attach).fails_with(4).says(&["cannot be read", "detach --force"]);
    ctl(["detach", &name]).fails_with(1).says(&["state.json"]);
    assert!(file.exists());
    disk::read_all(&device.path());
    ctl(["list"]).says(&["state.json"]);

    ctl(["detach", "--force", &name]).succeeds().says(&["is removed"]);
    device.has_left_nothing(&processes);
    before.assert_unchanged();
    Device::attach(api, ["--device", &name, &spec]).detach();
}

/// As the kernel does when a control group has no memory left.
fn kill_all(device: &Device) {
    let processes = device.processes();
    for process in &processes {
        signal(process.pid, SIGKILL);
    }
    wait_until("their death", EVENT_TIMEOUT, || !processes.iter().any(ProcessId::is_alive));
}

fn doctor_says(words: &[&str]) {
    let doctor = ctl(["doctor"]);
    for word in words {
        assert!(doctor.stdout.contains(word), "nothing of {word}: {}", doctor.stdout);
    }
}

fn all_processes_killed_at_once_leave_nothing_after_the_next_command(api: Api) {
    let before = MachineState::now();
    let files = TempDir::new();
    let spec = files.spec("disk.img", MIB);
    for command in ["detach", "attach", "doctor"] {
        let device = Device::attach(api, [&spec]);
        let name = device.name();
        kill_all(&device);
        if api == Api::Netlink {
            doctor_says(&["the kernel still has the device", "nbd-ctl detach"]);
            let why = ctl(["why", &name]).succeeds();
            assert!(why.stdout.contains("the kernel still has the device"), "{}", why.stdout);
        }
        match command {
            "detach" => drop(ctl(["detach", &name])),
            "doctor" => drop(ctl(["doctor", "--fix"])),
            _ => {
                let attach = ["attach", "--kernel-api", api.name(), "--device", &name, &spec];
                let refused = ctl(attach);
                if refused.code != 0 {
                    refused.says(&["nbd-ctl detach"]);
                    ctl(["restart", &name]).fails_with(3).says(&["cleaned up"]);
                    ctl(attach).succeeds();
                }
                ctl(["detach", &name]).succeeds();
            }
        }
        before.assert_unchanged();
    }
}

fn a_device_without_holder_and_sitter_is_explained_and_taken_down_in_order(api: Api) {
    let before = MachineState::now();
    let files = TempDir::new();
    let device = Device::attach(api, ["--no-spare", &files.spec("disk.img", MIB)]);
    let (name, processes) = (device.name(), device.processes());
    let state = device.state().expect("a state");
    let backend = device.backend();
    for process in [state.holder, state.sitter] {
        assert!(signal(process.pid, SIGKILL));
    }
    wait_until("their death", EVENT_TIMEOUT, || {
        !state.holder.is_alive() && !state.sitter.is_alive()
    });
    if api == Api::Ioctl {
        // The driver has let it go, and the backend ends with its lanes.
        wait_until("the end of the backend", EVENT_TIMEOUT, || {
            !ours().iter().any(|(pid, _)| *pid == backend)
        });
        ctl(["detach", &name]).fails_with(3).says(&["cleaned up"]);
        return before.assert_unchanged();
    }
    disk::read_all(&device.path());
    disk::write_to_cache(&device.path(), 0, &[9; 4096]);
    let serves = format!("its backend (pid {backend}) still serves it");
    let why = ctl(["why", &name]).succeeds();
    assert!(why.stdout.contains(&serves), "{}", why.stdout);
    ctl(["list"]).succeeds().says(&[&serves, "nbd-ctl detach"]);
    doctor_says(&[&serves]);
    for command in ["restart", "adopt", "status"] {
        ctl([command, &name]).fails_with(1).says(&[&serves]);
    }
    disk::read_all(&device.path());

    let user = fs::File::open(device.path()).expect("a device");
    ctl(["detach", &name]).fails_with(4).says(&["opened by"]);
    drop(user);
    ctl(["detach", &name]).succeeds().says(&["is removed"]);
    device.has_left_nothing(&processes);
    before.assert_unchanged();
    let image = fs::read(files.join("disk.img")).expect("an image");
    assert_eq!(image[..4096], [9; 4096], "what was in the cache is written back");
}

fn a_device_without_entry_and_holder_is_found_by_the_doctor_and_detached_by_force(api: Api) {
    let before = MachineState::now();
    let files = TempDir::new();
    let device = Device::attach(api, ["--no-spare", &files.spec("disk.img", MIB)]);
    let (name, processes) = (device.name(), device.processes());
    let registry = Registry::new(None);
    kill_holder(&device);
    registry.remove(device.index()).expect("an entry to remove");
    doctor_says(&[&name, "no entry in the registry", "nbd-ctl detach --force"]);
    ctl(["detach", &name]).fails_with(1).says(&["nbd-ctl detach --force"]);
    disk::read_all(&device.path());
    ctl(["detach", "--force", &name]).succeeds().says(&["is removed"]);
    device.has_left_nothing(&processes);
    before.assert_unchanged();
}

/// The freezer interrupts NBD_DO_IT like a signal, and then keeps the sitter from clearing up.
fn detach_of_a_device_whose_sitter_is_frozen_says_what_was_done(api: Api) {
    let before = MachineState::now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    let (name, processes) = (device.name(), device.processes());
    let freezer = Freezer::new();
    freezer.freeze(device.status().sitter_pid);
    if api == Api::Netlink {
        disk::read_all(&device.path());
    } else {
        let status = ctl(["status", &name]);
        assert!(!status.stdout.contains("join with"), "{}", status.stdout);
    }
    let detached = ctl(["detach", &name]);
    // It may be gone already.
    assert!([0, 3].contains(&detached.code), "{detached:?}");
    if api == Api::Ioctl && detached.code == 0 {
        detached.says(&["the driver has dropped the device", "what was left is removed"]);
    }
    drop(freezer);
    device.has_left_nothing(&processes);
    before.assert_unchanged();
}

/// A control group whose processes do not run.
struct Freezer(std::path::PathBuf);

impl Freezer {
    fn new() -> Self {
        let root = std::path::Path::new("/tmp/nbd-tests-cgroup");
        if !root.exists() {
            fs::create_dir(root).expect("a directory");
            let arguments = ["-t", "cgroup2", "none", "/tmp/nbd-tests-cgroup"];
            nbd_tests::command::run("mount", arguments).succeeds();
        }
        let group = root.join("frozen");
        fs::create_dir(&group).expect("a control group");
        Self(group)
    }

    fn freeze(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("a process to move");
        fs::write(self.0.join("cgroup.freeze"), "1").expect("a group to freeze");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
