//! What C passes, checked as far as it can be: pointers that are NULL, sizes of structures, text,
//! flags, geometries.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::mem::{MaybeUninit, size_of};

use nbd_backend::{Capabilities, Geometry};

use crate::abi::{
    GEOMETRY_FLAGS, NBDB_CACHE, NBDB_FLUSH, NBDB_FUA, NBDB_READ_ONLY, NBDB_ROTATIONAL, NBDB_TRIM,
    NBDB_ZERO, SERVE_FLAGS, nbdb_callbacks, nbdb_geometry, nbdb_open_options, nbdb_serve_options,
};
use crate::error::{Failure, Outcome};

/// A larger one is no structure of any release, but memory that was not set.
const MAX_STRUCT_BYTES: usize = 4096;

/// A structure that begins with its size, as the program knows it.
///
/// # Safety
///
/// All bytes zero must be a valid value of the type, and its first member a `usize`, its size.
pub(crate) unsafe trait Sized0: Copy {
    /// Its name in C.
    const NAME: &'static str;
    /// Its size in the first release, below which no program's is.
    const FIRST_SIZE: usize = size_of::<Self>();
}

macro_rules! sized {
    ($($name:ident),*) => { $(
        // SAFETY: integers, pointers and optional functions, of which the first is the size.
        unsafe impl Sized0 for $name {
            const NAME: &'static str = stringify!($name);
        }
    )* };
}

sized!(nbdb_callbacks, nbdb_geometry, nbdb_open_options, nbdb_serve_options);

pub(crate) fn null(what: &str) -> Failure {
    Failure::new(libc::EFAULT, format!("{what} is NULL"))
}

/// Copies a structure of the program: members that it does not know are zero.
///
/// # Errors
///
/// `EFAULT` for NULL, `EINVAL` for a size that no release has, `E2BIG` if it uses members that only a
/// later release knows.
///
/// # Safety
///
/// If it is not NULL, as many bytes must be readable as its first member says.
pub(crate) unsafe fn structure<T: Sized0>(pointer: *const T) -> Outcome<T> {
    if pointer.is_null() {
        return Err(null(T::NAME));
    }
    // SAFETY: the first member can be read, says the caller.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    if !(T::FIRST_SIZE..=MAX_STRUCT_BYTES).contains(&size) {
        let message = format!("{}.struct_size is {size}: set it to its sizeof", T::NAME);
        return Err(Failure::new(libc::EINVAL, message));
    }
    let known = size.min(size_of::<T>());
    // SAFETY: the caller vouches for `size` bytes.
    let beyond =
        unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known) };
    if beyond.iter().any(|byte| *byte != 0) {
        let message = format!("{} has members that this release does not know", T::NAME);
        return Err(Failure::new(libc::E2BIG, message));
    }
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are readable and fit, and each value that C can leave there is valid.
    unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), copy.as_mut_ptr().cast(), known);
        Ok(copy.assume_init())
    }
}

/// A text, or nothing for NULL.
///
/// # Safety
///
/// If it is not NULL, it must point to a string that ends with a zero byte, and live while the result
/// is used.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Outcome<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: says the caller.
    let text = unsafe { CStr::from_ptr(pointer) }.to_str();
    text.map(Some).map_err(|_| Failure::new(libc::EINVAL, format!("{what} is not UTF-8")))
}

