//! Taking a device down, whatever state it is in, within a bound: the lanes first, so that no process can
//! block on them; then the [driver's](driver) side; then the [backends](leaving); then its entry.

mod driver;
mod leaving;

use std::time::Instant;

use nbd_device_users::User;

use crate::core::event::{
    Command, DetachError, Event, HelperId, HelperTask, Note, Refused, Released, Reply, Report,
};
use crate::core::procedure::detach::Requester;
use crate::core::procedure::limits::{STEP_TIMEOUT, TIMEOUT};
use crate::core::procedure::take_down::{Cause, Phase, TakeDown};
use crate::core::procedure::{End, Procedure};
use crate::core::state::{Core, Failed};

impl Core {
    pub(super) fn begin_take_down(&mut self, cause: Cause) -> Procedure {
        let (begun, given_up) = match cause {
            Cause::Detach { begun, given_up, .. } => (begun, given_up),
            Cause::Dropped | Cause::NotAttached(_) => (self.now, 0),
        };
        if cause == Cause::Dropped {
            self.note(Note::Dropped);
        }
        // The counts are the ledger's, which is let go of.
        self.command(Command::NoteTotals { given_up });
        let phase = Phase::Releasing(self.begin_release());
        Procedure::TakeDown(TakeDown { cause, begun, phase })
    }

    pub(super) fn step_take_down(&mut self, down: TakeDown, event: &Event) -> Procedure {
        let TakeDown { cause, begun, phase } = down;
        let phase = match phase {
            Phase::Releasing(step) => match self.step_release(step, begun + TIMEOUT, event) {
                driver::Next::Step(step) => Phase::Releasing(step),
                driver::Next::Stays(error) => return self.not_taken_down(cause, error),
                driver::Next::Released(released) => {
                    let is_detach = matches!(cause, Cause::Detach { .. });
                    let step = self.begin_leaving_lanes(is_detach, begun);
                    Phase::Leaving(released, step)
                }
            },
            Phase::Leaving(released, step) => match self.step_leaving(step, begun, event) {
                Some(step) => Phase::Leaving(released, step),
                None => return self.taken_down(cause, released),
            },
        };
        Procedure::TakeDown(TakeDown { cause, begun, phase })
    }

    /// The users of the device, once they are known: as far as they can be found until `until`.
    pub(super) fn found_users(
        &mut self,
        helper: HelperId,
        until: &mut Instant,
        event: &Event,
    ) -> Option<Vec<User>> {
        match event {
            Event::HelperEnded { id, report } if *id == helper => Some(match report {
                Report::Users(Ok(users)) => users.clone(),
                _ => Vec::new(),
            }),
            _ if self.is_late(*until) => {
                // That makes it tell what it has found so far.
                self.command(Command::LeaveHelper { id: helper });
                *until += STEP_TIMEOUT;
                None
            }
            _ => None,
        }
    }

    fn taken_down(&mut self, cause: Cause, released: Released) -> Procedure {
        let end = match cause {
            Cause::Detach { .. } => {
                self.note(Note::Detached(released.clone()));
                self.command(Command::RemoveEntry);
                if let Some(order) = self.orders.detach.take() {
                    self.reply(order.client, Reply::Detached(released.clone()));
                }
                self.reply_all_waiting(&Reply::Refused(Refused::BeingDetached));
                End::Detached(released)
            }
            Cause::Dropped => {
                self.left_in_use(&released);
                self.command(Command::RemoveEntry);
                self.say_dropped();
                End::Dropped
            }
            Cause::NotAttached(error) => {
                self.left_in_use(&released);
                self.command(Command::RemoveEntry);
                self.say_not_attached();
                End::NotAttached(error)
            }
        };
        Procedure::Ended(end)
    }

    fn left_in_use(&mut self, released: &Released) {
        if let Released::InUse(users) = released {
            self.note(Note::Kept(users.clone()));
        }
    }

    fn say_dropped(&mut self) {
        if let Some(order) = self.orders.detach.take() {
            self.reply(order.client, Reply::DetachedDropped);
        }
        self.reply_all_waiting(&Reply::Dropped);
    }

    fn say_not_attached(&mut self) {
        let reply = Reply::Refused(Refused::NotAttachedYet);
        if let Some(order) = self.orders.detach.take() {
            self.reply(order.client, reply.clone());
        }
        self.reply_all_waiting(&reply);
    }

    /// The driver does not let go: the holder stays, with what it has, to try again; unless there is
    /// nothing to stay for.
    fn not_taken_down(&mut self, cause: Cause, error: DetachError) -> Procedure {
        match cause {
            Cause::Detach { requester, by_force, .. } => {
                if error == DetachError::Stuck {
                    self.device.failed = Some(Failed::Stuck);
                    self.note(Note::Stuck);
                }
                self.device.attached = true;
                if error == DetachError::Unreachable && self.backends.owner_exit.is_leaving() {
                    self.stop_leaving(true);
                    // Nothing waits for that.
                    self.start_helper(HelperTask::TellUdev { leaving: false });
                }
                // One that came meanwhile could do more as long as the lanes are open.
                let may_do_more = self.is_forced() && !by_force;
                match may_do_more && error == DetachError::Unreachable {
                    true => {
                        self.orders.stop |= requester == Requester::Signal;
                        Procedure::Idle
                    }
                    false => self.refuse_detach(requester, error),
                }
            }
            Cause::Dropped => {
                if let Some(order) = self.orders.detach.take() {
                    self.reply(order.client, Reply::NotDetached(error.clone()));
                }
                self.note(Note::Left(error));
                self.say_dropped();
                Procedure::Ended(End::Dropped)
            }
            Cause::NotAttached(why) => {
                self.note(Note::Left(error));
                self.say_not_attached();
                Procedure::Ended(End::NotAttached(why))
            }
        }
    }
}
