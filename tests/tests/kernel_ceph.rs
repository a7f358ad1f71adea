//! Images of a real cluster behind the driver: backends and OSDs are killed, stopped and replaced, and
//! the device goes on.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nbd_tests::ceph::{Cluster, OSDS};
use nbd_tests::command::{PROGRAM_TIMEOUT, run};
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::fio::Area;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::killer::{self, Killer};
use nbd_tests::mount::Mount;
use nbd_tests::page::{Block, blocks, root};
use nbd_tests::session::Session;
use nbd_tests::sysfs::block_attribute;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, scaled_timeout, wait_until};
use nbd_tests::{Api, kernel_tests, report, tree};
use nix::sys::signal::Signal::SIGKILL;

const MIB: u64 = 1 << 20;
/// The longest detach from a cluster that does not answer.
const DETACH_TIMEOUT: Duration = Duration::from_secs(60);
/// Backends killed.
const KILLS: usize = 8;

kernel_tests!(
    fio_verifies_while_backends_are_killed,
    fio_verifies_while_osds_are_killed,
    fio_verifies_while_backends_and_osds_are_killed,
    a_backend_is_replaced_and_the_holder_upgraded_under_load,
    a_cluster_that_does_not_answer_is_waited_for_and_named,
    a_cluster_that_does_not_answer_does_not_hold_up_a_detach,
    ext4_keeps_a_tree_of_files,
    a_snapshot_is_read_only,
    an_image_that_has_grown_grows_the_device,
);

fn fio_verifies_while_backends_are_killed(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let mut log = KernelLog::from_now();
    let image = cluster.image("kills", 32 * MIB);
    let device = Device::attach(api, [image.spec()]);
    let path = device.path();
    let area = Area::of_device(&path, 2 * MIB);
    area.fill();
    let mut fio = area.start_verified();
    let killer = Killer::start(&device, 100..=800);
    wait_until("dead backends", EVENT_TIMEOUT, || {
        fio.goes_on();
        killer.count() >= KILLS
    });
    let killed = killer.stop().len();
    device.wait_running();
    device.wait_progress();
    let result = fio.stop().is_good();
    area.check();
    killer::check_restarts(&device, killed);
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
    report(&format!("{}: {killed} backends killed, {result:?}", api.name()));
}

fn fio_verifies_while_osds_are_killed(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let mut log = KernelLog::from_now();
    let image = cluster.image("osds", 32 * MIB);
    let device = Device::attach(api, [image.spec()]);
    let path = device.path();
    let area = Area::of_device(&path, 2 * MIB);
    area.fill();
    let fio = area.start_verified();
    for number in OSDS {
        device.wait_progress();
        cluster.kill_osd(number);
        // One copy is left of everything. Later, the only new one may be on the next that is killed.
        if number == 0 {
            device.wait_progress();
        }
        cluster.heal();
    }
    device.wait_progress();
    let result = fio.stop().is_good();
    area.check();
    let status = device.status();
    assert_eq!((status.totals.errors, status.backend.restarts), (0, 0));
    log.has_no_complaints();
    device.detach();
    report(&format!("{}: {} OSDs killed, {result:?}", api.name(), OSDS.len()));
}

fn fio_verifies_while_backends_and_osds_are_killed(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let mut log = KernelLog::from_now();
    let image = cluster.image("both", 32 * MIB);
    let device = Device::attach(api, [image.spec()]);
    let path = device.path();
    let area = Area::of_device(&path, 2 * MIB);
    area.fill();
    let fio = area.start_verified();
    let killer = Killer::start(&device, 100..=1500);
    for number in OSDS {
        cluster.kill_osd(number);
        cluster.heal();
        device.wait_progress();
    }
    wait_until("a dead backend", EVENT_TIMEOUT, || killer.count() > 0);
    let killed = killer.stop().len();
    device.wait_running();
    device.wait_progress();
    let result = fio.stop().is_good();
    area.check();
    killer::check_restarts(&device, killed);
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
    let osds = OSDS.len();
    report(&format!("{}: {osds} OSDs, {killed} backends killed, {result:?}", api.name()));
}

fn a_backend_is_replaced_and_the_holder_upgraded_under_load(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let mut log = KernelLog::from_now();
    let image = cluster.image("replace", 32 * MIB);
    let device = Device::attach(api, [image.spec()]);
    let path = device.path();
    let area = Area::of_device(&path, 2 * MIB);
    area.fill();
    let mut fio = area.start_verified();
    device.wait_progress();
    let name = device.name();
    for spec in [image.spec(), format!("log@{}", image.spec()), image.spec()] {
        ctl(["replace", &name, &spec]).succeeds();
        assert_eq!(device.status().backend.description, spec);
        device.wait_progress();
        ctl(["upgrade", &name]).succeeds();
        device.wait_progress();
    }
    fio.goes_on();
    fio.stop().is_good();
    area.check();
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
}