/// A geometry that the kernel takes.
pub(crate) fn geometry(given: &nbdb_geometry) -> Outcome<Geometry> {
    let invalid = |message| Err(Failure::new(libc::EINVAL, message));
    let nbdb_geometry { size, block_size, flags, .. } = *given;
    if flags & !GEOMETRY_FLAGS != 0 {
        return invalid(format!("unknown flags {:#x} in the geometry", flags & !GEOMETRY_FLAGS));
    }
    if !block_size.is_power_of_two() || !(512..=4096).contains(&block_size) {
        return invalid(format!(
            "a block size of {block_size} bytes: use a power of two from 512 to 4096"
        ));
    }
    if size == 0 || !size.is_multiple_of(block_size.into()) || i64::try_from(size).is_err() {
        return invalid(format!(
            "a size of {size} bytes: use a positive multiple of {block_size} below 2^63"
        ));
    }
    let has = |flag| flags & flag != 0;
    let capabilities = Capabilities {
        read_only: has(NBDB_READ_ONLY),
        flush: has(NBDB_FLUSH),
        fua: has(NBDB_FUA),
        trim: has(NBDB_TRIM),
        write_zeroes: has(NBDB_ZERO),
        cache: has(NBDB_CACHE),
        rotational: has(NBDB_ROTATIONAL),
        ..Capabilities::default()
    };
    Ok(Geometry { size, block_size, capabilities })
}

/// The flags of a geometry.
pub(crate) fn geometry_flags(capabilities: &Capabilities) -> u32 {
    [
        (capabilities.read_only, NBDB_READ_ONLY),
        (capabilities.flush, NBDB_FLUSH),
        (capabilities.fua, NBDB_FUA),
        (capabilities.trim, NBDB_TRIM),
        (capabilities.write_zeroes, NBDB_ZERO),
        (capabilities.cache, NBDB_CACHE),
        (capabilities.rotational, NBDB_ROTATIONAL),
    ]
    .into_iter()
    .filter(|(has, _)| *has)
    .map(|(_, flag)| flag)
    .sum()
}

/// The flags of serve options.
pub(crate) fn serve_flags(flags: u32) -> Outcome<u32> {
    match flags & !SERVE_FLAGS {
        0 => Ok(flags),
        unknown => {
            let message = format!("unknown flags {unknown:#x} in the serve options");
            Err(Failure::new(libc::EINVAL, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> nbdb_geometry {
        let struct_size = size_of::<nbdb_geometry>();
        nbdb_geometry { struct_size, size: 1 << 20, block_size: 512, flags: GEOMETRY_FLAGS }
    }

    fn read(given: *const nbdb_geometry) -> Outcome<nbdb_geometry> {
        // SAFETY: the tests pass NULL or a whole structure.
        unsafe { structure(given) }
    }

    #[test]
    fn structures_of_no_release_are_refused() {
        assert_eq!(read(std::ptr::null()).unwrap_err().errno, libc::EFAULT);
        for struct_size in [0, 1, size_of::<nbdb_geometry>() - 1, usize::MAX] {
            let given = nbdb_geometry { struct_size, ..good() };
            assert_eq!(read(&raw const given).unwrap_err().errno, libc::EINVAL, "{struct_size}");
        }
    }

    #[test]
    fn a_later_release_may_append_members_that_are_zero() {
        #[repr(C)]
        struct Later(nbdb_geometry, u64);
        let struct_size = size_of::<Later>();
        for (appended, errno) in [(0, None), (1, Some(libc::E2BIG))] {
            let later = Later(nbdb_geometry { struct_size, ..good() }, appended);
            let result = read((&raw const later).cast());
            assert_eq!(result.err().map(|failure| failure.errno), errno);
        }
    }

    #[test]
    fn a_geometry_survives_the_way_and_a_bad_one_is_refused() {
        for bit in 0..7 {
            let given = nbdb_geometry { flags: 1 << bit, ..good() };
            let made = geometry(&given).unwrap();
            assert_eq!(geometry_flags(&made.capabilities), given.flags);
        }
        for bad in [
            nbdb_geometry { size: 0, ..good() },
            nbdb_geometry { size: 513, ..good() },
            nbdb_geometry { size: 1 << 63, ..good() },
            nbdb_geometry { block_size: 0, ..good() },
            nbdb_geometry { block_size: 8192, ..good() },
            nbdb_geometry { flags: 1 << 7, ..good() },
        ] {
            assert_eq!(geometry(&bad).unwrap_err().errno, libc::EINVAL, "{bad:?}");
        }
    }
}
