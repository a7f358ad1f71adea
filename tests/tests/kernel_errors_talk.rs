//! Conversations that go wrong: strangers on our sockets, interrupted commands, a runtime
//! directory that is none.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use nbd_control::channel::{GREETING, VERSION};
use nbd_control::registry::Registry;
use nbd_tests::command::{PROGRAM_TIMEOUT, run};
use nbd_tests::ctl::{ctl, require_machine, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::machine_state::MachineState;
use nbd_tests::mount::Mount;
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{self, SIGINT, SIGKILL, SIGTERM};

const FAILED: i32 = 1;
const NO_DEVICE: i32 = 3;
const TIMED_OUT: i32 = 5;
const INTERRUPTED: i32 = 130;

kernel_tests!(
    strangers_on_its_sockets_do_not_disturb_a_device,
    an_interrupted_attach_leaves_nothing,
    attach_refuses_an_unusable_runtime_directory,
    what_dead_processes_left_is_cleared_away,
);

fn greeting(version: u32) -> Vec<u8> {
    [GREETING.as_slice(), &version.to_le_bytes()].concat()
}

/// What strangers say: nothing, too little, nonsense, another version, and after a good
/// greeting a frame that claims too much, or is no message.
fn strange_words() -> Vec<Vec<u8>> {
    let framed = |length: u32, descriptors: u32, payload: &[u8]| {
        let frame = [&length.to_le_bytes(), &descriptors.to_le_bytes(), payload];
        [greeting(VERSION), frame.concat()].concat()
    };
    vec![
        Vec::new(),
        GREETING[..3].to_vec(),
        b"GET / HTTP/1.0\r\n\r\n".repeat(1000),
        greeting(VERSION + 98),
        greeting(VERSION),
        framed(u32::MAX, 0, b""),
        framed(4, u32::MAX, b"abcd"),
        framed(64, 0, &[0xff; 64]),
        framed(64, 0, &[0; 10]),
    ]
}

fn strangers_on_its_sockets_do_not_disturb_a_device(api: Api) {
    let device = Device::attach(api, ["mem:8M"]);
    let before = device.status();
    let registry = Registry::new(None);
    let sockets = [registry.control_socket(device.index()), registry.join_socket(device.index())];
    let mut strangers = Vec::new();
    for socket in &sockets {
        for words in strange_words() {
            for leaves in [true, false] {
                let mut stranger = UnixStream::connect(socket).expect("a connection");
                // The holder may have hung up in the middle of it.
                let _ = stranger.write_all(&words);
                if !leaves {
                    strangers.push(stranger);
                }
            }
        }
        let silent = (0..40).map(|_| UnixStream::connect(socket).expect("a connection"));
        strangers.extend(silent);
    }
    disk::read_all(&device.path());
    let after = device.status();
    assert_eq!(after.holder_pid, before.holder_pid);
    assert_eq!(after.backend.pid, before.backend.pid);
    drop(strangers);
    ctl(["restart", &device.name()]).succeeds();
    device.detach();
}

/// A holder that says so many bytes to everybody.
fn false_holder(index: u32, words: Vec<u8>) -> JoinHandle<()> {
    let registry = Registry::new(None);
    registry.prepare().expect("a runtime directory");
    registry.create_folder(index).expect("a folder");
    let listener = UnixListener::bind(registry.control_socket(index));
    let listener = listener.expect("a control socket");
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let _ = client.write_all(&words);
        let _ = client.read_to_end(&mut Vec::new());
    })
}

/// Not a matter of the driver's interface.
#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn a_stranger_behind_the_control_socket_is_named_as_such() {
    require_machine();
    let registry = Registry::new(None);
    let words = strange_words();
    for (words, code, said) in [
        (&words[0], TIMED_OUT, "no answer within 5 s"),
        (&words[2], FAILED, "does not speak our protocol"),
        (&words[3], FAILED, "version 99"),
        (&words[5], FAILED, "malformed message"),
        (&words[7], FAILED, "malformed message"),
    ] {
        let holder = false_holder(9, words.clone());
        let refused = ctl(["status", "nbd9"]).fails_with(code);
        refused.says(&["nbd9", said]);
        holder.join().expect("a holder that lived");
        registry.remove(9).expect("no folder");
    }
}

