//! A successor rehearses before it introduces itself: it serves a few requests of nobody's.
//!
//! What a new process does for the first time takes many times as long as later: the pages of its
//! program, its stack and its heap are not there yet. That would be the longest part of the time in
//! which nobody answers, between the death of the predecessor and the first answer. So the way from
//! a ledger to answers is gone once before, with a small ledger and a socket pair of our own,
//! while the predecessor still serves.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nbd_ledger::{Layout, Ledger};
use nbd_proto::{Command, CommandFlags, CommandType, Request};

use crate::backend::{Backend, Capabilities, Geometry};
use crate::engine::{Engine, Granted};
use crate::inheritance::Predecessor;
use crate::join::Link;

const BLOCK: u32 = 4096;
/// As many as one system call of a deep queue brings.
const REQUESTS: u64 = 16;

/// Reads zeroes and writes nothing.
struct Nothing;

impl Backend for Nothing {
    fn geometry(&self) -> Geometry {
        let size = REQUESTS * u64::from(BLOCK);
        Geometry { size, block_size: 512, capabilities: Capabilities::default() }
    }

    fn is_quick(&self, _command: &Command) -> bool {
        true
    }

    fn read_at(&self, buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64, _fua: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Goes the way once, if a predecessor is to be succeeded; whoever joins by hand may be in a
/// debugger, which should not stop here. To be called before a backend introduces itself; what goes
/// wrong here goes wrong for good later, and is told then.
pub fn rehearse(link: &Link) {
    if link.attached().is_some() {
        let _ = perform();
    }
}

fn perform() -> Result<(), Box<dyn std::error::Error>> {
    let layout = Layout { lanes: 1, ring: 256 << 10, transmit: 256 << 10, max_payload: 64 << 10 };
    let ledger = Ledger::create(&layout)?;
    let (lane, mut kernel) = UnixStream::pair()?;
    // All at once, as a successor finds them; the socket has room for it and for the replies.
    kernel.write_all(&requests())?;
    let backend: Arc<dyn Backend> = Arc::new(Nothing);
    let export = backend.geometry().export(layout.max_payload);
    let predecessor = Predecessor { crashed: false, poison_limit: 0 };
    let sockets = vec![OwnedFd::from(lane)];
    let granted = Granted { ledger, sockets, layout, recording: None };
    Engine::recover(granted, export, &backend, predecessor)?.run()?;
    Ok(())
}

/// Reads, writes, and the end.
fn requests() -> Vec<u8> {
    let mut bytes = Vec::new();
    for cookie in 0..REQUESTS {
        let write = cookie % 2 == 0;
        let command = if write { CommandType::WRITE } else { CommandType::READ };
        let offset = cookie * u64::from(BLOCK);
        let flags = CommandFlags::NONE;
        bytes.extend(Request { flags, command, cookie, offset, length: BLOCK }.encode());
        if write {
            bytes.resize(bytes.len() + BLOCK as usize, 0);
        }
    }
    let (flags, command) = (CommandFlags::NONE, CommandType::DISC);
    bytes.extend(Request { flags, command, cookie: 0, offset: 0, length: 0 }.encode());
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_rehearsal_goes_well() {
        super::perform().unwrap();
    }
}
