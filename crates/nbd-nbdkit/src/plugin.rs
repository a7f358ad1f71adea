//! The life of a plugin: load, parameters, readiness, unload.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::abi::{InitFn, MAX_API_VERSION, NbdkitPlugin};
use crate::callbacks::{self, intern};
use crate::error::PluginError;
use crate::intruder::guarded;
use crate::library::{Library, Scope};
use crate::{context, locate};

/// The key that a first value without one gets from plugins that name none.
const DEFAULT_MAGIC_KEY: &CStr = c"script";

/// Which callbacks of a plugin may run at the same time (`THREAD_MODEL`). Each includes what comes
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThreadModel {
    /// One connection at a time.
    SerializeConnections,
    /// One request at a time, of all connections.
    SerializeAllRequests,
    /// One request at a time of each connection.
    SerializeRequests,
    /// Any number.
    Parallel,
}

impl ThreadModel {
    fn of(number: c_int) -> Option<Self> {
        Some(match number {
            0 => Self::SerializeConnections,
            1 => Self::SerializeAllRequests,
            2 => Self::SerializeRequests,
            3 => Self::Parallel,
            _ => return None,
        })
    }
}

/// A plugin that is loaded, and has its parameters.
///
/// Dropping it ends its life in order, and leaves the shared object in memory.
#[derive(Debug)]
pub struct Plugin {
    /// As the operator wrote it.
    name: String,
    path: PathBuf,
    table: Table,
    thread_model: ThreadModel,
    is_ready: AtomicBool,
    is_ended: AtomicBool,
    _library: Library,
}

/// The plugin's structure, as far as it fills it in.
#[derive(Clone, Copy)]
pub(crate) struct Table(pub(crate) NbdkitPlugin);

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("api_version", &self.0.api_version).finish_non_exhaustive()
    }
}

// SAFETY: its pointers are to functions and constants of a shared object that is never unloaded.
unsafe impl Send for Table {}
// SAFETY: as above; which functions may run at the same time, the thread model says.
unsafe impl Sync for Table {}

/// The shared objects that are loaded in this process.
static LOADED: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);

impl Plugin {
    /// Loads a plugin, by name or path, and configures it with parameters `KEY=VALUE` or `VALUE`.
    /// Its storage is not opened yet.
    ///
    /// # Errors
    ///
    /// There is no such plugin, it is of another kind, or it refuses a parameter: in its own words.
    pub fn load(name: &str, parameters: &[String]) -> Result<Self, PluginError> {
        let path = locate::find(name)?;
        locate::check(&path)?;
        callbacks::install()?;
        let short = path.file_stem().unwrap_or_default().to_string_lossy();
        let short = short.strip_prefix("nbdkit-").unwrap_or(&short);
        let short = short.strip_suffix("-plugin").unwrap_or(short);
        if short == "ruby" {
            return Err(PluginError::Ruby);
        }
        context::name_plugin(short);
        let library = guarded("(constructor)", || Library::open(&path, Scope::Own));
        let library = library.map_err(|error| match is_named_filter(&path) {
            true => PluginError::Filter(path.clone()),
            false => error.into(),
        })?;
        remember(&path)?;
        let table = read_table(&path, &library)?;
        let mut plugin = Self {
            name: name.into(),
            path,
            table: Table(table),
            thread_model: ThreadModel::SerializeConnections,
            is_ready: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
            _library: library,
        };
        if let Some(load) = table.load {
            // SAFETY: callbacks are called as the interface says: this is the first one.
            plugin.call("load", || unsafe { load() }, |()| true)?;
        }
        plugin.configure(parameters)?;
        plugin.thread_model = plugin.ask_thread_model()?;
        Ok(plugin)
    }

    /// The name or path that it was loaded by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shared object.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Which of its callbacks may run at the same time.
    #[must_use]
    pub fn thread_model(&self) -> ThreadModel {
        self.thread_model
    }

    pub(crate) fn table(&self) -> &NbdkitPlugin {
        &self.table.0
    }

