//! The holder's part for one program, without a device: grants the program a new ledger and new lanes,
//! and gives the lanes' other ends to the caller.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbd_control::backend::{FromBackend, FromHolder, Grant, Hello};
use nbd_control::{Channel, ChannelError};
use nbd_ledger::{Layout, Ledger, LedgerError};
use nix::sys::socket::{setsockopt, sockopt};
use thiserror::Error;

use crate::CAPTURE_FD_NAME;

/// Bytes that a lane buffers in each direction, as far as the system allows.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Why a program was not granted the lanes.
#[derive(Debug, Error)]
pub enum FakeHolderError {
    /// The channel to the program failed.
    #[error("it did not introduce itself as a backend")]
    Channel(#[from] ChannelError),
    /// The program reported a failure.
    #[error("it says: {0}")]
    Failed(String),
    /// The program sent a message that the protocol does not allow here.
    #[error("it broke the protocol: it said {0}")]
    Protocol(String),
    /// The ledger could not be made.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The lanes could not be made.
    #[error("cannot make lanes")]
    Lanes(#[source] io::Error),
}

/// The holder of one program that has sent its hello.
#[derive(Debug)]
pub struct FakeHolder {
    channel: Channel,
    answer_timeout: Option<Duration>,
    /// The program's hello.
    pub hello: Hello,
}

impl FakeHolder {
    /// Accepts a program: waits for its hello, for at most `answer_timeout`.
    ///
    /// # Errors
    ///
    /// [`FakeHolderError::Failed`] if the program reports a failure, `Protocol` if it sends another
    /// message, `Channel` if it closes, or sends nothing in time.
    pub fn accept(
        stream: UnixStream,
        answer_timeout: Option<Duration>,
    ) -> Result<Self, FakeHolderError> {
        let mut channel = Channel::new(stream)?;
        match receive(&mut channel, answer_timeout)? {
            FromBackend::Hello(hello) => Ok(Self { channel, answer_timeout, hello }),
            FromBackend::Failed { reason, .. } => Err(FakeHolderError::Failed(reason)),
            other => Err(FakeHolderError::Protocol(format!("{other:?}"))),
        }
    }

    /// Refuses the program.
    pub fn refuse(self, reason: &str) {
        // A program that is gone already needs no refusal.
        let _ = self.channel.send(&FromHolder::Refusal { reason: reason.into() }, &[]);
    }

    /// Grants the program `lanes` lanes, and a capture to write to if there is one, and waits until it
    /// serves them. Returns the other ends of the lanes.
    ///
    /// # Errors
    ///
    /// As for [`Self::accept`]; `Ledger` or `Lanes` if those cannot be made.
    ///
    /// # Panics
    ///
    /// If `lanes` is 0 or above [`MAX_LANES`](nbd_ledger::layout::MAX_LANES).
    pub fn grant(
        &mut self,
        lanes: u32,
        capture: Option<&File>,
    ) -> Result<Vec<UnixStream>, FakeHolderError> {
        let layout = Layout::with_lanes(lanes);
        let mut descriptors: Vec<OwnedFd> = vec![Ledger::create(&layout)?];
        let mut ends = Vec::new();
        for _ in 0..lanes {
            let (server, kernel) = lane().map_err(FakeHolderError::Lanes)?;
            descriptors.push(server.into());
            ends.push(kernel);
        }
        let mut borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        borrowed.extend(capture.map(AsFd::as_fd));
        let grant = Grant {
            device: "nbd0".into(),
            lanes,
            ring: layout.ring,
            transmit: layout.transmit,
            max_payload: layout.max_payload,
            keepsakes: capture.map(|_| CAPTURE_FD_NAME.into()).into_iter().collect(),
            crashed: false,
            poison_limit: 0,
        };
        self.channel.send(&FromHolder::Grant(grant), &borrowed)?;
        loop {
            match receive(&mut self.channel, self.answer_timeout)? {
                // Acknowledged and dropped: this program has no successor that would want it back.
                FromBackend::Keep { .. } => self.channel.send(&FromHolder::Kept, &[])?,
                FromBackend::Ready { .. } => return Ok(ends),
                FromBackend::Failed { reason, .. } => return Err(FakeHolderError::Failed(reason)),
                other => return Err(FakeHolderError::Protocol(format!("{other:?}"))),
            }
        }
    }
}

fn receive(
    channel: &mut Channel,
    answer_timeout: Option<Duration>,
) -> Result<FromBackend, ChannelError> {
    let received = match answer_timeout {
        Some(answer_timeout) => channel.receive_within(answer_timeout),
        None => channel.receive(),
    };
    received.map(|received| received.message)
}

fn lane() -> io::Result<(UnixStream, UnixStream)> {
    let (server, kernel) = UnixStream::pair()?;
    for end in [&server, &kernel] {
        // Only root may exceed `net.core.wmem_max`, so others get that much.
        setsockopt(end, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES)
            .or_else(|_| setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER_BYTES))?;
    }
    Ok((server, kernel))
}
