//! Playing the holder for a backend, so that its lanes can be measured without a kernel driver.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nbd_control::Channel;
use nbd_control::backend::{FromBackend, FromHolder, Grant, HOLDER_FD};
use nbd_ledger::{Layout, Ledger};
use nix::sys::socket::{setsockopt, sockopt};

use crate::end::End;

/// What the holder gives its lanes to buffer.
const BUFFER: usize = 4 << 20;
/// A backend under a debugger or a simulator takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// A backend that serves lanes.
#[derive(Debug)]
pub struct Lanes {
    child: Child,
    _channel: Channel,
    /// Size of its device.
    pub size: u64,
}

impl Lanes {
    /// Starts a backend and grants it lanes; returns the kernel's ends of them.
    pub fn start(command: &[String], count: usize) -> Result<(Self, Vec<End>), Box<dyn Error>> {
        if command.is_empty() {
            return Err("no backend is named behind --".into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        // A backend wants its holder beyond the standard streams; std hands nothing else on.
        let child = Command::new("sh")
            .args(["-c", "exec 3<&0 </dev/null; exec \"$@\"", "sh"])
            .args(command)
            .env(HOLDER_FD, "3")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        let mut channel = Channel::new(ours)?;
        let FromBackend::Hello(hello) = channel.receive_within(PATIENCE)?.message else {
            return Err("the backend did not introduce itself".into());
        };
        let layout = Layout::with_lanes(u32::try_from(count)?);
        let mut descriptors = vec![Ledger::create(&layout)?];
        let mut ends = Vec::new();
        for _ in 0..count {
            let (server, kernel) = pair()?;
            descriptors.push(server.into());
            ends.push(End::Unix(kernel));
        }
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        channel.send(&FromHolder::Grant(grant(&layout)), &descriptors)?;
        loop {
            match channel.receive_within(PATIENCE)?.message {
                FromBackend::Keep { .. } => channel.send(&FromHolder::Kept, &[])?,
                FromBackend::Ready { .. } => break,
                other => return Err(format!("the backend said {other:?}").into()),
            }
        }
        Ok((Self { child, _channel: channel, size: hello.export.size }, ends))
    }

    /// The backend's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the backend has left, after its lanes were disconnected.
    pub fn end(mut self) -> Result<(), Box<dyn Error>> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the backend failed: {status}").into()) }
    }
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (server, kernel) = UnixStream::pair()?;
    for end in [&server, &kernel] {
        // Only root may have more than the system's limit.
        setsockopt(end, sockopt::SndBufForce, &BUFFER)
            .or_else(|_| setsockopt(end, sockopt::SndBuf, &BUFFER))?;
    }
    Ok((server, kernel))
}

fn grant(layout: &Layout) -> Grant {
    Grant {
        device: "nbd0".into(),
        lanes: layout.lanes,
        ring: layout.ring,
        transmit: layout.transmit,
        max_payload: layout.max_payload,
        keepsakes: Vec::new(),
        crashed: false,
        poison_limit: 0,
    }
}
