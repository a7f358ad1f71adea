//! Values to bytes and back. The only module that knows which format that is.
//!
//! bincode 2.0.1 with fixed-width little-endian integers: an enum is its variant's number (u32),
//! a string or a list its length (u64) and its elements, an option one byte and its value.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of a message, so that a broken peer cannot make us allocate without bound.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_MESSAGE_BYTES>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_MESSAGE_BYTES>();

/// The bytes of a value; fails only for one that is longer than [`MAX_MESSAGE_BYTES`].
///
/// # Errors
///
/// The value would be longer than [`MAX_MESSAGE_BYTES`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    let bytes = bincode::serde::encode_to_vec(value, CONFIG).map_err(|error| error.to_string())?;
    // The limit of the configuration is for decoding only.
    match bytes.len() <= MAX_MESSAGE_BYTES {
        true => Ok(bytes),
        false => {
            Err(format!("{} bytes, and a message has at most {MAX_MESSAGE_BYTES}", bytes.len()))
        }
    }
}

/// The value of some bytes, all of which must be used.
///
/// # Errors
///
/// The bytes are no such value, or more than one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bincode::serde::decode_from_slice(bytes, CONFIG) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(format!("{} bytes too many", bytes.len() - used)),
        Err(error) => Err(error.to_string()),
    }
}
