//! `nbd-ctl why` on devices that are really stuck. Its words for states that are hard to make are
//! tested beside them.

use std::fs;

use nbd_control::status::BackendState;
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, start};
use nbd_tests::ctl::{ctl, program, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_read};
use nbd_tests::mount::Mount;
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};
use serde_json::Value;

const MIB: u64 = 1 << 20;

kernel_tests!(
    why_names_a_stopped_backend_its_reader_and_the_remedy,
    why_names_a_full_socket,
    why_names_a_debugger,
    why_tells_a_lost_a_paused_and_a_failing_backend_apart,
    why_names_a_lost_holder_and_a_lost_sitter,
    why_suspects_a_request_that_crashes_backends,
    why_finds_a_writer_through_a_filesystem,
    why_tells_a_slow_and_a_starting_backend_apart,
    why_names_a_stopped_holder_and_a_stale_device,
);

fn json(target: &str) -> Value {
    let output = ctl(["why", target, "--json"]).succeeds().stdout;
    serde_json::from_str(&output).expect("JSON")
}

fn wait_verdict(device: &Device, verdict: &str) -> Value {
    let mut last = Value::Null;
    wait_until(verdict, EVENT_TIMEOUT, || {
        last = json(&device.name());
        last["verdict"] == verdict
    });
    last
}

/// Waits until it says all these words.
#[track_caller]
fn wait_words(target: &str, words: &[&str]) -> String {
    let mut text = String::new();
    for word in words {
        wait_until(word, EVENT_TIMEOUT, || {
            text = ctl(["why", target]).succeeds().stdout;
            text.contains(word)
        });
    }
    text
}

/// Starts a direct read and waits until the device has it.
fn stuck_read(device: &Device) -> Running {
    let read = start_read(&device.path(), MIB);
    wait_until("the read", EVENT_TIMEOUT, || {
        device.status().in_flight.iter().any(|request| request.offset == MIB)
    });
    read
}

fn why_names_a_stopped_backend_its_reader_and_the_remedy(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 4 * MIB)]);
    let name = device.name();
    assert_eq!(json(&name)["verdict"], "nothing");
    device.signal_backend(SIGSTOP);
    let read = stuck_read(&device);
    let told = wait_verdict(&device, "stopped");
    assert_eq!(told["requests"][0]["offset"], MIB);
    let dd = format!("dd (pid {}) waits", read.pid());
    let cont = format!("kill -CONT {}", device.backend());
    let request = format!("it is for read {MIB}+4096");
    let words = [&dd, "direct I/O", &request, "no backend has read it", "nothing is lost", &cont];
    wait_words(&name, &words);
    // The same, asked about the process that hangs, and about the one it hangs for.
    let of_dd = wait_words(&read.pid().to_string(), &["cannot be interrupted", &cont]);
    assert!(of_dd.contains(&name), "{of_dd}");
    wait_words(&device.backend().to_string(), &[&format!("the backend of {name}")]);
    wait_words(&std::process::id().to_string(), &["no attached NBD device"]);
    ctl(["why", "nbd7"]).fails_with(3);
    ctl(["why", "99999999"]).fails_with(1).says(&["no such process"]);

    // Something to write back, so that a detach has to wait.
    disk::write_to_cache(&device.path(), 0, &vec![b'x'; MIB as usize]);
    device.signal_backend(SIGCONT);
    read.finish(PROGRAM_TIMEOUT).succeeds();
    device.signal_backend(SIGSTOP);
    let detach = start_ctl(["detach", &name]);
    wait_words(&name, &["its holder is just detaching it", "stopped by a signal"]);
    detach.finish(PROGRAM_TIMEOUT).fails_with(5);
    device.signal_backend(SIGCONT);
    device.detach();
}

/// It is one of the kernel's own threads that cannot send, and nobody's reader or writer.
fn why_names_a_full_socket(api: Api) {
    let device = Device::attach(api, ["mem:64M"]);
    // With the usual 128 KiB all that a queue has in flight finds room in the socket.
    let longest = format!("/sys/block/{}/queue/max_sectors_kb", device.name());
    fs::write(&longest, "1024").expect("longer requests");
    device.signal_backend(SIGSTOP);
    let target = format!("--filename={}", device.path().display());
    let load = ["--rw=write", "--bs=1M", "--iodepth=32", "--ioengine=libaio", "--direct=1"];
    let writes = start("fio", [&["--name=writes", "--size=32M", &target], &load[..]].concat());
    wait_words(&device.name(), &["the socket to the backend is full", "nothing is lost"]);
    device.signal_backend(SIGCONT);
    writes.finish(PROGRAM_TIMEOUT).succeeds();
    assert_eq!(device.status().totals.errors, 0);
    device.detach();
}

fn why_names_a_debugger(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 4 * MIB)]);
    let backend = device.backend().to_string();
    let options = ["-batch", "-nx", "-iex", "set auto-load off", "-ex", "shell sleep 600"];
    let gdb = start("gdb", [&options[..4], &["-p", &backend], &options[4..]].concat());
    wait_until("it is stopped", EVENT_TIMEOUT, || {
        device.status().backend.state == BackendState::Stopped
    });
    let read = stuck_read(&device);
    wait_verdict(&device, "traced");
    let tracer = format!("stopped by gdb (pid {})", gdb.pid());
    wait_words(&device.name(), &[&tracer, "or detach the debugger", "nbd-ctl fail --kill"]);
    drop(gdb);
    read.finish(PROGRAM_TIMEOUT).succeeds();
    device.detach();
}

