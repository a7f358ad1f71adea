//! `cow:BASE+DIFF`: a base that is only read, and a sparse file that has what differs from it.
//!
//! | module | idea |
//! |---|---|
//! | `format` | where what is in the file |
//! | `diff_file` | the file itself: opened, made, checked |
//! | `map` | which clusters are in the diff, and since when that is durable |
//! | `overlay` | reading and writing |

pub(crate) mod diff_file;
mod error;
pub(crate) mod format;
pub(crate) mod map;
pub(crate) mod overlay;
#[cfg(test)]
mod tests;

pub(crate) use error::CowError;
