//! The cluster, and images that are removed again.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

use nbd_backend::Geometry;
use nbd_rbd::{ImageSpec, OnLoss, RbdBackend, RbdError, Record, RecordStore};
use serde_json::Value;

/// A cluster for tests.
pub(crate) struct Cluster {
    conf: OsString,
}

/// The cluster, unless there is none, which is told.
pub(crate) fn cluster() -> Option<Cluster> {
    match std::env::var_os("NBD_TEST_CEPH_CONF") {
        Some(conf) => Some(Cluster { conf }),
        None => {
            // As nbd_tests::not_run does, so that it is counted.
            let _ = writeln!(io::stderr(), "\n    not run: no Ceph cluster (NBD_TEST_CEPH_CONF)");
            None
        }
    }
}

impl Cluster {
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", program]).arg("-c").arg(&self.conf).args(arguments).output().unwrap()
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(program, arguments);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {words}");
        output.stdout
    }

    pub(crate) fn rbd(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.output("rbd", arguments)).unwrap()
    }

    fn json(&self, program: &str, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--format", "json"]].concat();
        serde_json::from_slice(&self.output(program, &arguments)).unwrap()
    }

    pub(crate) fn shut_out(&self, address: &str) {
        self.output("ceph", &["osd", "blocklist", "add", address]);
    }

    pub(crate) fn is_shut_out(&self, address: &str) -> bool {
        // With JSON it prints a sentence behind it; in the plain list, each line begins with an address.
        let list = String::from_utf8(self.output("ceph", &["osd", "blocklist", "ls"])).unwrap();
        list.lines().any(|line| line.split(' ').next() == Some(address))
    }

    /// An image of 64 MiB with these features, which is removed again.
    pub(crate) fn image(&self, features: &str) -> Image<'_> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{count}", std::process::id());
        self.rbd(&["create", "--size", "64M", "--image-feature", features, &format!("rbd/{name}")]);
        Image { cluster: self, name }
    }
}

/// An image for one test.
pub(crate) struct Image<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: String,
}

impl Image<'_> {
    /// As rbd(8) takes it.
    pub(crate) fn path(&self) -> String {
        format!("rbd/{}", self.name)
    }

    /// As nbd-serve takes it, without the scheme.
    pub(crate) fn text(&self, options: &str) -> String {
        let conf = self.cluster.conf.to_str().unwrap().replace(',', ",,");
        format!("{},conf={conf}{options}", self.path())
    }

    pub(crate) fn spec(&self, options: &str) -> ImageSpec {
        self.text(options).parse().unwrap()
    }

    /// Opens it in this process; requests fail when it is lost.
    pub(crate) fn open(
        &self,
        options: &str,
        record: &Arc<FileRecord>,
    ) -> Result<RbdBackend, RbdError> {
        self.open_after(options, record, || {})
    }

    /// The same, with something done when it is open, but neither fenced nor locked.
    pub(crate) fn open_after(
        &self,
        options: &str,
        record: &Arc<FileRecord>,
        then: impl FnOnce(),
    ) -> Result<RbdBackend, RbdError> {
        let record = Arc::clone(record);
        RbdBackend::open(&self.spec(options), record, OnLoss::FailRequests, |now: &Geometry| {
            then();
            Ok(now.size)
        })
    }

    /// The OSD that executes requests to the image's first object.
    pub(crate) fn first_osd(&self) -> Osd<'_> {
        let info = self.cluster.json("rbd", &["info", &self.path()]);
        let object = format!("{}.{:016x}", info["block_name_prefix"].as_str().unwrap(), 0);
        let map = self.cluster.json("ceph", &["osd", "map", "rbd", &object]);
        let number = map["acting_primary"].as_u64().unwrap();
        Osd { cluster: self.cluster, number }
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        // What it fails with was told before.
        self.cluster.run("rbd", &["snap", "purge", &self.path()]);
        let removed = self.cluster.run("rbd", &["rm", "--no-progress", &self.path()]);
        let words = String::from_utf8_lossy(&removed.stderr);
        assert!(removed.status.success() || std::thread::panicking(), "{words}");
    }
}

/// An OSD.
pub(crate) struct Osd<'a> {
    cluster: &'a Cluster,
    number: u64,
}

impl Osd<'_> {
    /// Whatever arrives from now on waits for some seconds before it is looked at, or does not any more.
    /// What waits already goes on waiting. Told by the admin socket, which is not delayed.
    pub(crate) fn delay(&self, is_delayed: bool) {
        let name = format!("osd.{}", self.number);
        let probability = if is_delayed { "1" } else { "0" };
        for (option, value) in [("duration", "3"), ("probability", probability)] {
            let option = format!("osd_debug_inject_dispatch_delay_{option}");
            self.cluster.output("ceph", &["daemon", &name, "config", "set", &option, value]);
        }
    }
}

impl Drop for Osd<'_> {
    fn drop(&mut self) {
        self.delay(false);
    }
}

/// A record in a file, for processes one after the other.
pub(crate) struct FileRecord {
    path: PathBuf,
    turn: Mutex<()>,
}

impl FileRecord {
    pub(crate) fn new(path: &Path) -> Arc<Self> {
        Arc::new(Self { path: path.into(), turn: Mutex::default() })
    }

    /// One of its own, empty.
    pub(crate) fn fresh() -> Arc<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-rbd-record-{}-{count}", std::process::id());
        Self::new(&std::env::temp_dir().join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn address(&self) -> String {
        match self.load().unwrap() {
            Record::Owner(address) => address,
            other => panic!("{other:?}"),
        }
    }
}

impl RecordStore for FileRecord {
    fn load(&self) -> io::Result<Record> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match std::fs::read_to_string(&self.path) {
            Ok(text) => Record::from_text(&text).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::Empty),
            Err(error) => Err(error),
        }
    }

    fn save(&self, record: &Record) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::write(&self.path, record.to_text())
    }
}

impl Drop for FileRecord {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
