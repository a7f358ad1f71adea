//! The stock exports: files, block devices, memory, other NBD servers and what can be put on top of
//! them, served by a process that may die.
//!
//! A SPEC goes one way through the modules: `spec` reads the text, `export` plans it and then opens
//! the storage, and what comes out are backends of `layers` and `storage`.
//!
//! | module | idea |
//! |---|---|
//! | `cli` | the command line, and the way from it to a served device |
//! | `network` | exports for the network: limits, TLS, signals |
//! | `spec` | `file:disk.img,direct` to values and back; pure |
//! | `export` | a [`Backend`](nbd_backend::Backend) to be: its shape first, its storage later |
//! | `export::fd_store` | what is left for a successor, under names that tell its place in the tree |
//! | `export::connection_store` | where connections to other servers are kept for a successor |
//! | `layers` | what can stand in front of an export; `prng` are its dice |
//! | `storage` | files, block devices, memory, and disks that are not stored anywhere |
//! | `offline` | commands that serve nothing: `commit`, `discard`, `powercut` |

mod cli;
mod export;
mod layers;
mod listing;
mod network;
mod offline;
mod prng;
mod spec;
mod storage;
#[cfg(test)]
mod testing;

/// How lines of the log begin.
const PROGRAM: &str = "nbd-serve";

use nbd_control::size;

pub use cli::{Cli, main};
pub use network::{NetworkArgs, TlsMode};
