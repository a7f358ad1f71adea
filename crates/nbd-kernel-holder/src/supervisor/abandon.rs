//! A device that is given up: its backend is killed, and the stand-in answers every request with EIO,
//! as soon as the fence allows it, until the device is taken down.

use super::parting::refuse;
use super::{Action, Event, Kind, Supervisor};

impl Supervisor {
    pub(super) fn abandon(&mut self) -> Vec<Action> {
        self.abandoned = true;
        self.failing = false;
        let mut actions = self.send_away();
        let answered = self.owner.is_some_and(|it| it.kind == Kind::StandIn && !it.dying);
        if self.owner.is_none() && self.stand_in.is_none() {
            actions.push(Action::StartStandIn);
        } else if !answered {
            actions.extend(self.evict());
        }
        actions
    }

    /// Whether no backend is granted the lanes any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    pub(super) fn apply_abandoned(&mut self, event: &Event) -> Vec<Action> {
        match *event {
            Event::Hello { peer, .. } if self.stand_in == Some(peer) => {
                self.hello_of_stand_in(peer)
            }
            Event::Hello { peer, .. } => vec![refuse(peer)],
            Event::Ready { peer } => {
                if let Some(owner) = self.owner.as_mut().filter(|owner| owner.peer == peer) {
                    owner.ready = true;
                }
                Vec::new()
            }
            Event::Gone { peer } => {
                self.stand_in.take_if(|stand_in| *stand_in == peer);
                Vec::new()
            }
            Event::NoStandIn => {
                self.stand_in = None;
                Vec::new()
            }
            Event::OwnerDead { .. } => match self.owner.take() {
                // A stand-in that died of itself would do so again.
                Some(owner) if owner.kind != Kind::StandIn || owner.dying => {
                    let start = self.stand_in.is_none().then_some(Action::StartStandIn);
                    start.into_iter().collect()
                }
                _ => Vec::new(),
            },
            // Another attempt to detach: what has failed may work now.
            Event::Abandon => self.abandon(),
            Event::Part => self.part(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
