//! What the kernel may send is not always what the export offers: Linux 6.12 keeps limits of the queue
//! when a device is detached.

use nbd_tests::command::run;
use nbd_tests::ctl::ctl;
use nbd_tests::device::Device;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::nbdkit::Nbdkit;
use nbd_tests::sysfs::block_attribute;
use nbd_tests::temp::TempDir;
use nbd_tests::{Api, disk, kernel_tests};

const MIB: u64 = 1 << 20;

kernel_tests!(zeroes_are_served_though_the_export_before_it_offered_more);

fn zeroes_are_served_though_the_export_before_it_offered_more(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 4 * MIB)]);
    let name = device.name();
    device.detach();

    let server = Nbdkit::start_without_zeroes(&files.join("socket"));
    let attach = ["attach", "--kernel-api", api.name(), "--device", &name, &server.uri()];
    let attached = ctl(attach).succeeds();
    let device = Device::printed_by(&attached);
    let keeps = block_attribute(&name, "queue/write_zeroes_max_bytes").is_some_and(|most| most > 0);
    let told = attached.stderr.contains("sends write zeroes, which the export does not offer");
    assert_eq!(keeps, told, "{}", attached.stderr);

    let path = device.path();
    disk::write(&path, 0, &vec![b'x'; 4 * MIB as usize]);
    let range = ["-o", "65536", "-l", "2097152"].map(std::ffi::OsStr::new);
    run("blkdiscard", ["-z".as_ref()].into_iter().chain(range).chain([path.as_os_str()]))
        .succeeds();
    let found = disk::read(&path, 0, 4 * MIB);
    let zeroes = 65536..65536 + 2 * MIB as usize;
    let expected = |at| if zeroes.contains(&at) { 0 } else { b'x' };
    assert!(found.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
    drop(server);
}
