//! The kernel driver's part, played strictly: every reply must be due, right and complete.
//!
//! `nbd.ko` takes a connection down when a reply has no magic, or a cookie that it does not know
//! or that was answered already; this one panics, and it also knows what the data must be.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv};

use crate::oracle::Oracle;
use crate::script::Step;

/// More than any socket of these tests holds.
const MOST: usize = 1 << 20;

/// The kernel's end of the lane.
pub(crate) struct Peer {
    pub(crate) socket: UnixStream,
    pub(crate) oracle: Oracle,
}

impl Peer {
    pub(crate) fn new(socket: UnixStream, steps: &[Step]) -> Self {
        socket.set_nonblocking(true).expect("a socket can be made nonblocking");
        Self { socket, oracle: Oracle::new(steps) }
    }

    /// The same driver at another socket, on which `waiting` came already.
    pub(crate) fn copy(&self, socket: UnixStream, waiting: &[u8]) -> Self {
        socket.set_nonblocking(true).expect("a socket can be made nonblocking");
        let mut oracle = self.oracle.clone();
        oracle.hear(waiting);
        Self { socket, oracle }
    }

    /// Sends what may be sent next, up to a cut; returns whether it sent anything.
    pub(crate) fn send(&mut self) -> bool {
        let Some(mut piece) = self.oracle.next_piece() else { return false };
        let sent = match self.socket.write(&piece) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("the lane takes no requests: {error}"),
        };
        piece.drain(..sent);
        self.oracle.give_back(piece);
        sent > 0
    }

    /// Reads what has come and checks it.
    pub(crate) fn receive(&mut self, storage: &File) {
        let mut buffer = vec![0; MOST];
        match self.socket.read(&mut buffer) {
            Ok(0) => panic!("the lane is closed"),
            Ok(count) => self.oracle.hear(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        self.oracle.check_replies(storage);
    }
}

/// Bytes that wait at an end of a socket pair.
pub(crate) fn waiting(socket: &UnixStream) -> Vec<u8> {
    let mut buffer = vec![0; MOST];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let count = recv(socket.as_raw_fd(), &mut buffer, flags).unwrap_or(0);
    buffer.truncate(count);
    buffer
}
