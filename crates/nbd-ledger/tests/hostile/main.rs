//! A ledger may hold anything: its last backend may have overwritten any part of it before it died. What
//! contradicts itself is refused, and nothing in it can crash its readers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod corrupt_words;
mod crashed_ledger;
mod files;
mod random_corruption;

use crashed_ledger::CrashedLedger;

#[test]
fn an_intact_ledger_is_served_to_the_end() {
    let ledger = CrashedLedger::new();
    let (_receiver, mut transmitter, recovery) = ledger.open().unwrap();
    let left = recovery.tickets.iter().map(|ticket| ticket.request().cookie);
    assert_eq!(left.collect::<Vec<_>>(), [3, 4, 5]);
    assert!(recovery.unsent > 0);
    let mut replies = Vec::new();
    for ticket in recovery.tickets {
        crashed_ledger::answer(&mut transmitter, ticket);
    }
    ledger.drain(&mut transmitter, &mut replies);
    assert_eq!(ledger.cookies_of(&replies), Some(vec![1, 2, 3, 4, 5]));
}
