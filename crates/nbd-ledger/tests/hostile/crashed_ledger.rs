//! A ledger in the middle of its work, left by a backend that is gone, for tests to overwrite.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::mem::{offset_of, size_of};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nbd_ledger::layout::{LaneControl, ReceiveRecord, Slot, TransmitRecord};
use nbd_ledger::receive::Ticket;
use nbd_ledger::{Answer, Inspector, Layout, Ledger, LedgerError};
use nbd_ledger::{Receiver, Recovery, Transmitter};
use nbd_proto::{CommandFlags, CommandType, NbdError, Request, SimpleReply};
use nix::sys::socket::{setsockopt, sockopt};

pub(crate) const LAYOUT: Layout =
    Layout { lanes: 1, ring: 128 << 10, transmit: 128 << 10, max_payload: 64 << 10 };

/// Data bytes of the first read, more than the lane's buffer takes.
pub(crate) const LONG: u32 = 60_000;
/// Data bytes of the second read.
pub(crate) const SHORT: u32 = 100;
/// Payload bytes of the writes.
pub(crate) const WRITTEN: u32 = 5000;

/// What the backend left, by slot.
pub(crate) const UNSENT_LONG_READ: usize = 0;
pub(crate) const UNSENT_SHORT_READ: usize = 1;
pub(crate) const PENDING_WRITE: usize = 2;
pub(crate) const PENDING_READ: usize = 3;
pub(crate) const STAGED_FLUSH: usize = 4;
pub(crate) const VACANT: usize = 5;

pub(crate) struct CrashedLedger {
    pub(crate) file: File,
    socket: UnixStream,
    peer: UnixStream,
    /// Data bytes of a reply without error, by the cookies that the peer has sent.
    cookies: HashMap<u64, usize>,
}

impl CrashedLedger {
    /// A backend that died in the middle of two replies, with three requests unanswered, one
    /// answer of which was staged, and half a request received.
    pub(crate) fn new() -> Self {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        setsockopt(&socket, sockopt::SndBuf, &1).unwrap();
        // Shared by all duplicates: nothing in these tests ever waits.
        socket.set_nonblocking(true).unwrap();
        let file = File::from(Ledger::create(&LAYOUT).unwrap());
        let kinds = [
            (CommandType::READ, LONG),
            (CommandType::READ, SHORT),
            (CommandType::WRITE, WRITTEN),
            (CommandType::READ, SHORT),
            (CommandType::FLUSH, 0),
            (CommandType::WRITE, WRITTEN),
        ];
        let mut cookies = HashMap::new();
        for (cookie, (command, length)) in (1..).zip(kinds) {
            let read = command == CommandType::READ;
            cookies.insert(cookie, if read { length as usize } else { 0 });
            let bytes = message(cookie, command, length);
            let half = if cookie == 6 { 700 } else { bytes.len() };
            peer.write_all(&bytes[..half]).unwrap();
        }
        peer.set_nonblocking(true).unwrap();
        let ledger = Self { file, socket, peer, cookies };
        ledger.live_and_die();
        ledger
    }

    fn live_and_die(&self) {
        let (mut receiver, mut transmitter, _) = self.open().unwrap();
        while receiver.receive().is_ok() {}
        let mut tickets = Vec::new();
        receiver.take(1, &mut tickets).unwrap();
        for length in [LONG, SHORT] {
            let data = vec![0xdd; length as usize];
            transmitter.stage(tickets.remove(0), Answer::Data(&data));
        }
        assert!(transmitter.send().is_err(), "the peer does not read");
        transmitter.stage(tickets.pop().unwrap(), Answer::Done);
    }

    /// Opens ledger and lane as a successor does.
    pub(crate) fn open(&self) -> Result<(Receiver, Transmitter, Recovery), LedgerError> {
        let file = OwnedFd::from(self.file.try_clone().unwrap());
        let socket = OwnedFd::from(self.socket.try_clone().unwrap());
        Ledger::open(file, &LAYOUT)?.open_lane(0, socket)
    }

    /// Looks at the ledger as the holder does.
    pub(crate) fn inspect(&self) -> Result<Inspector, LedgerError> {
        Inspector::open(self.file.try_clone().unwrap().into(), &LAYOUT)
    }

    pub(crate) fn overwrite(&self, offset: u64, bytes: &[u8]) {
        let room = LAYOUT.size().saturating_sub(offset).min(bytes.len() as u64);
        let written = self.file.write_all_at(&bytes[..room as usize], offset);
        written.unwrap();
    }

