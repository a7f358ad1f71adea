//! Answering with EIO: what is in flight, because the operator says so, or all that comes while
//! there is no backend. The [stand-in](crate::stand_in) does it; here it is decided when.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind, Response};
use nbd_control::process;

use crate::control::Waits;
use crate::holder::Holder;
use crate::peers::{Ending, Peer};
use crate::program::{self, Start};
use crate::retry::Subject;
use crate::supervisor::{Event, PeerId};

/// How often to look whether the requests are answered.
const TICK: Duration = Duration::from_millis(20);
/// How long requests that come meanwhile are answered as well. Those that a full socket has kept
/// in the driver come only then.
const GRACE: Duration = Duration::from_secs(1);
/// How long a killed backend may take to die. One in uninterruptible sleep dies when its storage
/// answers, and its requests would have been answered then.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a stand-in that was lost.
const PAUSE: Duration = Duration::from_secs(1);

/// An order to answer what is in flight.
#[derive(Debug)]
pub(crate) struct Failing {
    /// Lane and cookie of what was in flight then.
    noted: HashSet<(u32, String)>,
    errors_before: u64,
    ordered: Instant,
    /// Since when the stand-in answers.
    ready: Option<Instant>,
    /// What to tell the operator once it is gone.
    done: Option<String>,
}

impl Holder {
    pub(crate) fn order_fail(&mut self, id: u64, kill: bool) {
        let name = self.device.name();
        let refused = self.not_now().or_else(|| self.replacement_under_way());
        let refused = refused.or_else(|| (!kill).then(|| self.living_backend()).flatten());
        if let Some(text) = refused {
            let failure = Failure::new(FailureKind::Busy, text);
            return self.answer(id, &Response::Failed(failure));
        }
        if self.is_covered() {
            let text = format!("{name}: what comes is answered with EIO already");
            return self.answer(id, &Response::Done { text });
        }
        let waiting = self.in_flight();
        if waiting.is_empty() && self.device.waiting() == 0 {
            let text = format!("{name}: nothing is in flight");
            return self.answer(id, &Response::Done { text });
        }
        self.await_for(id, Waits::Fail);
        let noted = waiting.into_iter().map(|request| (request.lane, request.cookie)).collect();
        let errors_before = self.totals().errors;
        self.failing = Some(Failing {
            noted,
            errors_before,
            ordered: Instant::now(),
            ready: None,
            done: None,
        });
        tracing::warn!(
            device = %self.device.name(),
            event = "failing",
            "what is in flight is to be answered with EIO"
        );
        self.apply(&Event::Fail);
    }

    /// Nobody may answer for a backend that lives, however stuck it is: it may still answer.
    fn living_backend(&self) -> Option<String> {
        let peer = self.supervisor.owner().and_then(|id| self.peers.get(&id))?;
        if peer.stand_in || self.supervisor.is_fencing() {
            return None;
        }
        let (name, pid) = (self.device.name(), peer.pid().unwrap_or(0));
        let stopped = process::stat(pid).map(|stat| stat.state);
        let how = match (process::tracer(pid), stopped) {
            (Some(tracer), _) => format!("is alive, traced by pid {tracer}"),
            (None, Some('T' | 't')) => "is alive, stopped by a signal".into(),
            (None, _) => "is alive".into(),
        };
        Some(format!(
            "{name}: its backend (pid {pid}) {how}, and may still answer what it has: let it, or \
             have it killed: `nbd-ctl fail --kill {name}`"
        ))
    }

    fn is_covered(&self) -> bool {
        let owner = self.supervisor.owner().and_then(|id| self.peers.get(&id));
        owner.is_some_and(|peer| peer.stand_in) && !self.supervisor.is_fencing()
    }

    pub(crate) fn start_stand_in(&mut self) {
        let user = self.settings.user.as_ref().map(|(_, uid, gid)| (*uid, *gid));
        let program = ["/proc/self/exe", "--stand-in"].map(String::from);
        let id = self.next_id();
        let started = self.open_log(id).and_then(|log| {
            let how = Start {
                user,
                attached: self.export,
                grows: false,
                examines: false,
                survive_shutdown: self.settings.survive_shutdown,
                log,
                cell: None,
            };
            program::start(&program, how)
        });
        match started {
            Ok(started) => {
                let mut peer = Peer::new(Some(started.channel), Some(started.process));
                peer.stand_in = true;
                self.peers.insert(id, peer);
                self.supervisor.started_stand_in(id);
            }
            Err(error) => {
                let text = format!("cannot start what answers with EIO: {error}");
                self.complain(Subject::StandIn, &text);
                self.last_failure = text;
                self.stand_in_due = Some(Instant::now() + PAUSE);
                self.apply(&Event::NoStandIn);
            }
        }
    }

    /// The stand-in has the lanes and answers.
    pub(crate) fn stand_in_ready(&mut self) {
        self.complaints.clear(Subject::StandIn);
        self.log("requests are answered with EIO");
        self.skip_generation();
        self.eio_since = Some(Instant::now());
        if let Some(failing) = &mut self.failing {
            failing.ready = Some(Instant::now());
        }
    }

