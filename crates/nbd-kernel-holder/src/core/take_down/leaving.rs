//! The end of the backends, whose lanes have ended, and of what was changed for them.

use std::time::Instant;

use crate::core::event::{Command, Condition, Event, HelperTask, Note, Report};
use crate::core::procedure::leaving::{Leaving, STOPPED_LOOKS, owner_timeout};
use crate::core::procedure::limits::{TIMEOUT, left};
use crate::core::state::Core;

impl Core {
    pub(super) fn begin_leaving_lanes(&mut self, is_detach: bool, begun: Instant) -> Leaving {
        self.command(Command::CloseJoin);
        // One that has not begun to serve would not end by itself.
        if !self.ownership.is_ready() || self.backends.owner_exit.has_departed() {
            return self.end_backends(begun);
        }
        let in_order = is_detach && self.backends.owner_exit.is_leaving() && !self.is_forced();
        let lanes_ended = self.backends.owner_exit.lanes_ended().unwrap_or(self.now);
        Leaving::AwaitingOwner { lanes_ended, in_order, stopped: 0 }
    }

    fn end_backends(&mut self, begun: Instant) -> Leaving {
        self.command(Command::KillBackends);
        let limit = left(begun + TIMEOUT, self.now);
        Leaving::AwaitingProcesses { until: self.after(limit) }
    }

    /// Nothing when all is done.
    pub(super) fn step_leaving(
        &mut self,
        step: Leaving,
        begun: Instant,
        event: &Event,
    ) -> Option<Leaving> {
        match step {
            Leaving::AwaitingOwner { lanes_ended, in_order, stopped } => {
                let in_order = in_order && !self.is_forced();
                let stopped = match event {
                    Event::Seen { condition: Condition::OwnerStopped, holds: true } => stopped + 1,
                    Event::Seen { condition: Condition::OwnerStopped, holds: false } => 0,
                    _ => stopped,
                };
                let gone = Event::Seen { condition: Condition::OwnerGone, holds: true };
                if *event == gone {
                    return Some(self.end_backends(begun));
                }
                let is_late = self.now >= lanes_ended + owner_timeout(in_order);
                if is_late || stopped >= STOPPED_LOOKS {
                    self.note(Note::OwnerKilledLate);
                    return Some(self.end_backends(begun));
                }
                Some(Leaving::AwaitingOwner { lanes_ended, in_order, stopped })
            }
            Leaving::AwaitingProcesses { until } => {
                let dead = Event::Seen { condition: Condition::NoProcesses, holds: true };
                if *event != dead {
                    if !self.is_late(until) {
                        return Some(step);
                    }
                    self.note(Note::ProcessesLate);
                }
                self.restore(begun)
            }
            Leaving::Restoring { helper, until } => {
                if !self.is_helper_over(helper, until, event) {
                    return Some(step);
                }
                let status = match event {
                    Event::HelperEnded { id, report: Report::Status(status) } if *id == helper => {
                        Some(*status)
                    }
                    _ => None,
                };
                if status != Some(0) {
                    self.note(Note::TimeoutsNotRestored { status });
                }
                None
            }
        }
    }

    fn restore(&mut self, begun: Instant) -> Option<Leaving> {
        if !self.device.silenced {
            return None;
        }
        let helper = self.start_helper(HelperTask::RestoreTimeouts);
        let limit = left(begun + TIMEOUT, self.now);
        Some(Leaving::Restoring { helper, until: self.after(limit) })
    }
}
