//! The end of the backend that has the lanes: told by the driver or by us, or a loss that has to be made
//! good.

use super::event::{Command, Note, OwnerEnd, Reply};
use super::ownership::{self, Phase};
use super::state::{Core, Wait};

impl Core {
    pub(super) fn owner_ended(&mut self, end: OwnerEnd) {
        let Some(owner) = self.ownership.owner() else {
            return;
        };
        self.probe_is_gone(owner);
        if self.ownership.is_eio_backend(owner) {
            return self.eio_backend_ended();
        }
        if self.ownership.is_abandoned() && !self.ownership.is_shutting_down() {
            self.note(Note::OwnerEndedGivenUp);
            return self.apply(&ownership::Event::OwnerDead { clean: false, progressed: true });
        }
        if self.was_told_to_end(end) {
            self.note(Note::OwnerEndedAsTold);
            match self.ownership.is_shutting_down() {
                true => self.apply(&ownership::Event::OwnerDead { clean: true, progressed: true }),
                false => self.backends.owner_exit.departed = Some(end),
            }
            return;
        }
        let told = self.backends.owner_exit.told.take_if(|told| *told == owner).is_some();
        match told && end.orderly {
            true => self.make_good(end),
            false => self.lose_owner(end, end.clean),
        }
    }

    /// There was no holder to see how it ended.
    pub(super) fn adopted_dead(&mut self) {
        self.note_unserved();
        self.apply(&ownership::Event::OwnerDead { clean: false, progressed: true });
    }

    /// Whether the owner has ended because it is not needed any more: its lanes were ended, or the
    /// driver has sent `NBD_CMD_DISC` in a detach. Requests may have come after that.
    fn was_told_to_end(&self, end: OwnerEnd) -> bool {
        let by_driver = self.backends.owner_exit.leaving && !self.ownership.is_fencing();
        end.orderly && (self.ownership.is_shutting_down() || by_driver)
    }

    pub(super) fn note_end_of_lanes(&mut self) {
        self.backends.owner_exit.lanes_ended.get_or_insert(self.now);
    }

    pub(super) fn begin_leaving(&mut self) {
        self.backends.owner_exit.leaving = true;
    }

    /// The device stays after all. `may_be_told`: the driver may have told the backend to end, or still
    /// do it.
    pub(super) fn stop_leaving(&mut self, may_be_told: bool) {
        self.backends.owner_exit.leaving = false;
        if may_be_told {
            self.backends.owner_exit.told = self.ownership.owner();
        }
        self.miss_departed();
    }

    /// The device stays, or is asked for something, and its owner has ended as it was told to.
    pub(super) fn miss_departed(&mut self) {
        if let Some(end) = self.backends.owner_exit.departed.take() {
            self.make_good(end);
        }
    }

    /// The device is given up: an owner that has ended as it was told to makes room.
    pub(super) fn bury_departed(&mut self) {
        if self.backends.owner_exit.departed.take().is_some() {
            self.apply(&ownership::Event::OwnerDead { clean: false, progressed: true });
        }
    }

    /// Starts again what has ended because a detach told it to, if that came to nothing: whatever
    /// the policy is for backends that end by themselves.
    fn make_good(&mut self, end: OwnerEnd) {
        self.lose_owner(end, false);
        if self.ownership.phase() == Phase::Waiting && self.ownership.has_program() {
            self.apply(&ownership::Event::Restart);
        }
    }

    fn lose_owner(&mut self, end: OwnerEnd, clean: bool) {
        self.note(Note::OwnerLost);
        self.drop_failed_replacement();
        self.note_unserved();
        if self.device.failed.is_some() {
            return;
        }
        if end.spare_is_old
            && let Some(backend) = self.ownership.lose_spare()
        {
            self.command(Command::Dismiss { backend });
        }
        let progressed = end.progressed;
        self.apply(&ownership::Event::OwnerDead { clean, progressed });
        self.complete_pause();
    }

    /// A new program that was granted the lanes and died without serving is not tried again: the
    /// device goes back to the one that it had.
    fn drop_failed_replacement(&mut self) {
        // While an owner is killed that is being replaced, it is that one's end.
        if self.ownership.is_fencing() {
            return;
        }
        let owner = self.ownership.owner();
        if self
            .backends
            .replacement
            .take_if(|it| it.backend.is_some() && it.backend == owner)
            .is_some()
        {
            self.note(Note::FormerProgramAgain);
            self.reply_waiting(&[Wait::Start], &Reply::FormerProgramAgain);
        }
    }

    fn eio_backend_ended(&mut self) {
        self.note(Note::EioBackendEnded);
        self.timers.eio_since = None;
        if self.device.failed.is_some() {
            return;
        }
        self.pause_eio_backend();
        self.apply(&ownership::Event::OwnerDead { clean: false, progressed: true });
        self.complete_fail();
        self.complete_pause();
    }
}
