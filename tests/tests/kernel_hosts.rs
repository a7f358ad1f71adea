//! Two hosts, as network namespaces, with devices in front of one server: the first is cut off, and the
//! second takes over. NBD itself has no fence: the operator keeps the first one from writing.

use std::fs;
use std::path::{Path, PathBuf};

use nbd_tests::command::{PROGRAM_TIMEOUT, Running, run};
use nbd_tests::ctl::{ctl, program, start_serve};
use nbd_tests::device::Device;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, disk, kernel_tests};
use nix::sys::signal::Signal;

const DISK_SIZE: u64 = 16 << 20;
const PORT: u16 = 10809;
const BLOCK: usize = 4096;

kernel_tests!(
    writes_of_a_host_that_was_only_cut_off_arrive_when_it_is_back,
    a_host_whose_port_is_off_until_its_device_is_gone_writes_nothing_more,
);

/// A host with a cable to the server's machine, which this is.
struct Host {
    name: &'static str,
    /// Of the network that the cable is.
    number: u8,
}

impl Host {
    fn set_up(name: &'static str, number: u8) -> Self {
        let host = Self { name, number };
        run("ip", ["netns", "add", name]).succeeds();
        let (port, plug) = (host.port(), host.plug());
        run("ip", ["link", "add", &port, "type", "veth", "peer", "name", &plug, "netns", name])
            .succeeds();
        run("ip", ["address", "add", &format!("{}/24", host.server()), "dev", &port]).succeeds();
        let address = format!("10.77.{number}.2/24");
        host.run(&["address", "add", &address, "dev", &plug]);
        host.set_port("up");
        host.set_cable("up");
        host
    }

    /// The end of the cable at the server, which may be a port of a switch.
    fn port(&self) -> String {
        format!("port-{}", self.name)
    }

    /// The end of the cable at the host.
    fn plug(&self) -> String {
        format!("plug-{}", self.name)
    }

    fn server(&self) -> String {
        format!("10.77.{}.1", self.number)
    }

    #[track_caller]
    fn run(&self, words: &[&str]) {
        run("ip", ["-netns", self.name].iter().chain(words)).succeeds();
    }

    #[track_caller]
    fn set_cable(&self, state: &str) {
        self.run(&["link", "set", &self.plug(), state]);
    }

    #[track_caller]
    fn set_port(&self, state: &str) {
        run("ip", ["link", "set", &self.port(), state]).succeeds();
    }

    /// Attaches the server's disk, by a backend in the host's network.
    #[track_caller]
    fn attach(&self, api: Api) -> Device {
        let uri = format!("nbd://{}:{PORT}", self.server());
        let serve = program("nbd-serve");
        Device::attach(api, ["--", "ip", "netns", "exec", self.name, &serve, &uri])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its cable goes with it. If that fails, the next host of this name says so.
        let _ = run("ip", ["netns", "delete", self.name]);
    }
}

struct TwoHosts {
    files: TempDir,
    disk: PathBuf,
    first: Host,
    second: Host,
    server: Running,
}

impl TwoHosts {
    fn set_up() -> Self {
        let files = TempDir::new();
        let disk = files.image("disk.img", DISK_SIZE);
        let (first, second) = (Host::set_up("first", 1), Host::set_up("second", 2));
        let export = format!("file:{}", disk.display());
        let mut server = start_serve(["--listen", &format!("tcp:0.0.0.0:{PORT}"), &export]);
        wait_until("the server listens", EVENT_TIMEOUT, || {
            assert!(server.is_running(), "{}", server.words());
            run(program("nbd-serve"), ["--list", &format!("nbd://{}:{PORT}", first.server())]).code
                == 0
        });
        Self { files, disk, first, second, server }
    }

    /// Whether the first block of the server's disk is this byte all over.
    #[track_caller]
    fn server_has(&self, byte: u8) -> bool {
        fs::read(&self.disk).expect("the disk")[..BLOCK] == [byte; BLOCK]
    }

    /// Attaches at the first host, writes durably, and begins another write when it is cut off.
    fn cut_first_off(&self, api: Api) -> (Device, Running) {
        let device = self.first.attach(api);
        disk::write(&device.path(), 0, &[1; BLOCK]);
        self.first.set_cable("down");
        let late = device.start_block(&self.files, 2);
        (device, late)
    }

    /// The second host finds what was durable, and writes something newer.
    fn take_over(&self, api: Api) -> Device {
        let device = self.second.attach(api);
        assert!(reads(&device.path(), 1));
        disk::write(&device.path(), 0, &[3; BLOCK]);
        device
    }

    fn end(self) {
        self.server.signal(Signal::SIGTERM);
        self.server.finish(PROGRAM_TIMEOUT).succeeds();
    }
}

fn reads(device: &Path, byte: u8) -> bool {
    disk::read(device, 0, BLOCK as u64) == [byte; BLOCK]
}

fn writes_of_a_host_that_was_only_cut_off_arrive_when_it_is_back(api: Api) {
    let hosts = TwoHosts::set_up();
    let (first, late) = hosts.cut_first_off(api);
    let second = hosts.take_over(api);
    assert!(hosts.server_has(3));
    hosts.first.set_cable("up");
    late.finish(EVENT_TIMEOUT).succeeds();
    assert!(hosts.server_has(2), "the first host's write was late, and is there");
    first.detach();
    second.detach();
    hosts.end();
}

fn a_host_whose_port_is_off_until_its_device_is_gone_writes_nothing_more(api: Api) {
    let hosts = TwoHosts::set_up();
    let (first, mut late) = hosts.cut_first_off(api);
    hosts.first.set_port("down");
    let second = hosts.take_over(api);
    hosts.first.set_cable("up");

    wait_until("why tells that it waits", EVENT_TIMEOUT, || {
        ctl(["why", &first.name()]).succeeds().stdout.contains("nothing is lost")
    });
    assert!(late.is_running(), "it waits: {}", late.words());
    first.detach_by_force();
    late.finish(PROGRAM_TIMEOUT).fails_with(1).says(&["Input/output error"]);
    hosts.first.set_port("up");
    let again = hosts.first.attach(api);
    assert!(reads(&again.path(), 3), "the host is a new client, and sees what the second wrote");
    again.detach();
    assert!(reads(&second.path(), 3) && hosts.server_has(3));
    second.detach();
    hosts.end();
}