    /// Serves as a successor does: finishes, answers what was left, and takes what there is.
    pub(crate) fn serve(&self) -> Result<(), LedgerError> {
        let (mut receiver, mut transmitter, recovery) = self.open()?;
        let mut tickets = recovery.tickets;
        let mut received = Vec::new();
        for _ in 0..3 {
            for ticket in tickets.drain(..) {
                answer(&mut transmitter, ticket);
                self.drain(&mut transmitter, &mut received);
            }
            if receiver.has_space() {
                let _ = receiver.receive();
            }
            let _ = receiver.take(1, &mut tickets);
        }
        self.drain(&mut transmitter, &mut received);
        Ok(())
    }

    /// Sends while the peer reads, until there is nothing more to send.
    pub(crate) fn drain(&self, transmitter: &mut Transmitter, received: &mut Vec<u8>) {
        let mut peer = &self.peer;
        let mut part = [0; 4096];
        for _ in 0..1000 {
            let sent = transmitter.send().is_ok();
            match peer.read(&mut part) {
                Ok(count) => received.extend_from_slice(&part[..count]),
                Err(_) if sent => return,
                Err(_) => {}
            }
        }
    }

    /// The cookies of a stream of replies; none if it is anything else, or if a cookie in it is
    /// not one that the peer has sent.
    pub(crate) fn cookies_of(&self, mut replies: &[u8]) -> Option<Vec<u64>> {
        let mut found = Vec::new();
        while let Some((header, rest)) = replies.split_first_chunk() {
            let reply = SimpleReply::decode(header).ok()?;
            let data = *self.cookies.get(&reply.cookie)?;
            let data = if reply.error == NbdError::SUCCESS { data } else { 0 };
            found.push(reply.cookie);
            replies = rest.get(data..)?;
        }
        replies.is_empty().then_some(found)
    }
}

fn message(cookie: u64, command: CommandType, length: u32) -> Vec<u8> {
    let flags = CommandFlags::from_bits(0);
    let offset = 0;
    let request = Request { flags, command, cookie, offset, length };
    let mut bytes = request.encode().to_vec();
    bytes.resize(Request::LEN + request.payload_len() as usize, 0xaa);
    bytes
}

/// Answers whatever a ticket asks for, as well as it can be answered at all.
pub(crate) fn answer(transmitter: &mut Transmitter, ticket: Ticket) {
    let request = *ticket.request();
    assert!(ticket.payload().iter().count() <= LAYOUT.max_payload as usize);
    let length = request.length;
    if length > LAYOUT.max_payload || !transmitter.fits(length) {
        if transmitter.fits(0) {
            transmitter.stage(ticket, Answer::Error(NbdError::EINVAL));
        }
    } else if request.command == CommandType::READ {
        transmitter.room_for_data(length).fill(0xee);
        transmitter.stage(ticket, Answer::DataInPlace);
    } else {
        transmitter.stage(ticket, Answer::Done);
    }
}

/// Where the words of the ledger lie in its file.
pub(crate) mod place {
    use super::*;

    pub(crate) fn control(word: usize) -> u64 {
        LAYOUT.lane(0) + word as u64
    }

    pub(crate) fn slot(index: usize, word: usize) -> u64 {
        LAYOUT.lane(0) + LAYOUT.slots() + (index * size_of::<Slot>() + word) as u64
    }

    /// A word of the valid receive record.
    pub(crate) fn receiving(ledger: &CrashedLedger, word: usize) -> u64 {
        let epoch = ledger.long(control(offset_of!(LaneControl, receive_epoch)));
        let record = (epoch & 1) as usize * size_of::<ReceiveRecord>();
        control(offset_of!(LaneControl, receive) + record + word)
    }

    /// A word of the valid transmit record.
    pub(crate) fn transmitting(ledger: &CrashedLedger, word: usize) -> u64 {
        let epoch = ledger.long(control(offset_of!(LaneControl, transmit_epoch)));
        let record = (epoch & 1) as usize * size_of::<TransmitRecord>();
        control(offset_of!(LaneControl, transmit) + record + word)
    }

    pub(crate) fn transmit_area(byte: u64) -> u64 {
        LAYOUT.lane(0) + LAYOUT.transmit_offset() + byte
    }
}

impl CrashedLedger {
    pub(crate) fn long(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_ne_bytes(bytes)
    }

    pub(crate) fn set_long(&self, offset: u64, value: u64) {
        self.overwrite(offset, &value.to_ne_bytes());
    }

    pub(crate) fn set_short(&self, offset: u64, value: u32) {
        self.overwrite(offset, &value.to_ne_bytes());
    }
}
