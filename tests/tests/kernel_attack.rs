//! Clients of a holder's sockets that keep to no rule, as each user who can reach them: the holder answers others
//! meanwhile, and afterwards has what it had before.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nbd_control::registry::Registry;
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, start};
use nbd_tests::ctl::{ctl, program};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::page::root;
use nbd_tests::process::children;
use nbd_tests::random::Random;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests, report};

const MIB: u64 = 1 << 20;
const MODES: [&str; 9] = [
    "garbage",
    "messages",
    "frames",
    "pieces",
    "flood",
    "questions",
    "crowd",
    "descriptors",
    "urgent",
];
/// What the allocator of a holder may keep for the next time, in KiB.
const KEPT_MEMORY: u64 = 4096;
/// Of the group, and of backends that have not introduced themselves, as the holder limits them.
const MAX_READERS: usize = 32;
const MAX_JOINING: usize = 16;
const INTERVAL: Duration = Duration::from_millis(50);
/// So many looks in a row at which nothing has changed.
const SETTLED_LOOKS: u32 = 10;

kernel_tests!(
    attacks_on_the_control_socket_leave_nothing_and_others_are_answered,
    attacks_on_the_join_socket_leave_nothing_and_others_are_answered,
    silent_clients_make_room_for_others,
    silent_backends_make_room_for_others,
);

/// Who attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    /// Of the group that may look.
    Member,
    /// Who the backend runs as.
    User,
    Stranger,
}

impl Who {
    fn attacks(self, socket: &Path, mode: &str) -> Running {
        let script = root().join("tests/hostile-client.py").display().to_string();
        self.starts(&["/usr/bin/python3", &script, &socket.display().to_string(), mode])
    }

    /// Starts a command as this user.
    fn starts(self, command: &[&str]) -> Running {
        let who: &[&str] = match self {
            Self::Root => &["--reuid=root", "--regid=root", "--clear-groups"],
            Self::Member => &["--reuid=nobody", "--regid=nogroup", "--groups=daemon"],
            Self::User => &["--reuid=daemon", "--regid=daemon", "--clear-groups"],
            Self::Stranger => &["--reuid=nobody", "--regid=nogroup", "--clear-groups"],
        };
        start("setpriv", who.iter().chain(["--"].iter()).chain(command.iter()))
    }
}

/// What a holder has, and would have more of if something were left.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Belongings {
    descriptors: Vec<PathBuf>,
    children: Vec<i32>,
}

impl Belongings {
    /// Root may have ordered another backend, so of it only numbers are compared.
    fn is_as_before(&self, before: &Self, who: Who) -> bool {
        let counts = |it: &Self| (it.descriptors.len(), it.children.len());
        self == before || (who == Who::Root && counts(self) == counts(before))
    }

