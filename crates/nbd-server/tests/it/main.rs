//! The server as a library, with a backend that waits and fails on request.
//!
//! | module | what belongs there |
//! |---|---|
//! | `world` | the backend, and a running server |
//! | `transmission` | each command in each style of reply; order, size, and cuts |
//! | `errors` | what each bad request gets |
//! | `guilty` | clients that break the protocol, by what they do |
//! | `limits` | how much a client may take |
//! | `memory` | what all clients have together |
//! | `stop` | the end of the server |
//! | `vanish` | clients whose machine has vanished |

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod errors;
mod guilty;
mod limits;
mod memory;
mod stop;
mod transmission;
mod vanish;
mod world;
