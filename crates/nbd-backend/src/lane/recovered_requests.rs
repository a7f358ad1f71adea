//! Requests that a predecessor received and did not answer, and the search for one that crashed it.
//!
//! After a crash every request that was being executed is a suspect. A successor executes the
//! suspects one by one while nothing else is executed. An innocent one is answered. The guilty one
//! crashes the backend again, alone this time, until it has reached the poison limit and fails with
//! EIO.

use nbd_control::backend::Poison;
use nbd_ledger::receive::Ticket;

use crate::lane::LaneThread;

/// What the holder reports about the predecessor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Predecessor {
    pub(crate) crashed: bool,
    /// A request fails with EIO after it has crashed this many backends; 0 is never.
    pub(crate) poison_limit: u32,
}

/// The requests of a lane that a predecessor received and did not answer.
pub(crate) struct RecoveredRequests {
    tickets: Vec<Ticket>,
    /// Sorted by crashes, so that the likely innocent ones are answered first.
    suspects: Vec<Ticket>,
    poisoned: Vec<Ticket>,
}

impl RecoveredRequests {
    pub(crate) fn classify(tickets: Vec<Ticket>, predecessor: Predecessor) -> Self {
        let mut sorted = Self { tickets: Vec::new(), suspects: Vec::new(), poisoned: Vec::new() };
        for ticket in tickets {
            ticket.requeue(predecessor.crashed);
            let limit = predecessor.poison_limit;
            match ticket.crashes() {
                0 => sorted.tickets.push(ticket),
                crashes if limit > 0 && crashes >= limit => sorted.poisoned.push(ticket),
                _ => sorted.suspects.push(ticket),
            }
        }
        sorted.suspects.sort_by_key(Ticket::crashes);
        sorted
    }

    pub(crate) fn len(&self) -> u32 {
        (self.tickets.len() + self.suspects.len() + self.poisoned.len()) as u32
    }

    pub(crate) fn poisoned(&self, lane: u32) -> impl Iterator<Item = Poison> {
        self.poisoned.iter().map(move |ticket| {
            let request = ticket.request();
            Poison {
                lane,
                command: request.command.0,
                offset: request.offset,
                length: request.length,
                crashes: ticket.crashes(),
            }
        })
    }

    /// Fails the poisoned requests, executes the suspects one by one, and returns the rest. Must
    /// return before any other request of any lane is executed: else a crash would have more
    /// suspects.
    pub(crate) fn run_suspects(self, lane: &mut LaneThread) -> Vec<Ticket> {
        for ticket in self.poisoned {
            tracing::error!("given up: {} crashed {} backends", ticket.request(), ticket.crashes());
            lane.fail_with_eio(ticket);
        }
        for ticket in self.suspects {
            lane.run_isolated(ticket);
        }
        self.tickets
    }
}
