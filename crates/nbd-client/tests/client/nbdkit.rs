//! The real thing. It has to be installed: `scripts/setup` does that.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nbd_backend::{Backend, Extent};
use nbd_client::{Cause, Fence, Options, Remote, ShapeError, fence_child};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::script::EVENT_TIMEOUT;
use crate::tasks::{Outcome, pattern, read, write};

fn connect(target: &str) -> Remote {
    Remote::connect(target.parse::<nbd_client::Target>().unwrap(), Options::default()).unwrap()
}

fn connect_by(connections: u32, target: &str) -> Remote {
    let options = Options { connections: Some(connections), ..Options::default() };
    Remote::connect(target.parse::<nbd_client::Target>().unwrap(), options).unwrap()
}

/// A sparse file.
struct Disk(PathBuf);

impl Disk {
    fn new(size: u64) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-client-test-{}-{count}.img", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn is_dead(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

/// Kills a server. It is asked first, and may not listen: nbdkit waits for what its client is
/// about to say.
fn kill(process: &OwnedFd) {
    let began = Instant::now();
    let soon = Duration::from_millis(20);
    while fence_child(process.try_clone().unwrap(), soon).unwrap() == Fence::Open {
        assert!(began.elapsed() < EVENT_TIMEOUT, "the server cannot be killed");
    }
}

/// All that a client does, with a server of at least 64 MiB.
fn exercise(remote: &Remote) {
    let geometry = remote.geometry();
    assert_eq!((geometry.size, geometry.block_size), (64 << 20, 512));
    let can = geometry.capabilities;
    assert!(can.flush && can.fua && can.trim && can.write_zeroes && can.extents && can.unaligned);
    assert!(!can.read_only);
    let data = pattern(1, 3 << 20);
    remote.write_at(&data, 12345, true).unwrap();
    let mut buffer = vec![0xaa; 4 << 20];
    remote.read_at(&mut buffer, 12345).unwrap();
    assert!(buffer[..3 << 20] == data && buffer[3 << 20..].iter().all(|byte| *byte == 0));
    remote.flush().unwrap();
    remote.cache(0, 1 << 20).unwrap();
    remote.trim(1 << 20, 1 << 20, false).unwrap();
    remote.write_zeroes(0, 1 << 20, Default::default()).unwrap();
    let extents = remote.extents(0, 64 << 20, false).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), 64 << 20);
    assert!(matches!(extents.last(), Some(Extent { hole: true, zero: true, .. })), "{extents:?}");
    assert_eq!(remote.extents(0, 64 << 20, true).unwrap().len(), 1);
}

#[test]
fn a_started_server_is_reached_by_standard_input_and_output() {
    exercise(&connect("exec:nbdkit -s memory 64M"));
}

/// The server must be the process that we know, or it outlives us.
#[test]
fn a_command_line_of_the_shell_ends_in_the_server_itself() {
    for scheme in ["exec:", "exec+listen:"] {
        let server = if scheme == "exec:" { "nbdkit -s" } else { "nbdkit -f" };
        for line in [
            "A='b c' SERVER memory 64M",
            "cd / && A='b c' SERVER memory 64M",
            "A='b c'; export A; cd /; SERVER memory 64M",
        ] {
            let remote = connect(&format!("{scheme}{}", line.replace("SERVER", server)));
            let pid = pid_of(&remote.child_pidfd().unwrap());
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
            assert_eq!(command.trim(), "nbdkit", "{line}");
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
            assert!(environment.split(|byte| *byte == 0).any(|text| text == b"A=b c"), "{line}");
            if line.contains("cd /") {
                let directory = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
                assert_eq!(directory, PathBuf::from("/"));
            }
            exercise(&remote);
        }
    }
}

#[test]
fn a_started_server_is_reached_by_a_socket_that_it_makes() {
    exercise(&connect("exec:nbdkit -f -U $unixsocket memory 64M"));
}

