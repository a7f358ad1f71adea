//! A cluster of Ceph in the machine of the tests, its images, and trouble for its daemons.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::command::{Output, PROGRAM_TIMEOUT, launch, run};
use crate::loop_device::LoopDevice;
use crate::mount::Mount;
use crate::page::root;
use crate::process::signal;
use crate::temp::TempDir;
use crate::wait::{EVENT_TIMEOUT, wait_until};
use crate::{not_run, report};

/// The numbers of its OSDs.
pub const OSDS: std::ops::Range<u32> = 0..3;
const GIB: u64 = 1 << 30;
/// How long its daemons may take to start: minutes in a slow machine.
const START_TIMEOUT: Duration = Duration::from_secs(450);
/// A program that a cluster needs, which stands for the others.
const NEEDED: &str = "/usr/bin/ceph-osd";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A monitor, a manager and three OSDs, for all tests of a file. They end with the machine.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    _files: TempDir,
    _disk: LoopDevice,
    _mount: Mount,
}

impl Cluster {
    /// The cluster, with all of its daemons running; nothing, which is told, where the packages are not.
    #[track_caller]
    #[must_use]
    pub fn get() -> Option<&'static Self> {
        static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
        if !Path::new(NEEDED).exists() {
            not_run("a cluster of Ceph: scripts/setup --for ceph installs its packages");
            return None;
        }
        // A test that has failed may have left some of them dead or stopped; and one cluster that
        // does not start is enough.
        let mut made = false;
        let cluster = CLUSTER.get_or_init(|| {
            made = true;
            let result = std::panic::catch_unwind(Self::start);
            result.inspect_err(|_| report("the cluster did not start")).ok()
        });
        let cluster = cluster.as_ref().expect("a cluster, which has not started before");
        if !made {
            cluster.resume();
            cluster.heal();
            wait_until("two copies of everything", EVENT_TIMEOUT, || cluster.is_clean());
        }
        Some(cluster)
    }

    fn start() -> Self {
        let files = TempDir::new();
        // The machine's own files are memory, which has no direct I/O before Linux 6.6.
        let disk = LoopDevice::on(&files.image("disk.img", 16 * GIB));
        let options = ["-q", "-O", "^has_journal"].map(OsStr::new);
        run("mkfs.ext4", options.into_iter().chain([disk.path().as_os_str()])).succeeds();
        let place = files.join("ceph");
        let mount = Mount::new(disk.path(), &place);
        let cluster = Self { dir: place.join("c"), _files: files, _disk: disk, _mount: mount };
        let started = cluster.heal();
        report(&format!("a cluster in {:.0} s", started.took.as_secs_f64()));
        cluster
    }

    /// Starts the daemons that have died, and waits until all OSDs are up.
    #[track_caller]
    pub fn heal(&self) -> Output {
        let limit = START_TIMEOUT.as_secs().to_string();
        let mut command = Command::new(root().join("scripts/ceph"));
        command.args(["start", "--timeout", &limit, "--dir"]).arg(&self.dir);
        launch(command).finish(START_TIMEOUT * 2).succeeds()
    }

    /// Its ceph.conf.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.dir.join("ceph.conf")
    }

    /// Runs `ceph` or `rbd` with its ceph.conf.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Output {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.conf()).args(arguments);
        launch(command).finish(PROGRAM_TIMEOUT)
    }

    /// Makes an image of so many bytes with the features that `rbd` gives it, and names it after `name`.
    #[track_caller]
    #[must_use]
    pub fn image(&self, name: &str, size: u64) -> Image<'_> {
        self.image_with(name, size, "")
    }

    /// The same with options of `rbd create`.
    #[track_caller]
    #[must_use]
    pub fn image_with(&self, name: &str, size: u64, options: &str) -> Image<'_> {
        let name = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let image = Image { cluster: self, name };
        image.rbd(&format!("create IMAGE --size {size}B {options}")).succeeds();
        image
    }

    /// The process of an OSD, if it has ever started.
    #[must_use]
    pub fn osd(&self, number: u32) -> i32 {
        let path = self.dir.join(format!("run/osd.{number}.pid"));
        let text = fs::read_to_string(path).expect("the pid of an OSD");
        text.trim().parse().expect("a pid")
    }

    /// Kills an OSD, and waits until the monitor knows.
    #[track_caller]
    pub fn kill_osd(&self, number: u32) {
        assert!(signal(self.osd(number), Signal::SIGKILL), "osd.{number} runs");
        wait_until("an OSD is down", EVENT_TIMEOUT, || self.osds_up() < OSDS.len() as u64);
    }

    fn osds_up(&self) -> u64 {
        self.ask(&["osd", "stat"])["num_up_osds"].as_u64().expect("a number of OSDs")
    }

    fn is_clean(&self) -> bool {
        let answer = self.ask(&["pg", "stat"]);
        let states = answer["pg_summary"]["num_pg_by_state"].as_array().expect("states");
        states.iter().all(|state| state["name"] == "active+clean")
    }

    fn ask(&self, command: &[&str]) -> Value {
        let words = command.iter().copied().chain(["-f", "json"]);
        let output = self.run("ceph", words).succeeds();
        serde_json::from_str(&output.stdout).expect("JSON of ceph")
    }

    /// Stops all OSDs: nothing is answered, and no OSD is left that could tell the monitor.
    #[must_use]
    pub fn pause(&self) -> Paused<'_> {
        for number in OSDS {
            assert!(signal(self.osd(number), Signal::SIGSTOP), "osd.{number} runs");
        }
        Paused(self)
    }

    fn resume(&self) {
        for number in OSDS {
            signal(self.osd(number), Signal::SIGCONT);
        }
    }
}

