//! nbd-serve as a network server, against the clients of other projects.
//!
//! They come with Debian's packages libnbd-bin, python3-libnbd, qemu-utils and fio (`scripts/setup`),
//! and a test fails where one is missing.
//!
//! | module | what belongs there |
//! |---|---|
//! | `attack` | clients that keep to no rule, all at once |
//! | `server` | a running nbd-serve with a directory of its own |
//! | `programs` | programs of other projects, run with a time limit |
//! | `content` | what the served files contain |
//! | `usage` | arguments and messages |
//! | `service` | sockets, signals, one log line for each odd client |
//! | `libnbd` | nbdinfo and nbdcopy |
//! | `memory` | how much of it many clients together can make the process take |
//! | `nbdkit` | nbdkit's own plugins, beside nbdkit itself |
//! | `nbdkit_names` | those that ask for a name, a program, another server or a thread |
//! | `rbd` | images of a Ceph cluster, beside rbd(8) |
//! | `odd` | odd requests, sent by libnbd from Python |
//! | `qemu` | qemu-img and qemu-io |
//! | `fio` | fio's nbd engine, which verifies what it reads |
//! | `offers` | what is offered is what the storage can do |
//! | `spans` | reads that are sent from where the storage lies in memory |
//! | `tls` | secured connections |

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod attack;
mod content;
mod fio;
mod libnbd;
mod memory;
mod nbdkit;
mod nbdkit_names;
mod odd;
mod offers;
mod programs;
mod qemu;
mod rbd;
mod server;
mod service;
mod spans;
mod tls;
mod usage;
