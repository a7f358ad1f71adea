//! A ledger may hold anything: its last backend may have scribbled over it before it died. What
//! contradicts itself is refused, and nothing in it can crash its readers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod contradictions;
mod files;
mod scribbles;
mod victim;

use victim::Victim;

#[test]
fn what_nobody_scribbled_over_is_served_to_the_end() {
    let victim = Victim::new();
    let (_receiver, mut transmitter, recovery) = victim.open().unwrap();
    let left = recovery.tickets.iter().map(|ticket| ticket.request().cookie);
    assert_eq!(left.collect::<Vec<_>>(), [3, 4, 5]);
    assert!(recovery.unsent > 0);
    let mut replies = Vec::new();
    for ticket in recovery.tickets {
        victim::answer(&mut transmitter, ticket);
    }
    victim.drain(&mut transmitter, &mut replies);
    assert_eq!(victim.cookies_of(&replies), Some(vec![1, 2, 3, 4, 5]));
}
