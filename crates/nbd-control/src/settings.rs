//! Settings of a backend that can be changed while it runs.
//!
//! They lie in a memfd that the backend makes and deposits with its holder as a keepsake. The
//! holder stores a new value there, and the backend reads it with its next request; so a change
//! needs no answer of the backend's, which may be stopped or dead, and a successor finds it.
//!
//! ```text
//! 0    magic, 8 bytes     8  number of entries, u64     then 64 bytes an entry:
//! 0    name, 24 bytes, filled up with zeroes
//! 24   kind, u64          32  value that the backend was started with, u64
//! 40   value, u64         48  its complement, u64       56  0
//! ```
//! Numbers are little-endian. A value and its complement are stored by one write; a
//! reader of two that do not belong together reads again.

mod kind;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

pub use kind::Kind;

/// The name of the keepsake.
pub const STORED_FD_NAME: &str = "settings";
/// Length of a table in bytes.
pub const LENGTH: usize = 4096;

const MAGIC: [u8; 8] = *b"NBDSET\0\x01";
const ENTRY_BYTES: usize = 64;
const NAME_BYTES: usize = 24;
const VALUE_OFFSET: usize = 40;
/// Most settings of a backend.
pub const MOST: usize = LENGTH / ENTRY_BYTES - 1;
/// A write that a read has met half done is complete long before.
const MAX_READ_ATTEMPTS: u32 = 1000;

/// A setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Like `error.rate`.
    pub name: String,
    /// What its value means.
    pub kind: Kind,
    /// The value that the backend was started with.
    pub initial: u64,
    /// The present value.
    pub value: u64,
}

/// Why a setting is not changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SetError {
    /// The text is no assignment.
    #[error("`{0}` sets nothing: write NAME=VALUE, like error.rate=0.01")]
    NoAssignment(String),
    /// There is none of this name.
    #[error("there is no setting `{name}`; there {}", there(.known))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The value cannot be had.
    #[error("{name}: `{value}` is not {expected}")]
    BadValue {
        /// The setting.
        name: String,
        /// What it was to become.
        value: String,
        /// What it might be.
        expected: &'static str,
    },
}

fn there(known: &[String]) -> String {
    match known {
        [] => "are none".into(),
        [one] => format!("is {one}"),
        [all @ .., last] => format!("are {} and {last}", all.join(", ")),
    }
}

/// The bytes of a table of at most [`MOST`] settings, whose names have at most 24 bytes.
#[must_use]
pub fn encode(settings: &[Setting]) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&(settings.len().min(MOST) as u64).to_le_bytes());
    for (entry, setting) in bytes[ENTRY_BYTES..].chunks_mut(ENTRY_BYTES).zip(settings) {
        let name = setting.name.as_bytes();
        let name = &name[..name.len().min(NAME_BYTES)];
        entry[..name.len()].copy_from_slice(name);
        put(entry, NAME_BYTES, setting.kind.code());
        put(entry, NAME_BYTES + 8, setting.initial);
        entry[VALUE_OFFSET..VALUE_OFFSET + 16].copy_from_slice(&pair(setting.value));
    }
    bytes
}

/// Reads a table, which may hold anything: nothing if it is none, and only what makes sense of it
/// otherwise.
#[must_use]
pub fn decode(bytes: &[u8; LENGTH]) -> Option<Vec<Setting>> {
    if bytes[..8] != MAGIC {
        return None;
    }
    let count = usize::try_from(get(bytes, 8)).ok().filter(|count| *count <= MOST)?;
    bytes[ENTRY_BYTES..].chunks(ENTRY_BYTES).take(count).map(decode_entry).collect()
}

fn decode_entry(entry: &[u8]) -> Option<Setting> {
    let end = entry[..NAME_BYTES].iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
    let name = str::from_utf8(&entry[..end]).ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.';
    if name.is_empty() || !name.bytes().all(is_plain) {
        return None;
    }
    Some(Setting {
        name: name.into(),
        kind: Kind::from_code(get(entry, NAME_BYTES))?,
        initial: get(entry, NAME_BYTES + 8),
        value: unpair(&entry[VALUE_OFFSET..VALUE_OFFSET + 16])?,
    })
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn pair(value: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    put(&mut bytes, 0, value);
    put(&mut bytes, 8, !value);
    bytes
}

fn unpair(bytes: &[u8]) -> Option<u64> {
    let value = get(bytes, 0);
    (get(bytes, 8) == !value).then_some(value)
}

/// Makes a table in memory that cannot change its size.
///
/// # Errors
///
/// The kernel has no memory for it.
pub fn make(settings: &[Setting]) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let table = File::from(memfd_create(c"nbd-settings", flags)?);
    store(&table, settings)?;
    fcntl(&table, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
    Ok(table)
}

/// Whether a descriptor that a backend has sent is memory, so that reading it cannot block.
#[must_use]
pub fn is_memory(table: &File) -> bool {
    fcntl(table, FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK))
}

/// Reads the settings of a keepsake.
///
/// # Errors
///
/// The file is shorter than a table, cannot be read, or holds none (`InvalidData`).
pub fn load(table: &File) -> io::Result<Vec<Setting>> {
    let mut bytes = [0; LENGTH];
    for _ in 0..MAX_READ_ATTEMPTS {
        table.read_exact_at(&mut bytes, 0)?;
        if let Some(settings) = decode(&bytes) {
            return Ok(settings);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "not a table of settings"))
}

/// Replaces the whole table.
///
/// # Errors
///
/// The table cannot be written to.
pub fn store(table: &File, settings: &[Setting]) -> io::Result<()> {
    table.write_all_at(&encode(settings), 0)
}

/// The present value of the setting at an index, if it can be read.
#[must_use]
pub fn value(table: &File, index: usize) -> Option<u64> {
    let mut bytes = [0; 16];
    (0..MAX_READ_ATTEMPTS).find_map(|_| {
        table.read_exact_at(&mut bytes, position(index)).ok()?;
        unpair(&bytes)
    })
}

/// Stores new values: `changes` are an index and a value each.
///
/// # Errors
///
/// The table cannot be written to; the changes before the one that failed are in it.
pub fn change(table: &File, changes: &[(usize, u64)]) -> io::Result<()> {
    changes
        .iter()
        .try_for_each(|(index, value)| table.write_all_at(&pair(*value), position(*index)))
}

fn position(index: usize) -> u64 {
    (ENTRY_BYTES * (1 + index) + VALUE_OFFSET) as u64
}

/// What assignments like `error.rate=0.01` come to; either all of them are in order, or none is
/// carried out.
///
/// # Errors
///
/// One of the assignments names no setting, or no value that the setting can have.
pub fn plan<S: AsRef<str>>(
    settings: &[Setting],
    assignments: &[S],
) -> Result<Vec<(usize, u64)>, SetError> {
    let plan_one = |text: &S| {
        let text = text.as_ref();
        let (name, value) =
            text.split_once('=').ok_or_else(|| SetError::NoAssignment(text.into()))?;
        let found = settings.iter().position(|setting| setting.name == name);
        let index = found.ok_or_else(|| SetError::Unknown {
            name: name.into(),
            known: settings.iter().map(|setting| setting.name.clone()).collect(),
        })?;
        let kind = settings[index].kind;
        let parsed = kind.parse(value).ok_or_else(|| SetError::BadValue {
            name: name.into(),
            value: value.into(),
            expected: kind.expected(),
        })?;
        Ok((index, parsed))
    };
    assignments.iter().map(plan_one).collect()
}
