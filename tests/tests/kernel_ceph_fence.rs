//! Never two writers of an image of a real cluster: dead backends, other machines, other clients.

use std::fs;
use std::io::Write;
use std::process::{ChildStdin, Command};
use std::time::Duration;

use nbd_tests::ceph::{Cluster, Image};
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, converse};
use nbd_tests::ctl::ctl;
use nbd_tests::delay::Delay;
use nbd_tests::device::Device;
use nbd_tests::disk::{self, start_write};
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::SIGKILL;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const USAGE: i32 = 2;

kernel_tests!(
    a_write_of_a_dead_backend_never_overtakes_its_successors,
    only_one_of_two_devices_writes,
    a_device_whose_image_was_taken_over_fails_if_it_is_told_to,
    mistakes_are_told_and_leave_nothing_behind,
);

/// Tries with packets that are late by so many seconds, until an attempt says that they came after the newer
/// write.
fn with_late_packets(mut attempt: impl FnMut(Duration) -> bool) {
    let in_time = [8, 24, 72].map(Duration::from_secs).into_iter().any(&mut attempt);
    assert!(in_time, "a successor takes longer than packets that are a minute late");
}

/// Another client: `WRITER ceph.conf IMAGE LOCK`; writes a block for each byte that it reads. With `lock` it
/// keeps the image to itself.
const WRITER: &str = "
import os, rados, rbd, sys
cluster = rados.Rados(conffile=sys.argv[1]); cluster.connect()
image = rbd.Image(cluster.open_ioctx('rbd'), sys.argv[2].split('/')[1])
if sys.argv[3] == 'lock':
    image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
while byte := os.read(0, 1):
    image.write(byte * 4096, 0)
    print(byte.decode(), flush=True)
";

fn start_writer(cluster: &Cluster, image: &Image<'_>, lock: &str) -> (Running, ChildStdin) {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", WRITER]).arg(cluster.conf()).args([&image.name(), lock]);
    converse(command)
}

/// Packets of a dead client that are late do overtake where nothing fences it: what the next test would
/// find if backends had no fence.
#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn a_late_write_of_a_dead_client_without_a_fence_destroys_a_newer_one() {
    let Some(cluster) = Cluster::get() else { return };
    let image = cluster.image_with("unfenced", 4 * MIB, "--image-feature layering");
    let byte = |pipe: &mut ChildStdin, byte: u8| pipe.write_all(&[byte]).expect("a writer");
    with_late_packets(|time| {
        let (old, mut to_old) = start_writer(cluster, &image, "no-lock");
        // With that it has its connections.
        byte(&mut to_old, b'0');
        wait_until("the first write", EVENT_TIMEOUT, || old.output() == "0\n");
        let delay = Delay::of(old.pid(), time);
        byte(&mut to_old, b'1');
        wait_until("the write is on the way", EVENT_TIMEOUT, || delay.on_the_way() > BLOCK as u64);
        drop(old);
        let (new, mut to_new) = start_writer(cluster, &image, "no-lock");
        byte(&mut to_new, b'2');
        wait_until("the newer write", EVENT_TIMEOUT, || new.output() == "2\n");
        let in_time = delay.on_the_way() > BLOCK as u64;
        delay.arrives();
        if in_time {
            wait_until("the older write has won", EVENT_TIMEOUT, || {
                bytes_of(&image)[..BLOCK] == [b'1'; BLOCK]
            });
        }
        in_time
    });
}

fn a_write_of_a_dead_backend_never_overtakes_its_successors(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let files = TempDir::new();
    for (features, option) in [("", ""), ("--image-feature layering", ",unlocked")] {
        let image = cluster.image_with("fenced", 4 * MIB, features);
        let device = Device::attach(api, [image.spec() + option]);
        let path = device.path();
        with_late_packets(|time| {
            disk::write(&path, 0, &[b'0'; BLOCK]);
            let backend = device.backend();
            let delay = Delay::of(backend, time);
            let older = device.start_block(&files, b'1');
            wait_until("the write is on the way", EVENT_TIMEOUT, || {
                delay.on_the_way() > BLOCK as u64
            });
            assert!(signal(backend, SIGKILL));
            // Its successor replays it.
            older.finish(PROGRAM_TIMEOUT).succeeds();
            disk::write(&path, 0, &[b'2'; BLOCK]);
            let in_time = delay.on_the_way() > BLOCK as u64;
            delay.arrives();
            // This goes to the same OSD after what has arrived.
            disk::write(&path, BLOCK as u64, &[b'3'; BLOCK]);
            let expected = [[b'2'; BLOCK], [b'3'; BLOCK]].concat();
            assert!(disk::read(&path, 0, 2 * BLOCK as u64) == expected, "{features}: overtaken");
            in_time
        });
        assert_eq!(device.wait_running().totals.errors, 0);
        device.detach();
    }
}

