//! Warming up: a successor serves a few requests of its own before it sends Hello.
//!
//! A new process executes code slowly the first time, because the pages of its program, stack and
//! heap are not mapped yet. That would be the longest part of the pause between the death of the
//! predecessor and the first reply. So this serves requests once with a small ledger and a socket
//! pair of its own, while the predecessor still serves the device.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nbd_ledger::{Layout, Ledger};
use nbd_proto::{CommandFlags, CommandType, Request};

use crate::backend::{Backend, Capabilities, Geometry, InlineBackend, NeverBlocks};
use crate::engine::{Engine, Granted};
use crate::join::HolderConnection;
use crate::lane::recovered_requests::Predecessor;

const REQUEST_LEN: u32 = 4096;
/// About as many as one system call receives from a deep queue.
const REQUEST_COUNT: u64 = 16;

/// Reads zeroes and writes nothing.
struct NullBackend;

impl Backend for NullBackend {
    fn geometry(&self) -> Geometry {
        let size = REQUEST_COUNT * u64::from(REQUEST_LEN);
        Geometry { size, block_size: 512, capabilities: Capabilities::default() }
    }

    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        Some(&NeverBlocks(u64::MAX))
    }

    fn read_at(&self, buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64, _fua: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Warms up a process that the holder started as a successor. Not one that joins by hand: a
/// breakpoint in the serving code must not stop here. Call it before [`HolderConnection::hello`]. Errors are
/// ignored here: serving the device fails in the same way and reports them.
pub fn warm_up(holder: &HolderConnection) {
    if holder.attached().is_some() {
        warm_up_process();
    }
}

/// The same for a process that joins by itself and is about to [take
/// over](HolderConnection::hello). Once for all of its devices.
pub fn warm_up_process() {
    let _ = serve_own_requests();
}

fn serve_own_requests() -> Result<(), Box<dyn std::error::Error>> {
    let layout = Layout { lanes: 1, ring: 256 << 10, transmit: 256 << 10, max_payload: 64 << 10 };
    let ledger = Ledger::create(&layout)?;
    let (lane, mut kernel) = UnixStream::pair()?;
    // All at once, as after a pause. The socket's buffer holds them, and the replies.
    kernel.write_all(&requests())?;
    let backend: Arc<dyn Backend> = Arc::new(NullBackend);
    let export = backend.geometry().export(layout.max_payload);
    let predecessor = Predecessor { crashed: false, poison_limit: 0 };
    let sockets = vec![OwnedFd::from(lane)];
    let granted = Granted { ledger, sockets, layout, recording: None };
    Engine::recover(granted, export, &backend, predecessor)?.run()?;
    Ok(())
}

/// Reads, writes, and a disconnect.
fn requests() -> Vec<u8> {
    let mut bytes = Vec::new();
    for cookie in 0..REQUEST_COUNT {
        let write = cookie % 2 == 0;
        let command = if write { CommandType::WRITE } else { CommandType::READ };
        let offset = cookie * u64::from(REQUEST_LEN);
        let flags = CommandFlags::NONE;
        bytes.extend(Request { flags, command, cookie, offset, length: REQUEST_LEN }.encode());
        if write {
            bytes.resize(bytes.len() + REQUEST_LEN as usize, 0);
        }
    }
    let (flags, command) = (CommandFlags::NONE, CommandType::DISC);
    bytes.extend(Request { flags, command, cookie: 0, offset: 0, length: 0 }.encode());
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_warmup_serves_its_own_requests() {
        super::serve_own_requests().unwrap();
    }
}
