//! Plugins in C, compiled with the installed header, for each thread model, each version of the
//! interface, each callback that is missing, and each odd return.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod emulations;
mod life;
mod models;
mod returns;
mod symbols;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nbd_nbdkit::{Plugin, PluginBackend, PluginError};

/// A directory that is removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("nbd-nbdkit-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles a plugin, with macros. Each has a file of its own: a process loads a file once.
    fn compile(&self, source: &Path, macros: &[&str]) -> PathBuf {
        let object = self.join("plugin.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(&object).arg(source);
        let status = cc.args(macros.iter().map(|name| format!("-D{name}"))).status();
        assert!(status.unwrap().success(), "the plugin does not compile with {macros:?}");
        object
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is left is in the directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The plugin for tests, with its log.
struct Tested {
    place: Place,
    object: PathBuf,
}

impl Tested {
    fn compile(macros: &[&str]) -> Self {
        let place = Place::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugins/plugin.c");
        let object = place.compile(&source, macros);
        Self { place, object }
    }

    fn load(&self, parameters: &[&str]) -> Result<Arc<Plugin>, PluginError> {
        let log = format!("log={}", self.place.join("log").display());
        let parameters = [log.as_str()].into_iter().chain(parameters.iter().copied());
        let parameters: Vec<_> = parameters.map(String::from).collect();
        Plugin::load(self.object.to_str().unwrap(), &parameters).map(Arc::new)
    }

    fn open(&self, parameters: &[&str]) -> Result<PluginBackend, PluginError> {
        PluginBackend::open(&self.load(parameters)?, "")
    }

    /// The callbacks since the last look at them.
    fn calls(&self) -> Vec<String> {
        let log = self.place.join("log");
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        std::fs::OpenOptions::new().write(true).truncate(true).open(&log).unwrap();
        text.lines().map(String::from).collect()
    }
}

/// An error and its causes.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
