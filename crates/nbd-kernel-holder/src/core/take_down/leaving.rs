//! The end of the backends, whose lanes have ended, and of what was changed for them.

use std::time::{Duration, Instant};

use super::super::{Command, Condition, Core, Event, HelperId, HelperTask, Note, Report, Watch};
use super::{STEP_TIMEOUT, TIMEOUT, left};

/// How long a backend may take to end by itself in a detach in order: nbd-serve gives another server
/// 5 s to close its connections, and a program that it has started as long to end after SIGTERM.
const ORDERLY_TIMEOUT: Duration = Duration::from_secs(15);
/// How often to look whether the owner is stopped, and how often in a row, to be sure: under strace a
/// process is stopped for a moment at each system call.
const STOPPED_INTERVAL: Duration = Duration::from_millis(20);
const STOPPED_LOOKS: u32 = 5;
/// How often to look whether all are dead, beside what their descriptors tell.
const DEAD_INTERVAL: Duration = Duration::from_millis(20);

/// How far that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// The owner may close its own connections.
    AwaitingOwner { lanes_ended: Instant, in_order: bool, stopped: u32 },
    /// All that were killed are to be dead.
    AwaitingProcesses { until: Instant },
    /// A store to `queue/` may wait for requests that nothing answers.
    Restoring { helper: HelperId, until: Instant },
}

impl Leaving {
    pub(super) fn deadline(&self) -> Instant {
        match *self {
            Self::AwaitingOwner { lanes_ended, in_order, .. } => {
                lanes_ended + owner_timeout(in_order)
            }
            Self::AwaitingProcesses { until } | Self::Restoring { until, .. } => until,
        }
    }

    pub(super) fn watches(&self) -> Vec<Watch> {
        let watch = |condition, interval| Watch { condition, interval };
        match self {
            Self::AwaitingOwner { .. } => vec![
                watch(Condition::OwnerGone, STOPPED_INTERVAL),
                watch(Condition::OwnerStopped, STOPPED_INTERVAL),
            ],
            Self::AwaitingProcesses { .. } => vec![watch(Condition::NoProcesses, DEAD_INTERVAL)],
            Self::Restoring { .. } => Vec::new(),
        }
    }
}

fn owner_timeout(in_order: bool) -> Duration {
    if in_order { ORDERLY_TIMEOUT } else { STEP_TIMEOUT }
}

impl Core {
    pub(super) fn begin_leaving_lanes(&mut self, is_detach: bool, begun: Instant) -> Leaving {
        self.command(Command::CloseJoin);
        // One that has not begun to serve would not end by itself.
        if !self.ownership.is_ready() || self.owner_exit.has_departed() {
            return self.end_backends(begun);
        }
        let in_order = is_detach && self.owner_exit.is_leaving() && !self.is_forced();
        let lanes_ended = self.owner_exit.lanes_ended().unwrap_or(self.now);
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
        if !self.driver.silenced {
            return None;
        }
        let helper = self.start_helper(HelperTask::RestoreTimeouts);
        let limit = left(begun + TIMEOUT, self.now);
        Some(Leaving::Restoring { helper, until: self.after(limit) })
    }
}
