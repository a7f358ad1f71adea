//! NBD servers as backends: connects, reconnects, and loses no request.
//!
//! A [`Remote`] is a [`Backend`](nbd_backend::Backend) whose storage is another NBD server: one that
//! an NBD URI names, or a program that the client starts itself ([`Target`]). When a connection is
//! lost, its unanswered requests are sent again over the next one, for as long as [`Retry`] allows.
//!
//! ```no_run
//! use nbd_backend::Backend;
//! use nbd_client::{Options, Remote, Target};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let target: Target = "nbd://server.example/disk".parse()?;
//! let remote = Remote::connect(target, Options::default())?;
//! let mut block = [0; 4096];
//! remote.read_at(&mut block, 0)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//!
//! - **No request is lost**, and none is finished twice: a task is finished once, when the last share
//!   of its `Job` is dropped.
//! - **Old writes do not come last**: see below.
//! - **The server is hostile input.** Each reply is checked against its request; a violation of the
//!   protocol ends the connection.
//! - **No caller waits for a slow server while it holds a lock.** Sending never blocks; a thread of the
//!   connection sends what the socket did not take.
//!
//! # Fencing
//!
//! A server executes what it has received even if the client is gone. Suppose that a write is sent
//! again over a new connection and answered, and that a newer write to the same place follows. If the
//! server executes the old copy of the first write only then, the newer data is lost. Therefore
//! nothing is sent over a new connection before the server has closed the old one, however long that
//! takes; `retry` bounds how long requests wait for it. This holds beyond the end of this process: an
//! [`FdStore`] keeps each connection, and the process of a program that was started, and a successor
//! fences them.
//!
//! Fencing has three limits. The client does not wait for a machine that no longer answers; if that
//! machine is only cut off, it may execute later what it has received. Some servers close a connection
//! while they still execute its requests (qemu-nbd does when its client vanishes). A proxy may close
//! its side before the server is done. Servers between which several clients fail over have to fence
//! by themselves.
//!
//! # Modules
//!
//! | module | idea |
//! |---|---|
//! | `remote` | the backend; `blocking` makes tasks for callers that wait |
//! | `job` | a task that was taken over, and the requests that it is split into; `buffer_pool` |
//! | `connect` | from a target to a connection: `target`, `dialer`, `child` (a program to start) and `child_words` (what it says), `shell`, `handshake`, `negotiated`, `export_shape`, `backoff` |
//! | `connection` | requests in flight: `worker` (the thread behind a connection), `pool`, `send_queue`, `in_flight`, `reply_reader`, `recv_buffer`, `old_connection` |
//! | `reply` | replies without I/O: `header`, `range_set` |
//! | `fence` | makes sure that an old connection or server writes no more |
//! | `options`, `shared`, `error`, `sync`, `system` | settings; what the threads share; why a connection ends; locking; system calls that neither std nor nix has |

mod connect;
mod connection;
mod error;
mod fence;
mod job;
mod options;
mod remote;
mod reply;
mod shared;
mod sync;
mod system;

pub use connect::dialer::list;
pub use connect::error::{Cause, ClientError};
pub use connect::export_shape::{ChangeError, ShapeError, check_change};
pub use connect::target::{Program, Target, TargetError};
pub use connection::old_connection::StoredFd;
pub use fence::{Fence, fence, fence_child};
pub use nbd_net::uri::Retry;
pub use nbd_proto::handshake::ListedExport;
pub use options::{CONNECTION_FD_PREFIX, FdStore, MAX_CONNECTIONS, Options, SERVER_FD_NAME};
pub use remote::Remote;