fn an_interrupted_attach_leaves_nothing(api: Api) {
    require_machine();
    let before = MachineState::now();
    let patient = ["attach", "--kernel-api", api.name(), "--ready-timeout", "600"];
    let interrupted = |arguments: &[&str], signal: Signal| {
        let mut attach = start_ctl(patient.iter().chain(arguments));
        wait_until("an entry in the registry", EVENT_TIMEOUT, || {
            !Registry::new(None).devices().unwrap_or_default().is_empty()
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(attach.is_running(), "{}", attach.words());
        attach.signal(signal);
        let output = attach.finish(PROGRAM_TIMEOUT);
        if signal == SIGKILL {
            assert_eq!(output.code, 128 + SIGKILL as i32);
        } else {
            let output = output.fails_with(INTERRUPTED);
            assert_eq!(output.stdout, "");
            output.says(&["interrupted", "nothing is attached"]);
        }
        before.assert_unchanged();
    };
    let program = ["--", "/bin/sleep", "986"];
    interrupted(&program, SIGINT);
    interrupted(&program, SIGTERM);
    // Nobody is left to tell the holder, but it notices.
    interrupted(&program, SIGKILL);
    interrupted(&["--external"], SIGINT);
    let left = run("pgrep", ["-f", "sleep 986"]);
    assert_eq!(left.code, 1, "the program runs on: {}", left.stdout);
}

fn attach_refuses_an_unusable_runtime_directory(api: Api) {
    let files = TempDir::new();
    let spec = files.spec("disk.img", 1 << 20);
    let read_only = files.join("read-only").display().to_string();
    let mount = Mount::of_memory("ro,mode=755", Path::new(&read_only));
    let shared = files.join("shared").display().to_string();
    fs::create_dir(&shared).expect("a folder");
    run("chmod", ["777", &shared]).succeeds();
    let file = files.image("file", 1).display().to_string();
    let before = MachineState::now();
    for (directory, words) in [
        (read_only.clone(), "Read-only file system"),
        (format!("{read_only}/deeper"), "Read-only file system"),
        (shared, "others may write to it"),
        (file, "exists"),
    ] {
        let always = ["--runtime-dir", &directory, "attach", "--kernel-api", api.name()];
        let output = ctl(always.into_iter().chain([&*spec])).fails_with(FAILED);
        output.says(&["runtime directory", &directory, words, "--runtime-dir"]);
        before.assert_unchanged();
    }
    mount.unmount();

    // And one that is.
    let own = files.join("own").display().to_string();
    let own = ["--runtime-dir", &own];
    let arguments = ["attach", "--kernel-api", api.name(), &spec];
    let path = ctl(own.into_iter().chain(arguments)).succeeds().stdout;
    let path = path.trim();
    ctl(["status", path]).fails_with(NO_DEVICE);
    ctl(own.into_iter().chain(["status", path])).succeeds();
    ctl(own.into_iter().chain(["detach", path])).succeeds();
    before.assert_unchanged();
}

fn what_dead_processes_left_is_cleared_away(api: Api) {
    let before = MachineState::now();
    let device = Device::attach(api, ["mem:1M"]);
    let name = device.name();
    let processes = device.processes();
    for process in &processes {
        // A spare may have gone by itself already.
        signal(process.pid, SIGKILL);
    }
    wait_until("they are dead", EVENT_TIMEOUT, || {
        !processes.iter().any(nbd_control::process::ProcessId::is_alive)
    });
    ctl(["list"]).says(&[&name]);
    let status = ctl(["status", &name]);
    match api {
        Api::Ioctl => {
            status.fails_with(NO_DEVICE).says(&[&name, "stale"]);
        }
        // A connected netlink device needs no process, so the kernel still has it.
        Api::Netlink => {
            status.fails_with(FAILED).says(&["the kernel still has the device"]);
        }
    }
    ctl(["detach", &name]).fails_with(NO_DEVICE).says(&[&name, "cleaned up"]);
    before.assert_unchanged();
    let again = Device::attach(api, ["--device", &name, "mem:1M"]);
    again.detach();
    before.assert_unchanged();
    drop(device);
}
