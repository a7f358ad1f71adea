//! Bugs that are planted in the model, to see that the search would find them in the code.

use std::collections::VecDeque;

use nbd_ledger::CrashPoint;

use crate::act::Act;
use crate::state::Process;
use crate::step::{Effect, Op};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `receive_epoch` is stored before the record is filled in.
    ReceiveEpochFirst,
    /// The valid receive record is filled in, not the other one.
    ReceiveInPlace,
    /// `transmit_epoch` is stored before the record is filled in.
    TransmitEpochFirst,
    /// The valid transmit record is filled in, not the other one.
    TransmitInPlace,
    /// `parsed` is stored before the slots are filled.
    ParsedFirst,
    /// A slot says that it holds a request before it does.
    PendingFirst,
    /// A slot is free as soon as its answer is staged.
    FreeWhenStaged,
    /// A slot is free as soon as its answer is committed.
    FreeWhenCommitted,
    /// A staged answer counts as committed.
    StagedTooLow,
    /// What the kernel took of a transmission is sent again by a successor.
    SentForgotten,
    /// The ring begins anew although payloads live in it.
    PayloadForgotten,
    /// A successor does not know of requests whose answers were staged.
    StagedForgotten,
    /// A successor leaves slots that were filled and not taken.
    UnbornForgotten,
}

pub(crate) const ALL: [Fault; 13] = [
    Fault::ReceiveEpochFirst,
    Fault::ReceiveInPlace,
    Fault::TransmitEpochFirst,
    Fault::TransmitInPlace,
    Fault::ParsedFirst,
    Fault::PendingFirst,
    Fault::FreeWhenStaged,
    Fault::FreeWhenCommitted,
    Fault::StagedTooLow,
    Fault::SentForgotten,
    Fault::PayloadForgotten,
    Fault::StagedForgotten,
    Fault::UnbornForgotten,
];

/// Changes the steps that were begun. What is not a matter of their order is asked for where the
/// model decides it.
pub(crate) fn plant(fault: Fault, act: Act, process: &mut Process) {
    let receiver = &mut process.receiver;
    let transmitter = &mut process.transmitter;
    match (fault, act) {
        (Fault::ReceiveEpochFirst, Act::Receive) => {
            to_front(receiver, |effect| matches!(effect, Effect::ReceiveEpoch(_)));
        }
        (Fault::TransmitEpochFirst, Act::Send) => {
            to_front(transmitter, |effect| matches!(effect, Effect::TransmitEpoch(_)));
        }
        (Fault::ParsedFirst, Act::Take) => {
            to_front(receiver, |effect| matches!(effect, Effect::Parsed(_)));
        }
        (Fault::PendingFirst, Act::Take) => {
            to_front(receiver, |effect| matches!(effect, Effect::SlotState(..)));
        }
        (Fault::ReceiveInPlace, Act::Receive) => {
            receiver.iter_mut().for_each(|op| op.effect = in_place(op.effect));
            process.receive_epoch ^= 1;
        }
        (Fault::TransmitInPlace, Act::Send) => {
            transmitter.iter_mut().for_each(|op| op.effect = in_place(op.effect));
            process.transmit_epoch ^= 1;
        }
        (Fault::FreeWhenStaged | Fault::StagedTooLow, Act::Stage(_)) => {
            for op in transmitter {
                if let Effect::SlotState(_, state) = &mut op.effect {
                    *state = if fault == Fault::FreeWhenStaged { 0 } else { *state - 1 };
                }
            }
        }
        (Fault::UnbornForgotten, Act::Recover) => {
            receiver.retain(|op| op.point != Some(CrashPoint::SlotVacated));
        }
        _ => {}
    }
}

fn to_front(ops: &mut VecDeque<Op>, is_it: impl Fn(&Effect) -> bool) {
    if let Some(op) = ops.iter().position(|op| is_it(&op.effect)).and_then(|at| ops.remove(at)) {
        ops.push_front(op);
    }
}

fn in_place(effect: Effect) -> Effect {
    match effect {
        Effect::Received(record, value) => Effect::Received(record ^ 1, value),
        Effect::Base(record, value) => Effect::Base(record ^ 1, value),
        Effect::Wanted(record, value) => Effect::Wanted(record ^ 1, value),
        Effect::ClearReceived(record) => Effect::ClearReceived(record ^ 1),
        Effect::ReceiveEpoch(record) => Effect::ReceiveEpoch(record ^ 1),
        Effect::Receive { record, offset, wanted } => {
            Effect::Receive { record: record ^ 1, offset, wanted }
        }
        Effect::Sequence(record, value) => Effect::Sequence(record ^ 1, value),
        Effect::Length(record, value) => Effect::Length(record ^ 1, value),
        Effect::Sent(record, value) => Effect::Sent(record ^ 1, value),
        Effect::ClearSent(record) => Effect::ClearSent(record ^ 1),
        Effect::TransmitEpoch(record) => Effect::TransmitEpoch(record ^ 1),
        Effect::Send { record, from, length } => Effect::Send { record: record ^ 1, from, length },
        other => other,
    }
}
