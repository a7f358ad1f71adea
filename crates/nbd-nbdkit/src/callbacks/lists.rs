//! `struct nbdkit_extents` and `struct nbdkit_exports`, which plugins see as pointers only.

use std::ffi::{CString, c_char, c_int, c_void};

use super::{refuse, text};
use crate::extent_list::ExtentList;

/// Most exports that a plugin can list.
const MAX_EXPORTS: usize = 10_000;

/// `struct nbdkit_exports`. Names are counted and not served: an export has one plugin handle.
#[derive(Default)]
struct ExportNames {
    names: Vec<CString>,
}

/// Reaches a list behind a pointer of the plugin.
fn list<'a, T>(pointer: *mut c_void) -> Option<&'a mut T> {
    // SAFETY: plugins pass the pointer that they were given, which is one to a T of ours, and only
    // one thread at a time uses the list of a call.
    unsafe { pointer.cast::<T>().as_mut() }
}

fn make<T>(list: T) -> *mut c_void {
    Box::into_raw(Box::new(list)).cast()
}

fn free<T>(pointer: *mut c_void) {
    if !pointer.is_null() {
        // SAFETY: plugins free only what `make` has made for them, and once.
        drop(unsafe { Box::from_raw(pointer.cast::<T>()) });
    }
}

pub(super) extern "C" fn extents_new(start: u64, end: u64) -> *mut c_void {
    let limit = i64::MAX.cast_unsigned();
    if start > end || end > limit {
        refuse(&format!("nbdkit_extents_new: {start} to {end} is no range"), libc::ERANGE);
        return std::ptr::null_mut();
    }
    make(ExtentList::new(start, end))
}

pub(super) extern "C" fn extents_free(extents: *mut c_void) {
    free::<ExtentList>(extents);
}

pub(super) extern "C" fn extents_count(extents: *const c_void) -> usize {
    list::<ExtentList>(extents.cast_mut()).map_or(0, |list| list.len())
}

pub(super) extern "C" fn add_extent(
    extents: *mut c_void,
    offset: u64,
    length: u64,
    kind: u32,
) -> c_int {
    let Some(list) = list::<ExtentList>(extents) else {
        refuse("nbdkit_add_extent: there is no list", libc::EINVAL);
        return -1;
    };
    match list.add(offset, length, kind) {
        Ok(()) => 0,
        Err(error) => {
            refuse(&format!("nbdkit_add_extent: {error}"), libc::ERANGE);
            -1
        }
    }
}

pub(super) extern "C" fn exports_new() -> *mut c_void {
    make(ExportNames::default())
}

pub(super) extern "C" fn exports_free(exports: *mut c_void) {
    free::<ExportNames>(exports);
}

pub(super) extern "C" fn exports_count(exports: *const c_void) -> usize {
    list::<ExportNames>(exports.cast_mut()).map_or(0, |list| list.names.len())
}

pub(super) extern "C" fn add_export(
    exports: *mut c_void,
    name: *const c_char,
    _description: *const c_char,
) -> c_int {
    let (Some(list), Some(name)) = (list::<ExportNames>(exports), text(name)) else {
        refuse("nbdkit_add_export: there is no list, or no name", libc::EINVAL);
        return -1;
    };
    if list.names.len() >= MAX_EXPORTS {
        refuse("nbdkit_add_export: too many exports", libc::EINVAL);
        return -1;
    }
    list.names.push(name.to_owned());
    0
}

pub(super) extern "C" fn use_default_export(exports: *mut c_void) -> c_int {
    add_export(exports, c"".as_ptr(), std::ptr::null())
}
