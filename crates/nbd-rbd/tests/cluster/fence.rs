//! Writes that come late, and clients that are shut out.

use std::sync::Arc;
use std::time::Duration;

use nbd_backend::Backend;
use nbd_rbd::{RbdError, Record, RecordStore, Refusal};

use crate::cluster::{Cluster, FileRecord, Image, cluster};
use crate::process::{BLOCK, Process};

const OLD: u8 = 1;
const NEW: u8 = 2;
/// Without the fence, the older write wins in two of three rounds: where the OSD reads both connections
/// with the same thread, they do not overtake each other.
const ROUNDS: usize = 12;
const FENCED_ROUNDS: usize = 5;

fn signal(process: &Process, name: &str) {
    let pid = process.id().to_string();
    assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
}

fn first_byte(backend: &impl Backend) -> u8 {
    let mut block = [0; BLOCK];
    backend.read_at(&mut block, 0).unwrap();
    assert!(block.iter().all(|byte| *byte == block[0]), "a torn block");
    block[0]
}

/// A process is killed while its writes wait in an OSD. Its successor, which knows of it by `record` or
/// does not, writes to the same place. Returns what is there in the end.
fn kill_and_succeed(cluster: &Cluster, is_known: bool) -> u8 {
    // Without the exclusive lock, so that librbd has no reason of its own to shut anyone out.
    let image = cluster.image("layering");
    let osd = image.first_osd();
    let record = FileRecord::fresh();
    let mut process = Process::open(&image, ",unlocked", &record);
    let own = if is_known { Arc::clone(&record) } else { FileRecord::fresh() };
    // The successor is connected to the OSD before that is slow, and fenced after the death.
    let kill = || {
        osd.delay(true);
        // The blocks behind the first one keep the OSD from noticing too soon that the client is gone.
        process.write(OLD, 64);
        // There is no event to wait for: the OSD has not looked at them. If they are too late, this round
        // shows nothing.
        std::thread::sleep(Duration::from_millis(500));
        process.kill();
        osd.delay(false);
    };
    let backend = image.open_after(",unlocked", &own, kill).unwrap();
    backend.write_at(&[NEW; BLOCK], 0, false).unwrap();
    // Longer than the OSD delays what it has: the old write is executed, or refused.
    std::thread::sleep(Duration::from_secs(4));
    let found = first_byte(&backend);
    backend.close();
    if !is_known {
        // Else its watch keeps the image from being removed for half a minute.
        cluster.shut_out(&record.address());
    }
    found
}

#[test]
fn an_old_write_overtakes_the_successor_only_without_the_fence() {
    let Some(cluster) = cluster() else { return };
    let is_overtaken = (0..ROUNDS).any(|_| kill_and_succeed(&cluster, false) == OLD);
    assert!(is_overtaken, "the test cannot show the fault");
    for round in 0..FENCED_ROUNDS {
        assert_eq!(kill_and_succeed(&cluster, true), NEW, "round {round}");
    }
}

#[test]
fn a_successor_has_the_lock_of_a_dead_predecessor_at_once() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image("layering,exclusive-lock");
    let record = FileRecord::fresh();
    let mut process = Process::open(&image, "", &record);
    process.write(OLD, 1);
    assert_eq!(process.hear(), "written");
    let address = record.address();
    process.kill();
    let backend = image.open("", &record).unwrap();
    assert!(cluster.is_shut_out(&address));
    assert_ne!(record.address(), address);
    assert_eq!(first_byte(&backend), OLD);
    backend.write_at(&[NEW; BLOCK], 0, true).unwrap();
    backend.close();
    assert_eq!(record.load().unwrap(), Record::Empty);
    assert!(!cluster.rbd(&["lock", "ls", &image.path()]).contains("auto"), "the lock is left");
}

/// As a machine that is cut off and comes back.
fn stopped_process(image: &Image<'_>, record: &Arc<FileRecord>) -> Process {
    let process = Process::open(image, "", record);
    signal(&process, "-STOP");
    process
}

#[test]
fn a_client_that_another_one_has_shut_out_writes_nothing_and_ends() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image("layering,exclusive-lock");
    let (record, other) = (FileRecord::fresh(), FileRecord::fresh());
    let mut process = stopped_process(&image, &record);
    process.write(OLD, 1);
    let address = record.address();

    // It has the lock, and is alive as far as the cluster can tell.
    let refused = image.open("", &other).unwrap_err();
    let RbdError::Refused(Refusal::InUse(who)) = &refused else { panic!("{refused:?}") };
    assert!(who.contains(&address) && who.contains("client."), "{who}");
    assert!(refused.to_string().contains(",take-over"), "{refused}");

    let backend = image.open(",take-over", &other).unwrap();
    backend.write_at(&[NEW; BLOCK], 0, false).unwrap();
    signal(&process, "-CONT");
    assert_eq!(process.hear(), "lost");
    assert_eq!(process.wait().code(), Some(1));
    assert_eq!(first_byte(&backend), NEW);

    // Not even when the other one is done.
    assert_eq!(record.load().unwrap(), Record::Lost);
    backend.close();
    let refused = image.open(",take-over", &record).unwrap_err();
    assert!(matches!(refused, RbdError::Refused(Refusal::TakenAway(_))), "{refused:?}");
}

#[test]
fn a_successor_notices_that_the_image_was_not_its_own_all_the_time() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image("layering,exclusive-lock");
    let (record, other) = (FileRecord::fresh(), FileRecord::fresh());
    let process = stopped_process(&image, &record);
    let backend = image.open(",take-over", &other).unwrap();
    // It dies before it could notice anything.
    process.kill();
    for _ in 0..2 {
        let refused = image.open("", &record).unwrap_err();
        assert!(matches!(refused, RbdError::Refused(Refusal::TakenAway(_))), "{refused:?}");
    }
    backend.write_at(&[NEW; BLOCK], 0, false).unwrap();
    backend.close();
}

#[test]
fn requests_of_a_client_that_was_shut_out_fail_where_it_has_no_successor() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image("layering,exclusive-lock");
    let (record, other) = (FileRecord::fresh(), FileRecord::fresh());
    let first = image.open("", &record).unwrap();
    let second = image.open(",take-over", &other).unwrap();
    for _ in 0..2 {
        let error = first.write_at(&[OLD; BLOCK], 0, false).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESHUTDOWN));
    }
    second.write_at(&[NEW; BLOCK], 0, false).unwrap();
    assert_eq!(first_byte(&second), NEW);
    first.close();
    second.close();
}
