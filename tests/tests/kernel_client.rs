//! nbd-client, which connects the kernel's driver to our network server.

use std::fs;
use std::path::Path;

use nbd_tests::Api;
use nbd_tests::command::{Running, run};
use nbd_tests::ctl::{require_machine, start_serve};
use nbd_tests::disk;
use nbd_tests::fio::Area;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::kernel_tests;
use nbd_tests::mount::Mount;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;
const DEVICE: &str = "/dev/nbd0";

kernel_tests!(
    a_file_system_over_a_unix_socket,
    verified_load_over_four_connections,
    a_read_only_export_is_a_read_only_device,
);

/// A server, and a device that nbd-client has connected to it.
struct Connected {
    server: Running,
    api: Api,
    log: KernelLog,
}

impl Connected {
    fn new(api: Api, files: &TempDir, exports: &[&str], client: &[&str]) -> Self {
        require_machine();
        let log = KernelLog::from_now();
        let socket = files.join("socket");
        let listen = format!("--listen=unix:{}", socket.display());
        let tcp = "--listen=tcp:127.0.0.1:10809";
        let server = start_serve([&[&*listen, tcp], exports].concat());
        wait_until("a server", EVENT_TIMEOUT, || server.words().lines().count() >= 2);
        let socket = socket.display().to_string();
        let how = if api == Api::Ioctl { "-nonetlink" } else { "-nofork" };
        let words = client.iter().map(|word| word.replace("{socket}", &socket));
        run("nbd-client", words.chain([DEVICE.into(), how.into()])).succeeds();
        wait_until("a size", EVENT_TIMEOUT, || size() > 0);
        Self { server, api, log }
    }

    /// Disconnects; then the server ends when it is asked to, and has complained of nothing.
    fn end(mut self) {
        run("nbd-client", ["-d", DEVICE]).succeeds();
        wait_until("the device's end", EVENT_TIMEOUT, || size() == 0 || self.api == Api::Ioctl);
        wait_until("no process in the driver", EVENT_TIMEOUT, || {
            !Path::new("/sys/block/nbd0/pid").exists()
        });
        self.server.signal(Signal::SIGTERM);
        let output = self.server.finish(EVENT_TIMEOUT).succeeds();
        let odd: Vec<_> =
            output.stderr.lines().filter(|line| !line.contains(" serving ")).collect();
        assert!(odd.is_empty(), "{odd:#?}");
        self.log.has_no_complaints();
    }
}

fn size() -> u64 {
    let sectors = fs::read_to_string("/sys/block/nbd0/size").expect("a size");
    sectors.trim().parse::<u64>().expect("a number") * 512
}

fn a_file_system_over_a_unix_socket(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 64 * MIB);
    let spec = format!("file:{}", image.display());
    let connected = Connected::new(api, &files, &[&spec], &["-unix", "{socket}"]);
    assert_eq!(size(), 64 * MIB);
    run("mkfs.ext4", ["-q", DEVICE]).succeeds();
    let mount = Mount::new(Path::new(DEVICE), &files.join("mount"));
    let bytes: Vec<u8> = (0..8 * MIB).map(|at| (at / 512) as u8 ^ at as u8).collect();
    fs::write(files.join("mount").join("file"), &bytes).expect("room");
    mount.unmount();
    run("e2fsck", ["-f", "-n", DEVICE]).succeeds();
    run("blkdiscard", ["-f", "--offset", "0", "--length", "65536", DEVICE]).succeeds();
    disk::write(Path::new(DEVICE), 4096, &bytes[..8192]);
    assert_eq!(disk::read(Path::new(DEVICE), 4096, 8192), bytes[..8192]);
    connected.end();
    assert_eq!(fs::read(image).expect("the image")[4096..12288], bytes[..8192]);
}

fn verified_load_over_four_connections(api: Api) {
    let files = TempDir::new();
    let spec = "m=mem:32M";
    let client = ["127.0.0.1", "-name", "m", "-connections", "4"];
    let connected = Connected::new(api, &files, &[spec], &client);
    let area = Area::of_device(Path::new(DEVICE), 32 * MIB);
    area.fill();
    let load = area.start_verified();
    std::thread::sleep(std::time::Duration::from_secs(2));
    load.stop().is_good();
    area.check();
    connected.end();
}

fn a_read_only_export_is_a_read_only_device(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", 4 * MIB);
    let spec = format!("file:{},ro", image.display());
    let connected = Connected::new(api, &files, &[&spec], &["-unix", "{socket}"]);
    let read_only = fs::read_to_string("/sys/block/nbd0/ro").expect("a flag");
    assert_eq!(read_only.trim(), "1");
    disk::read_all(Path::new(DEVICE));
    connected.end();
}