/// OSDs that are stopped until this is dropped.
#[derive(Debug)]
pub struct Paused<'a>(&'a Cluster);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.resume();
    }
}

/// An image in the pool `rbd`. It is left to the cluster, since watches of dead clients keep it for a while.
#[derive(Debug)]
pub struct Image<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Image<'_> {
    /// Like `rbd/disk-1`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("rbd/{}", self.name)
    }

    /// The SPEC for `nbd-ctl attach`.
    #[must_use]
    pub fn spec(&self) -> String {
        self.spec_of("")
    }

    /// The same for a snapshot.
    #[must_use]
    pub fn snapshot_spec(&self, snapshot: &str) -> String {
        self.spec_of(&format!("@{snapshot}"))
    }

    fn spec_of(&self, snapshot: &str) -> String {
        format!("rbd:{}{snapshot},conf={}", self.name(), self.cluster.conf().display())
    }

    /// Runs a command of `rbd` in which `IMAGE` stands for the name.
    #[track_caller]
    pub fn rbd(&self, command: &str) -> Output {
        let name = self.name();
        self.cluster.run("rbd", command.split_whitespace().map(|word| word.replace("IMAGE", &name)))
    }

    /// Who has the exclusive lock: locker and id, as `rbd lock rm` takes them.
    #[track_caller]
    #[must_use]
    pub fn lock(&self) -> Option<(String, String)> {
        let output = self.rbd("lock ls IMAGE --format json").succeeds();
        if output.stdout.trim().is_empty() {
            return None;
        }
        let value: Value = serde_json::from_str(&output.stdout).expect("JSON of rbd");
        let lock = value.as_array()?.first()?;
        let word = |key: &str| lock[key].as_str().map(str::to_owned);
        Some((word("locker")?, word("id")?))
    }

    /// Does what another machine does that takes the image over: breaks the lock, which blocklists
    /// its owner.
    #[track_caller]
    pub fn take_over(&self) {
        let (locker, id) = self.lock().expect("a client has the lock");
        // The id has a blank in it.
        self.cluster.run("rbd", ["lock", "rm", &self.name(), &id, &locker]).succeeds();
    }
}