#[test]
fn the_socket_that_it_makes_is_not_left_behind_by_a_client_that_is_killed() {
    let remote = connect_by(2, "exec:nbdkit -f -U $unixsocket memory 64M");
    let prefix = format!("nbd-serve-{}-", std::process::id());
    let pid = pid_of(&remote.child_pidfd().unwrap());
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let mut variables = environment.split(|byte| *byte == 0);
    let socket = variables.find_map(|variable| variable.strip_prefix(b"unixsocket=")).unwrap();
    let socket = PathBuf::from(str::from_utf8(socket).unwrap());
    // If this client is killed now, no process removes it.
    assert!(socket.to_str().unwrap().contains(&prefix));
    assert!(!socket.parent().unwrap().exists());
    // It is still there for those who have a descriptor of it.
    exercise(&remote);
}

fn pid_of(process: &OwnedFd) -> i32 {
    let info = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let info = fs::read_to_string(info).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim().parse().unwrap()
}

#[test]
fn a_started_server_is_reached_by_a_socket_that_it_inherits() {
    exercise(&connect_by(4, "exec+listen:nbdkit -f memory 64M"));
}

#[test]
fn qemu_nbd_is_reached_by_a_socket_that_it_inherits() {
    let disk = Disk::new(64 << 20);
    let path = disk.0.display();
    exercise(&connect_by(
        2,
        &format!("exec+listen:qemu-nbd -f raw -e 4 -t --discard=unmap {path}"),
    ));
}

