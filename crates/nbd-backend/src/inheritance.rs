//! What a predecessor left to do, and whether one of these requests killed it.
//!
//! After a crash every request that was being executed is a suspect. A successor executes the
//! suspects one by one while nothing else is executed: an innocent one is answered, and the guilty
//! one crashes the backend again, alone this time, until it has done so often enough to be given
//! up.

use nbd_control::backend::Poison;
use nbd_ledger::receive::Ticket;

use crate::lane::LaneThread;

/// What the holder says about the predecessor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Predecessor {
    pub(crate) crashed: bool,
    /// A request that has crashed so many backends is given up; 0 is never.
    pub(crate) poison_limit: u32,
}

/// The requests of a lane that a predecessor took and did not answer.
pub(crate) struct Inheritance {
    tickets: Vec<Ticket>,
    /// The one with most crashes last.
    suspects: Vec<Ticket>,
    poisoned: Vec<Ticket>,
}

impl Inheritance {
    pub(crate) fn sort(tickets: Vec<Ticket>, predecessor: Predecessor) -> Self {
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

    /// Gives up what is poisoned, tries the suspects, and returns what is left to execute. Must
    /// come before anything else is executed on any lane.
    pub(crate) fn settle(self, lane: &mut LaneThread) -> Vec<Ticket> {
        for ticket in self.poisoned {
            tracing::error!(
                "given up: {:?} crashed {} backends",
                ticket.request(),
                ticket.crashes()
            );
            lane.give_up(ticket);
        }
        for ticket in self.suspects {
            lane.try_alone(ticket);
        }
        self.tickets
    }
}
