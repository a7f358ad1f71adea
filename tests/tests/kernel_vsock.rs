//! vsock, by which virtual machines reach their host: here by the loopback of this machine's kernel.

use std::fs;
use std::path::Path;

use nbd_tests::command::{Output, Running, run, start};
use nbd_tests::ctl::{require_machine, start_serve};
use nbd_tests::device::Device;
use nbd_tests::fio::Area;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;
const PORT: u32 = 10810;
/// By VMADDR_CID_LOCAL.
const OURS: &str = "nbd+vsock://1:10810/m";
/// Killed servers.
const KILLS: usize = 3;

kernel_tests!(a_device_over_vsock_outlives_its_servers);

fn require_loopback() {
    require_machine();
    run("modprobe", ["vsock_loopback"]).succeeds();
}

/// nbd-serve with a file.
fn serve(disk: &Path) -> Running {
    let spec = format!("m=file:{}", disk.display());
    let mut server = start_serve([&format!("--listen=vsock:{PORT}"), &*spec]);
    wait_until("a server", EVENT_TIMEOUT, || {
        assert!(server.is_running(), "{}", server.words());
        server.words().contains(" serving ")
    });
    server
}

fn stop(server: Running) -> Output {
    server.signal(Signal::SIGTERM);
    server.finish(EVENT_TIMEOUT).succeeds()
}

fn a_device_over_vsock_outlives_its_servers(api: Api) {
    require_loopback();
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let disk = files.image("disk.img", 16 * MIB);
    let mut server = serve(&disk);
    let device = Device::attach(api, [format!("{OURS}?connections=2")]);
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    let fio = area.start_verified();
    for _ in 0..KILLS {
        device.wait_progress();
        drop(server);
        server = serve(&disk);
    }
    device.wait_progress();
    fio.stop().is_good();
    area.check();
    let status = device.status();
    assert_eq!((status.totals.errors, status.backend.restarts), (0, 0));
    log.has_no_complaints();
    device.detach();
    // What the device's users have written is what a peer finds.
    let copy = files.join("copy");
    run("nbdcopy", [OURS, &copy.display().to_string()]).succeeds();
    assert!(fs::read(copy).expect("a copy") == fs::read(disk).expect("the image"));
    stop(server);
}

#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn peers_find_our_server() {
    require_loopback();
    let files = TempDir::new();
    let disk = files.image("disk.img", 16 * MIB);
    let source = files.join("source");
    let bytes: Vec<u8> = (0..16 * MIB).map(|at| (at / 512) as u8 ^ at as u8).collect();
    fs::write(&source, &bytes).expect("room");
    let server = serve(&disk);
    let size = run("nbdinfo", ["--size", OURS]).succeeds().stdout;
    assert_eq!(size.trim(), (16 * MIB).to_string());
    run("nbdcopy", ["--flush", &source.display().to_string(), OURS]).succeeds();
    assert!(fs::read(&disk).expect("the image") == bytes);
    run("nbdinfo", ["nbd+vsock://1:10810/other"]).fails_with(1);
    let words = stop(server).stderr;
    assert_eq!(
        words.trim_end(),
        format!("nbd-serve: serving m=file:{} on vsock:{PORT}", disk.display())
    );
}

#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn our_client_finds_nbdkit() {
    require_loopback();
    let files = TempDir::new();
    let disk = files.image("disk.img", 16 * MIB);
    let disk = disk.display().to_string();
    let mut nbdkit = start("nbdkit", ["-f", "--vsock", "--port=10811", "file", &disk]);
    let uri = "nbd+vsock://1:10811/";
    wait_until("nbdkit listens", EVENT_TIMEOUT, || {
        assert!(nbdkit.is_running(), "nbdkit: {}", nbdkit.words());
        run("nbdinfo", ["--size", uri]).code == 0
    });
    let device = Device::attach(Api::Netlink, [uri]);
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    area.check();
    device.detach();
}

#[test]
#[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
fn a_port_in_use_and_one_without_server_are_named() {
    require_loopback();
    let files = TempDir::new();
    let disk = files.image("disk.img", MIB);
    let server = serve(&disk);
    let second = start_serve([&*format!("--listen=vsock:{PORT}"), "mem:1M"]).finish(EVENT_TIMEOUT);
    second.fails_with(1).says(&["cannot listen on vsock:10810", "another server"]);
    stop(server);
    let gone = start_serve(["--print-geometry", OURS]).finish(EVENT_TIMEOUT).fails_with(1);
    gone.says(&["cannot connect to vsock:1:10810", "does a server listen there?"]);
}