#[test]
fn a_running_server_is_reached_by_uri() {
    let disk = Disk::new(64 << 20);
    let socket = disk.0.with_extension("sock");
    let mut server = Command::new("nbdkit")
        .args(["-f", "-U"])
        .arg(&socket)
        .arg("file")
        .arg(&disk.0)
        .spawn()
        .expect("nbdkit must be installed: see scripts/setup");
    let target: nbd_client::Target =
        format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
    let began = Instant::now();
    let remote = loop {
        match Remote::connect(target.clone(), Options::default()) {
            Ok(remote) => break remote,
            Err(error) => {
                assert!(began.elapsed() < EVENT_TIMEOUT, "{}", nbd_backend::chain(&error));
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    remote.write_at(&pattern(1, 512), 0, true).unwrap();
    drop(remote);
    server.kill().unwrap();
    server.wait().unwrap();
    fs::remove_file(&socket).unwrap();
}

#[test]
fn errors_are_passed_on() {
    let remote =
        connect("exec:nbdkit -s memory 64M --filter=error error-pread-rate=1 error=ENOSPC");
    let error = remote.read_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(28));
    remote.write_at(&[1; 512], 0, false).unwrap();
}

#[test]
fn slow_requests_do_not_hold_up_others() {
    let remote = connect("exec:nbdkit -s memory 64M --filter=delay rdelay=500ms");
    let slow = read(&remote, 0, 512);
    let quick: Vec<_> = (0..8).map(|index| write(&remote, index * 512, &[1; 512])).collect();
    for quick in quick {
        assert_eq!(quick.wait(), Outcome::Done);
    }
    assert!(slow.is_waiting());
    assert!(matches!(slow.wait(), Outcome::Data(_)));
}

#[test]
fn block_sizes_are_taken_over() {
    let policy = "--filter=blocksize-policy blocksize-error-policy=error blocksize-minimum";
    let remote = connect(&format!("exec:nbdkit -s memory 64M {policy}=4096"));
    let geometry = remote.geometry();
    assert!(geometry.block_size == 4096 && !geometry.capabilities.unaligned);
    remote.write_at(&[1; 8192], 4096, false).unwrap();
    // Split, where the policy would object.
    let most = "blocksize-maximum=64K";
    let remote = connect(&format!("exec:nbdkit -s memory 64M {policy}=512 {most}"));
    let data = pattern(1, 1 << 20);
    remote.write_at(&data, 512, false).unwrap();
    let mut buffer = vec![0; 1 << 20];
    remote.read_at(&mut buffer, 512).unwrap();
    assert!(buffer == data);
    let target: nbd_client::Target =
        format!("exec:nbdkit -s memory 64M {policy}=8192 blocksize-preferred=8192")
            .parse()
            .unwrap();
    let error = Remote::connect(target, Options::default()).unwrap_err();
    assert!(matches!(error.cause, Cause::ExportShape(ShapeError::LargeBlocks(8192))), "{error:?}");
}

#[test]
fn a_size_between_blocks_is_rounded_down() {
    let remote = connect("exec:nbdkit -s memory 1000000");
    assert_eq!(remote.geometry().size, 999_936);
}

#[test]
fn a_program_that_cannot_serve_is_reported() {
    for command in ["false", "there-is-no-such-program", "nbdkit -s no-such-plugin"] {
        for scheme in ["exec:", "exec+listen:"] {
            let target: nbd_client::Target = format!("{scheme}{command}").parse().unwrap();
            let error = Remote::connect(target, Options::default()).unwrap_err();
            assert!(
                matches!(
                    error.cause,
                    Cause::Ended { .. } | Cause::UnexpectedEof | Cause::Program(..)
                ),
                "{error:?}"
            );
        }
    }
    let error = Remote::connect(
        "exec:false $unixsocket".parse::<nbd_client::Target>().unwrap(),
        Options::default(),
    );
    assert!(matches!(error.unwrap_err().cause, Cause::Ended { .. }));
}

#[test]
fn a_started_server_ends_with_the_client() {
    for target in ["exec:nbdkit -s memory 64M", "exec+listen:nbdkit -f memory 64M"] {
        let remote = connect(target);
        let process = remote.child_pidfd().unwrap();
        assert!(!is_dead(&process));
        drop(remote);
        assert!(is_dead(&process));
    }
}

#[test]
fn a_started_server_killed_under_load_loses_no_request() {
    for target in ["exec:nbdkit -s", "exec:nbdkit -f -U $unixsocket", "exec+listen:nbdkit -f"] {
        let disk = Disk::new(1 << 20);
        let remote = connect_by(3, &format!("{target} file {}", disk.0.display()));
        for round in 0..15 {
            let data = |index: u64| pattern(round * 1000 + index, 4096);
            let writes: Vec<_> =
                (0..64).map(|index| write(&remote, index * 4096, &data(index))).collect();
            kill(&remote.child_pidfd().unwrap());
            for write in writes {
                assert_eq!(write.wait(), Outcome::Done);
            }
            let reads: Vec<_> = (0..64).map(|index| read(&remote, index * 4096, 4096)).collect();
            for (index, read) in (0..).zip(reads) {
                assert!(read.wait() == Outcome::Data(data(index)), "{target}, {round}, {index}");
            }
        }
    }
}

/// Runs in a process of its own; see the next one.
#[test]
#[ignore = "is started by it_ends_with_a_client_that_is_killed"]
fn a_client_that_waits_to_be_killed() {
    let target = std::env::var("NBD_TEST_TARGET").unwrap();
    let remote = connect(&target);
    fs::write(std::env::var("NBD_TEST_FILE").unwrap(), b"ready").unwrap();
    loop {
        remote.read_at(&mut [0; 512], 0).unwrap();
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn a_started_server_ends_with_a_killed_client() {
    // Without this it would end by itself, as its client is gone.
    let disk = Disk::new(1 << 20);
    let (ready, pid_file) = (disk.0.with_extension("ready"), disk.0.with_extension("pid"));
    let target = format!("exec+listen:nbdkit -f -P {} memory 1M", pid_file.display());
    let mut client = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "nbdkit::a_client_that_waits_to_be_killed"])
        .env("NBD_TEST_TARGET", target)
        .env("NBD_TEST_FILE", &ready)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !ready.exists() {
        assert!(began.elapsed() < EVENT_TIMEOUT, "the client does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = fs::read_to_string(&pid_file).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    let is_running = || match fs::read_to_string(&stat) {
        Ok(stat) => stat.contains("nbdkit") && !stat.contains(") Z "),
        Err(_) => false,
    };
    while is_running() {
        assert!(began.elapsed() < EVENT_TIMEOUT, "the server lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = fs::remove_file(ready);
    let _ = fs::remove_file(pid_file);
}
