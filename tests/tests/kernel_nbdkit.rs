//! Plugins of nbdkit as backends: killed under load, replaced by a newer build, confined, and refused
//! where they would break a device.

use std::fs;
use std::path::Path;

use nbd_tests::c_program::compile_plugin;
use nbd_tests::command::run;
use nbd_tests::ctl::{ctl, program};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::fio::Area;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::killer::{self, Killer};
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::{Api, kernel_tests, report};

const MIB: u64 = 1 << 20;
const KILLS: usize = 6;

kernel_tests!(
    fio_verifies_on_plugins_whose_backend_is_killed,
    plugins_read_the_same_after_a_kill,
    a_plugin_is_replaced_by_a_newer_build_under_load,
    plugins_serve_unprivileged_and_in_a_sandbox,
    plugins_that_cannot_be_devices_leave_nothing_behind,
);

/// A disk in a file, in Python.
const PYTHON: &str = "import nbdkit, os
API_VERSION = 2
path = None
def config(key, value):
    global path
    path = os.path.abspath(value)
def open(readonly): return os.open(path, os.O_RDWR)
def get_size(h): return os.fstat(h).st_size
def pread(h, buf, offset, flags): buf[:] = os.pread(h, len(buf), offset)
def pwrite(h, buf, offset, flags): os.pwrite(h, buf, offset)
def flush(h, flags): os.fsync(h)
";

fn fio_verifies_on_plugins_whose_backend_is_killed(api: Api) {
    let mut random = Random::from_environment();
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let image = files.image("disk.img", 16 * MIB);
    let halves = [files.image("one.img", 8 * MIB), files.image("two.img", 8 * MIB)];
    let script = files.join("disk.py");
    fs::write(&script, PYTHON).expect("a script");
    let own = compile_plugin(&files, "own.so", &["MODEL=NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS"]);
    for spec in [
        format!("nbdkit:file,{}", image.display()),
        format!("nbdkit:split,{},{}", halves[0].display(), halves[1].display()),
        format!("nbdkit:python,{},file={}", script.display(), image.display()),
        format!("nbdkit:{},disk={}", own.display(), image.display()),
    ] {
        let device = Device::attach(api, [&spec]);
        let path = device.path();
        let area = Area::of_device(&path, 8 * MIB);
        area.fill();
        let killer = Killer::start(&device, 20..=220);
        let mut requests = 0;
        while killer.count() < KILLS {
            let round = area.verified_round(&mut random);
            requests += round.reads + round.writes;
        }
        let killed = killer.stop();
        let status = device.wait_running();
        killer::check_restarts(&device, killed.len());
        assert_eq!(status.totals.errors, 0, "{spec}");
        area.check();
        device.detach();
        let plugin = spec.split(',').next().unwrap_or_default();
        report(&format!(
            "{}: {plugin}: {requests} requests verified, {} kills: 0 errors",
            api.name(),
            killed.len()
        ));
    }
    log.has_no_complaints();
}

fn plugins_read_the_same_after_a_kill(api: Api) {
    let files = TempDir::new();
    let directory = files.join("files");
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join("file"), vec![b'f'; 70_000]).expect("a file");
    let image = files.image("disk.img", 3 * MIB);
    disk::write(&image, MIB, &[b'i'; 8192]);
    let (image, directory) = (image.display(), directory.display());
    let below = files.join("below.sock");
    let below = nbd_tests::nbdkit::Nbdkit::start(&below, &files.image("below.img", MIB));
    for (plugin, arguments) in [
        ("data", "data=1 2 3 @0x1000 4,size=1M".into()),
        ("eval", "get_size=echo 1M,pread=head -c $3 /dev/zero | tr '\\0' e".into()),
        ("full", "1M".into()),
        ("nbd", format!("uri={}", below.uri())),
        ("null", "1M".into()),
        ("partitioning", format!("{image},mbr-id=7,partition-type=mbr")),
        ("pattern", "1M".into()),
        ("random", "1M,seed=1".into()),
        ("sparse-random", "16M,seed=1".into()),
    ] {
        // Changes of `data` would be lost, and nothing here writes.
        let layer = if plugin == "data" { "readonly@" } else { "" };
        let device = Device::attach(api, [format!("{layer}nbdkit:{plugin},{arguments}")]);
        let size = fs::metadata(device.path()).map(|_| MIB).expect("a device");
        let before = disk::read(&device.path(), 0, size);
        let arguments: Vec<_> = [plugin].into_iter().chain(arguments.split(',')).collect();
        let copy = files.join("copy");
        let copying = format!(
            "nbdsh -u \"$uri\" -c 'open(\"{}\", \"wb\").write(h.pread({MIB}, 0))'",
            copy.display()
        );
        let options = ["-U", "-"].into_iter().chain(arguments).chain(["--run", &copying]);
        run("env", ["PATH=/usr/bin:/usr/sbin", "nbdkit"].into_iter().chain(options)).succeeds();
        assert!(before == fs::read(&copy).expect("what nbdkit serves"), "{plugin}");
        device.signal_backend(nix::sys::signal::Signal::SIGKILL);
        assert!(disk::read(&device.path(), 0, size) == before, "{plugin}: after the kill");
        assert_eq!(device.wait_running().totals.errors, 0, "{plugin}");
        device.detach();
    }
    let device = Device::attach(api, [format!("nbdkit:floppy,{directory}")]);
    let mount = nbd_tests::sysfs::block_attribute(&device.name(), "size");
    assert!(mount.is_some_and(|sectors| sectors > 2048));
    device.detach();
    drop(below);
}

