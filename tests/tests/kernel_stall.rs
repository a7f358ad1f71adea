//! A backend that is stopped, as in a debugger, four times as long as the block layer waits by
//! itself before it asks the driver what is the matter. These are 30 s unless somebody has set
//! another time, as this test does.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nbd_control::status::{BackendState, Status};
use nbd_tests::device::Device;
use nbd_tests::fio::{Area, Fio};
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::sysfs::block_attribute;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for, wait_until};
use nbd_tests::{Api, report};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};

const MIB: u64 = 1 << 20;
const DEPTH: usize = 16;
const BLOCK_LAYER_TIMEOUT: Duration = Duration::from_secs(5);
const STALL_TIME: Duration = Duration::from_secs(4 * BLOCK_LAYER_TIMEOUT.as_secs());

/// A device with requests that wait.
struct Stalled {
    what: String,
    device: Device,
    timeout_before: u64,
    fio: Fio,
    /// The cookies of the requests, each with its lane.
    waiting: BTreeSet<(u32, String)>,
}

/// With several sockets the driver drops the one whose request has timed out; so that is tried
/// as well, and all at the same time.
#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn sixteen_requests_outlast_a_stall_with_ioctl_and_netlink_and_one_lane_and_two() {
    let files = TempDir::new();
    for index in 0..16 {
        let attribute = format!("/sys/block/nbd{index}/queue/io_timeout");
        let time = BLOCK_LAYER_TIMEOUT.as_millis().to_string();
        fs::write(attribute, time).expect("the block layer's time");
    }
    let mut log = KernelLog::from_now();
    let kinds = Api::ALL.map(|api| [1, 2].map(|lanes| (api, lanes)));
    let kinds = kinds.as_flattened().iter();
    let stalled: Vec<_> = kinds.map(|&(api, lanes)| stall(&files, api, lanes)).collect();
    std::thread::sleep(STALL_TIME);

    for stalled in &stalled {
        let status = stalled.device.status();
        assert_eq!(status.backend.state, BackendState::Stopped);
        assert_eq!(cookies(&status), stalled.waiting, "{}", stalled.what);
        for request in &status.in_flight {
            let long = request.age_ms >= STALL_TIME.as_millis() as u64;
            assert!(long, "{}: {request:?}", stalled.what);
        }
    }
    log.has_no_complaints();
    for stalled in stalled {
        continues(stalled);
    }
    log.has_no_complaints();
}

fn cookies(status: &Status) -> BTreeSet<(u32, String)> {
    let waiting = status.in_flight.iter();
    waiting.map(|request| (request.lane, request.cookie.clone())).collect()
}

fn stall(files: &TempDir, api: Api, lanes: u32) -> Stalled {
    let what = format!("{}, {lanes} lanes", api.name());
    let spec = files.spec(&format!("{}-{lanes}.img", api.name()), 16 * MIB);
    let timeouts: Vec<_> =
        (0..16).map(|index| block_attribute(&format!("nbd{index}"), "queue/io_timeout")).collect();
    let device = Device::attach(api, ["--lanes", &lanes.to_string(), &spec]);
    let before = timeouts.get(device.index() as usize).copied().flatten();
    let timeout_before = before.expect("one of the devices that there were");
    assert!(Duration::from_millis(device.io_timeout()) > STALL_TIME * 10);

    let path = device.path();
    let fio = Area::of_device(&path, 8 * MIB).start_load();
    let status = wait_for("16 requests in flight", EVENT_TIMEOUT, || {
        device.wait_progress();
        device.signal_backend(SIGSTOP);
        let full = (0..50).find_map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            let status = device.status();
            (status.in_flight.len() == DEPTH).then_some(status)
        });
        if full.is_none() {
            // Stopped when fio was between two phases and had sent fewer; so once more.
            device.signal_backend(SIGCONT);
        }
        full
    });
    assert_eq!(status.lanes, lanes, "{what}");
    Stalled { what, waiting: cookies(&status), device, timeout_before, fio }
}

fn continues(stalled: Stalled) {
    let Stalled { what, device, timeout_before, fio, waiting } = stalled;
    device.signal_backend(SIGCONT);
    wait_until("none of them waits any more", EVENT_TIMEOUT, || {
        cookies(&device.status()).is_disjoint(&waiting)
    });
    device.wait_progress();
    let result = fio.stop().is_good();
    let status = device.status();
    assert_eq!((status.totals.errors, status.backend.restarts), (0, 0), "{what}");
    assert!(status.in_flight.is_empty(), "{what}");
    let name = device.name();
    device.detach();
    let after = block_attribute(&name, "queue/io_timeout");
    assert_eq!(after, Some(timeout_before), "{what}");
    report(&format!(
        "{what}: {} requests, longest wait {:.1} s",
        result.reads + result.writes,
        result.longest / 1e3
    ));
}
