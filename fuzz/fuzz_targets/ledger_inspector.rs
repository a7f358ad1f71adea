//! The holder reads along in a ledger full of whatever a backend has left there, and in whatever
//! waits in the socket.
#![no_main]

#[path = "../shared/ledger.rs"]
mod ledger;

use ledger::corrupt;
use ledger::crashed_ledger::{CrashedLedger, LAYOUT};
use libfuzzer_sys::fuzz_target;
use nbd_ledger::layout::{FLIGHT_RECORDS, SLOTS};
use nbd_proto::Request;

fuzz_target!(|bytes: &[u8]| {
    let ledger = CrashedLedger::new();
    corrupt(&ledger, bytes);
    let Ok(inspector) = ledger.inspect() else {
        return;
    };
    assert!(inspector.in_flight(0).len() <= SLOTS as usize);
    let unread = inspector.unread(0, bytes).len();
    assert!(unread * Request::LEN <= LAYOUT.ring as usize + bytes.len());
    let _ = (inspector.totals(0), inspector.latencies(0), inspector.last_received_at(0));
    assert!(inspector.executions(0, 0, usize::MAX).0.len() <= FLIGHT_RECORDS as usize);
});
