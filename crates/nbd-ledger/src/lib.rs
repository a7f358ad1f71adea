//! The ledger: what a backend knows about the requests in flight, kept where its death cannot
//! take it along.
//!
//! A sealed memfd, made by the holder and mapped by each backend in turn. For every lane (the
//! server end of a socket pair whose other end the kernel driver holds) it keeps a receive ring,
//! a transmit area, one record for what is being received, one for what is being sent, and a
//! table of request slots.
//!
//! A process that is killed has executed a prefix of its program, so all that crash consistency
//! asks for is that every change of state is **one** aligned store, and that the two facts no
//! process could write down by itself, how many bytes the kernel handed over and how many it
//! took, are written by the kernel: the `mmsghdr` given to `recvmmsg(2)` and `sendmmsg(2)` lies in
//! the ledger, and the kernel stores `msg_len` before the call returns.
//!
//! | module | idea |
//! |---|---|
//! | [`layout`] | where everything lies; the words of the shared memory |
//! | `map` | creating and mapping the memory (unsafe) |
//! | `message` | the two system calls on messages that lie in the ledger (unsafe) |
//! | [`receive`] | bytes from the kernel become requests in slots |
//! | [`transmit`] | replies become bytes to the kernel |
//! | [`audit`] | is this memory something a sane predecessor can have left? |
//! | [`recover`] | a successor takes over |
//! | [`record`] | the flight recorder: what was executed, for onlookers |
//! | [`latency`] | histograms of how long requests took, for onlookers |
//! | [`arrivals`] | since when requests wait, noted by the holder |
//! | [`inspect`], [`gdb`] | reading along from another process, or from a debugger |
//!
//! Within one process the lane's [`receive::Receiver`] belongs to one thread and its
//! [`transmit::Transmitter`] sits behind a lock of the caller's; that lock is private memory and
//! dies with the process.

pub mod arrivals;
pub mod audit;
pub mod gdb;
mod hook;
pub mod inspect;
pub mod latency;
pub mod layout;
mod ledger;
mod map;
mod message;
pub mod receive;
pub mod record;
pub mod recover;
#[cfg(test)]
mod testing;
pub mod transmit;

pub use audit::Damage;
pub use inspect::Inspector;
pub use layout::{Layout, SlotIndex};
pub use ledger::{Lane, Ledger, LedgerError};
pub use receive::{Arrival, Receiver, StreamError};
pub use recover::Recovery;
pub use transmit::{Answer, Transmitter};

#[cfg(feature = "crash-points")]
pub use hook::{Point, arm_crash_point, crash_points_passed, observe_crash_points};