fn a_plugin_is_replaced_by_a_newer_build_under_load(api: Api) {
    let mut log = KernelLog::from_now();
    let files = TempDir::new();
    let image = files.image("disk.img", 8 * MIB);
    let [old, new] = ["SERIALIZE_ALL_REQUESTS", "PARALLEL"].map(|model| {
        compile_plugin(
            &files,
            &format!("{model}.so"),
            &[&format!("MODEL=NBDKIT_THREAD_MODEL_{model}")],
        )
    });
    let spec = |object: &Path| format!("nbdkit:{},disk={}", object.display(), image.display());
    let device = Device::attach(api, [spec(&old)]);
    let path = device.path();
    let mut load = Area::of_device(&path, 8 * MIB).start_load();
    device.wait_progress();
    for object in [&new, &old, &new] {
        ctl(["replace", &device.name(), &spec(object)]).succeeds();
        assert_eq!(device.status().backend.description, spec(object));
        device.wait_progress();
    }
    // One that cannot serve does not cost the one that does its life.
    let backend = device.backend();
    let broken = format!("{},unknown=1", spec(&old));
    ctl(["replace", &device.name(), &broken]).fails_with(1).says(&["no key 'unknown' here"]);
    assert_eq!(device.backend(), backend);
    device.wait_progress();
    load.goes_on();
    load.stop().is_good();
    assert_eq!(device.status().totals.errors, 0);
    log.has_no_complaints();
    device.detach();
}

fn plugins_serve_unprivileged_and_in_a_sandbox(api: Api) {
    let files = TempDir::new();
    let image = files.image("disk.img", MIB);
    let script = files.join("disk.py");
    fs::write(&script, PYTHON).expect("a script");
    run("chmod", ["755".as_ref(), files.path().as_os_str(), script.as_os_str()]).succeeds();
    run("chown", ["nobody".as_ref(), image.as_os_str()]).succeeds();
    for spec in [
        format!("nbdkit:file,{}", image.display()),
        format!("nbdkit:python,{},file={}", script.display(), image.display()),
        format!(
            "nbdkit:eval,get_size=echo 1M,pread=dd if={0} skip=$4 count=$3 iflag=count_bytes,,skip_bytes,pwrite=dd of={0} seek=$4 oflag=seek_bytes conv=notrunc",
            image.display()
        ),
    ] {
        for options in [&["--user", "nobody"][..], &["--user", "nobody", "--sandbox"]] {
            let arguments = options.iter().copied().chain([spec.as_str()]);
            let device = Device::attach(api, arguments);
            disk::write(&device.path(), 4096, &[b's'; 4096]);
            device.signal_backend(nix::sys::signal::Signal::SIGKILL);
            assert!(disk::read(&device.path(), 4096, 4096) == [b's'; 4096], "{spec}");
            device.detach();
        }
    }
}

fn plugins_that_cannot_be_devices_leave_nothing_behind(api: Api) {
    let files = TempDir::new();
    let object = compile_plugin(&files, "own.so", &[]).display().to_string();
    let undefined = compile_plugin(&files, "undefined.so", &["UNDEFINED"]).display().to_string();
    let text = files.image("text.so", 4096).display().to_string();
    let cases = [
        ("nbdkit:memory,1M".into(), "mem:SIZE"),
        ("nbdkit:data,size=1M,data=1".into(), "keeps what is written in the memory of its process"),
        ("nbdkit:ruby,disk.rb".into(), "exec:nbdkit -s ruby SCRIPT"),
        ("nbdkit:no-such-plugin".into(), "there is no such plugin"),
        (format!("nbdkit:{text}"), "is not a shared object"),
        (format!("nbdkit:{undefined}"), "undefined symbol: nbdkit_from_the_future"),
        (format!("nbdkit:{object},unknown=1"), "no key 'unknown' here"),
        (format!("nbdkit:{object},size=0"), "has 0 bytes"),
        (format!("nbdkit:{object},die.open=exit"), "ends this process by exit()"),
        (format!("nbdkit:{object},die.config_complete=crash"), "SIGABRT"),
        (format!("nbdkit:{object},die.get_ready=daemon"), "backend"),
    ];
    for (spec, expected) in cases {
        let arguments = ["attach", "--kernel-api", api.name(), &spec];
        ctl(arguments).fails_with(1).says(&[expected]);
        let left = ctl(["list"]);
        assert!(!left.stdout.contains("nbd0"), "{spec}: {}", left.stdout);
    }
    // What is only refused for a device can be served.
    run(program("nbd-serve"), ["--print-geometry", "nbdkit:memory,1M"]).succeeds();
}
