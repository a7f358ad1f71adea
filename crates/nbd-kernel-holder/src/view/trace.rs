//! The flight recorder, read for nbd-ctl.

use nbd_control::trace::{Executed, Trace};
use nbd_ledger::flight_recorder::Execution;

use crate::holder::Holder;

/// Most requests of a lane in one answer, so that those of all lanes fit into a message.
const MAX_EXECUTIONS: usize = 1024;

impl Holder {
    /// What was executed from these numbers on.
    pub(crate) fn trace(&self, from: &[u64]) -> Trace {
        let recording = self.data.recording.as_ref().map(|recording| recording.path.clone());
        let mut trace = Trace { recording, ..Trace::default() };
        let Some(inspector) = &self.data.inspector else {
            return trace;
        };
        for lane in 0..self.data.lanes.len() as u32 {
            let first = from.get(lane as usize).copied().unwrap_or(0);
            let (found, next) = inspector.executions(lane, first, MAX_EXECUTIONS);
            trace.requests.extend(found.iter().map(|recorded| tell(lane, recorded)));
            trace.next.push(next);
        }
        trace
    }
}

fn tell(lane: u32, recorded: &Execution) -> Executed {
    let Execution { number, request, .. } = *recorded;
    Executed {
        lane,
        number,
        command: request.command.to_string(),
        flags: request.flags.bits(),
        offset: request.offset,
        length: request.length,
        cookie: request.cookie,
        received_at: recorded.received_at,
        started_at: recorded.started_at,
        finished_at: recorded.finished_at,
        attempts: recorded.attempts,
        error: recorded.error.0,
        backend: recorded.generation,
    }
}