fn ext4_keeps_a_tree_of_files(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let source = files.join("source");
    let made = tree::make(&source);
    let image = cluster.image("ext4", 192 * MIB);
    let device = Device::attach(api, [image.spec()]);
    let path = device.path();
    let killer = Killer::start(&device, 1000..=5000);
    run("mkfs.ext4", ["-q".as_ref(), path.as_os_str()]).succeeds();
    let mount = Mount::new(&path, &files.join("mount"));
    let copy = files.join("mount").join("copy");
    run("cp", [OsStr::new("-aT"), source.as_os_str(), copy.as_os_str()]).succeeds();
    mount.unmount();
    wait_until("dead backends", EVENT_TIMEOUT, || killer.count() > 0);
    let killed = killer.stop().len();
    device.wait_running();
    run("e2fsck", ["-f".as_ref(), "-n".as_ref(), path.as_os_str()]).succeeds();
    let mount = Mount::new(&path, &files.join("mount"));
    tree::compare(&source, &copy);
    mount.unmount();
    killer::check_restarts(&device, killed);
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
    report(&format!("{}: {} files, {killed} backends killed", api.name(), made.files));
}

fn a_cluster_that_does_not_answer_is_waited_for_and_named(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let files = TempDir::new();
    let image = cluster.image("silent", 32 * MIB);
    let device = Device::attach(api, [image.spec()]);
    let paused = cluster.pause();
    let write = device.start_block(&files, b'w');
    wait_until("the cluster is named", EVENT_TIMEOUT, || {
        let why = ctl(["why", &device.name()]).succeeds().stdout;
        why.contains("the Ceph cluster") && why.contains(&image.name())
    });
    // Its successor waits for the same.
    device.signal_backend(SIGKILL);
    wait_until("it is noticed", EVENT_TIMEOUT, || device.status().backend.restarts > 0);
    drop(paused);
    write.finish(PROGRAM_TIMEOUT).succeeds();
    assert!(disk::read(&device.path(), 0, 4096) == [b'w'; 4096]);
    assert_eq!(device.wait_running().totals.errors, 0);
    device.detach();
}

fn a_cluster_that_does_not_answer_does_not_hold_up_a_detach(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let files = TempDir::new();
    for force in [false, true] {
        let image = cluster.image("detach", 32 * MIB);
        let device = Device::attach(api, [image.spec()]);
        let paused = cluster.pause();
        if force {
            let write = device.start_block(&files, b'd');
            // Panics if anything is left.
            in_time(|| device.detach_by_force());
            assert_ne!(write.finish(PROGRAM_TIMEOUT).code, 0, "nothing has written it");
        } else {
            // It is not in use: nothing is to be waited for but the backend, and not for long.
            in_time(|| device.detach());
        }
        drop(paused);
    }
}

/// The holder kills a backend after 15 s; the cluster is silent for as long as it likes.
fn in_time<R>(detach: impl FnOnce() -> R) {
    let begun = Instant::now();
    detach();
    assert!(begun.elapsed() < scaled_timeout(DETACH_TIMEOUT), "the detach waited for the cluster");
}

fn a_snapshot_is_read_only(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let image = cluster.image("snapshot", 4 * MIB);
    let device = Device::attach(api, [image.spec()]);
    disk::write(&device.path(), 0, &[b'1'; 4096]);
    image.rbd("snap create IMAGE@one").succeeds();
    disk::write(&device.path(), 0, &[b'2'; 4096]);
    let snapshot = Device::attach(api, [image.snapshot_spec("one")]);
    assert_eq!(block_attribute(&snapshot.name(), "ro"), Some(1));
    snapshot.signal_backend(SIGKILL);
    assert!(disk::read(&snapshot.path(), 0, 4096) == [b'1'; 4096]);
    assert!(disk::read(&device.path(), 0, 4096) == [b'2'; 4096]);
    assert_eq!(snapshot.wait_running().totals.errors, 0);
    snapshot.detach();
    device.detach();
}

fn an_image_that_has_grown_grows_the_device(api: Api) {
    let Some(cluster) = Cluster::get() else { return };
    let image = cluster.image("grown", 4 * MIB);
    let device = Device::attach(api, [image.spec()]);
    let mut load = Area::of_device(&device.path(), 2 * MIB).start_load();
    device.wait_progress();
    image.rbd(&format!("resize IMAGE --size {}B", 8 * MIB)).succeeds();
    ctl(["resize", "--to-backend", &device.name()]).succeeds();
    assert_eq!(block_attribute(&device.name(), "size"), Some(8 * MIB / 512));
    disk::write(&device.path(), 6 * MIB, &[b'g'; 4096]);
    load.goes_on();
    load.stop().is_good();
    device.signal_backend(SIGKILL);
    assert!(disk::read(&device.path(), 6 * MIB, 4096) == [b'g'; 4096]);
    device.detach();
}

/// `kernel_docs` leaves these commands out, for want of a cluster.
#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn every_command_of_the_guide_does_what_it_says() {
    let Some(cluster) = Cluster::get() else { return };
    let text = fs::read_to_string(root().join("docs/guide/ceph.md")).expect("the guide");
    let place = Path::new("/etc/ceph");
    fs::create_dir_all(place).expect("a directory");
    // Keys are where Ceph looks for them, as the guide has it.
    let conf = fs::read_to_string(cluster.conf()).expect("the configuration");
    let keyring = cluster.conf().with_file_name("keyring");
    let conf = conf.replace(&format!("keyring = {}\n", keyring.display()), "");
    fs::write(place.join("ceph.conf"), conf).expect("a configuration");
    fs::copy(keyring, place.join("ceph.client.admin.keyring")).expect("a key");
    let mut session = Session::new();
    let steps = blocks(&text).into_iter().filter(Block::has_commands).flat_map(|it| it.steps());
    let mut count = 0;
    for step in steps {
        session.step(&step).unwrap_or_else(|error| panic!("line {}: {error}", step.line));
        count += 1;
    }
    assert!(count > 5, "only {count} commands");
}
