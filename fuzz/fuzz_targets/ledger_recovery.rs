//! A successor recovers from a ledger full of whatever its predecessor left there: it refuses, or
//! serves without harm. If nothing was corrupted but what the stream's own bytes contradict, it
//! sends whole replies only, and to nobody but those who have asked.
#![no_main]

#[path = "../shared/ledger.rs"]
mod ledger;

use ledger::corrupt;
use ledger::crashed_ledger::{CrashedLedger, answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let ledger = CrashedLedger::new();
    let corrupted = corrupt(&ledger, bytes);
    if corrupted.beyond_repair {
        let _ = ledger.serve();
        return;
    }
    let Ok((mut receiver, mut transmitter, recovery)) = ledger.open() else {
        return;
    };
    let mut tickets = recovery.tickets;
    let _ = receiver.take(1, &mut tickets);
    let mut replies = Vec::new();
    for ticket in tickets {
        answer(&mut transmitter, ticket);
        ledger.drain(&mut transmitter, &mut replies);
    }
    ledger.drain(&mut transmitter, &mut replies);
    assert!(ledger.cookies_of(&replies).is_some(), "a reply that no request waits for");
});
