//! What must hold in every state, each thing said once.

use nbd_ledger::layout::SlotState;

use crate::state::{Config, Name, ReplyByte, State};

pub(crate) struct Invariant {
    pub(crate) name: &'static str,
    pub(crate) says: &'static str,
    holds: fn(&Config, &State) -> bool,
}

/// Violated by a step: see [`State::broken`].
pub(crate) const REPLIES: &str = "replies";
pub(crate) const PAYLOAD: &str = "payload";
pub(crate) const UNPARSED: &str = "unparsed";

pub(crate) const ALL: [Invariant; 10] = [
    Invariant {
        name: "counted",
        says: "the valid receive record tells exactly how many bytes were taken from the socket",
        holds: |_, state| state.ledger.received() == state.kernel.taken,
    },
    Invariant {
        name: UNPARSED,
        says: "bytes that were received and not taken lie in the ring where the record says, \
               and a request is what was sent",
        holds: |_, state| {
            let ledger = &state.ledger;
            ledger.parsed >= ledger.received() || ledger.holds(ledger.parsed, ledger.received())
        },
    },
    Invariant {
        name: "nothing lost",
        says: "a request that was taken either waits in a slot or has its reply committed",
        holds: |config, state| taken(config, state).all(|name| homes(config, state, name) >= 1),
    },
    Invariant {
        name: "nothing twice",
        says: "no request waits in two slots, or waits and has its reply committed",
        holds: |config, state| config.names().all(|name| homes(config, state, name) <= 1),
    },
    Invariant {
        name: PAYLOAD,
        says: "the payload of a waiting write stays in the ring, and is there when it is executed",
        holds: payloads_stay,
    },
    Invariant {
        name: "slot held",
        says: "a slot is free only after its request's reply is wholly in the kernel's hands",
        holds: |config, state| {
            taken(config, state).all(|name| state.kernel.has(name) || is_held(config, state, name))
        },
    },
    Invariant {
        name: REPLIES,
        says: "reply bytes come in order, without gaps or others in between, once, and only for \
               requests that were received and executed",
        holds: |_, _| true,
    },
    Invariant {
        name: "half-sent",
        says: "the unsent rest of a transmission is whole replies, and begins where the kernel is",
        holds: rest_fits,
    },
    Invariant {
        name: "audit",
        says: "a successor's audit accepts whatever a sane predecessor leaves",
        holds: audit_accepts,
    },
    Invariant {
        name: "told only what is true",
        says: "no slot waits for a request that was not received",
        holds: |config, state| {
            state.ledger.slots.iter().filter(|slot| state.ledger.waits(slot)).all(|slot| {
                slot.request.is_some_and(|name| {
                    slot.position == config.start(name)
                        && slot.position + config.header <= state.kernel.taken
                })
            })
        },
    },
];

/// The first invariant that a state violates.
pub(crate) fn violated(config: &Config, state: &State) -> Option<&'static Invariant> {
    ALL.iter()
        .find(|invariant| state.broken == Some(invariant.name) || !(invariant.holds)(config, state))
}

/// Requests that were taken into slots, for good.
fn taken<'a>(config: &'a Config, state: &'a State) -> impl Iterator<Item = Name> + 'a {
    config.names().filter(|&name| config.start(name) < state.ledger.parsed)
}

/// In how many ways the ledger knows of a request: as one to be executed, or as an answered one.
fn homes(config: &Config, state: &State, name: Name) -> usize {
    let ledger = &state.ledger;
    let waiting = ledger.slots.iter().filter(|slot| slot.request == Some(name));
    let waiting = waiting.filter(|slot| ledger.waits(slot)).count();
    let length = ledger.transmitting().length as usize;
    let in_transmission = ledger.sent() < ledger.transmitting().length
        && ledger.area[..length].contains(&Some((name, config.reply_length(name) - 1)));
    waiting + usize::from(in_transmission || state.kernel.has(name))
}

fn is_held(config: &Config, state: &State, name: Name) -> bool {
    let holds = |slot: &crate::state::Slot| {
        let is_it = slot.request == Some(name) && slot.position == config.start(name);
        is_it && slot.state() != SlotState::Vacant
    };
    state.ledger.slots.iter().any(holds)
}

fn payloads_stay(config: &Config, state: &State) -> bool {
    let ledger = &state.ledger;
    ledger.slots.iter().filter(|slot| ledger.waits(slot)).all(|slot| {
        let kept = slot.request.map_or(0, |name| config.kept(name));
        ledger.holds(slot.position, slot.position + kept)
    })
}

/// Bytes of whole replies, one behind the other; the requests that they belong to.
fn replies(config: &Config, bytes: &[Option<ReplyByte>]) -> Option<Vec<Name>> {
    let mut names = Vec::new();
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let (name, _) = (*first)?;
        let length = config.reply_length(name);
        let (reply, others) = rest.split_at_checked(length as usize)?;
        let is_whole = reply.iter().copied().eq((0..length).map(|byte| Some((name, byte))));
        is_whole.then(|| names.push(name))?;
        rest = others;
    }
    Some(names)
}

fn rest_fits(config: &Config, state: &State) -> bool {
    let ledger = &state.ledger;
    let (sent, length) = (ledger.sent(), ledger.transmitting().length);
    if sent >= length {
        return sent == length && state.kernel.part.is_none();
    }
    let begins_right = match state.kernel.part {
        Some(next) => ledger.area[sent as usize] == Some(next),
        None => matches!(ledger.area[sent as usize], Some((_, 0))),
    };
    begins_right && replies(config, &ledger.area[..length as usize]).is_some()
}

/// The rules of `audit::check_lane`.
fn audit_accepts(config: &Config, state: &State) -> bool {
    let ledger = &state.ledger;
    let record = ledger.receiving();
    let received = ledger.received();
    let parsed = ledger.parsed;
    let receives = record.wanted <= config.ring
        && record.msg_len <= record.wanted
        && record.base <= record.received
        && record.base <= parsed
        && received - parsed.min(received) <= config.ring;
    let sequence = u64::from(ledger.transmitting().sequence);
    let slots = ledger.slots.iter().all(|slot| match slot.state() {
        SlotState::Vacant => true,
        SlotState::Staged(n) if n <= sequence => true,
        SlotState::Staged(n) => {
            n == sequence + 1 && slot.position < parsed && ends(config, state, slot)
        }
        SlotState::Pending => slot.position >= parsed || ends(config, state, slot),
    });
    let mut staged: Vec<_> = ledger.slots.iter().collect();
    staged.retain(|slot| slot.state() == SlotState::Staged(sequence));
    let length = ledger.transmitting().length;
    let sends = ledger.sent() >= length || {
        let mut due: Vec<_> = staged.iter().filter_map(|slot| slot.request).collect();
        let mut found = replies(config, &ledger.area[..length as usize]).unwrap_or_default();
        due.sort_unstable();
        found.sort_unstable();
        due == found
    };
    receives && slots && sends
}

/// `check_payload` and `check_pending`, beside what is said above about payloads.
fn ends(config: &Config, state: &State, slot: &crate::state::Slot) -> bool {
    let Some(name) = slot.request else { return false };
    let kept = config.kept(name);
    let ledger = &state.ledger;
    slot.position + config.length(name) <= ledger.parsed
        && (kept == 0 || slot.position + kept <= ledger.parsed.min(ledger.received()))
}
