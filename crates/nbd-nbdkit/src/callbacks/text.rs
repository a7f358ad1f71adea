//! Messages, paths, passwords and strings that live as long as the process.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use super::{refuse, text};
use crate::context;

/// Longest password, in bytes.
const MAX_PASSWORD_LEN: u64 = 4096;

pub(super) extern "C" fn error(message: *const c_char) {
    let message = text(message).unwrap_or(c"(no text)");
    context::report_error(&message.to_string_lossy());
}

pub(super) extern "C" fn debug(message: *const c_char) {
    let message = text(message).unwrap_or(c"(no text)").to_string_lossy();
    tracing::debug!("nbdkit:{}: {message}", context::plugin_name());
}

pub(super) extern "C" fn is_debugging() -> c_int {
    c_int::from(tracing::enabled!(tracing::Level::DEBUG))
}

pub(super) extern "C" fn set_error(errno: c_int) {
    context::set_errno(errno);
}

/// A copy that the plugin frees with free(3); null if there is no memory.
fn copy(text: &CStr) -> *mut c_char {
    // SAFETY: strdup reads a string that ends with a zero byte.
    unsafe { libc::strdup(text.as_ptr()) }
}

fn copy_path(path: PathBuf) -> *mut c_char {
    match CString::new(path.into_os_string().into_vec()) {
        Ok(path) => copy(&path),
        Err(_) => std::ptr::null_mut(),
    }
}

/// The path that the plugin was given, unless it is empty.
fn path<'a>(pointer: *const c_char) -> Option<&'a Path> {
    let path = text(pointer).filter(|path| !path.is_empty());
    if path.is_none() {
        refuse("cannot convert null or empty path to an absolute path", libc::EINVAL);
    }
    path.map(|path| Path::new(OsStr::from_bytes(path.to_bytes())))
}

pub(super) extern "C" fn absolute_path(pointer: *const c_char) -> *mut c_char {
    let Some(path) = path(pointer) else {
        return std::ptr::null_mut();
    };
    if path.is_absolute() {
        return copy_path(path.into());
    }
    match std::env::current_dir() {
        Ok(directory) => copy_path(directory.join(path)),
        Err(error) => {
            refuse(&format!("getcwd: {error}"), error.raw_os_error().unwrap_or(libc::EIO));
            std::ptr::null_mut()
        }
    }
}

pub(super) extern "C" fn realpath(pointer: *const c_char) -> *mut c_char {
    let Some(path) = path(pointer) else {
        return std::ptr::null_mut();
    };
    match path.canonicalize() {
        Ok(path) => copy_path(path),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let why = Errno::from_raw(errno).desc();
            refuse(&format!("realpath: {}: {why}", path.display()), errno);
            std::ptr::null_mut()
        }
    }
}

/// Strings that plugins rely on until the process ends: each is kept once.
pub(super) fn intern(text: &CStr) -> *const c_char {
    static STRINGS: OnceLock<Mutex<HashSet<CString>>> = OnceLock::new();
    let strings = STRINGS.get_or_init(Mutex::default);
    let mut strings = strings.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = strings.get(text) {
        return known.as_ptr();
    }
    let new = text.to_owned();
    // The characters stay where they are when the string is moved.
    let pointer = new.as_ptr();
    strings.insert(new);
    pointer
}

pub(super) extern "C" fn strdup_intern(pointer: *const c_char) -> *const c_char {
    text(pointer).map_or(std::ptr::null(), intern)
}

pub(super) extern "C" fn strndup_intern(pointer: *const c_char, length: usize) -> *const c_char {
    if pointer.is_null() {
        return std::ptr::null();
    }
    // SAFETY: the plugin passes a string of which at most `length` bytes are read, up to its end.
    let length = unsafe { libc::strnlen(pointer, length) };
    // SAFETY: so many bytes have just been read.
    let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length) };
    match CString::new(bytes) {
        Ok(text) => intern(&text),
        Err(_) => std::ptr::null(),
    }
}

pub(super) extern "C" fn name() -> *const c_char {
    match CString::new(context::plugin_name()) {
        Ok(name) => intern(&name),
        Err(_) => std::ptr::null(),
    }
}

/// Seconds and microseconds. Each is another string, so it is not interned: the next one in this
/// thread takes its place.
pub(super) extern "C" fn timestamp() -> *const c_char {
    thread_local! {
        static LAST: RefCell<CString> = RefCell::default();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = format!("{}.{:06}", now.as_secs(), now.subsec_micros());
    LAST.with_borrow_mut(|last| {
        *last = CString::new(text).unwrap_or_default();
        last.as_ptr()
    })
}

/// `+FILE`, `-DESCRIPTOR` or the password itself. `-` alone asks the user, whom a backend does not
/// have.
pub(super) extern "C" fn read_password(value: *const c_char, place: *mut *mut c_char) -> c_int {
    let value = text(value).unwrap_or_default();
    let password = match value.to_bytes() {
        b"-" => Err(io::Error::other("it cannot be asked for: write password=+FILE")),
        [b'-', descriptor @ ..] => read_descriptor(descriptor),
        [b'+', file @ ..] => File::open(OsStr::from_bytes(file)).and_then(read_line),
        _ => Ok(value.to_owned()),
    };
    match password {
        Ok(password) => {
            // SAFETY: the plugin passes a place for a pointer.
            unsafe { place.write(copy(&password)) };
            0
        }
        Err(error) => {
            refuse(&format!("password: {error}"), error.raw_os_error().unwrap_or(libc::EINVAL));
            -1
        }
    }
}

/// Reads from a descriptor that the process was started with, and closes it.
fn read_descriptor(number: &[u8]) -> io::Result<CString> {
    let number = str::from_utf8(number).ok().and_then(|text| text.parse::<c_int>().ok());
    let number = number.filter(|number| *number > libc::STDERR_FILENO);
    let number = number.ok_or_else(|| io::Error::other("after - comes a descriptor above 2"))?;
    // SAFETY: a system call on a number, which tells whether there is such a descriptor.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the interface gives it to this function.
    read_line(File::from(unsafe { OwnedFd::from_raw_fd(number) }))
}

fn read_line(file: File) -> io::Result<CString> {
    let mut line = Vec::new();
    file.take(MAX_PASSWORD_LEN).read_to_end(&mut line)?;
    if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
        line.truncate(end);
    }
    CString::new(line).map_err(io::Error::other)
}
