//! Requests and replies as they are in the ledger.

use std::sync::atomic::Ordering;

use nbd_proto::{CommandFlags, CommandType, Request, SimpleReply};

use crate::layout::Slot;

/// Bytes of a request header: the driver's `sizeof(struct nbd_request)`.
pub(crate) const REQUEST_BYTES: u64 = Request::LEN as u64;
/// Bytes of a simple reply: the driver's `sizeof(struct nbd_reply)`.
pub(crate) const REPLY_BYTES: u64 = SimpleReply::LEN as u64;

pub(crate) fn encode_kind(request: &Request) -> u32 {
    u32::from(request.flags.bits()) << 16 | u32::from(request.command.0)
}

/// Command flags and command of a slot's or a record's word.
pub(crate) fn decode_kind(kind: u32) -> (CommandFlags, CommandType) {
    (CommandFlags::from_bits((kind >> 16) as u16), CommandType(kind as u16))
}

/// The request that a slot holds.
pub(crate) fn request_of(slot: &Slot) -> Request {
    let (flags, command) = decode_kind(slot.kind.load(Ordering::Relaxed));
    Request {
        flags,
        command,
        cookie: slot.cookie.load(Ordering::Relaxed),
        offset: slot.offset.load(Ordering::Relaxed),
        length: slot.length.load(Ordering::Relaxed),
    }
}
