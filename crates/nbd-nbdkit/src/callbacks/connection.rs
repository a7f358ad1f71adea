//! What plugins ask about their client. One handle serves a device, or all clients of an export; so
//! there is a name of the export, and no client whose address or process could be told.

use std::ffi::{c_char, c_int, c_uint};
use std::sync::OnceLock;
use std::time::Duration;

use libc::{sockaddr, socklen_t};

use super::refuse;
use crate::context;

static SHUTDOWN: OnceLock<fn()> = OnceLock::new();

/// Has `function` called when a plugin asks for the end of the server with `nbdkit_shutdown`.
///
/// Without it a warning is logged: a device ends when it is detached.
pub fn on_shutdown(function: fn()) {
    // The second of two servers in a process would be the same one.
    SHUTDOWN.get_or_init(|| function);
}

pub(super) extern "C" fn stdio_safe() -> c_int {
    0
}

/// Sleeps the whole time: at the end of the process nothing waits for it.
pub(super) extern "C" fn nanosleep(seconds: c_uint, nanoseconds: c_uint) -> c_int {
    if nanoseconds >= 1_000_000_000 {
        refuse("nbdkit_nanosleep: there are too many nanoseconds", libc::EINVAL);
        return -1;
    }
    std::thread::sleep(Duration::new(seconds.into(), nanoseconds));
    0
}

pub(super) extern "C" fn export_name() -> *const c_char {
    let name = context::export_name();
    if name.is_null() {
        refuse("nbdkit_export_name: this thread serves no export", libc::EINVAL);
    }
    name
}

pub(super) extern "C" fn is_tls() -> c_int {
    0
}

fn no_peer() {
    refuse("a device has no peer, and the clients of an export share one handle", libc::ENOTSUP);
}

pub(super) extern "C" fn peer_name(_address: *mut sockaddr, _length: *mut socklen_t) -> c_int {
    no_peer();
    -1
}

pub(super) extern "C" fn peer_number() -> i64 {
    no_peer();
    -1
}

pub(super) extern "C" fn peer_text() -> *mut c_char {
    no_peer();
    std::ptr::null_mut()
}

pub(super) extern "C" fn shutdown() {
    let name = context::plugin_name();
    match SHUTDOWN.get() {
        Some(function) => {
            tracing::info!("nbdkit:{name}: the plugin asks for the end of the server");
            function();
        }
        None => tracing::warn!(
            "nbdkit:{name}: the plugin asks for the end of the server: a device ends with nbd-ctl detach"
        ),
    }
}

pub(super) extern "C" fn disconnect(_force: c_int) {
    let name = context::plugin_name();
    tracing::warn!(
        "nbdkit:{name}: the plugin asks to disconnect its client, which is not supported"
    );
}
