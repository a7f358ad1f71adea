//! The way from a released version to this one, with the programs of that release as it was: devices live
//! through it under load. `scripts/test --only upgrade` builds those programs and runs this.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use nbd_control::status::BackendState;
use nbd_tests::busy::Busy;
use nbd_tests::command::{Output, PROGRAM_TIMEOUT, start};
use nbd_tests::ctl::{bin_dir, require_machine};
use nbd_tests::device::Device;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests, not_run};
use nix::sys::signal::Signal::SIGKILL;

const MIB: u64 = 1 << 20;
const PROGRAMS: [&str; 3] = ["nbd-ctl", "nbd-kernel-holder", "nbd-serve"];

kernel_tests!(
    a_package_upgrade_with_the_holder_first_disturbs_no_io,
    a_package_upgrade_with_the_backend_first_disturbs_no_io,
    a_former_holder_that_dies_after_the_upgrade_is_adopted,
    former_programs_and_new_ones_talk_to_each_other,
    a_device_goes_back_to_the_former_release,
);

/// Programs in a folder, as a package installs them.
struct Package(TempDir);

impl Package {
    /// That of the former release, if its programs have been built.
    fn former() -> Option<(Self, PathBuf)> {
        require_machine();
        let Some(former) = env::var_os("NBD_FORMER_BIN_DIR").map(PathBuf::from) else {
            not_run("the programs of the former release: use scripts/test --only upgrade");
            return None;
        };
        let package = Self(TempDir::new());
        package.install(&former);
        Some((package, former))
    }

    /// Puts the programs of a folder in the place of those that are there, as dpkg does.
    fn install(&self, from: &Path) {
        for name in PROGRAMS {
            let new = self.0.join("new");
            fs::copy(from.join(name), &new).expect("a copy of a program");
            fs::rename(new, self.0.join(name)).expect("a program in its place");
        }
    }

    fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        run(&self.0.join("nbd-ctl"), arguments)
    }

    /// A device with a load, attached by what is installed.
    fn attach(&self, api: Api) -> Busy {
        let files = TempDir::new();
        let spec = files.spec("disk.img", 16 * MIB);
        let attached = self.ctl(&["attach", "--kernel-api", api.name(), &spec]).succeeds();
        Busy::on(Device::printed_by(&attached), files)
    }
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    start(program, arguments).finish(PROGRAM_TIMEOUT)
}

/// What a process executes; a file that was replaced is there as one that was deleted.
fn executed(pid: i32) -> String {
    let path = fs::read_link(format!("/proc/{pid}/exe")).expect("a process");
    path.display().to_string()
}

fn is_installed(pid: i32, package: &Package, name: &str) -> bool {
    executed(pid) == package.program(name).display().to_string()
}

fn replace_backend(package: &Package, busy: &Busy) {
    let former = busy.device.backend();
    assert!(!is_installed(former, package, "nbd-serve"), "{}", executed(former));
    package.ctl(&["replace", &busy.device.name()]).succeeds();
    busy.is_followed(former);
    assert!(is_installed(busy.device.backend(), package, "nbd-serve"));
    busy.device.wait_progress();
}

fn upgrade_holder(package: &Package, busy: &Busy) {
    let before = busy.device.status();
    assert!(!is_installed(before.holder_pid, package, "nbd-kernel-holder"));
    package.ctl(&["upgrade", "--all"]).succeeds().says(&[&busy.device.name()]);
    let after = busy.device.status();
    assert_eq!(after.holder_pid, before.holder_pid, "it is the same process");
    assert!(is_installed(after.holder_pid, package, "nbd-kernel-holder"));
    assert_eq!(after.backend.pid, before.backend.pid, "the backend was not disturbed");
    busy.device.wait_progress();
}

/// Backends die as before, and the next one is of the package.
fn kill_backend(package: &Package, busy: &Busy) {
    let backend = busy.device.backend();
    assert!(signal(backend, SIGKILL));
    busy.is_followed(backend);
    assert!(is_installed(busy.device.backend(), package, "nbd-serve"));
    busy.device.wait_progress();
}

