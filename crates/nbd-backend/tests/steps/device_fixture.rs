//! What outlives a backend: ledger, storage, and the lane with the kernel at its other end.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nbd_ledger::{Inspector, Ledger};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{setsockopt, sockopt};

use crate::peer::{Peer, waiting};
use crate::script::{DEVICE, LAYOUT, Manner, Scenario};

/// Unread replies that a copy leaves in the socket of a narrow lane: one of its two pages.
const LEFT: usize = 2048;

pub(crate) struct DeviceFixture {
    pub(crate) ledger: File,
    pub(crate) storage: File,
    /// The holder's duplicate of the server end.
    pub(crate) lane: UnixStream,
    pub(crate) peer: Peer,
    pub(crate) manner: Manner,
    narrow: bool,
}

impl DeviceFixture {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let (lane, kernel) = pair(scenario.narrow);
        Self {
            ledger: File::from(Ledger::create(&LAYOUT).expect("a ledger")),
            storage: storage(&vec![0; 2 * DEVICE as usize]),
            lane,
            peer: Peer::new(kernel, &scenario.steps),
            manner: scenario.manner,
            narrow: scenario.narrow,
        }
    }

    /// Everything that a successor and the kernel would find if the backend died now.
    ///
    /// Only between two instructions: inside a system call there is more to know. What the kernel
    /// side has not read yet is given to the copy as read, but for a page of a narrow lane, since
    /// an empty socket would never stop a successor.
    pub(crate) fn copy(&self) -> Self {
        let ledger = File::from(Ledger::create(&LAYOUT).expect("a ledger"));
        ledger.write_all_at(&contents(&self.ledger), 0).expect("a ledger of the same size");
        let (mut lane, mut kernel) = pair(self.narrow);
        kernel.write_all(&waiting(&self.lane)).expect("an empty socket takes what a full one held");
        let replies = waiting(&self.peer.socket);
        let left = if self.narrow { LEFT.min(replies.len()) } else { 0 };
        let (read, unread) = replies.split_at(replies.len() - left);
        lane.write_all(unread).expect("an empty socket takes a page");
        Self {
            ledger,
            storage: storage(&contents(&self.storage)),
            lane,
            peer: self.peer.copy(kernel, read),
            manner: self.manner,
            narrow: self.narrow,
        }
    }

    pub(crate) fn descriptors(&self) -> [OwnedFd; 3] {
        let lane = self.lane.try_clone().expect("a duplicate").into();
        let [ledger, storage] =
            [&self.ledger, &self.storage].map(|file| file.try_clone().expect("a duplicate").into());
        [ledger, lane, storage]
    }

    /// What must hold once a backend has left in order.
    pub(crate) fn check_end(&mut self) {
        self.peer.receive(&self.storage);
        assert!(self.peer.oracle.has_left(), "a backend left before the kernel did");
        self.peer.oracle.check_end(&self.storage);
        assert!(self.in_flight().is_empty(), "the ledger says that requests are left");
    }

    /// What the holder would show.
    pub(crate) fn in_flight(&self) -> Vec<nbd_ledger::inspect::InFlight> {
        let file = self.ledger.try_clone().expect("a duplicate").into();
        Inspector::open(file, &LAYOUT).expect("a sound ledger").in_flight(0)
    }
}

/// A fixture at one moment, to notice changes.
pub(crate) struct Image {
    ledger: Vec<u8>,
    rest: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Image {
    pub(crate) fn of(fixture: &DeviceFixture) -> Self {
        let mut image = Self { ledger: Vec::new(), rest: Self::rest(fixture), buffer: Vec::new() };
        image.renew(fixture, false);
        image
    }

    /// What only system calls change.
    fn rest(fixture: &DeviceFixture) -> Vec<Vec<u8>> {
        vec![contents(&fixture.storage), waiting(&fixture.lane), waiting(&fixture.peer.socket)]
    }

    /// Looks again; returns whether anything is different.
    pub(crate) fn renew(&mut self, fixture: &DeviceFixture, after_system_call: bool) -> bool {
        // Without the records of the flight recorder, which no successor looks at.
        let (records, ring) =
            (LAYOUT.lane(0) + LAYOUT.flight_records(), LAYOUT.lane(0) + LAYOUT.ring_offset());
        self.buffer.resize((records + LAYOUT.size() - ring) as usize, 0);
        let (before, after) = self.buffer.split_at_mut(records as usize);
        let read = fixture.ledger.read_exact_at(before, 0);
        let read = read.and_then(|()| fixture.ledger.read_exact_at(after, ring));
        read.expect("the ledger keeps its size");
        let mut changed = self.buffer != self.ledger;
        if changed {
            std::mem::swap(&mut self.buffer, &mut self.ledger);
        }
        if after_system_call {
            let rest = Self::rest(fixture);
            changed |= rest != self.rest;
            self.rest = rest;
        }
        changed
    }
}

fn pair(narrow: bool) -> (UnixStream, UnixStream) {
    let (lane, kernel) = UnixStream::pair().expect("a socket pair");
    if narrow {
        setsockopt(&lane, sockopt::SndBuf, &1).expect("the smallest buffer");
    }
    (lane, kernel)
}

fn storage(bytes: &[u8]) -> File {
    let file = File::from(memfd_create(c"storage", MFdFlags::MFD_CLOEXEC).expect("memory"));
    file.write_all_at(bytes, 0).expect("memory for the storage");
    file
}

fn contents(file: &File) -> Vec<u8> {
    let length = file.metadata().expect("a memfd has a size").len();
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).expect("a memfd can be read");
    bytes
}
