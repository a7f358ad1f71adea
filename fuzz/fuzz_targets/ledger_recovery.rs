//! A successor recovers from a ledger full of whatever its predecessor left there: it refuses, or
//! serves without harm. If nothing was scribbled but what the stream's own bytes contradict, it
//! sends whole replies only, and to nobody but those who have asked.
#![no_main]

#[path = "../shared/ledger.rs"]
mod ledger;

use ledger::scribble;
use ledger::victim::{Victim, answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let victim = Victim::new();
    let scribbled = scribble(&victim, bytes);
    if scribbled.beyond_repair {
        let _ = victim.serve();
        return;
    }
    let Ok((mut receiver, mut transmitter, recovery)) = victim.open() else {
        return;
    };
    let mut tickets = recovery.tickets;
    let _ = receiver.take(1, &mut tickets);
    let mut replies = Vec::new();
    for ticket in tickets {
        answer(&mut transmitter, ticket);
        victim.drain(&mut transmitter, &mut replies);
    }
    victim.drain(&mut transmitter, &mut replies);
    assert!(victim.cookies_of(&replies).is_some(), "a reply that nobody waits for");
});
