//! Plugins that end or fork the process that they are loaded into.
//!
//! Either would leave a device without its backend, or with one that the holder does not know. So
//! an exit in a callback becomes an error with the plugin's name, and a process that a callback
//! forked and returned in (as daemon(3) does) ends at once.
#![allow(unsafe_code)]

use std::io::Write;
use std::sync::Once;

use crate::context;

/// The status of a process that a plugin ended.
const EXIT_STATUS: i32 = 1;

/// Calls a callback in which a plugin has nothing to end or to fork.
pub(crate) fn guarded<T>(callback: &'static str, function: impl FnOnce() -> T) -> T {
    watch_exit();
    let process = std::process::id();
    context::enter(callback);
    let result = function();
    context::leave();
    if std::process::id() != process {
        end(callback, "forks a process and goes on in it (daemonises)");
    }
    result
}

/// Has exit(3) looked at.
pub(crate) fn watch_exit() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        // SAFETY: registers a function that takes nothing and returns nothing. It can fail only
        // for want of memory, and then an exit is not explained.
        unsafe { libc::atexit(explain_exit) };
    });
}

/// Runs in exit(3), in the thread that called it.
extern "C" fn explain_exit() {
    if let Some(callback) = context::callback() {
        end(callback, "ends this process by exit()");
    }
}

fn end(callback: &str, what: &str) -> ! {
    let name = context::plugin_name();
    let mut text = format!("nbd-serve: nbdkit:{name}: the plugin's callback `{callback}` {what}");
    for message in context::take_messages() {
        text.push_str("; it said: ");
        text.push_str(&message);
    }
    text.push('\n');
    // Not by the log: its thread-local state may be gone. If stderr is closed, there is no one to
    // tell.
    drop(std::io::stderr().write_all(text.as_bytes()));
    // SAFETY: ends this process without running more of what exit runs.
    unsafe { libc::_exit(EXIT_STATUS) }
}
