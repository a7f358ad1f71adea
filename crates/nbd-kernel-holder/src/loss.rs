//! The end of the backend that has the lanes: told by the driver or by us, or a loss that somebody must
//! make good.

use std::sync::atomic::Ordering;

use nbd_control::ChannelError;
use nbd_control::control::{Failure, FailureKind};
use nbd_ledger::Inspector;

use crate::control::Waits;
use crate::holder::Holder;
use crate::peers::Ending;
use crate::retry::Subject;
use crate::supervisor::{Event, PeerId, Phase};

/// An owner that is gone.
#[derive(Debug)]
pub(crate) struct Departed {
    pid: i32,
    /// What it said before it failed, or why it ended.
    reason: String,
    program: Vec<String>,
    ending: Ending,
}

impl Holder {
    /// The process behind a peer has ended, or no thread of it can run any more.
    pub(crate) fn peer_process_ended(&mut self, id: PeerId) {
        // What it sent before its end comes first.
        self.hear_peer(id);
        if self.supervisor.owner() != Some(id) {
            if self.peers.get(&id).is_some_and(|peer| peer.channel.is_some()) {
                self.peer_closed(id, &ChannelError::Closed);
            }
            return;
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let own = peer.is_own_child();
        // Otherwise the event that tells of it is still to come.
        let Some(ending) = peer.end() else {
            return;
        };
        if peer.stand_in {
            return self.stand_in_ended(id, &ending);
        }
        let (pid, words) = (peer.pid().unwrap_or(0), peer.last_words.take());
        let program = std::mem::take(&mut peer.program);
        // In the log its words stand before those about its end.
        let reason = self.with_last_words(id, &format!("the backend {ending}"));
        let gone = Departed { pid, reason: words.unwrap_or(reason), program, ending };
        self.drop_peer(id);
        if self.supervisor.is_abandoned() && !self.supervisor.is_parting() {
            self.log(&format!("backend {pid} {}, as the device is given up", gone.ending));
            return self.apply(&Event::OwnerDead { clean: false, progressed: true });
        }
        if !self.was_told_to_end(&gone.ending, own) {
            let told = self.told_to_end.take_if(|told| *told == id).is_some();
            return match told && gone.ending.is_orderly(own) {
                true => self.make_good(gone),
                false => self.lose_owner(gone),
            };
        }
        self.log(&format!("backend {pid} {}, as it was told to", gone.ending));
        if self.supervisor.is_parting() {
            self.apply(&Event::OwnerDead { clean: true, progressed: true });
        } else {
            self.departed = Some(gone);
        }
    }

    /// Whether the owner has ended because it is not needed any more: its lanes were ended, or the
    /// driver has sent `NBD_CMD_DISC` in a detach. Requests may have come after that.
    fn was_told_to_end(&self, ending: &Ending, own_child: bool) -> bool {
        let by_driver = self.is_leaving && !self.supervisor.is_fencing();
        ending.is_orderly(own_child) && (self.supervisor.is_parting() || by_driver)
    }

    /// The device stays, or is asked for something, and its owner has ended as it was told to.
    pub(crate) fn miss_departed(&mut self) {
        if let Some(gone) = self.departed.take() {
            self.make_good(gone);
        }
    }

    /// Starts again what has ended because a detach told it to, if that came to nothing: whatever
    /// the policy is for backends that end by themselves.
    fn make_good(&mut self, gone: Departed) {
        self.lose_owner_of(gone, false);
        if self.supervisor.phase() == Phase::Waiting && !self.settings.program.is_empty() {
            self.apply(&Event::Restart);
        }
    }

    /// The owner is gone, and not because it was told to.
    fn lose_owner(&mut self, gone: Departed) {
        let clean = gone.ending == Ending::Exited(0);
        self.lose_owner_of(gone, clean);
    }

    fn lose_owner_of(&mut self, gone: Departed, clean: bool) {
        let Departed { pid, reason, program, ending } = gone;
        let cause = ending.to_string();
        self.log_loss(pid, &ending);
        self.last_failure = reason;
        self.abandon_replacement(&program);
        self.note_loss(cause, ending.is_crash());
        if self.failed.is_some() {
            return;
        }
        let progressed = self.has_answered();
        self.drop_old_spare();
        self.apply(&Event::OwnerDead { clean, progressed });
        self.settle_pause();
    }

    /// Whether the latest backend has answered anything.
    pub(crate) fn has_answered(&self) -> bool {
        let header = self.inspector.as_ref().map(Inspector::header);
        header.is_some_and(|header| header.first_answer_at.load(Ordering::Relaxed) != 0)
    }

    fn log_loss(&mut self, pid: i32, ending: &Ending) {
        let cause = ending.to_string();
        if !self.complaints.is_new(Subject::Loss, &cause) && self.outage.is_some() {
            return self.log_repeated(&format!("backend {pid} {cause} as well"));
        }
        let (signal, status) = match *ending {
            Ending::Killed(signal, _) => (Some(signal.as_str()), None),
            Ending::Exited(status) => (None, Some(status)),
            Ending::Unknown => (None, None),
        };
        // The driver's own count: to look into the sockets takes time, and requests wait.
        let in_flight = self.device.waiting();
        let suspects = self.suspects();
        let executing = (suspects.count() > 0).then(|| suspects.to_string());
        let suspected = match (&executing, suspects.count()) {
            (Some(executing), 1) if ending.is_crash() => format!(" while executing {executing}"),
            (Some(executing), _) if ending.is_crash() => {
                format!(" while executing {executing} (one of them, or none)")
            }
            _ => String::new(),
        };
        tracing::warn!(
            device = %self.device.name(),
            event = "backend-lost",
            pid,
            signal,
            status,
            in_flight,
            executing,
            "backend {pid} {ending}{suspected}"
        );
    }

    /// A new program that was granted the lanes and died without serving is not tried again: the
    /// device goes back to the one that it had.
    fn abandon_replacement(&mut self, died: &[String]) {
        if self.supervisor.is_fencing() {
            // The one that is being replaced, by our own hand.
            return;
        }
        if self.replacing.as_deref() == Some(died) {
            self.replacing = None;
            let text = format!("the former program is started again: {}", self.last_failure);
            self.warn(&text);
            let failure = Failure::new(FailureKind::Other, text);
            self.answer_waiters(Waits::Start, &Err(failure));
        }
    }
}
