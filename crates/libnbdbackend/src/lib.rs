//! A C library for programs that serve NBD devices themselves, one or hundreds in a process.
//!
//! `include/nbdbackend.h` declares it, generated from here; `docs/guide/c-library.md` shows how to use
//! it. Everything about lanes, ledger and recovery is `nbd-backend`'s.
//!
//! | module | idea |
//! |---|---|
//! | [`abi`] | structures and constants that C sees |
//! | [`functions`], [`queue_functions`] | functions that C calls |
//! | `arguments` | what C passes, checked |
//! | `error` | errnos, and a message for the calling thread |
//! | `device` | a device from opening to closing |
//! | `serve` | its thread |
//! | `callbacks` | synchronous devices |
//! | `queue`, `queued` | asynchronous devices: where requests wait, and how they are answered |
//! | `requests`, `outstanding`, `buffer` | the requests that the program has |
//! | `log` | where messages go |
//!
//! Devices, queues and requests are numbers, not pointers: a number that was closed or completed is
//! never given again, so using it is an error and no undefined behaviour.

#![allow(non_camel_case_types, reason = "C's names")]

pub mod abi;
mod arguments;
mod buffer;
mod callbacks;
mod context;
mod device;
mod error;
pub mod functions;
mod log;
mod outstanding;
mod queue;
pub mod queue_functions;
mod queued;
mod requests;
mod serve;
