//! What the kernel driver and the device's user know, and how strict they are.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nbd_proto::{CommandFlags, CommandType, NbdError, Request, SimpleReply};

use crate::script::{DEVICE, LAYOUT, Step, Wish, payload};

/// What the driver and the device's user know.
#[derive(Clone)]
pub(crate) struct Oracle {
    steps: VecDeque<Step>,
    /// Bytes to be sent, up to each cut.
    pieces: VecDeque<Vec<u8>>,
    incoming: Vec<u8>,
    in_flight: BTreeMap<u64, InFlight>,
    requests: u64,
    /// Requests that change data, so far.
    changes: u64,
    device: Vec<u8>,
    has_left: bool,
}

#[derive(Clone, Debug)]
struct InFlight {
    range: Range<usize>,
    is_change: bool,
    due: Due,
}

/// The reply that a request must get, and what must be durable then.
#[derive(Clone, Debug)]
enum Due {
    Success,
    Data(Vec<u8>),
    Durable(Vec<u8>),
    /// All of the device as it was, if nothing has changed it since this count of changes.
    Flushed(Vec<u8>, u64),
    Error(NbdError),
}

impl Oracle {
    pub(crate) fn new(steps: &[Step]) -> Self {
        Self {
            steps: steps.iter().cloned().collect(),
            pieces: VecDeque::new(),
            incoming: Vec::new(),
            in_flight: BTreeMap::new(),
            requests: 0,
            changes: 0,
            device: vec![0; DEVICE as usize],
            has_left: false,
        }
    }

