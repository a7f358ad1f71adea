//! `nbdkit_parse_*`: results are stored where the plugin asks for it.

use std::borrow::Cow;
use std::ffi::{c_char, c_double, c_int, c_uint};

use super::{parse, refuse, text};

fn words<'a>(pointer: *const c_char) -> Cow<'a, str> {
    text(pointer).map_or(Cow::Borrowed(""), |text| text.to_string_lossy())
}

/// Stores a result, or reports why there is none.
fn store<T>(result: Result<T, String>, place: *mut T) -> c_int {
    match result {
        Ok(value) => {
            // The interface allows null, for a plugin that only checks.
            if !place.is_null() {
                // SAFETY: the plugin passes a place for a value of this type.
                unsafe { place.write(value) };
            }
            0
        }
        Err(error) => {
            refuse(&error, libc::EINVAL);
            -1
        }
    }
}

pub(super) extern "C" fn parse_size(text: *const c_char) -> i64 {
    parse::size(&words(text)).unwrap_or_else(|error| {
        refuse(&error, libc::EINVAL);
        -1
    })
}

pub(super) extern "C" fn parse_bool(text: *const c_char) -> c_int {
    parse::boolean(&words(text)).map_or_else(
        |error| {
            refuse(&error, libc::EINVAL);
            -1
        },
        c_int::from,
    )
}

pub(super) extern "C" fn parse_integer<T: TryFrom<i128>>(
    what: *const c_char,
    text: *const c_char,
    place: *mut T,
) -> c_int {
    store(parse::integer(&words(what), &words(text)), place)
}

pub(super) extern "C" fn parse_probability(
    what: *const c_char,
    text: *const c_char,
    place: *mut c_double,
) -> c_int {
    store(parse::probability(&words(what), &words(text)), place)
}

pub(super) extern "C" fn parse_delay(
    what: *const c_char,
    text: *const c_char,
    seconds: *mut c_uint,
    nanoseconds: *mut c_uint,
) -> c_int {
    match parse::delay(&words(what), &words(text)) {
        Ok((whole, rest)) => {
            store(Ok(whole), seconds);
            store(Ok(rest), nanoseconds)
        }
        Err(error) => store(Err(error), seconds),
    }
}
