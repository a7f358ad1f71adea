//! The audit: what a successor or an onlooker checks before it believes a ledger.
//!
//! The dead process may have overwritten any word, so the memory is hostile input: each number is
//! checked against the layout and against the others before it is used. A ledger that passes is one
//! that a sane backend can have left; no other ledger is replayed.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use nbd_proto::{CommandType, NbdError, Request, SimpleReply};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use thiserror::Error;

use crate::layout::{
    FIRST_SEQUENCE, Header, LaneControl, Layout, MAGIC, SlotIndex, SlotState, VERSION,
};
use crate::map::{Map, Ring};
use crate::request;

/// Bound of every position and count. No device reaches it, and it is so far below `u64::MAX` that
/// the sums of a backend's lifetime cannot overflow.
const MAX_COUNT: u64 = 1 << 62;

/// How a ledger contradicts itself or the layout it should have.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Corruption {
    /// The file is not a sealed memfd of the right size.
    #[error("it is not a memfd of {expected} bytes that is sealed against shrinking")]
    File {
        /// Bytes that the layout asks for.
        expected: u64,
    },
    /// The header does not describe the layout.
    #[error("its header says {what} {found:#x} and not {expected:#x}")]
    Header {
        /// The header's word.
        what: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: u64,
    },
    /// The receive or transmit record is impossible.
    #[error("lane {lane}: impossible {what}")]
    Record {
        /// The lane.
        lane: u32,
        /// Which relation is violated.
        what: &'static str,
    },
    /// A slot is impossible.
    #[error("lane {lane}, slot {slot}: impossible {what}")]
    Slot {
        /// The lane.
        lane: u32,
        /// The slot.
        slot: usize,
        /// Which relation is violated.
        what: &'static str,
    },
    /// The transmit area does not hold the replies that it should.
    #[error("lane {lane}: the unsent reply at byte {at} {what}")]
    Reply {
        /// The lane.
        lane: u32,
        /// Offset in the transmit area.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// What a lane's words say, checked.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) receive_epoch: u64,
    pub(crate) received: u64,
    pub(crate) base: u64,
    pub(crate) parsed: u64,
    pub(crate) transmit_epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) length: u64,
    pub(crate) sent: u64,
    /// Requests not answered, by stream position.
    pub(crate) pending: Vec<Pending>,
    /// Slots that were filled and whose request was never committed.
    pub(crate) uncommitted: Vec<SlotIndex>,
}

#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) slot: SlotIndex,
    pub(crate) position: u64,
    pub(crate) request: Request,
}

impl Findings {
    /// The last transmission that the kernel has entirely.
    pub(crate) fn complete(&self) -> u64 {
        if self.sent == self.length { self.sequence } else { self.sequence - 1 }
    }
}

/// Checks that a file can be mapped without risk: a shrunken one would kill its readers.
pub(crate) fn check_file(file: BorrowedFd<'_>, layout: &Layout) -> Result<(), Corruption> {
    // The size of an unsound layout may not even be a number.
    let sound = layout.is_sound();
    let expected = if sound { layout.size() } else { 0 };
    let size = nix::sys::stat::fstat(file).map(|stat| stat.st_size).unwrap_or(-1);
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).unwrap_or(0);
    let sealed = SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK);
    if sound && sealed && u64::try_from(size) == Ok(expected) {
        Ok(())
    } else {
        Err(Corruption::File { expected })
    }
}

pub(crate) fn check_header(header: &Header, layout: &Layout) -> Result<(), Corruption> {
    let relaxed = Ordering::Relaxed;
    let words = [
        ("magic", header.magic.load(relaxed), MAGIC),
        ("version", header.version.load(relaxed).into(), VERSION.into()),
        ("lanes", header.lanes.load(relaxed).into(), layout.lanes.into()),
        ("ring size", header.ring.load(relaxed), layout.ring),
        ("transmit size", header.transmit.load(relaxed), layout.transmit),
        ("payload limit", header.max_payload.load(relaxed).into(), layout.max_payload.into()),
    ];
    match words.into_iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((what, found, expected)) => Err(Corruption::Header { what, found, expected }),
    }
}

pub(crate) fn check_lane(
    map: &Map,
    lane: u32,
    ring: &Ring,
    area: &[u8],
) -> Result<Findings, Corruption> {
    let control = map.lane(lane);
    let mut findings = check_records(control, map.layout(), lane)?;
    let mut unsent = Vec::new();
    for index in SlotIndex::all() {
        let slot = map.slot(lane, index);
        let bad = |what| Corruption::Slot { lane, slot: index.get(), what };
        let position = slot.position.load(Ordering::Relaxed);
        let request = request::request_of(slot);
        match slot.state() {
            SlotState::Vacant => {}
            // `parsed` commits a slot: at or beyond it, the predecessor died while it filled this one.
            SlotState::Pending if position >= findings.parsed => findings.uncommitted.push(index),
            SlotState::Staged(n) if n <= findings.sequence => {
                if n == findings.sequence {
                    unsent.push(request);
                }
            }
            SlotState::Staged(n) if n > findings.sequence + 1 => return Err(bad("state")),
            SlotState::Staged(_) if position >= findings.parsed => return Err(bad("position")),
            SlotState::Pending | SlotState::Staged(_) => {
                check_payload(&findings, map.layout(), ring, position, &request).map_err(bad)?;
                findings.pending.push(Pending { slot: index, position, request });
            }
        }
    }
    check_pending(&mut findings, lane)?;
    if findings.sent < findings.length {
        check_replies(&area[..findings.length as usize], unsent, lane)?;
    }
    Ok(findings)
}

