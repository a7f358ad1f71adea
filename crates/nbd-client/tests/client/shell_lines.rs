//! Lines of `exec:` in which the shell stays: a pipe, a list with `||`, a command of the shell itself.
//! All that such a line has started ends with us, and a successor waits for all of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nbd_backend::Backend;
use nbd_client::{Cause, ClientError, Fence, Options, Remote, fence_child};
use nbd_net::testing::Scratch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::script::EVENT_TIMEOUT;

/// A server and, in the background, a process of the same line that ignores SIGTERM. The line names
/// their processes in files.
const LINE: &str = "sh -c 'trap \"\" TERM; echo $$ >DIR/stubborn; exec sleep 3600' & \
    until test -s DIR/stubborn; do sleep 0.01; done; \
    nbdkit -f -U $unixsocket -P DIR/server memory 1M | cat";

fn line(directory: &Path) -> String {
    format!("exec:{}", LINE.replace("DIR", &directory.display().to_string()))
}

fn try_connect(target: &str) -> Result<Remote, ClientError> {
    // A process that ignores SIGTERM is killed after half of the limit.
    let options = Options { fence_limit: Duration::from_secs(2), ..Options::default() };
    Remote::connect(target.parse::<nbd_client::Target>().unwrap(), options)
}

fn connect(target: &str) -> Remote {
    try_connect(target).unwrap()
}

/// The processes that a line has named: server and stubborn one. A test that fails kills them.
struct Named([Pid; 2]);

impl Named {
    fn find(directory: &Path) -> Self {
        Self(["server", "stubborn"].map(|name| {
            let pid = fs::read_to_string(directory.join(name)).unwrap();
            Pid::from_raw(pid.trim().parse().unwrap())
        }))
    }

    fn running(&self) -> usize {
        self.0.iter().filter(|pid| is_running(**pid)).count()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        for pid in self.0.into_iter().filter(|pid| is_running(*pid)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

fn is_running(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < EVENT_TIMEOUT, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn all_processes_of_a_line_are_dead_when_the_client_is_dropped() {
    let scratch = Scratch::new();
    let remote = connect(&line(scratch.path()));
    let processes = Named::find(scratch.path());
    assert_eq!(processes.running(), 2);
    remote.read_at(&mut [0; 512], 0).unwrap();
    drop(remote);
    assert_eq!(processes.running(), 0);
}

/// A successor has no more than a descriptor.
#[test]
fn a_successor_waits_until_all_processes_of_a_line_are_dead() {
    let scratch = Scratch::new();
    let remote = connect(&line(scratch.path()));
    let processes = Named::find(scratch.path());
    let process = remote.child_pidfd().unwrap();
    // It has less patience than the line takes to end.
    let began = Instant::now();
    let short = Duration::from_millis(100);
    while fence_child(process.try_clone().unwrap(), short).unwrap() == Fence::Open {
        assert!(began.elapsed() < EVENT_TIMEOUT, "the line does not end");
    }
    assert_eq!(processes.running(), 0);
}

/// It cannot end the line then, but the kernel ends the shell.
#[test]
fn the_shell_dies_with_a_supervisor_that_is_killed() {
    let scratch = Scratch::new();
    let file = scratch.path().join("shell");
    let remote = connect(&format!("exec:{{ echo $$ >{}; nbdkit -s memory 1M; }}", file.display()));
    let shell = Pid::from_raw(fs::read_to_string(&file).unwrap().trim().parse().unwrap());
    let status = fs::read_to_string(format!("/proc/{shell}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    let supervisor = Pid::from_raw(parent.trim().parse().unwrap());
    let name = fs::read_to_string(format!("/proc/{supervisor}/comm")).unwrap();
    assert_eq!(name.trim(), "nbd-supervisor");
    kill(supervisor, Signal::SIGKILL).unwrap();
    wait_until("the shell lives on", || !is_running(shell));
    drop(remote);
}

#[test]
fn the_status_of_a_line_is_told() {
    for (line, expected) in [
        ("exec:false || exit 7", 7),
        ("exec:eval 'exit 8'", 8),
        ("exec:{ kill -9 $$; }", 137),
        ("exec:{ kill -40 $$; }", 168),
    ] {
        match try_connect(line).unwrap_err().cause {
            Cause::Ended { status, .. } => assert_eq!(status.code(), Some(expected), "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

/// `exec` finds no commands of the shell itself.
#[test]
fn commands_of_the_shell_itself_serve() {
    let scratch = Scratch::new();
    let script = scratch.path().join("serve");
    fs::write(&script, "nbdkit -s memory 1M\n").unwrap();
    for line in [
        format!("exec:. {}", script.display()),
        "exec:A=1 eval 'nbdkit -s memory 1M'".into(),
        "exec:command nbdkit -s memory 1M".into(),
        "exec:A=1 exec nbdkit -s memory 1M".into(),
        "exec:if true; then nbdkit -s memory 1M; fi".into(),
        "exec:false || nbdkit -s memory 1M".into(),
        "exec:serve() { nbdkit -s memory 1M; }; serve".into(),
    ] {
        let remote = connect(&line);
        remote.read_at(&mut [0; 512], 0).unwrap();
    }
}

/// Runs in a process of its own; see the next one.
#[test]
#[ignore = "is started by a_line_ends_with_a_client_that_is_killed"]
fn a_client_that_waits_to_be_killed() {
    let directory = PathBuf::from(std::env::var("NBD_TEST_DIRECTORY").unwrap());
    let _remote = connect(&line(&directory));
    fs::write(directory.join("ready"), b"ready").unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_line_ends_with_a_client_that_is_killed() {
    let scratch = Scratch::new();
    let mut client = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "shell_lines::a_client_that_waits_to_be_killed"])
        .env("NBD_TEST_DIRECTORY", scratch.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the client does not come up", || scratch.path().join("ready").exists());
    let processes = Named::find(scratch.path());
    assert_eq!(processes.running(), 2);
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until("the line lives on", || processes.running() == 0);
}