fn why_tells_a_lost_a_paused_and_a_failing_backend_apart(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", 4 * MIB);
    let policy = ["--restart", "never", "--on-backend-loss", "fail:8"];
    let device = Device::attach(api, [&policy[..], &[&spec]].concat());
    let name = device.name();
    ctl(["pause", &name]).succeeds();
    let read = stuck_read(&device);
    wait_verdict(&device, "paused");
    wait_words(&name, &["nothing is lost", "nbd-ctl resume"]);
    ctl(["resume", &name]).succeeds();
    read.finish(PROGRAM_TIMEOUT).succeeds();
    device.signal_backend(SIGKILL);
    let read = stuck_read(&device);
    wait_verdict(&device, "no-backend");
    wait_words(&name, &["nbd-ctl restart", "nbd-ctl fail"]);
    wait_verdict(&device, "failing");
    read.finish(PROGRAM_TIMEOUT).fails_with(1);
    ctl(["restart", &name]).succeeds();
    device.detach();
}

fn why_names_a_lost_holder_and_a_lost_sitter(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 4 * MIB)]);
    let state = device.state().expect("a state");
    assert!(signal(state.holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !state.holder.is_alive());
    wait_verdict(&device, "holder-gone");
    wait_words(&device.name(), &["I/O goes on", "nbd-ctl adopt"]);
    ctl(["adopt", &device.name()]).succeeds();
    assert_eq!(wait_verdict(&device, "nothing")["block_layer"], 0);
    if api == Api::Netlink {
        assert!(signal(state.sitter.pid, SIGKILL));
        wait_verdict(&device, "sitter-gone");
        wait_words(&device.name(), &["no holder could adopt"]);
        disk::read_all(&device.path());
    }
    device.detach();
}

fn why_suspects_a_request_that_crashes_backends(api: Api) {
    let files = TempDir::new();
    let image = files.join("disk.img");
    fs::write(&image, vec![0; 4 * MIB as usize]).expect("an image");
    let image = image.display().to_string();
    let (crasher, mine) = (program("examples/crasher"), MIB.to_string());
    let options = ["--poison-limit", "0", "--restart-limit", "2", "--"];
    let device = Device::attach(api, [&options[..], &[&crasher, &image, &mine]].concat());
    let read = start_read(&device.path(), MIB);
    wait_verdict(&device, "down");
    let suspect = format!("read {MIB}+4096 was being executed when 3 backends crashed");
    wait_words(&device.name(), &[&suspect, "failed too often"]);
    ctl(["fail", &device.name()]).succeeds();
    read.finish(PROGRAM_TIMEOUT).fails_with(1);
    device.detach_by_force();
}

/// It has no file of the device open; the one that it has lies on a filesystem that does.
fn why_finds_a_writer_through_a_filesystem(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 32 * MIB)]);
    let path = device.path().display().to_string();
    nbd_tests::command::run("mkfs.ext4", ["-q", "-F", &path]).succeeds();
    let place = files.join("mnt");
    let mount = Mount::new(&device.path(), &place);
    device.signal_backend(SIGSTOP);
    let file = format!("of={}", place.join("file").display());
    let write = start("dd", ["if=/dev/zero", &file, "bs=64k", "count=4", "conv=fsync"]);
    wait_words(&device.name(), &[&format!("dd (pid {}) waits", write.pid())]);
    device.signal_backend(SIGCONT);
    write.finish(PROGRAM_TIMEOUT).succeeds();
    mount.unmount();
    device.detach();
}

fn why_tells_a_slow_and_a_starting_backend_apart(api: Api) {
    let files = TempDir::new();
    let late = files.join("late");
    let (image, serve) = (files.spec("disk.img", 4 * MIB), program("nbd-serve"));
    // It starts late if the file is there.
    let script = format!("while [ -e {} ]; do sleep 0.1; done; exec \"$0\" \"$1\"", late.display());
    let spec = format!("delay:read=0s@{image}");
    let device = Device::attach(api, ["--", "/bin/sh", "-c", &script, &serve, &spec]);
    let name = device.name();
    ctl(["set", &name, "delay.read=600s"]).succeeds();
    let read = stuck_read(&device);
    wait_verdict(&device, "slow");
    wait_words(&name, &["is slow to answer", "being executed", "nbd-ctl restart"]);
    ctl(["set", &name, "delay.read=0s"]).succeeds();

    fs::write(&late, "").expect("a file");
    device.signal_backend(SIGKILL);
    wait_verdict(&device, "starting");
    wait_words(&name, &["does not serve yet", "nothing is lost", "nbd-ctl fail"]);
    fs::remove_file(&late).expect("a file to remove");
    read.finish(PROGRAM_TIMEOUT).succeeds();
    device.detach();
}

fn why_names_a_stopped_holder_and_a_stale_device(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 4 * MIB)]);
    let state = device.state().expect("a state");
    let processes = device.processes();
    assert!(signal(state.holder.pid, SIGSTOP));
    wait_verdict(&device, "holder-silent");
    let cont = format!("kill -CONT {}", state.holder.pid);
    wait_words(&device.name(), &["I/O does not need", &cont]);
    assert!(signal(state.holder.pid, SIGCONT));
    wait_verdict(&device, "nothing");
    if api == Api::Ioctl {
        for process in &processes {
            signal(process.pid, SIGKILL);
        }
        wait_verdict(&device, "stale");
        wait_words(&device.name(), &["all its processes have died", "nbd-ctl detach"]);
        ctl(["detach", &device.name()]).fails_with(3);
        device.has_left_nothing(&processes);
        return;
    }
    device.detach();
}
