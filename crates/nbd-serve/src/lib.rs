//! The stock exports: files, block devices, memory, other NBD servers and what can be put on top of
//! them, served by a process that may die.
//!
//! | module | idea |
//! |---|---|
//! | `cli` | the command line, and the way from it to a served device |
//! | `network` | exports for the network: limits, TLS, signals |
//! | `spec` | `file:disk.img,direct` to values and back; pure |
//! | `export`, `source` | a [`Backend`](nbd_backend::Backend) to be: its shape first, its storage later |
//! | `estate` | what is left for a successor, under names that tell its place in the tree |
//! | `probe` | what a path names now, and the shape of a device made of it |
//! | `adopt` | which descriptor to serve: the one that a predecessor left, or a locked new one |
//! | `lock`, `culprit` | one writer only; and if there is one already, who it is |
//! | `file` | reading and writing: files, block devices, and memory, which is a file too |
//! | `pace` | whether writes may be executed where they are received |
//! | `extents` | which parts of a file are allocated |
//! | `aligned` | buffers for direct I/O |
//! | `mem` | memory that outlives the process |
//! | `synthetic` | `null:` and `pattern:`, which are not stored anywhere |
//! | `cow` | a base that is only read, and a file with what differs from it |
//! | `window`, `partition` | parts of another export, and other layers before they are served |
//! | `layer` | layers that do something around each command; `numbers` are their dice |
//! | `record`, `powercut` | everything that changes an export, and what a power cut makes of it |
//! | `tools` | commands that serve nothing |
//! | `remote` | other NBD servers, by URI or started by ourselves |
//! | `vault` | where their connections are kept for a successor |
//! | `mapped` | reaching it without system calls |
//! | `system` | the system calls that nix and std do not have |

mod adopt;
mod aligned;
mod cached;
mod cli;
mod cow;
mod culprit;
mod estate;
mod export;
mod extents;
mod file;
mod layer;
mod lock;
mod mapped;
mod mapping;
mod mem;
mod network;
mod numbers;
mod pace;
mod partition;
mod powercut;
mod probe;
mod record;
mod remote;
mod source;
mod spec;
mod synthetic;
mod system;
#[cfg(test)]
mod testing;
mod tools;
mod vault;
mod window;

use nbd_control::size;

pub use cli::{Cli, main};
pub use network::{NetworkArgs, TlsMode};