fn a_package_upgrade_with_the_holder_first_disturbs_no_io(api: Api) {
    let Some((package, _)) = Package::former() else { return };
    let mut log = KernelLog::from_now();
    let busy = package.attach(api);
    package.install(bin_dir());
    upgrade_holder(&package, &busy);
    replace_backend(&package, &busy);
    kill_backend(&package, &busy);
    busy.ends_well();
    log.has_no_complaints();
}

fn a_package_upgrade_with_the_backend_first_disturbs_no_io(api: Api) {
    let Some((package, _)) = Package::former() else { return };
    let mut log = KernelLog::from_now();
    let busy = package.attach(api);
    package.install(bin_dir());
    replace_backend(&package, &busy);
    kill_backend(&package, &busy);
    upgrade_holder(&package, &busy);
    kill_backend(&package, &busy);
    busy.ends_well();
    log.has_no_complaints();
}

/// The next one reads the state and the ledger that the former release has written.
fn a_former_holder_that_dies_after_the_upgrade_is_adopted(api: Api) {
    let Some((package, _)) = Package::former() else { return };
    let mut log = KernelLog::from_now();
    let busy = package.attach(api);
    package.install(bin_dir());
    let before = busy.device.state().expect("a state");
    assert!(signal(before.holder.pid, SIGKILL));
    wait_until("its death", EVENT_TIMEOUT, || !before.holder.is_alive());
    package.ctl(&["adopt", &busy.device.name()]).succeeds();
    let after = busy.device.status();
    assert!(is_installed(after.holder_pid, &package, "nbd-kernel-holder"));
    assert_eq!(after.backend.pid, before.backend.map(|backend| backend.pid));
    busy.device.wait_progress();
    replace_backend(&package, &busy);
    kill_backend(&package, &busy);
    busy.ends_well();
    log.has_no_complaints();
}

/// An operator's shell, a service and a unit may each still use the former programs.
fn former_programs_and_new_ones_talk_to_each_other(api: Api) {
    let Some((package, former)) = Package::former() else { return };
    let busy = package.attach(api);
    let name = busy.device.name();
    package.install(bin_dir());
    for ctl in [former.join("nbd-ctl"), package.program("nbd-ctl")] {
        let status = run(&ctl, &["status", &name, "--json"]).succeeds();
        assert!(status.stdout.contains("\"running\""), "{}", status.stdout);
        let trace = run(&ctl, &["trace", &name]).succeeds();
        assert!(trace.stdout.contains("write"), "{}", trace.stdout);
        run(&ctl, &["pause", &name]).succeeds();
        run(&ctl, &["resume", &name]).succeeds();
        busy.device.wait_progress();
    }
    upgrade_holder(&package, &busy);
    let status = run(&former.join("nbd-ctl"), &["status", &name, "--json"]).succeeds();
    assert!(status.stdout.contains("\"running\""), "{}", status.stdout);
    // A backend of the former release joins the new holder.
    let present = busy.device.backend();
    let spec = format!("file:{}", busy.files.join("disk.img").display());
    let serve = former.join("nbd-serve");
    let joined = start(&serve, ["--join", &name, "--takeover", &spec]);
    busy.is_followed(present);
    assert_eq!(executed(busy.device.backend()), serve.display().to_string());
    busy.device.wait_progress();
    package.ctl(&["restart", &name]).succeeds();
    assert_eq!(busy.device.wait_running().backend.state, BackendState::Running);
    drop(joined);
    busy.ends_well();
}

/// Not promised for every release, and told here while it holds: a new one may be taken back.
fn a_device_goes_back_to_the_former_release(api: Api) {
    let Some((package, former)) = Package::former() else { return };
    let mut log = KernelLog::from_now();
    package.install(bin_dir());
    let busy = package.attach(api);
    package.install(&former);
    upgrade_holder(&package, &busy);
    replace_backend(&package, &busy);
    kill_backend(&package, &busy);
    busy.ends_well();
    log.has_no_complaints();
}