    fn configure(&self, parameters: &[String]) -> Result<(), PluginError> {
        let magic = self.table().magic_config_key;
        // SAFETY: the key is null or a constant string of the plugin.
        let magic = (!magic.is_null()).then(|| unsafe { CStr::from_ptr(magic) });
        for (index, parameter) in parameters.iter().enumerate() {
            let (key, value) = match (split_parameter(parameter), magic) {
                (Some((key, value)), _) => (c_string(key)?, value),
                (None, Some(magic)) => (magic.to_owned(), parameter.as_str()),
                (None, None) if index == 0 => (DEFAULT_MAGIC_KEY.to_owned(), parameter.as_str()),
                (None, None) => return Err(PluginError::NoKey(parameter.clone())),
            };
            let Some(config) = self.table().config else {
                return Err(PluginError::NeedlessParameter(parameter.clone()));
            };
            // Plugins may keep the pointers.
            let (key, value) = (intern(&key), intern(&c_string(value)?));
            // SAFETY: after `load`; both are strings that live as long as the process.
            self.step("config", || unsafe { config(key, value) })?;
        }
        if let Some(complete) = self.table().config_complete {
            // SAFETY: after the last `config`.
            self.step("config_complete", || unsafe { complete() })?;
        }
        Ok(())
    }

    /// The stricter one of what the plugin was compiled with and what it says now.
    fn ask_thread_model(&self) -> Result<ThreadModel, PluginError> {
        let why = "is no thread model";
        let constant = self.table().thread_model_constant;
        let compiled = ThreadModel::of(constant).ok_or(PluginError::Odd {
            callback: "plugin_init",
            value: constant.into(),
            why,
        })?;
        let Some(thread_model) = self.table().thread_model else {
            return Ok(compiled);
        };
        // SAFETY: after `config_complete`.
        let number = self.step("thread_model", || unsafe { thread_model() })?;
        let callback = "thread_model";
        let now = ThreadModel::of(number);
        let now = now.ok_or(PluginError::Odd { callback, value: number.into(), why })?;
        Ok(now.min(compiled))
    }

    /// Once, before it is opened for the first time.
    pub(crate) fn make_ready(&self) -> Result<(), PluginError> {
        if self.is_ready.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(get_ready) = self.table().get_ready {
            // SAFETY: after `thread_model`, and before `after_fork`.
            self.step("get_ready", || unsafe { get_ready() })?;
        }
        self.is_ready.store(true, Ordering::Release);
        if let Some(after_fork) = self.table().after_fork {
            // SAFETY: after `get_ready`. This process does not fork afterwards.
            self.step("after_fork", || unsafe { after_fork() })?;
        }
        Ok(())
    }

    /// Ends its life, once. No handle of it is open.
    pub(crate) fn end(&self) {
        if self.is_ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let NbdkitPlugin { cleanup, unload, .. } = *self.table();
        if let Some(cleanup) = cleanup.filter(|_| self.is_ready.load(Ordering::Acquire)) {
            // SAFETY: after the handle was closed, and once.
            guarded("cleanup", || unsafe { cleanup() });
        }
        if let Some(unload) = unload {
            // SAFETY: the last callback of all.
            guarded("unload", || unsafe { unload() });
        }
    }

    /// Calls a callback that returns -1 when it fails, and returns what it returned.
    pub(crate) fn step(
        &self,
        callback: &'static str,
        function: impl FnOnce() -> c_int,
    ) -> Result<c_int, PluginError> {
        self.call(callback, function, |value| *value != -1)
    }

    /// Calls a callback. If it fails, what the plugin said meanwhile is part of the error.
    pub(crate) fn call<T>(
        &self,
        callback: &'static str,
        function: impl FnOnce() -> T,
        is_success: impl FnOnce(&T) -> bool,
    ) -> Result<T, PluginError> {
        context::keep_messages();
        let value = guarded(callback, function);
        let messages = context::take_messages();
        if !is_success(&value) {
            return Err(PluginError::Failed { callback, words: messages.join("; ") });
        }
        for message in messages {
            tracing::warn!("nbdkit:{}: {message}", self.name);
        }
        Ok(value)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.end();
    }
}