    /// Those that stay: who has asked for something has left.
    fn settled(holder: i32) -> Self {
        let (mut last, mut same) = (Self::of(holder), 0);
        while same < SETTLED_LOOKS {
            std::thread::sleep(INTERVAL);
            let now = Self::of(holder);
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    /// Waits until the holder has these and nothing else.
    #[track_caller]
    fn are_all(&self, holder: i32, who: Who) {
        let deadline = Instant::now() + EVENT_TIMEOUT;
        loop {
            let now = Self::of(holder);
            if now.is_as_before(self, who) {
                return;
            }
            assert!(Instant::now() < deadline, "{who:?}: a holder has {now:#?} and had {self:#?}");
            std::thread::sleep(INTERVAL);
        }
    }

    fn of(holder: i32) -> Self {
        let links = fs::read_dir(format!("/proc/{holder}/fd")).expect("a holder").flatten();
        let mut descriptors: Vec<_> =
            links.filter_map(|link| fs::read_link(link.path()).ok()).collect();
        descriptors.sort_unstable();
        Self { descriptors, children: children(holder) }
    }
}

/// Resident memory in KiB.
fn memory(holder: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{holder}/status")).expect("a holder");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A device whose holder knows all of them.
fn attach(api: Api) -> Device {
    Device::attach(api, ["--no-spare", "--group", "daemon", "--user", "daemon", "mem:8M"])
}

/// Attacks in every way at once; root is answered meanwhile.
fn withstands(device: &Device, socket: &Path, who: Who) {
    let holder = device.status().holder_pid;
    let noise = Random::by_clock().bytes(MIB as usize);
    disk::write(&device.path(), MIB, &noise);
    let before = Belongings::settled(holder);
    let memory_before = memory(holder);
    let attacks = MODES.map(|mode| who.attacks(socket, mode));
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        // Root itself can take all places.
        if who != Who::Root {
            let asked = Instant::now();
            ctl(["status", &device.name()]).succeeds();
            longest = longest.max(asked.elapsed());
        }
        assert!(disk::read(&device.path(), MIB, MIB) == noise, "{who:?}: other data");
    }
    report(&format!("{who:?}: a status took {} ms at most", longest.as_millis()));
    for (attack, mode) in attacks.into_iter().zip(MODES) {
        let entered = attack.finish(PROGRAM_TIMEOUT).succeeds().stdout;
        let is_let_in = entered.trim() != "0";
        assert_eq!(is_let_in, who != Who::Stranger, "{who:?}, {mode}: {entered}");
    }
    before.are_all(holder, who);
    assert_eq!(device.wait_running().holder_pid, holder, "{who:?}");
    let most = memory_before + KEPT_MEMORY;
    assert!(memory(holder) <= most, "{who:?}: {} KiB and not {most}", memory(holder));
}

fn attacks_on_the_control_socket_leave_nothing_and_others_are_answered(api: Api) {
    let device = attach(api);
    let socket = Registry::new(None).control_socket(device.index());
    for who in [Who::Stranger, Who::Member, Who::Root] {
        withstands(&device, &socket, who);
    }
    device.detach();
}

fn attacks_on_the_join_socket_leave_nothing_and_others_are_answered(api: Api) {
    let device = attach(api);
    let socket = Registry::new(None).join_socket(device.index());
    for who in [Who::Stranger, Who::User] {
        withstands(&device, &socket, who);
    }
    device.detach();
}

/// Waits until a holder has so many more descriptors than before.
fn wait_for_descriptors(holder: i32, before: &Belongings, more: usize) {
    wait_until("the connections are there", EVENT_TIMEOUT, || {
        Belongings::of(holder).descriptors.len() >= before.descriptors.len() + more
    });
}

/// All silent connections came before one that was answered, so they have been let in or not by now.
#[track_caller]
fn has_at_most(holder: i32, before: &Belongings, more: usize) {
    let now = Belongings::of(holder).descriptors.len();
    assert!(now <= before.descriptors.len() + more, "{now} descriptors");
}

fn silent_clients_make_room_for_others(api: Api) {
    let device = attach(api);
    let (name, holder) = (device.name(), device.status().holder_pid);
    let before = Belongings::settled(holder);
    let silent = Who::Member.attacks(&Registry::new(None).control_socket(device.index()), "hold");
    wait_for_descriptors(holder, &before, MAX_READERS);
    Who::Member.starts(&[&program("nbd-ctl"), "status", &name]).finish(PROGRAM_TIMEOUT).succeeds();
    has_at_most(holder, &before, MAX_READERS);
    drop(silent);
    device.detach();
}

fn silent_backends_make_room_for_others(api: Api) {
    let device = attach(api);
    let (name, holder) = (device.name(), device.status().holder_pid);
    let before = Belongings::settled(holder);
    let silent = Who::User.attacks(&Registry::new(None).join_socket(device.index()), "hold");
    wait_for_descriptors(holder, &before, MAX_JOINING);
    let joins = start(program("nbd-serve"), ["--join", &name, "mem:8M"]);
    // It is let in, to hear that it is not needed.
    let refused = joins.finish(PROGRAM_TIMEOUT);
    assert!(refused.stderr.contains("is served by process"), "{}", refused.stderr);
    has_at_most(holder, &before, MAX_JOINING);
    drop(silent);
    device.detach();
}