fn check_records(
    control: &LaneControl,
    layout: &Layout,
    lane: u32,
) -> Result<Findings, Corruption> {
    let ensure = |holds: bool, what| {
        if holds { Ok(()) } else { Err(Corruption::Record { lane, what }) }
    };
    let relaxed = Ordering::Relaxed;
    let receiving = control.receiving();
    let count = u64::from(receiving.message.msg_len.load(relaxed));
    let wanted = receiving.wanted.load(relaxed);
    let before = receiving.received.load(relaxed);
    let base = receiving.base.load(relaxed);
    let parsed = control.parsed.load(Ordering::Acquire);
    ensure(wanted <= layout.ring && count <= wanted, "receive length")?;
    ensure(before < MAX_COUNT && parsed < MAX_COUNT, "stream position")?;
    let receive_epoch = control.receive_epoch.load(relaxed);
    ensure(receive_epoch < MAX_COUNT, "receive count")?;
    let received = before + count;
    ensure(parsed <= received + request::REQUEST_BYTES + u64::from(u32::MAX), "parse position")?;
    ensure(base <= before && base <= parsed, "ring base")?;
    ensure(received - parsed.min(received) <= layout.ring, "unparsed length")?;

    let transmitting = control.transmitting();
    let count = u64::from(transmitting.message.msg_len.load(relaxed));
    let length = transmitting.length.load(relaxed);
    let sent = transmitting.sent.load(relaxed);
    let sequence = transmitting.sequence.load(relaxed);
    ensure((FIRST_SEQUENCE..MAX_COUNT).contains(&sequence), "transmission number")?;
    let transmit_epoch = control.transmit_epoch.load(relaxed);
    ensure(transmit_epoch < MAX_COUNT, "send count")?;
    ensure(length <= layout.transmit, "transmission length")?;
    ensure(sent <= length && count <= length - sent, "sent length")?;
    Ok(Findings {
        receive_epoch,
        received,
        base,
        parsed,
        transmit_epoch,
        sequence,
        length,
        sent: sent + count,
        pending: Vec::new(),
        uncommitted: Vec::new(),
    })
}

/// A pending write's payload must lie in the ring, behind the header it came with.
fn check_payload(
    findings: &Findings,
    layout: &Layout,
    ring: &Ring,
    position: u64,
    request: &Request,
) -> Result<(), &'static str> {
    let payload = request.payload_len();
    if payload == 0 || payload > layout.max_payload {
        return Ok(());
    }
    let end = position + request::REQUEST_BYTES + u64::from(payload);
    if end > findings.parsed.min(findings.received) {
        return Err("payload end");
    }
    if position < findings.base || findings.received - position > layout.ring {
        return Err("payload position");
    }
    let header = ring.bytes((position - findings.base) % layout.ring, request::REQUEST_BYTES);
    let same = header.first_chunk().and_then(|bytes| Request::decode(bytes).ok());
    if same == Some(*request) { Ok(()) } else { Err("request: it is not the one in the ring") }
}

fn check_pending(findings: &mut Findings, lane: u32) -> Result<(), Corruption> {
    findings.pending.sort_by_key(|pending| pending.position);
    let mut cookies = HashSet::new();
    let mut end = 0;
    for pending in &findings.pending {
        let bad = |what| Corruption::Slot { lane, slot: pending.slot.get(), what };
        if !cookies.insert(pending.request.cookie) {
            return Err(bad("cookie: two requests have it"));
        }
        if pending.position < end {
            return Err(bad("position: it overlaps another request"));
        }
        end = pending.position + request::REQUEST_BYTES + u64::from(pending.request.payload_len());
        if end > findings.parsed {
            return Err(bad("position: its end was not taken yet"));
        }
    }
    Ok(())
}

/// An unfinished transmission must consist of whole replies to the slots that were staged for it.
fn check_replies(area: &[u8], mut staged: Vec<Request>, lane: u32) -> Result<(), Corruption> {
    let mut at = 0;
    while at < area.len() {
        let start = at as u64;
        let bad = |what| Corruption::Reply { lane, at: start, what };
        let header = area[at..].first_chunk().ok_or(bad("is cut off"))?;
        let reply = SimpleReply::decode(header).map_err(|_| bad("has no magic"))?;
        let of = staged.iter().position(|request| request.cookie == reply.cookie);
        let request = staged.swap_remove(of.ok_or(bad("answers no request"))?);
        if staged.iter().any(|other| other.cookie == reply.cookie) {
            return Err(bad("answers two requests"));
        }
        let has_data = request.command == CommandType::READ && reply.error == NbdError::SUCCESS;
        at += request::REPLY_BYTES as usize + if has_data { request.length as usize } else { 0 };
        if at > area.len() {
            return Err(bad("is cut off"));
        }
    }
    match staged.is_empty() {
        true => Ok(()),
        false => Err(Corruption::Reply { lane, at: at as u64, what: "is missing" }),
    }
}
