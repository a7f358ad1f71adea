//! The kernel driver's part, played strictly: every reply must be due, right and complete.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nbd_proto::{CommandFlags, CommandType, NbdError, Request, SimpleReply};
use nix::sys::socket::{MsgFlags, recv};

use crate::script::{DEVICE, LAYOUT, RequestSpec, payload};

/// Requests that the driver has under way at once.
const MAX_IN_FLIGHT: usize = 16;

/// One end of the lane, and the device as its user believes it to be.
pub(crate) struct Peer {
    socket: UnixStream,
    pub(crate) device: Vec<u8>,
    in_flight: HashMap<u64, InFlight>,
    requests: u64,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// Bytes that the socket has taken.
    pub(crate) sent: u64,
    /// The most bytes of one read; 0 while the peer shall not read.
    pub(crate) max_read: usize,
}

struct InFlight {
    range: Range<u64>,
    changes: bool,
    due: Due,
}

/// The reply that a request must get.
enum Due {
    Success,
    Data(Vec<u8>),
    Error(NbdError),
}

impl Peer {
    pub(crate) fn new(socket: UnixStream, max_read: usize) -> Self {
        socket.set_nonblocking(true).expect("a socket can be made nonblocking");
        Self {
            socket,
            device: vec![0; DEVICE as usize],
            in_flight: HashMap::new(),
            requests: 0,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            sent: 0,
            max_read,
        }
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Whether the socket shall take more bytes.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether all requests are answered.
    pub(crate) fn is_settled(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether a request may be sent now. Like a filesystem, this one never has two requests
    /// under way that touch the same bytes, unless both only read.
    pub(crate) fn may_ask(&self, spec: &RequestSpec) -> bool {
        let (range, changes) = effect(spec);
        let collides = |other: &InFlight| {
            let overlaps = range.start < other.range.end && other.range.start < range.end;
            overlaps && (changes || other.changes)
        };
        self.in_flight.len() < MAX_IN_FLIGHT && !self.in_flight.values().any(collides)
    }

    /// Counts a request as under way; its bytes are the caller's to send.
    pub(crate) fn ask(&mut self, spec: &RequestSpec) -> Vec<u8> {
        self.requests += 1;
        // The kernel's cookies are a counter and a tag; only that they differ matters.
        let cookie = self.requests << 32 | 0xbeef;
        let request = Request {
            flags: CommandFlags::from_bits(0),
            command: spec.command,
            cookie,
            offset: spec.offset,
            length: spec.length,
        };
        let mut bytes = request.encode().to_vec();
        let data = payload(cookie, request.payload_len());
        bytes.extend_from_slice(&data);
        let (range, changes) = effect(spec);
        let place = range.start as usize..range.end as usize;
        let due = match spec.command {
            _ if !is_valid(spec) => Due::Error(NbdError::EINVAL),
            CommandType::READ => Due::Data(self.device[place].to_vec()),
            CommandType::WRITE => {
                self.device[place].copy_from_slice(&data);
                Due::Success
            }
            CommandType::TRIM | CommandType::WRITE_ZEROES => {
                self.device[place].fill(0);
                Due::Success
            }
            CommandType::FLUSH => Due::Success,
            _ => Due::Error(NbdError::EINVAL),
        };
        let request = InFlight { range, changes, due };
        self.in_flight.insert(cookie, request);
        bytes
    }

    /// The request to disconnect, which has no reply.
    pub(crate) fn disconnect_request() -> Vec<u8> {
        let request = Request {
            flags: CommandFlags::from_bits(0),
            command: CommandType::DISC,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        request.encode().to_vec()
    }

    pub(crate) fn queue(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
    }

    /// Gives the socket what it takes.
    pub(crate) fn send(&mut self) {
        match self.socket.write(&self.outgoing) {
            Ok(count) => {
                self.outgoing.drain(..count);
                self.sent += count as u64;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }

    /// Bytes that wait to be read, as far as 64 KiB.
    pub(crate) fn waiting(&self) -> usize {
        let mut buffer = vec![0; 65_536];
        recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_PEEK).unwrap_or(0)
    }

    /// Reads once and checks the replies that are complete. Returns whether there was anything.
    pub(crate) fn receive(&mut self) -> bool {
        let mut buffer = vec![0; self.max_read];
        match self.socket.read(&mut buffer) {
            Ok(0) => panic!("the lane is closed"),
            Ok(count) => self.incoming.extend_from_slice(&buffer[..count]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                return false;
            }
        }
        while let Some(length) = self.check_reply() {
            self.incoming.drain(..length);
        }
        true
    }

    /// Nothing may come behind the last reply, not even a part of another one.
    pub(crate) fn check_end(&mut self) {
        assert!(!self.receive(), "bytes after the last reply");
        assert!(self.incoming.is_empty(), "half a reply at the end");
    }

    /// Checks the first reply; none if it is not complete yet.
    fn check_reply(&mut self) -> Option<usize> {
        let header = self.incoming.first_chunk::<{ SimpleReply::LEN }>()?;
        let reply = SimpleReply::decode(header).expect("a reply begins with its magic");
        let asked = self.in_flight.get(&reply.cookie);
        let asked = asked.expect("a reply answers a request that waits for it");
        let (error, data) = match &asked.due {
            Due::Success => (NbdError::SUCCESS, &[][..]),
            Due::Data(data) => (NbdError::SUCCESS, &data[..]),
            Due::Error(error) => (*error, &[][..]),
        };
        assert_eq!(reply.error, error, "the reply's error");
        let length = SimpleReply::LEN + data.len();
        let found = self.incoming.get(SimpleReply::LEN..length)?;
        assert!(found == data, "a read returned other data than was written");
        self.in_flight.remove(&reply.cookie);
        Some(length)
    }
}

fn is_valid(spec: &RequestSpec) -> bool {
    spec.offset + u64::from(spec.length) <= DEVICE && spec.length <= LAYOUT.max_payload
}

/// The bytes that a request touches, and whether it changes them.
fn effect(spec: &RequestSpec) -> (Range<u64>, bool) {
    let touches = spec.command.is_write() || spec.command == CommandType::READ;
    let length = if touches && is_valid(spec) { spec.length } else { 0 };
    // An empty range must not collide with anything either.
    let start = if length == 0 { 0 } else { spec.offset };
    (start..start + u64::from(length), spec.command.is_write())
}
