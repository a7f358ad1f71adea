//! Programs with libnbdbackend as backends of the driver's devices.

use std::fs;

use nbd_control::registry::Registry;
use nbd_control::status::BackendState;
use nbd_tests::c_program::{compile, link_library};
use nbd_tests::command::{PROGRAM_TIMEOUT, Running, start};
use nbd_tests::ctl::{ctl, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::fio::{Area, Report};
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::killer::{self, Killer};
use nbd_tests::page::root;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::signal::kill;
use nix::unistd::Pid;

const MIB: u64 = 1 << 20;
const KILLS: usize = 10;
const PYTHON_KILLS: usize = 3;
const DEVICES: u32 = 3;

kernel_tests!(
    fio_verifies_while_the_mirror_in_c_is_killed_and_replaced,
    fio_verifies_while_a_backend_in_python_is_killed,
    a_daemon_of_several_devices_is_killed_under_load_and_started_again,
    a_new_daemon_takes_over_all_devices_and_one_of_them_is_detached,
);

fn fio_verifies_while_the_mirror_in_c_is_killed_and_replaced(api: Api) {
    let mut random = Random::from_environment();
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let program = compile("examples/c/mirror.c", &files);
    let images = ["a.img", "b.img"].map(|name| files.image(name, 16 * MIB).display().to_string());
    let device = Device::attach(api, ["--", &program, &images[0], &images[1]]);
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    let killer = Killer::start(&device, 20..=220);
    let mut result = Report::default();
    while killer.count() < KILLS {
        result = result.and(area.verified_round(&mut random));
    }
    let killed = killer.stop();
    // There is no spare: the last one is being started.
    let before = device.wait_running().backend.pid;
    killer::check_restarts(&device, killed.len());
    ctl(["replace", &device.name(), "--", &program, &images[0], &images[1]]).succeeds();
    assert_ne!(device.wait_running().backend.pid, before);
    area.check();
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
    let contents = images.map(|image| fs::read(image).expect("an image"));
    assert!(contents[0] == contents[1], "the halves of the mirror differ");
    assert!(result.writes > 0);
}

fn fio_verifies_while_a_backend_in_python_is_killed(api: Api) {
    let mut random = Random::from_environment();
    let files = TempDir::new();
    link_library(&files);
    let package = format!("PYTHONPATH={}", root().join("python/nbdbackend").display());
    let library = format!("NBDBACKEND_LIBRARY={}", files.join("libnbdbackend.so.0").display());
    let script = root().join("examples/python/file.py").display().to_string();
    let image = files.image("disk.img", 8 * MIB).display().to_string();
    let python = ["--", "env", &package, &library, "python3", "-B", "-m", "nbdbackend"];
    let device = Device::attach(api, python.into_iter().chain([&*script, &image]));
    let path = device.path();
    let area = Area::of_device(&path, MIB);
    area.fill();
    let killer = Killer::start(&device, 500..=1500);
    while killer.count() < PYTHON_KILLS {
        area.verified_round(&mut random);
    }
    assert!(killer.stop().len() >= PYTHON_KILLS);
    area.check();
    assert_eq!(device.wait_running().totals.errors, 0);
    device.detach();
}

/// Devices of a file that wait for a daemon, and its command.
struct Fleet {
    files: TempDir,
    program: String,
    attaching: Option<Running>,
}

impl Fleet {
    fn new(api: Api) -> Self {
        let files = TempDir::new();
        let program = compile("examples/c/async_epoll.c", &files);
        let entries = (0..DEVICES).map(|index| {
            assert!(files.image(&format!("{index}.img"), 8 * MIB).exists());
            format!(
                "[tenant-{index}]\nexternal = true\nauto = true\nlanes = 2\ndevice = \"nbd{index}\"\n\
                 kernel-api = \"{}\"\n",
                api.name()
            )
        });
        let config = files.join("devices.toml");
        fs::write(&config, entries.collect::<String>()).expect("a file of devices");
        let words =
            ["attach", "--all", "--config", &config.display().to_string()].map(String::from);
        let attaching = Some(start_ctl(words));
        // All of them, though none is joined.
        wait_until("holders that invite", EVENT_TIMEOUT, || {
            (0..DEVICES).all(|index| Registry::new(None).join_socket(index).exists())
        });
        Self { files, program, attaching }
    }

    fn start(&self, options: &[&str]) -> Running {
        let disks = (0..DEVICES).map(|index| {
            let image = self.files.join(&format!("{index}.img"));
            format!("nbd{index}={}", image.display())
        });
        start(&self.program, options.iter().map(|word| (*word).to_owned()).chain(disks))
    }

    /// The devices, once the daemon that was started serves them.
    fn devices(&mut self) -> Vec<Device> {
        let attaching = self.attaching.take().expect("devices that are being attached");
        let printed = attaching.finish(PROGRAM_TIMEOUT).succeeds().stdout;
        let paths: Vec<_> = (0..DEVICES).map(|index| format!("/dev/nbd{index}")).collect();
        assert_eq!(printed.lines().collect::<Vec<_>>(), paths);
        (0..DEVICES).map(Device::numbered).collect()
    }
}

fn is_served_by(device: &Device, daemon: &Running) -> bool {
    let backend = device.status().backend;
    backend.state == BackendState::Running && backend.pid == Some(daemon.pid())
}

fn a_daemon_of_several_devices_is_killed_under_load_and_started_again(api: Api) {
    let mut log = KernelLog::from_now();
    let mut fleet = Fleet::new(api);
    let mut daemon = fleet.start(&[]);
    let devices = fleet.devices();
    let paths: Vec<_> = devices.iter().map(Device::path).collect();
    let areas: Vec<_> = paths.iter().map(|path| Area::of_device(path, 2 * MIB)).collect();
    for area in &areas {
        area.fill();
    }
    let mut loads: Vec<_> = areas.iter().map(Area::start_verified).collect();
    for _ in 0..5 {
        devices.iter().for_each(Device::wait_progress);
        daemon.signal(SIGKILL);
        daemon.finish(PROGRAM_TIMEOUT);
        daemon = fleet.start(&[]);
    }
    devices.iter().for_each(Device::wait_progress);
    loads.iter_mut().for_each(|load| load.goes_on());
    for load in loads {
        load.stop().is_good();
    }
    for area in &areas {
        area.check();
    }
    for device in devices {
        assert_eq!(device.status().totals.errors, 0);
        device.detach_from(daemon.pid());
    }
    daemon.finish(PROGRAM_TIMEOUT).succeeds();
    log.has_no_complaints();
}

fn a_new_daemon_takes_over_all_devices_and_one_of_them_is_detached(api: Api) {
    let mut fleet = Fleet::new(api);
    let blue = fleet.start(&[]);
    let mut devices = fleet.devices();
    let noise = Random::by_clock().bytes(MIB as usize);
    devices.iter().for_each(|device| disk::write(&device.path(), MIB, &noise));
    let mut green = fleet.start(&["--takeover"]);
    assert_eq!(blue.finish(PROGRAM_TIMEOUT).code, 128 + SIGKILL as i32);
    for device in &devices {
        wait_until("the new daemon", EVENT_TIMEOUT, || is_served_by(device, &green));
        assert!(disk::read(&device.path(), MIB, MIB) == noise, "{}", device.name());
    }

    // The holder of a device that is detached leaves the daemon to the others.
    devices.remove(0).detach_from(green.pid());
    assert!(green.is_running(), "{}", green.words());
    // So does a holder that has adopted a device, which the daemon has no connection to.
    let holder = devices[0].status().holder_pid;
    kill(Pid::from_raw(holder), SIGKILL).expect("a holder");
    wait_until("its end", EVENT_TIMEOUT, || nbd_control::process::is_dead(holder));
    assert_ne!(devices[0].status().holder_pid, holder, "nbd-ctl starts another one");
    devices.remove(0).detach_from(green.pid());
    assert!(green.is_running(), "{}", green.words());
    for device in devices {
        assert!(is_served_by(&device, &green), "{}", green.words());
        assert!(disk::read(&device.path(), MIB, MIB) == noise, "{}", device.name());
        device.detach_from(green.pid());
    }
    green.finish(PROGRAM_TIMEOUT).succeeds();
}