    /// What came from the backend.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
    }

    /// Checks all replies that are complete.
    pub(crate) fn check_replies(&mut self, storage: &File) {
        while let Some(length) = self.check_reply(storage) {
            self.incoming.drain(..length);
        }
    }

    /// What the socket did not take of a piece.
    pub(crate) fn give_back(&mut self, piece: Vec<u8>) {
        if !piece.is_empty() {
            self.pieces.push_front(piece);
        }
    }

    /// Whether the driver has said goodbye. It does so when everything is answered.
    pub(crate) fn has_left(&self) -> bool {
        self.has_left
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) fn answers(&self) -> u64 {
        self.requests - self.in_flight.len() as u64
    }

    /// Adds requests to those that are to be sent.
    pub(crate) fn append(&mut self, steps: Vec<Step>) {
        self.steps.extend(steps);
    }

    /// Whether all that was to be asked is answered.
    pub(crate) fn is_idle(&mut self) -> bool {
        while self.in_flight.is_empty() && matches!(self.steps.front(), Some(Step::Settle)) {
            self.steps.pop_front();
        }
        self.in_flight.is_empty() && self.steps.is_empty() && self.pieces.is_empty()
    }

    /// What may be sent now, up to a cut.
    pub(crate) fn next_piece(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(piece);
            }
            match self.steps.front()? {
                Step::Settle if self.in_flight.is_empty() => drop(self.steps.pop_front()),
                Step::Settle => return None,
                Step::Ask(wishes, cuts) => {
                    let (wishes, cuts) = (wishes.clone(), cuts.clone());
                    self.steps.pop_front();
                    self.ask(&wishes, &cuts);
                }
                Step::Leave => {
                    assert!(self.in_flight.is_empty(), "a driver leaves when all is answered");
                    self.steps.pop_front();
                    self.has_left = true;
                    let goodbye = encode(0, CommandFlags::NONE, CommandType::DISC, 0, 0);
                    return Some(goodbye.to_vec());
                }
            }
        }
    }

    fn ask(&mut self, wishes: &[Wish], cuts: &[usize]) {
        let mut bytes = Vec::new();
        for wish in wishes {
            bytes.extend(self.request(wish));
        }
        let mut start = 0;
        for &end in cuts.iter().chain([&bytes.len()]) {
            self.pieces.push_back(bytes[start..end].to_vec());
            start = end;
        }
    }

    fn request(&mut self, wish: &Wish) -> Vec<u8> {
        self.requests += 1;
        // The kernel's cookies are a counter and a tag; only that they differ matters.
        let cookie = self.requests << 32 | 0xbeef;
        let Wish { command, flags, offset, length } = *wish;
        let mut bytes = encode(cookie, flags, command, offset, length).to_vec();
        let is_write = command == CommandType::WRITE;
        let data = payload(cookie, if is_write { length } else { 0 });
        bytes.extend_from_slice(&data);
        let is_valid = command.0 < 7 && length <= LAYOUT.max_payload;
        let is_change = is_valid && command.is_write();
        let touches = is_change || (is_valid && command == CommandType::READ);
        let range = offset as usize..offset as usize + if touches { length as usize } else { 0 };
        self.check_alone(&range, is_change);
        self.changes += u64::from(is_change);
        let place = &mut self.device[range.clone()];
        match command {
            CommandType::WRITE if is_change => place.copy_from_slice(&data),
            _ if is_change => place.fill(0),
            _ => {}
        }
        let due = match command {
            _ if !is_valid => Due::Error(NbdError::EINVAL),
            CommandType::READ => Due::Data(place.to_vec()),
            CommandType::FLUSH => self.flushed(),
            _ if flags.contains(CommandFlags::FUA) => Due::Durable(place.to_vec()),
            _ => Due::Success,
        };
        self.in_flight.insert(cookie, InFlight { range, is_change, due });
        bytes
    }

    /// Like a filesystem, this one never has two requests under way that touch the same bytes,
    /// unless both only read.
    fn check_alone(&self, range: &Range<usize>, is_change: bool) {
        let collides = |other: &InFlight| {
            let overlaps = range.start < other.range.end && other.range.start < range.end;
            overlaps && (is_change || other.is_change)
        };
        assert!(!self.in_flight.values().any(collides), "the script's requests collide");
    }

    /// A flush covers what was answered before it was asked for.
    fn flushed(&self) -> Due {
        match self.in_flight.values().any(|other| other.is_change) {
            true => Due::Success,
            false => Due::Flushed(self.device.clone(), self.changes),
        }
    }

    /// Checks the first reply; none if it is not complete yet.
    fn check_reply(&mut self, storage: &File) -> Option<usize> {
        let header = self.incoming.first_chunk::<{ SimpleReply::LEN }>()?;
        let reply = SimpleReply::decode(header).expect("a reply begins with its magic");
        let asked = self.in_flight.get(&reply.cookie);
        let asked = asked.expect("a reply answers a request that waits for it");
        let (error, data) = match &asked.due {
            Due::Data(data) => (NbdError::SUCCESS, &data[..]),
            Due::Error(error) => (*error, &[][..]),
            _ => (NbdError::SUCCESS, &[][..]),
        };
        assert_eq!(reply.error, error, "the reply's error");
        let length = SimpleReply::LEN + data.len();
        let found = self.incoming.get(SimpleReply::LEN..length)?;
        assert!(found == data, "a read returned other data than was written");
        match &asked.due {
            Due::Durable(data) => check_durable(storage, asked.range.start, data),
            Due::Flushed(data, changes) if *changes == self.changes => {
                check_durable(storage, 0, data);
            }
            _ => {}
        }
        self.in_flight.remove(&reply.cookie);
        Some(length)
    }

    /// Everything was answered, nothing came behind the last reply, and every byte is stored.
    pub(crate) fn check_end(&self, storage: &File) {
        assert!(self.in_flight.is_empty(), "unanswered: {:x?}", self.in_flight.keys());
        assert!(self.incoming.is_empty(), "bytes behind the last reply");
        let mut stored = vec![0; DEVICE as usize];
        storage.read_exact_at(&mut stored, 0).expect("the storage is as long as the device");
        assert!(stored == self.device, "the storage's bytes at the end");
    }
}

fn check_durable(storage: &File, start: usize, data: &[u8]) {
    let mut stored = vec![0; data.len()];
    let read = storage.read_exact_at(&mut stored, DEVICE + start as u64);
    read.expect("the storage is as long as the device");
    assert!(stored == data, "what was promised to be durable is not");
}

fn encode(
    cookie: u64,
    flags: CommandFlags,
    command: CommandType,
    offset: u64,
    length: u32,
) -> [u8; Request::LEN] {
    Request { flags, command, cookie, offset, length }.encode()
}