/// Notes that a shared object is used: the loader would hand out the same one again.
fn remember(path: &std::path::Path) -> Result<(), PluginError> {
    let real = path.canonicalize().unwrap_or_else(|_| path.into());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if loaded.get_or_insert_default().insert(real) {
        Ok(())
    } else {
        Err(PluginError::LoadedTwice(path.into()))
    }
}

/// A filter calls functions that only nbdkit has, and so cannot even be loaded.
fn is_named_filter(path: &std::path::Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-filter.so"))
}

/// Copies as much of the plugin's structure as it has. What an older one lacks is missing here; what
/// a newer one has beyond that is not used.
fn read_table(path: &std::path::Path, library: &Library) -> Result<NbdkitPlugin, PluginError> {
    let Some(init) = library.symbol(c"plugin_init") else {
        let is_filter = library.symbol(c"filter_init").is_some();
        let error = if is_filter { PluginError::Filter } else { PluginError::NoInit };
        return Err(error(path.into()));
    };
    // SAFETY: the symbol's name says that it is this function.
    let init: InitFn = unsafe { std::mem::transmute(init.as_ptr()) };
    // SAFETY: it takes nothing, and may be called before any callback.
    let theirs = guarded("plugin_init", || unsafe { init() });
    if theirs.is_null() {
        return Err(PluginError::InitFailed(path.into()));
    }
    // SAFETY: every version of the structure begins with its size.
    let size = unsafe { theirs.cast::<u64>().read() };
    let own = size_of::<NbdkitPlugin>();
    let size = usize::try_from(size).unwrap_or(own).min(own);
    // SAFETY: zeroes are a valid value of this type: null pointers and missing callbacks.
    let mut table: NbdkitPlugin = unsafe { std::mem::zeroed() };
    // SAFETY: both structures have so many bytes, and they are not the same one.
    unsafe {
        std::ptr::copy_nonoverlapping(theirs.cast::<u8>(), (&raw mut table).cast::<u8>(), size);
    }
    if !(0..=MAX_API_VERSION).contains(&table.api_version) {
        return Err(PluginError::Version(table.api_version));
    }
    let needed = [
        ("open", table.open.is_some()),
        ("get_size", table.get_size.is_some()),
        ("pread", table.pread.is_some() || table.pread_v1.is_some()),
    ];
    match needed.into_iter().find(|(_, is_there)| !is_there) {
        Some((callback, _)) => Err(PluginError::Incomplete(callback)),
        None => Ok(table),
    }
}

pub(crate) fn c_string(text: &str) -> Result<CString, PluginError> {
    CString::new(text).map_err(|_| PluginError::ZeroByte)
}

/// Takes `KEY=VALUE` apart. A key begins with a letter and consists of letters, digits, `_`, `-` and
/// `.`; anything else before an equals sign belongs to a value.
fn split_parameter(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split_once('=')?;
    let is_key_character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let begins = key.starts_with(|c: char| c.is_ascii_alphabetic());
    (begins && key.chars().all(is_key_character)).then_some((key, value))
}

/// A text that a plugin returned.
pub(crate) fn plugin_text(pointer: *const c_char) -> Option<String> {
    // SAFETY: plugins return null or a string that ends with a zero byte and lives as long as its
    // handle.
    let text = (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) });
    text.map(|text| text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_words() {
        assert_eq!(split_parameter("file=/a=b"), Some(("file", "/a=b")));
        assert_eq!(split_parameter("a.b-c_1="), Some(("a.b-c_1", "")));
        for text in ["/a=b", "1=2", "a b=c", "=x", "x", "http://x/?a=b"] {
            assert_eq!(split_parameter(text), None, "{text}");
        }
    }
}
