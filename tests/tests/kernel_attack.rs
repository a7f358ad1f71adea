//! Clients of a holder's sockets that keep to no rule, as whoever can reach them: the holder answers others
//! meanwhile, and afterwards everything is as it was before.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nbd_control::registry::Registry;
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, start};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::page::root;
use nbd_tests::process::children;
use nbd_tests::random::Random;
use nbd_tests::wait::EVENT_TIMEOUT;
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
const INTERVAL: Duration = Duration::from_millis(50);
/// So many looks in a row at which nothing has changed.
const SETTLED_LOOKS: u32 = 10;

kernel_tests!(
    whoever_attacks_the_control_socket_others_are_answered_and_nothing_is_left,
    whoever_attacks_the_join_socket_others_are_answered_and_nothing_is_left,
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
        let socket = socket.display().to_string();
        let command = ["/usr/bin/python3", &script, &socket, mode];
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

/// Attacks in every way at once; nobody who may give orders is kept from it.
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

fn whoever_attacks_the_control_socket_others_are_answered_and_nothing_is_left(api: Api) {
    let device = attach(api);
    let socket = Registry::new(None).control_socket(device.index());
    for who in [Who::Stranger, Who::Member, Who::Root] {
        withstands(&device, &socket, who);
    }
    device.detach();
}

fn whoever_attacks_the_join_socket_others_are_answered_and_nothing_is_left(api: Api) {
    let device = attach(api);
    let socket = Registry::new(None).join_socket(device.index());
    for who in [Who::Stranger, Who::User] {
        withstands(&device, &socket, who);
    }
    device.detach();
}
