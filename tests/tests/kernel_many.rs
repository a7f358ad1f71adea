//! Many devices at once. Alone in its file, as it loads the driver anew.

use nbd_tests::command::run;
use nbd_tests::ctl::{ctl, require_machine};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::machine_state::MachineState;
use nbd_tests::process::signal;
use nbd_tests::random::Random;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, report};
use nix::sys::signal::Signal::SIGKILL;

const DEVICES: usize = 64;

/// Half of them by ioctl, half by netlink.
#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn sixty_four_devices_at_once_keep_their_data_when_all_their_backends_die() {
    require_machine();
    run("busybox", ["rmmod", "nbd"]).succeeds();
    run("modprobe", ["nbd", &format!("nbds_max={DEVICES}")]).succeeds();
    wait_until("the driver", EVENT_TIMEOUT, || std::path::Path::new("/dev/nbd63").exists());
    let before = MachineState::now();
    let mut random = Random::by_clock();
    let devices: Vec<_> = (0..DEVICES)
        .map(|count| {
            let device = Device::attach(Api::ALL[count % 2], ["--no-spare", "mem:1M"]);
            let noise = random.bytes(4096);
            disk::write(&device.path(), 8192, &noise);
            (device, noise)
        })
        .collect();
    for (device, _) in &devices {
        assert!(signal(device.backend(), SIGKILL));
    }
    for (device, noise) in &devices {
        assert!(disk::read(&device.path(), 8192, 4096) == *noise, "{}", device.name());
    }
    let list = ctl(["list", "--json"]).succeeds().stdout;
    assert_eq!(list.matches("\"attached\"").count(), DEVICES);
    ctl(["detach", "--all"]).succeeds();
    drop(devices);
    before.assert_unchanged();
    report(&format!("{DEVICES} devices at once"));
}
