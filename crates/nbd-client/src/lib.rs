//! NBD servers as backends: connects, reconnects, and loses no request.
//!
//! A [`Remote`] is a [`Backend`](nbd_backend::Backend) whose storage is somebody else's server, or
//! a program that it starts itself ([`Target`]). Requests that were not answered when a connection
//! is lost are sent again over the next one, for as long as [`Retry`] says.
//!
//! | module | idea |
//! |---|---|
//! | `target` | which server, as people write it |
//! | `options` | how to deal with it, and who keeps what must outlive this process |
//! | `remote` | the backend; `wait` is for callers who wait |
//! | `link` | the thread behind a connection: connects, replays, receives, begins again; `retry` says when |
//! | `roster` | which connections there are, and what waits for one |
//! | `dial`, `child`, `shell` | from a target to a connection, starting a program if need be |
//! | `shake`, `terms`, `shape` | the handshake, and what was agreed on in it |
//! | `connection`, `flow`, `table` | requests on their way, and those that are not answered |
//! | `job`, `stock` | a task that was taken over, and the requests that it is split into |
//! | `receive`, `inbox`, `head`, `reply`, `coverage` | replies; the last three without I/O |
//! | `fence`, `predecessor` | making sure that what is over writes no more |
//! | `system` | system calls that neither std nor nix has |
//!
//! # Fencing
//!
//! A server carries out what it has received, also when the client is gone. So a write that is
//! sent again over a new connection could be overtaken by itself: it is answered, a newer one is
//! written to the same place, and then the server gets round to the old one. Therefore nothing is
//! sent over a new connection before the server has closed the old one, however long that takes;
//! `retry` bounds how long requests wait for it. It holds beyond the end of this process: a
//! [`Custodian`] keeps each connection, and the process of a program that was started, for a
//! successor to fence them.
//!
//! Three things are beyond that. A machine that does not answer any more cannot be waited for: if
//! it is only cut off, what it has received may be carried out later. A server that closes a
//! connection while it still works on what came over it cannot be seen through; qemu-nbd does that
//! when its client vanishes. And neither can a proxy in between. Servers that several clients fail
//! over between have to fence by themselves.

mod child;
mod connection;
mod coverage;
mod dial;
mod error;
mod fence;
mod flow;
mod head;
mod inbox;
mod job;
mod link;
mod options;
mod predecessor;
mod receive;
mod remote;
mod reply;
mod retry;
mod roster;
mod shake;
mod shape;
mod shell;
mod stock;
mod system;
mod table;
mod target;
mod terms;
mod wait;

pub use dial::{Cause, ClientError};
pub use fence::{Fence, fence, fence_child};
pub use nbd_net::uri::Retry;
pub use options::{CONNECTION, Custodian, MOST_CONNECTIONS, Options, SERVER};
pub use predecessor::Left;
pub use remote::Remote;
pub use shape::{ChangeError, ShapeError};
pub use target::{Program, Target, TargetError};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex that no thread can leave poisoned and live: see
/// [`AbortOnPanic`](nbd_backend::AbortOnPanic).
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
