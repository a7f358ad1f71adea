//! A ledger and both ends of a lane in one process, for unit tests.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nbd_proto::{CommandFlags, CommandType, Request, SimpleReply};

use crate::receive::{TakeOutcome, Ticket};
use crate::{Answer, Inspector, Layout, Ledger, Receiver, Recovery, RecvOutcome, Transmitter};

/// A ring that a few large writes fill.
pub(crate) const SMALL: Layout =
    Layout { lanes: 1, ring: 128 << 10, transmit: 128 << 10, max_payload: 64 << 10 };

/// What outlives a backend (ledger and server end), and the kernel's end of the lane.
pub(crate) struct TestLane {
    layout: Layout,
    file: File,
    socket: UnixStream,
    pub(crate) peer: UnixStream,
}

/// A backend that works step by step.
pub(crate) struct Backend {
    pub(crate) receiver: Receiver,
    pub(crate) transmitter: Transmitter,
    pub(crate) tickets: Vec<Ticket>,
}

impl TestLane {
    pub(crate) fn new(layout: Layout) -> Self {
        let (socket, peer) = UnixStream::pair().expect("a socket pair");
        let file = Ledger::create(&layout).expect("a ledger").into();
        Self { layout, file, socket, peer }
    }

    /// The ledger as a process would inherit it.
    pub(crate) fn file(&self) -> OwnedFd {
        self.file.try_clone().expect("a duplicate").into()
    }

    /// The server end as a process would inherit it.
    pub(crate) fn socket(&self) -> OwnedFd {
        self.socket.try_clone().expect("a duplicate").into()
    }

    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        Ledger::open(self.file(), &self.layout).expect("a sound ledger")
    }

    pub(crate) fn inspector(&self) -> Inspector {
        Inspector::open(self.file(), &self.layout).expect("a sound ledger")
    }

    /// Opens the lane as a new process does. The one before must have been dropped.
    pub(crate) fn recover(&self) -> (Receiver, Transmitter, Recovery) {
        let lane = self.ledger().open_lane(0, self.socket());
        lane.expect("a lane in order")
    }

    pub(crate) fn backend(&self) -> Backend {
        let (receiver, mut transmitter, recovery) = self.recover();
        transmitter.finish().expect("a peer that reads");
        Backend { receiver, transmitter, tickets: recovery.tickets }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.peer.write_all(bytes).expect("a socket that takes bytes");
    }

    pub(crate) fn reply(&mut self) -> SimpleReply {
        let mut header = [0; SimpleReply::LEN];
        self.peer.read_exact(&mut header).expect("a reply");
        SimpleReply::decode(&header).expect("a reply")
    }
}

impl Backend {
    /// Receives and takes all requests that have come.
    pub(crate) fn take(&mut self) -> TakeOutcome {
        self.receive();
        self.receiver.take(1, &mut self.tickets).expect("requests only")
    }

    /// Receives until nothing more has come or there is no space.
    pub(crate) fn receive(&mut self) {
        while self.receiver.has_space() && self.has_bytes() {
            let arrival = self.receiver.receive().expect("an open lane");
            assert_eq!(arrival, RecvOutcome::Bytes);
        }
    }

    fn has_bytes(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let socket = PollFd::new(self.receiver.lane().socket(), PollFlags::POLLIN);
        poll(&mut [socket], PollTimeout::ZERO).expect("poll works") > 0
    }

    /// Answers the ticket at `index` and sends.
    pub(crate) fn answer(&mut self, index: usize, answer: Answer<'_>) {
        let ticket = self.tickets.remove(index);
        self.transmitter.stage(ticket, answer);
        self.transmitter.send().expect("a peer that reads");
    }
}

pub(crate) fn request(command: CommandType, cookie: u64, length: u32) -> Request {
    Request { flags: CommandFlags::from_bits(0), command, cookie, offset: 0, length }
}

pub(crate) fn read(cookie: u64, length: u32) -> Vec<u8> {
    request(CommandType::READ, cookie, length).encode().into()
}

pub(crate) fn flush(cookie: u64) -> Vec<u8> {
    request(CommandType::FLUSH, cookie, 0).encode().into()
}

/// A write of `length` bytes, all of which are the cookie's lowest.
pub(crate) fn write(cookie: u64, length: u32) -> Vec<u8> {
    let mut bytes = request(CommandType::WRITE, cookie, length).encode().to_vec();
    bytes.resize(Request::LEN + length as usize, cookie as u8);
    bytes
}
