//! The client against servers that do as they are told, and against nbdkit.
//!
//! | module | what belongs there |
//! |---|---|
//! | `replies` | every form of a reply, and every order |
//! | `guilty` | servers that break the protocol, named after what they do |
//! | `reconnect` | connections that break, at every byte, and servers that change |
//! | `retry` | how long requests wait |
//! | `fencing` | what an old connection may still do |
//! | `split` | requests that are too long for one message |
//! | `several` | several connections |
//! | `shell_lines` | lines of `exec:` in which the shell stays |
//! | `stress` | a server that dies all the time |
//! | `nbdkit` | the real thing; it has to be installed |
//! | `interop` | servers of others: TLS, qemu-nbd, nbd-server; they have to be installed, too |
//! | `script`, `memory` | servers that do as they are told, and one that serves memory |
//! | `tasks` | tasks that can be waited for |

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod fencing;
mod guilty;
mod interop;
mod memory;
mod nbdkit;
mod reconnect;
mod replies;
mod retry;
mod script;
mod several;
mod shell_lines;
mod split;
mod stress;
mod tasks;
