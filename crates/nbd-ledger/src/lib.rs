//! The ledger: shared memory that holds what a backend knows about the requests in flight, so that
//! the next backend can continue after this one dies.
//!
//! The holder makes the ledger, a sealed memfd, and each backend maps it in turn. A *lane* is the
//! server end of a socket pair; the kernel driver holds the other end. For each lane the ledger
//! keeps a receive ring, a transmit area, a pair of receive records, a pair of transmit records and
//! a table of request slots.
//!
//! # Invariants
//!
//! - **One store commits.** A killed process has executed a prefix of its program. Each change of
//!   state takes effect by one aligned atomic store; before that store the old state is whole.
//! - **The kernel writes the byte counts.** No process can record by itself how many bytes a system
//!   call passed. So the `mmsghdr` given to `recvmmsg(2)` and `sendmmsg(2)` lies in the ledger, and
//!   the kernel stores `msg_len` before the call returns.
//! - **One backend at a time.** The holder grants a lane to a successor only after its predecessor
//!   is dead. This crate relies on it and cannot check it.
//! - **The ledger is hostile input.** The dead backend may have overwritten any word. A successor
//!   checks all words before it uses one ([`Corruption`]), and never replays a ledger that fails.
//! - **A request is answered once.** [`receive::Ticket`] stands for a request that is not answered;
//!   [`Transmitter::stage`] consumes it.
//!
//! # Use
//!
//! A backend opens the ledger and its lanes, finishes what its predecessor left, and then receives,
//! executes and answers:
//!
//! ```
//! use std::os::unix::net::UnixStream;
//!
//! use nbd_ledger::{Answer, Layout, Ledger, RecvOutcome};
//! # use std::io::Write;
//! # use nbd_proto::{CommandFlags, CommandType, Request};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The holder's part: the ledger, and a lane.
//! let layout = Layout::with_lanes(1);
//! let memfd = Ledger::create(&layout)?;
//! let (lane, mut kernel) = UnixStream::pair()?;
//! # let flags = CommandFlags::from_bits(0);
//! # let (command, cookie, offset, length) = (CommandType::FLUSH, 1, 0, 0);
//! # kernel.write_all(&Request { flags, command, cookie, offset, length }.encode())?;
//!
//! // The backend's part.
//! let ledger = Ledger::open(memfd, &layout)?;
//! let (mut receiver, mut transmitter, recovery) = ledger.open_lane(0, lane.into())?;
//! transmitter.finish()?;
//! let mut tickets = recovery.tickets;
//! if receiver.receive()? == RecvOutcome::Bytes {
//!     let now = 1; // CLOCK_MONOTONIC nanoseconds
//!     receiver.take(now, &mut tickets)?;
//! }
//! for ticket in tickets {
//!     // Execute `ticket.request()` here.
//!     transmitter.stage(ticket, Answer::Done);
//! }
//! transmitter.send()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Modules
//!
//! | module | idea |
//! |---|---|
//! | [`layout`] | where everything lies; the words of the shared memory |
//! | `map` | creating and mapping the memory (unsafe) |
//! | `message` | the two system calls on messages that lie in the ledger (unsafe) |
//! | [`receive`] | bytes from the kernel become requests in slots |
//! | [`transmit`] | replies become bytes to the kernel |
//! | [`audit`] | checks that a sane predecessor can have left this memory |
//! | [`recover`] | a successor takes over |
//! | [`flight_recorder`] | the latest requests that were executed, for onlookers |
//! | [`latency`] | histograms of how long requests took, for onlookers |
//! | [`arrivals`] | since when requests wait, noted by the holder |
//! | [`inspect`], [`gdb`] | reading along from another process, or from a debugger |
//!
//! Within one process one thread owns the lane's [`receive::Receiver`], and the caller guards its
//! [`transmit::Transmitter`] with a lock. The lock is private memory, so it dies with the process
//! and a successor never finds it locked.

pub mod arrivals;
pub mod audit;
mod crash_points;
pub mod flight_recorder;
pub mod gdb;
pub mod inspect;
pub mod latency;
mod ledger;
mod memory;
pub mod receive;
pub mod recover;
#[cfg(test)]
mod testing;
pub mod transmit;

pub use audit::Corruption;
pub use inspect::Inspector;
pub use layout::{Layout, SlotIndex};
pub use ledger::{Lane, Ledger, LedgerError};
pub use memory::layout;
pub(crate) use memory::{map, message, request};
pub use receive::{Receiver, RecvOutcome, StreamError};
pub use recover::Recovery;
pub use transmit::{Answer, Transmitter};

#[cfg(feature = "crash-points")]
pub use crash_points::{CrashPoint, arm_crash_point, crash_points_passed, observe_crash_points};
