//! What this thread is doing for a plugin: which callback it is in, and what the plugin said there.
//!
//! The functions that plugins call back have no handle for this; so it belongs to the thread, as in
//! nbdkit.

use std::cell::{Cell, RefCell};
use std::ffi::c_char;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::OnceLock;

/// Messages that are kept for the error of a callback that fails. The last ones tell least.
const MAX_KEPT_MESSAGES: usize = 4;
/// A message is cut here, in bytes: it goes into a log and to the holder.
const MAX_MESSAGE_LEN: usize = 2000;

thread_local! {
    /// What the plugin says in a callback whose failure is an error of ours, which then contains it.
    /// Without a destructor, as it is read in exit(3), after those.
    static MESSAGES: ManuallyDrop<RefCell<Option<Vec<String>>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
    static CALLBACK: Cell<Option<&'static str>> = const { Cell::new(None) };
    static ERRNO: Cell<i32> = const { Cell::new(0) };
    static EXPORT_NAME: Cell<*const c_char> = const { Cell::new(ptr::null()) };
}

static PLUGIN_NAME: OnceLock<String> = OnceLock::new();

/// Names the plugin for messages of threads that it starts itself. The first one stays.
pub(crate) fn name_plugin(name: &str) {
    // One that is loaded beside it is served too, and only its messages bear the other's name.
    PLUGIN_NAME.get_or_init(|| name.into());
}

pub(crate) fn plugin_name() -> &'static str {
    PLUGIN_NAME.get().map_or("", String::as_str)
}

/// Names the export that this thread's callbacks are for: a string that lives as long as the process.
pub(crate) fn name_export(name: *const c_char) {
    EXPORT_NAME.set(name);
}

/// The name of the export; null in a thread that the plugin has started itself.
pub(crate) fn export_name() -> *const c_char {
    EXPORT_NAME.get()
}

/// A callback begins.
pub(crate) fn enter(callback: &'static str) {
    CALLBACK.set(Some(callback));
    ERRNO.set(0);
}

/// It has returned.
pub(crate) fn leave() {
    CALLBACK.set(None);
}

/// The callback that this thread is in.
pub(crate) fn callback() -> Option<&'static str> {
    CALLBACK.get()
}

/// The error that the plugin has set since the callback began; 0 if it did not.
pub(crate) fn errno() -> i32 {
    ERRNO.get()
}

pub(crate) fn set_errno(errno: i32) {
    ERRNO.set(errno);
}

/// The plugin reports an error.
pub(crate) fn report_error(text: &str) {
    let text = shorten(text).trim_end();
    MESSAGES.with(|messages| match messages.borrow_mut().as_mut() {
        Some(messages) if messages.len() < MAX_KEPT_MESSAGES => messages.push(text.into()),
        _ => tracing::error!("nbdkit:{}: {text}", plugin_name()),
    });
}

/// Begins to keep this thread's messages in place of logging them.
pub(crate) fn keep_messages() {
    MESSAGES.with(|messages| messages.replace(Some(Vec::new())));
}

/// What the plugin has said since then. What it says from now on is logged.
pub(crate) fn take_messages() -> Vec<String> {
    MESSAGES.with(|messages| messages.take()).unwrap_or_default()
}

/// The first bytes of a text, without half a character at their end.
fn shorten(text: &str) -> &str {
    let end = text.len().min(MAX_MESSAGE_LEN);
    let end = (0..=end).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}
