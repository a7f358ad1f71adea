//! Requests that crash backends: telling which they were, and which were given up.

use std::fmt;

use nbd_control::backend::Poison;
use nbd_control::history::Poisoned;
use nbd_control::status::PoisonStatus;
use nbd_proto::{CommandType, Request};

use crate::core::Event;
use crate::holder::Holder;
use crate::view::clock::{milliseconds, monotonic};

/// How many are remembered.
const MAX_POISONED: usize = 16;
/// How many suspects one line of the log names.
const MAX_SUSPECTS: usize = 4;

/// Requests that were given up, with how long ago that was.
pub(crate) fn told(poisoned: &[Poisoned]) -> Vec<PoisonStatus> {
    let now = monotonic();
    let known = poisoned.iter().map(|Poisoned { at, request }| PoisonStatus {
        ago_ms: milliseconds(now.saturating_sub(*at)),
        ..request.clone()
    });
    known.collect()
}

impl Holder {
    /// A backend has answered a request with EIO instead of executing it.
    pub(crate) fn take_poison(&mut self, poison: &Poison) {
        let command = CommandType(poison.command).to_string();
        let &Poison { lane, offset, crashes, .. } = poison;
        let length: u64 = poison.length.into();
        let cause =
            self.told.history.loss.as_ref().map_or_else(String::new, |loss| loss.cause.clone());
        tracing::error!(
            device = %self.device.name(),
            event = "poison",
            command,
            offset,
            length,
            crashes,
            "{command} {offset}+{length} has crashed {crashes} backends and is answered with EIO; \
             the last one {cause}"
        );
        let request = PoisonStatus { lane, command, offset, length, crashes, cause, ago_ms: 0.0 };
        let known = &mut self.told.history.poisoned;
        known.drain(..(known.len() + 1).saturating_sub(MAX_POISONED));
        known.push(Poisoned { at: monotonic(), request });
        self.feed(Event::StateChanged);
    }

    /// What a backend that was lost was executing.
    pub(crate) fn suspects(&self) -> Suspects {
        let lanes = 0..self.data.lanes.len() as u32;
        let inspector = self.data.inspector.iter();
        let slots = inspector.flat_map(|it| lanes.clone().flat_map(|lane| it.in_flight(lane)));
        let executing = slots.filter(|slot| slot.started_at != 0);
        Suspects(executing.map(|slot| slot.request).collect())
    }
}

/// Requests that were being executed when a backend was lost; in words, the first few of them.
pub(crate) struct Suspects(Vec<Request>);

impl Suspects {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Suspects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, request) in self.0.iter().take(MAX_SUSPECTS).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}+{}", request.command, request.offset, request.length)?;
        }
        match self.0.len().saturating_sub(MAX_SUSPECTS) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
