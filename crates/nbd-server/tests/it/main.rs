//! The server as a library, with a backend that waits and fails on request.
//!
//! | module | tests |
//! |---|---|
//! | `test_server` | not a test: the backend, and a running server |
//! | `transmission` | each command in each style of reply; order, size, and cuts |
//! | `errors` | what each bad request gets |
//! | `protocol_violations` | clients that break the protocol |
//! | `limits` | the limits of one client |
//! | `memory` | the memory that all clients share |
//! | `stop` | the end of the server |
//! | `vanished_clients` | clients whose machine has vanished |

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod errors;
mod limits;
mod memory;
mod protocol_violations;
mod stop;
mod test_server;
mod transmission;
mod vanished_clients;
