//! Requests, shapes and growth.

use nbd_backend::{Backend, Extent, ZeroOptions};
use nbd_rbd::look;

use crate::cluster::{FileRecord, cluster};

const MIB: u64 = 1 << 20;
/// What images have by default.
const FEATURES: &str = "layering,exclusive-lock,object-map,fast-diff";

fn read(backend: &impl Backend, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![9; length];
    backend.read_at(&mut buffer, offset).unwrap();
    buffer
}

#[test]
fn what_is_written_is_read_discarded_and_zeroed() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(FEATURES);
    let backend = image.open("", &FileRecord::fresh()).unwrap();
    let data: Vec<u8> = (0..2 * MIB).map(|at| (at % 251) as u8).collect();
    // Across the border of two objects, and not aligned.
    let offset = 4 * MIB - 777;
    backend.write_at(&data, offset, true).unwrap();
    backend.flush().unwrap();
    assert_eq!(read(&backend, offset, data.len()), data);
    assert_eq!(read(&backend, 0, 512), [0; 512]);

    for no_hole in [false, true] {
        let how = ZeroOptions { no_hole, ..ZeroOptions::default() };
        backend.write_zeroes(offset + 100, 1000, how).unwrap();
        assert_eq!(read(&backend, offset + 100, 1000), [0; 1000]);
        assert_eq!(read(&backend, offset, 100), data[..100]);
    }
    let fast = ZeroOptions { fast_only: true, ..ZeroOptions::default() };
    let refused = backend.write_zeroes(0, 512, fast).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);

    let allocated = |backend: &dyn Backend| -> Vec<(u64, bool)> {
        let extents = backend.extents(0, 64 * MIB, false).unwrap();
        extents.into_iter().map(|Extent { length, hole, .. }| (length / MIB, hole)).collect()
    };
    // Two objects of 4 MiB.
    assert_eq!(allocated(&backend), [(8, false), (56, true)]);
    backend.trim(0, 8 * MIB, false).unwrap();
    assert_eq!(allocated(&backend), [(64, true)]);
    assert_eq!(read(&backend, offset, 512), [0; 512]);
    backend.close();
}

#[test]
fn a_snapshot_shows_what_was_there_and_a_clone_what_is_below_it() {
    let Some(cluster) = cluster() else { return };
    let (image, copy) = (cluster.image(FEATURES), cluster.image(FEATURES));
    let backend = image.open("", &FileRecord::fresh()).unwrap();
    backend.write_at(&[1; 512], 0, false).unwrap();
    let path = image.path();
    cluster.rbd(&["snap", "create", "--no-progress", &format!("{path}@monday")]);
    backend.write_at(&[2; 512], 0, false).unwrap();

    let mut spec = image.spec("");
    spec.snapshot = Some("monday".into());
    let shape = look(&spec).unwrap();
    assert!(shape.geometry.capabilities.read_only && !shape.geometry.capabilities.trim);
    let snapshot = nbd_rbd::RbdBackend::open(
        &spec,
        FileRecord::fresh(),
        nbd_rbd::OnLoss::FailRequests,
        |now| Ok::<_, nbd_rbd::RbdError>(now.size),
    );
    let snapshot = snapshot.unwrap();
    assert_eq!(read(&snapshot, 0, 512), [1; 512]);
    snapshot.close();
    backend.close();

    cluster.rbd(&["rm", "--no-progress", &copy.path()]);
    cluster.rbd(&["snap", "protect", &format!("{path}@monday")]);
    cluster.rbd(&["clone", &format!("{path}@monday"), &copy.path()]);
    let clone = copy.open("", &FileRecord::fresh()).unwrap();
    assert_eq!(read(&clone, 0, 512), [1; 512]);
    clone.write_at(&[3; 512], 512, false).unwrap();
    assert_eq!(read(&clone, 0, 1024), [[1; 512], [3; 512]].concat());
    clone.close();
    cluster.rbd(&["flatten", "--no-progress", &copy.path()]);
    cluster.rbd(&["snap", "unprotect", &format!("{path}@monday")]);
}

#[test]
fn growth_is_seen_and_what_has_shrunk_fails_and_does_not_lie() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image(FEATURES);
    let backend = image.open("", &FileRecord::fresh()).unwrap();
    assert_eq!(backend.geometry().size, 64 * MIB);
    cluster.rbd(&["resize", "--no-progress", "--size", "80M", &image.path()]);
    assert_eq!(look(&image.spec("")).unwrap().geometry.size, 80 * MIB);
    assert_eq!(backend.geometry().size, 64 * MIB);
    backend.write_at(&[1; 512], 64 * MIB - 512, false).unwrap();

    cluster.rbd(&["resize", "--no-progress", "--allow-shrink", "--size", "32M", &image.path()]);
    let at_end = || backend.write_at(&[1; 512], 64 * MIB - 512, false);
    // The backend hears of it a moment later.
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while at_end().is_ok() {
        assert!(std::time::Instant::now() < limit, "writes behind the end seem to succeed");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    backend.write_at(&[1; 512], 0, false).unwrap();
    backend.close();
}
