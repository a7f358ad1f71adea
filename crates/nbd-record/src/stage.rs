//! A holder for one program and without a device: grants it a new ledger and new lanes, whose other
//! ends are the caller's.

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

use crate::KEEPSAKE;

/// What a lane buffers in each direction, as far as the system lets us.
const BUFFER: usize = 4 << 20;

/// Why a program is not served to.
#[derive(Debug, Error)]
pub enum StageError {
    /// It cannot be talked to.
    #[error("it did not introduce itself as a backend")]
    Channel(#[from] ChannelError),
    /// It has given up.
    #[error("it says: {0}")]
    Failed(String),
    /// It said something that does not fit.
    #[error("it broke the protocol: it said {0}")]
    Protocol(String),
    /// There is no ledger for it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// There are no lanes for it.
    #[error("cannot make lanes")]
    Lanes(#[source] io::Error),
}

/// A program that has introduced itself.
#[derive(Debug)]
pub struct Stage {
    channel: Channel,
    patience: Option<Duration>,
    /// What it said.
    pub hello: Hello,
}

impl Stage {
    /// Waits for a program's introduction. Without `patience` it may take as long as it likes.
    pub fn meet(stream: UnixStream, patience: Option<Duration>) -> Result<Self, StageError> {
        let mut channel = Channel::new(stream)?;
        match hear(&mut channel, patience)? {
            FromBackend::Hello(hello) => Ok(Self { channel, patience, hello }),
            FromBackend::Failed { reason, .. } => Err(StageError::Failed(reason)),
            other => Err(StageError::Protocol(format!("{other:?}"))),
        }
    }

    /// Turns it away.
    pub fn refuse(self, reason: &str) {
        let _ = self.channel.send(&FromHolder::Refusal { reason: reason.into() }, &[]);
    }

    /// Grants it so many lanes, a recording to write to perhaps, and waits until it serves them.
    /// Returns the other ends of the lanes.
    pub fn grant(
        &mut self,
        lanes: u32,
        recording: Option<&File>,
    ) -> Result<Vec<UnixStream>, StageError> {
        let layout = Layout::with_lanes(lanes);
        let mut descriptors: Vec<OwnedFd> = vec![Ledger::create(&layout)?];
        let mut ends = Vec::new();
        for _ in 0..lanes {
            let (server, kernel) = lane().map_err(StageError::Lanes)?;
            descriptors.push(server.into());
            ends.push(kernel);
        }
        let mut borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        borrowed.extend(recording.map(AsFd::as_fd));
        let grant = Grant {
            device: "nbd0".into(),
            lanes,
            ring: layout.ring,
            transmit: layout.transmit,
            max_payload: layout.max_payload,
            keepsakes: recording.map(|_| KEEPSAKE.into()).into_iter().collect(),
            crashed: false,
            poison_limit: 0,
        };
        self.channel.send(&FromHolder::Grant(grant), &borrowed)?;
        loop {
            match hear(&mut self.channel, self.patience)? {
                // It lives as long as the device, and this one has no successor.
                FromBackend::Keep { .. } => self.channel.send(&FromHolder::Kept, &[])?,
                FromBackend::Ready { .. } => return Ok(ends),
                FromBackend::Failed { reason, .. } => return Err(StageError::Failed(reason)),
                other => return Err(StageError::Protocol(format!("{other:?}"))),
            }
        }
    }
}

fn hear(channel: &mut Channel, patience: Option<Duration>) -> Result<FromBackend, ChannelError> {
    let received = match patience {
        Some(patience) => channel.receive_within(patience),
        None => channel.receive(),
    };
    received.map(|received| received.message)
}

fn lane() -> io::Result<(UnixStream, UnixStream)> {
    let (server, kernel) = UnixStream::pair()?;
    for end in [&server, &kernel] {
        // Only root may have more than the system's limit.
        setsockopt(end, sockopt::SndBufForce, &BUFFER)
            .or_else(|_| setsockopt(end, sockopt::SndBuf, &BUFFER))?;
    }
    Ok((server, kernel))
}
