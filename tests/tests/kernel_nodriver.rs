//! A machine whose driver is not loaded. Alone in its file, as it unloads the driver.

use std::path::Path;

use nbd_tests::Api;
use nbd_tests::command::run;
use nbd_tests::ctl::{ctl, program, require_machine};
use nbd_tests::device::Device;
use nbd_tests::machine_state::MachineState;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};

#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn without_the_driver_it_says_how_to_load_it_and_with_it_all_is_well() {
    require_machine();
    run("busybox", ["rmmod", "nbd"]).succeeds();
    assert!(!Path::new("/sys/module/nbd").exists());
    let before = MachineState::now();
    for api in Api::ALL {
        // Started without `Device`, which would not run without a driver either.
        let attach = ["attach", "--kernel-api", api.name(), "mem:1M"];
        let output = run(program("nbd-ctl"), attach);
        let output = output.fails_with(1);
        output.says(&["driver is not loaded", "modprobe nbd"]);
        before.assert_unchanged();
    }
    let list = run(program("nbd-ctl"), ["list"]).succeeds();
    list.says(&["nothing is attached"]);

    run("modprobe", ["nbd"]).succeeds();
    wait_until("the driver", EVENT_TIMEOUT, || Path::new("/dev/nbd0").exists());
    for api in Api::ALL {
        Device::attach(api, ["mem:1M"]).detach();
    }
    ctl(["list"]).succeeds();
}