fn only_one_of_two_devices_writes(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let files = TempDir::new();
    let image = cluster.image("taken", 4 * MIB);
    let first = Device::attach(api, [image.spec()]);
    disk::write(&first.path(), 0, &[b'0'; BLOCK]);
    let refused = ctl(["attach", &image.spec()]).fails_with(1);
    refused.says(&["in use by client.", "take-over"]);

    let second = Device::attach(api, [image.spec() + ",take-over"]);
    disk::write(&second.path(), 0, &[b'2'; BLOCK]);
    let write = first.start_block(&files, b'1');
    wait_until("it says so", EVENT_TIMEOUT, || {
        first.log().contains("another client has taken the image from this device")
    });
    // While the second has it, nothing of the first is written, nor after that, whichever backend serves it.
    disk::write(&second.path(), 0, &[b'3'; BLOCK]);
    second.signal_backend(SIGKILL);
    disk::write(&second.path(), BLOCK as u64, &[b'4'; BLOCK]);
    assert!(!first.status().in_flight.is_empty(), "the write waits");
    let why = ctl(["why", &first.name()]).succeeds().stdout;
    assert!(why.contains("another client has taken the image"), "{why}");
    assert_eq!(second.wait_running().totals.errors, 0);
    second.detach();
    first.detach_by_force();
    assert_ne!(write.finish(PROGRAM_TIMEOUT).code, 0, "nothing has written it");
    let written = [[b'3'; BLOCK], [b'4'; BLOCK]].concat();
    assert!(bytes_of(&image)[..2 * BLOCK] == written, "there was a second writer");
}

fn a_device_whose_image_was_taken_over_fails_if_it_is_told_to(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let image = cluster.image("fails", 4 * MIB);
    let device = Device::attach(api, ["--on-backend-loss", "fail:0", &image.spec()]);
    disk::write(&device.path(), 0, &[b'0'; BLOCK]);
    image.take_over();
    let (other, mut pipe) = start_writer(cluster, &image, "lock");
    pipe.write_all(b"2").expect("a writer");
    wait_until("a write of the other", EVENT_TIMEOUT, || other.output() == "2\n");
    let files = TempDir::new();
    let output = start_write(&device.path(), 0, &files.join("block"), &[b'1'; BLOCK]);
    assert_ne!(output.finish(PROGRAM_TIMEOUT).code, 0, "nothing has written it");
    // Nor can anything be written back, which a detach in order would ask for.
    device.detach_by_force();
    assert!(bytes_of(&image)[..BLOCK] == [b'2'; BLOCK], "there was a second writer");
}

/// What another client reads.
fn bytes_of(image: &Image<'_>) -> Vec<u8> {
    let files = TempDir::new();
    let copy = files.join("copy");
    image.rbd(&format!("export IMAGE {} --no-progress", copy.display())).succeeds();
    fs::read(copy).expect("a copy of the image")
}

/// A SPEC, the exit status, and what is said of it.
type Mistake<'a> = (String, i32, &'a [&'a str]);

fn mistakes_are_told_and_leave_nothing_behind(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let files = TempDir::new();
    let image = cluster.image("right", 4 * MIB);
    image.rbd("snap create IMAGE@one").succeeds();
    let (name, conf) = (image.name(), cluster.conf().display().to_string());
    let spec = |image: &str, rest: &str| format!("rbd:{image},conf={conf}{rest}");
    let unlocked = cluster.image_with("lockless", 4 * MIB, "--image-feature layering");
    // A key that no user of the cluster has.
    let keyring = files.join("keyring");
    let other = "[client.admin]\n\tkey = AQBSdFhcGxJlFRAAJ9o1Nn2bKnbXW5qkKxVf1g==\n";
    fs::write(&keyring, other).expect("a keyring");
    let key = format!(",keyring={}", keyring.display());
    let silent = files.join("silent.conf");
    let text = "[global]\nmon host = 127.0.0.1:1\nclient mount timeout = 3\nkeyring = ";
    fs::write(&silent, format!("{text}{}\n", keyring.display())).expect("a file");
    let near = name.replace("right", "rihgt");
    let mistakes: &[Mistake<'_>] = &[
        (spec("rdb/disk", ""), 1, &["there is no pool `rdb`", "rbd"]),
        (spec(&near, ""), 1, &["there is no image", &name["rbd/".len()..]]),
        (spec(&format!("{name}@two"), ""), 1, &["no snapshot `two`", "one"]),
        (spec(&name, &key), 1, &["refuses client.admin"]),
        (spec(&name, ",keyring=/no/such/keyring"), 1, &["/no/such/keyring"]),
        (spec(&name, ",user=nobody-there"), 1, &["nobody-there"]),
        (format!("rbd:{name},conf=/no/such/ceph.conf"), 1, &["/no/such/ceph.conf"]),
        (format!("rbd:{name},conf={}", silent.display()), 1, &["no monitor", "3"]),
        (spec(&unlocked.name(), ""), 1, &["has no exclusive lock", "feature enable"]),
        (spec("disk", ""), USAGE, &["the pool is missing"]),
        (spec(&name, ",no-such-option=1"), USAGE, &["no-such-option"]),
        (spec(&format!("{name}@one"), ",take-over"), USAGE, &["take-over"]),
    ];
    for (spec, status, words) in mistakes {
        let output = ctl(["attach", "--kernel-api", api.name(), spec]);
        output.fails_with(*status).says(words);
        assert!(!ctl(["list"]).stdout.contains("nbd0"), "{spec}: something is left");
    }
    assert_eq!(image.lock(), None, "nothing is left locked");
}
