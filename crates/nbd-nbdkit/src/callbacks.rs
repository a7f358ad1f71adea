//! The functions that plugins call back: `nbdkit_error`, `nbdkit_parse_size` and the others.
//!
//! `callbacks.c` exports their names in a shared object, which is embedded in this library and loaded
//! before the first plugin. It calls the functions of this module through one table.
#![allow(unsafe_code)]

mod connection;
mod lists;
mod numbers;
mod parse;
mod table;
mod text;

use std::ffi::{CStr, c_char, c_int};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

use crate::context;
use crate::library::{Library, Scope};
pub use connection::on_shutdown;
use table::{TABLE, Table};

/// The shared object, as the build script made it.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/callbacks.so"));

/// Why plugins would have nothing to call.
#[derive(Clone, Debug, Error)]
pub enum CallbackError {
    /// There is no memory that can be executed.
    #[error(
        "cannot load the functions that plugins call from memory: {0}. Where vm.memfd_noexec is 2, or a \
         security module forbids it, use exec:nbdkit"
    )]
    Memory(String),
    /// The loader refuses it.
    #[error("cannot load the functions that plugins call: {0}")]
    Load(String),
}

/// Makes the functions known to the plugins that are loaded from now on.
pub(crate) fn install() -> Result<(), CallbackError> {
    static INSTALLED: OnceLock<Result<(), CallbackError>> = OnceLock::new();
    INSTALLED.get_or_init(load).clone()
}

fn load() -> Result<(), CallbackError> {
    let file = write_object().map_err(|error| CallbackError::Memory(error.to_string()))?;
    // By the number of this process, so that a debugger finds the file too.
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let library = Library::open(&PathBuf::from(path), Scope::Global)
        .map_err(|error| CallbackError::Load(error.to_string()))?;
    let symbol = library
        .symbol(c"nbd_nbdkit_set_table")
        .ok_or_else(|| CallbackError::Load("it is not ours".into()))?;
    // SAFETY: the function of that name in callbacks.c has this type.
    let set_table: extern "C" fn(*const Table, usize) -> c_int =
        unsafe { std::mem::transmute(symbol.as_ptr()) };
    if set_table(&raw const TABLE, size_of::<Table>()) != 0 {
        return Err(CallbackError::Load("its table of functions has another size".into()));
    }
    // Debuggers read it.
    std::mem::forget(file);
    Ok(())
}

fn write_object() -> io::Result<OwnedFd> {
    let name = c"nbd-nbdkit-callbacks.so";
    // Kernels since 6.3 warn about a file that does not say whether it may be executed.
    let exec = MFdFlags::from_bits_retain(libc::MFD_EXEC);
    let file = match memfd_create(name, MFdFlags::MFD_CLOEXEC | exec) {
        // Kernels before that do not know the flag.
        Err(nix::Error::EINVAL) => memfd_create(name, MFdFlags::MFD_CLOEXEC)?,
        other => other?,
    };
    let mut file = File::from(file);
    file.write_all(OBJECT)?;
    Ok(file.into())
}

/// A text of the plugin; none for a null pointer.
fn text<'a>(pointer: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the interface asks plugins for null or a string that ends with a zero byte, and that
    // lives for the length of the call.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) })
}

/// Reports an error in the plugin's name, and sets errno.
fn refuse(text: &str, errno: c_int) {
    context::report_error(text);
    nix::errno::Errno::set_raw(errno);
}

/// A string that lives as long as the process.
pub(crate) fn intern(text: &CStr) -> *const c_char {
    text::intern(text)
}
