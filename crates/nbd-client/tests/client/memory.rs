//! A server of memory, which may die at any byte.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use crate::script::{
    CACHE, CONTEXT, DATA, DISC, EXTENTS, EXTENTS_EXT, FLUSH, NONE, Offer, Peer, READ, STATUS,
    Style, TRIM, WRITE, ZERO, at, extents, shake, simple,
};

/// What is served.
pub(crate) type Memory = Mutex<Vec<u8>>;

/// A stream that breaks after so many bytes.
pub(crate) struct Mortal {
    pub(crate) stream: UnixStream,
    /// Bytes that may still be received.
    pub(crate) input: usize,
    /// Bytes that may still be sent.
    pub(crate) output: usize,
}

impl Mortal {
    pub(crate) fn immortal(stream: UnixStream) -> Self {
        Self { stream, input: usize::MAX, output: usize::MAX }
    }
}

fn dead() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl Read for Mortal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.input);
        if most == 0 {
            return Err(dead());
        }
        let count = self.stream.read(&mut buffer[..most])?;
        self.input -= count;
        Ok(count)
    }
}

impl Write for Mortal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = bytes.len().min(self.output);
        if most == 0 {
            return Err(dead());
        }
        let count = self.stream.write(&bytes[..most])?;
        self.output -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves a connection from its first byte to its last. Returns what it had left to live.
pub(crate) fn serve(stream: Mortal, offer: Offer, memory: &Memory) -> io::Result<(usize, usize)> {
    let peer = shake(stream, offer)?;
    transmit(peer, memory)
}

/// Serves a connection after its handshake.
pub(crate) fn transmit(mut peer: Peer<Mortal>, memory: &Memory) -> io::Result<(usize, usize)> {
    loop {
        let request = match peer.try_request() {
            Ok(request) if request.command == DISC => break,
            Ok(request) => request,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        };
        let (offset, length) = (request.offset as usize, request.length as usize);
        let mut memory = memory.lock().unwrap();
        let done = |peer: &Peer<Mortal>| match peer.style {
            Style::Simple => simple(&request, 0),
            _ => peer.chunk(&request, NONE, true, &[]),
        };
        let reply = match (request.command, peer.style) {
            (READ, Style::Simple) => {
                [&simple(&request, 0), &memory[offset..offset + length]].concat()
            }
            (READ, _) => {
                let payload = at(request.offset, &memory[offset..offset + length]);
                peer.chunk(&request, DATA, true, &payload)
            }
            (WRITE, _) => {
                memory[offset..offset + length].copy_from_slice(&request.payload);
                done(&peer)
            }
            (ZERO | TRIM, _) => {
                memory[offset..offset + length].fill(0);
                done(&peer)
            }
            (STATUS, style) => {
                let kind = if style == Style::Extended { EXTENTS_EXT } else { EXTENTS };
                let payload = extents(style, CONTEXT, &[(request.length, 0)]);
                peer.chunk(&request, kind, true, &payload)
            }
            (FLUSH | CACHE, _) => done(&peer),
            (command, _) => panic!("command {command}"),
        };
        drop(memory);
        peer.stream.write_all(&reply)?;
    }
    Ok((peer.stream.input, peer.stream.output))
}