    pub(crate) fn stand_in_ended(&mut self, id: PeerId, ending: &Ending) {
        self.log(&format!("requests are not answered with EIO any more: the stand-in {ending}"));
        self.last_failure = format!("the stand-in {ending}");
        self.eio_since = None;
        self.skip_generation();
        self.drop_peer(id);
        if self.failed.is_some() {
            return;
        }
        self.stand_in_due = Some(Instant::now() + PAUSE);
        self.apply(&Event::OwnerDead { clean: false, progressed: true });
        let done = self.failing.as_mut().and_then(|failing| failing.done.take());
        if let Some(text) = done {
            self.failing = None;
            self.answer_waiters(Waits::Fail, &Ok(text));
        }
        self.settle_pause();
    }

    /// A stand-in is no successor, and its end is nobody's crash.
    fn skip_generation(&mut self) {
        let generation = self.generation();
        if let Some(loss) = &mut self.history.loss {
            loss.generation = generation;
            loss.crashed = false;
        }
    }

    /// The stand-in came to nothing before its work was done.
    pub(crate) fn fail_failed(&mut self) {
        self.failing = None;
        let text = format!("{}: not answered: {}", self.device.name(), self.last_failure);
        self.answer_waiters(Waits::Fail, &Err(Failure::new(FailureKind::Other, text)));
    }

    /// How soon to look again at what is ordered and what is due.
    pub(crate) fn next_look(&self) -> Option<Duration> {
        let answering = self.failing.as_ref().is_some_and(|failing| failing.ready.is_some());
        let due = [self.loss_due(), self.fail_deadline()].into_iter().flatten().min();
        let due = due.map(|due| due.saturating_duration_since(Instant::now()));
        [answering.then_some(TICK), due].into_iter().flatten().min()
    }

    /// When an order to fail is withdrawn, unless the owner has died by then.
    fn fail_deadline(&self) -> Option<Instant> {
        let failing = self.failing.as_ref().filter(|failing| failing.ready.is_none())?;
        let waits = self.supervisor.is_fencing() && self.supervisor.has_backend();
        waits.then_some(failing.ordered + DEATH_TIMEOUT)
    }

    /// Answers the operator, and leaves what is in flight to the successor.
    fn withdraw_fail(&mut self) {
        self.failing = None;
        self.apply(&Event::FailWithdrawn);
        let owner = self.supervisor.owner().and_then(|id| self.peers.get(&id));
        let pid = owner.and_then(Peer::pid).unwrap_or(0);
        let (name, seconds) = (self.device.name(), DEATH_TIMEOUT.as_secs());
        let text = format!(
            "{name}: not answered with EIO: its backend (pid {pid}) was killed and is not dead after \
             {seconds} s: {}. The order is withdrawn: what is unanswered waits for its death, and \
             then for a successor. `nbd-ctl detach --force {name}` gives the device up",
            why_alive(pid)
        );
        self.warn(&text);
        self.answer_waiters(Waits::Fail, &Err(Failure::new(FailureKind::TimedOut, text)));
    }

    /// Lets the stand-in go once it has answered what it was started for.
    pub(crate) fn tend_failing(&mut self) {
        if self.fail_deadline().is_some_and(|deadline| Instant::now() >= deadline) {
            self.withdraw_fail();
        }
        let Some(ready) = self.failing.as_ref().and_then(|failing| failing.ready) else {
            return;
        };
        let left = self.in_flight();
        let idle = left.is_empty() && self.device.waiting() == 0;
        let errors = self.totals().errors;
        let Some(failing) = self.failing.as_mut().filter(|failing| failing.done.is_none()) else {
            return;
        };
        let noted = left.into_iter().any(|it| failing.noted.contains(&(it.lane, it.cookie)));
        if noted || (!idle && ready.elapsed() < GRACE) {
            return;
        }
        let answered = errors.saturating_sub(failing.errors_before).max(failing.noted.len() as u64);
        failing.done = Some(format!(
            "{}: {answered} requests were answered with EIO; later ones are served or wait as usual",
            self.device.name()
        ));
        failing.ready = None;
        self.apply(&Event::FailDone);
    }

    /// When requests have waited for a backend for as long as they are to.
    fn loss_due(&self) -> Option<Instant> {
        let since = self.unserved_since.filter(|_| self.attached && self.failed.is_none())?;
        let limit = self.settings.on_backend_loss.limit()?;
        let due = since + limit;
        let due = self.stand_in_due.map_or(due, |other| due.max(other));
        self.supervisor.is_unserved().then_some(due)
    }

    /// Has requests answered with EIO if the operator wants that after so long.
    pub(crate) fn tend_loss(&mut self) {
        if self.loss_due().is_some_and(|due| Instant::now() >= due) {
            let seconds = self.unserved_since.map_or(0, |since| since.elapsed().as_secs());
            // Not again for each time that what answers with EIO could not be started.
            if self
                .stand_in_due
                .is_none_or(|due| self.unserved_since.is_some_and(|since| due < since))
            {
                tracing::warn!(
                    device = %self.device.name(),
                    event = "unserved",
                    seconds,
                    "there has been no backend for {seconds} s"
                );
            }
            self.apply(&Event::Unserved);
        }
    }
}

/// What keeps a killed process from dying.
fn why_alive(pid: i32) -> String {
    match process::tracer(pid) {
        Some(tracer) => format!("pid {tracer} traces it and keeps it"),
        None => "it waits in the kernel for its own storage".into(),
    }
}
