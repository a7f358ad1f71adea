//! Commands for gdb that list the requests in the ledger of the program that it debugs.
//!
//! They read the memory by themselves; the script begins with the layout of this version. So
//! they work in any state of the program and of its holder.

use std::fmt::Write;
use std::mem::{offset_of, size_of};

use nbd_proto::{CommandType, Request};

use crate::layout::{
    Header, LaneControl, Layout, MAGIC, Message, PAGE, ReceiveRecord, SLOTS, Slot, TransmitRecord,
    VERSION,
};

const COMMANDS: &str = include_str!("gdb.py");
/// The numbers up to here, more than the specification has.
const COMMAND_TYPES: std::ops::Range<u16> = 0..16;

/// A script for gdb's Python; `device` is what it calls the device.
#[must_use]
pub fn script(device: &str) -> String {
    let mut text = format!("DEVICE = {device:?}\n");
    for (name, value) in numbers() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name} = {value}");
    }
    let names: Vec<_> =
        COMMAND_TYPES.map(|number| format!("{number}: '{}'", CommandType(number))).collect();
    let _ = writeln!(text, "COMMANDS = {{{}}}", names.join(", "));
    text.push('\n');
    text + COMMANDS
}

fn numbers() -> [(&'static str, u64); 31] {
    let layout = Layout::with_lanes(1);
    [
        ("MAGIC", MAGIC),
        ("VERSION", VERSION.into()),
        ("PAGE", PAGE),
        ("SLOTS", SLOTS.into()),
        ("WRITE", CommandType::WRITE.0.into()),
        ("REQUEST_LENGTH", Request::LEN as u64),
        ("HEADER_VERSION", offset_of!(Header, version) as u64),
        ("HEADER_LANES", offset_of!(Header, lanes) as u64),
        ("HEADER_RING", offset_of!(Header, ring) as u64),
        ("HEADER_TRANSMIT", offset_of!(Header, transmit) as u64),
        // Relative to a lane's control page. The ring's length is not in these two.
        ("LANE_SLOTS", layout.slots()),
        ("LANE_RING", layout.ring_offset()),
        ("PARSED", offset_of!(LaneControl, parsed) as u64),
        ("RECEIVE_EPOCH", offset_of!(LaneControl, receive_epoch) as u64),
        ("TRANSMIT_EPOCH", offset_of!(LaneControl, transmit_epoch) as u64),
        ("RECEIVE", offset_of!(LaneControl, receive) as u64),
        ("RECEIVE_SIZE", size_of::<ReceiveRecord>() as u64),
        ("RECEIVE_BASE", offset_of!(ReceiveRecord, base) as u64),
        ("TRANSMIT", offset_of!(LaneControl, transmit) as u64),
        ("TRANSMIT_SIZE", size_of::<TransmitRecord>() as u64),
        ("TRANSMIT_SEQUENCE", offset_of!(TransmitRecord, sequence) as u64),
        ("TRANSMIT_LENGTH", offset_of!(TransmitRecord, length) as u64),
        ("TRANSMIT_SENT", offset_of!(TransmitRecord, sent) as u64),
        (
            "TRANSMIT_COUNT",
            (offset_of!(TransmitRecord, message) + offset_of!(Message, msg_len)) as u64,
        ),
        ("SLOT_SIZE", size_of::<Slot>() as u64),
        ("SLOT_OFFSET", offset_of!(Slot, offset) as u64),
        ("SLOT_LENGTH", offset_of!(Slot, length) as u64),
        ("SLOT_POSITION", offset_of!(Slot, position) as u64),
        ("SLOT_RECEIVED_AT", offset_of!(Slot, received_at) as u64),
        ("SLOT_STARTED_AT", offset_of!(Slot, started_at) as u64),
        ("SLOT_ATTEMPTS", offset_of!(Slot, attempts) as u64),
    ]
}
