//! The stock exports: a file, a block device, memory, or another NBD server, served by a process
//! that may die.
//!
//! | module | idea |
//! |---|---|
//! | `cli` | the command line, and the way from it to a served device |
//! | `network` | exports for the network: limits, TLS, signals |
//! | `spec`, `size` | `file:disk.img,direct` to values and back; pure |
//! | `export` | a [`Backend`](nbd_backend::Backend) to be: its shape first, its storage later |
//! | `probe` | what a path names now, and the shape of a device made of it |
//! | `adopt` | which descriptor to serve: the one that a predecessor left, or a locked new one |
//! | `lock`, `culprit` | one writer only; and if there is one already, who it is |
//! | `file` | reading and writing: files, block devices, and memory, which is a file too |
//! | `pace` | whether writes may be executed where they are received |
//! | `extents` | which parts of a file are allocated |
//! | `aligned` | buffers for direct I/O |
//! | `mem` | memory that outlives the process |
//! | `remote` | other NBD servers, by URI or started by ourselves |
//! | `vault` | where their connections are kept for a successor |
//! | `mapped` | reaching it without system calls |
//! | `system` | the system calls that nix and std do not have |

mod adopt;
mod aligned;
mod cli;
mod culprit;
mod export;
mod extents;
mod file;
mod lock;
mod mapped;
mod mem;
mod network;
mod pace;
mod probe;
mod remote;
mod size;
mod spec;
mod system;
#[cfg(test)]
mod testing;
mod vault;

pub use cli::{Cli, main};
pub use network::{NetworkArgs, TlsMode};
