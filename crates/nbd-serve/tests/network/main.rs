//! nbd-serve as a network server, against the clients that the world uses.
//!
//! They come with Debian's packages libnbd-bin, python3-libnbd, qemu-utils and fio (`scripts/setup`),
//! and a test fails where one is missing.
//!
//! | module | what belongs there |
//! |---|---|
//! | `world` | a running server, and running other people's programs |
//! | `usage` | arguments and messages |
//! | `service` | sockets, signals, one log line for each odd client |
//! | `libnbd` | nbdinfo and nbdcopy |
//! | `memory` | how much of it many clients together can make the process take |
//! | `odd` | odd requests, sent by libnbd from Python |
//! | `qemu` | qemu-img and qemu-io |
//! | `fio` | fio's nbd engine, which verifies what it reads |
//! | `offers` | what is offered is what the storage can do |
//! | `spans` | reads that are sent from where the storage lies in memory |
//! | `tls` | secured connections |

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod fio;
mod libnbd;
mod memory;
mod odd;
mod offers;
mod qemu;
mod service;
mod spans;
mod tls;
mod usage;
mod world;
