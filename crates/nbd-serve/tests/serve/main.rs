//! The program itself, from its command line to answered requests.
//!
//! | module | what belongs there |
//! |---|---|
//! | `holder` | a scripted holder and kernel, in place of the real ones |
//! | `device` | block devices; needs root and a free loop device |
//! | `usage` | arguments, messages, exit codes |
//! | `soak` | a server killed again and again under a verified load |
//! | `exports` | exports on top of exports, and the tools for their files |
//! | `powercut` | programs that flush, and one that forgets it |
//! | `remote` | other servers as exports |
//! | `lives` | one backend after the other on one device: stored descriptors, locks, takeovers |

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod device;
mod exports;
mod holder;
mod lives;
mod powercut;
mod remote;
mod soak;
mod usage;
