//! Another size for a device that is in use.
//!
//! At no time is the device larger than what its backend serves. To grow, a backend that has looked
//! at its storage anew comes first, in the way of every replacement, and then the driver is told. To
//! shrink, the driver is told, and the backend may go on serving more than that.

use std::cmp::Ordering;
use std::time::Duration;

use nbd_control::backend::{ExportInfo, Hello};
use nbd_control::control::{Failure, FailureKind, Response};
use nbd_control::size::Size;
use nbd_control::status::BackendState;

use crate::holder::Holder;
use crate::kernel::errand::{self, Resized};
use crate::peers::{Peer, check_export};
use crate::supervisor::{Event, PeerId};

/// A request that has waited for so many milliseconds may wait for ever, and newer drivers wait for
/// all of them before they take another size.
const STALLED: u64 = 5_000;
/// How long a backend may take to look at its storage and come into its predecessor's place.
const LOOK: Duration = Duration::from_secs(45);
/// How long the driver may take.
const DRIVER: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(2);
/// How long requests that are in flight may take to be answered before the driver is told.
const ANSWERS: Duration = Duration::from_secs(5);
const ANSWERS_TICK: Duration = Duration::from_millis(20);
/// How long udev may take to look at the device again. Late is no failure.
const UDEV: Duration = Duration::from_secs(3);

/// What a client wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resize {
    pub(crate) client: u64,
    /// In bytes; nothing for what the backend has by now.
    size: Option<u64>,
    force: bool,
}

/// A backend on its way that was asked for its present size.
#[derive(Debug)]
pub(crate) struct Growing {
    /// Less is of no use.
    least: u64,
    pub(crate) peer: Option<PeerId>,
    /// What it has said.
    offered: Option<u64>,
}

fn busy(text: String) -> Failure {
    Failure::new(FailureKind::Busy, text)
}

impl Holder {
    pub(crate) fn order_resize(&mut self, client: u64, size: Option<u64>, force: bool) {
        let name = self.device.name();
        let detaching = || self.pending_detach.map(|_| format!("{name} is being detached"));
        let refused = self.ordered().or_else(|| self.replacement_under_way()).or_else(detaching);
        match refused {
            Some(text) => self.answer(client, &Response::Failed(busy(text))),
            None => self.pending_resize = Some(Resize { client, size, force }),
        }
    }

    /// Does what was ordered, and tells the client.
    pub(crate) fn settle_resize(&mut self) {
        let Some(asked) = self.pending_resize else {
            return;
        };
        let response = match self.resize(asked) {
            Ok(text) => Response::Done { text },
            Err(failure) => {
                tracing::warn!(
                    device = %self.device.name(),
                    event = "not-resized",
                    "not resized: {}",
                    failure.text
                );
                Response::Failed(failure)
            }
        };
        self.pending_resize = None;
        self.growing = None;
        self.answer(asked.client, &response);
    }

    fn resize(&mut self, asked: Resize) -> Result<String, Failure> {
        let now = self.device.size();
        if let Some(size) = asked.size {
            check_export(&ExportInfo { size, ..self.export() }).map_err(|text| {
                Failure::new(FailureKind::Usage, format!("{}: {text}", self.device.name()))
            })?;
        }
        self.check_served()?;
        let least = asked.size.unwrap_or(now + 1);
        let size = match asked.size {
            Some(size) if size <= now => size,
            _ => {
                let offered = self.offer(least)?;
                asked.size.unwrap_or(offered)
            }
        };
        match size.cmp(&now) {
            Ordering::Equal => {
                return Ok(format!("{} has {} already", self.device.name(), Size(now)));
            }
            Ordering::Less => self.shrink(size, asked.force)?,
            Ordering::Greater => self.grow(size)?,
        }
        self.settle_udev(UDEV);
        let text = format!("{} has {} now, after {}", self.device.name(), Size(size), Size(now));
        tracing::info!(
            device = %self.device.name(),
            event = "resized",
            size,
            before = now,
            "{text}"
        );
        Ok(text)
    }

    /// Nobody resizes a device whose requests wait.
    fn check_served(&mut self) -> Result<(), Failure> {
        let name = self.device.name();
        let status = self.status();
        let stalled = match (status.backend.state, status.in_flight.first()) {
            (BackendState::Running, Some(oldest)) if oldest.age_ms > STALLED => {
                format!("a request has waited for {} s", oldest.age_ms / 1000)
            }
            (BackendState::Running, _) => return Ok(()),
            (state, _) => format!("its backend is {}", format!("{state:?}").to_lowercase()),
        };
        Err(busy(format!(
            "{name} is not resized while it is stalled: {stalled}; see `nbd-ctl why {name}`"
        )))
    }

    /// The size that the backend serves, or one that comes into its place for that; at least
    /// `least`, unless the device has that much already and no more is asked for.
    fn offer(&mut self, least: u64) -> Result<u64, Failure> {
        let name = self.device.name();
        let owner = self.supervisor.owner().and_then(|id| self.peers.get(&id));
        let hello = owner.and_then(|peer| peer.hello.as_ref()).map(|hello| hello.export.size);
        let offered = match self.supervisor.has_joined() {
            false => self.look_again(least)?,
            true => match hello {
                Some(size) if size >= least => return Ok(size),
                _ => {
                    return Err(busy(format!(
                        "{name}: its backend has joined from outside, so it is not asked again: \
                         let one join that has the new size (`nbd-serve --join {name} --takeover SPEC`), \
                         then resize"
                    )));
                }
            },
        };
        let now = self.device.size();
        if offered < least && least != now + 1 {
            let (description, offered, least) = (&self.description, Size(offered), Size(least));
            return Err(Failure::new(
                FailureKind::Other,
                format!(
                    "{name}: what it is made of, {description}, has {offered} and not {least}: \
                     make that larger first (`truncate -s`, `lvextend`, …); memory and cow: keep \
                     their size"
                ),
            ));
        }
        Ok(offered)
    }

    /// Starts the program again to see how large its storage is. It takes over if that is enough.
    fn look_again(&mut self, least: u64) -> Result<u64, Failure> {
        self.log("a backend is started to look how large its storage is by now");
        self.growing = Some(Growing { least, peer: None, offered: None });
        self.due = None;
        self.apply(&Event::Restart);
        let came = self.pump_until(Some(LOOK), None, |holder| {
            !holder.is_growing()
                || holder.is_grown()
                || holder.failed.is_some()
                || holder.is_forced()
        });
        let (name, reason) = (self.device.name(), self.last_failure.clone());
        let Some(growing) = self.growing.take() else {
            return Err(busy(format!("{name}: not resized")));
        };
        let owner = self.supervisor.owner();
        let fail =
            |kind, text: String| Err(Failure::new(kind, format!("{name}: not resized: {text}")));
        match growing.offered {
            _ if self.failed.is_some() => fail(FailureKind::Other, reason),
            _ if self.is_forced() => fail(FailureKind::Busy, "it is being detached".into()),
            Some(offered) if offered < growing.least => Ok(offered),
            Some(offered) if owner.is_some() && owner == growing.peer && self.is_served() => {
                Ok(offered)
            }
            _ if !came => fail(
                FailureKind::TimedOut,
                format!("no backend with its new size has taken over within {} s", LOOK.as_secs()),
            ),
            _ => fail(FailureKind::Other, reason),
        }
    }

    fn is_served(&self) -> bool {
        self.supervisor.is_ready()
    }

    fn is_growing(&self) -> bool {
        let peer = self.growing.as_ref().and_then(|growing| growing.peer);
        peer.is_some_and(|id| self.peers.contains_key(&id))
    }

    fn is_grown(&self) -> bool {
        let peer = self.growing.as_ref().and_then(|growing| growing.peer);
        peer.is_some() && peer == self.supervisor.owner() && self.is_served()
    }

    /// Whether a backend that was asked for its size has enough to be of use.
    pub(crate) fn check_growth(&mut self, id: PeerId, hello: &Hello) -> Result<(), String> {
        let Some(growing) = self.growing.as_mut().filter(|growing| growing.peer == Some(id)) else {
            return Ok(());
        };
        growing.offered = Some(hello.export.size);
        match hello.export.size >= growing.least {
            true => Ok(()),
            false => Err(format!("it has {}, and more is needed", Size(hello.export.size))),
        }
    }

    fn grow(&mut self, size: u64) -> Result<(), Failure> {
        // First written down, so that every successor from now on has enough.
        let before = self.export();
        self.export = Some(ExportInfo { size, ..before });
        if !self.save_state() {
            self.export = Some(before);
            let text = "the holder cannot write its state; see the log";
            return Err(Failure::new(FailureKind::Other, text));
        }
        let told = self.tell_driver(size, false);
        if told.as_ref().is_err_and(|failure| failure.kind != FailureKind::TimedOut) {
            self.export = Some(before);
            self.save_state();
        }
        told
    }

    fn shrink(&mut self, size: u64, force: bool) -> Result<(), Failure> {
        if !force {
            self.check_unused(&format!("it would lose what is beyond {}", Size(size)), "resize")?;
            if self.is_forced() {
                return Err(busy(format!("{}: it is being detached", self.device.name())));
            }
        }
        self.tell_driver(size, !force)?;
        self.export = Some(ExportInfo { size, ..self.export() });
        self.save_state();
        Ok(())
    }

    /// Newer drivers wait, under their lock, for all that is in flight, and let nothing new in: who
    /// waits for a backend that does not answer then waits for ever, and a detach with it. So all
    /// that was sent before must be answered; a backend that answers that answers the rest, too.
    fn await_answers(&mut self) -> Result<(), Failure> {
        let name = self.device.name();
        if let Some(pid) = self.size_change() {
            return Err(busy(format!(
                "{name} is not resized: an earlier change of its size (process {pid}) still waits in \
                 the driver for {} requests; see `nbd-ctl why {name}`",
                self.device.waiting()
            )));
        }
        let noted = self.requests_in_flight();
        let answered = self.pump_until(Some(ANSWERS), Some(ANSWERS_TICK), |holder| {
            holder.requests_in_flight().is_disjoint(&noted) || holder.is_forced()
        });
        if self.is_forced() {
            return Err(busy(format!("{name} is not resized: it is being detached")));
        }
        if answered {
            return Ok(());
        }
        let oldest = self.in_flight().into_iter().next();
        let what = oldest.map_or("a request".into(), |it| {
            let (command, length, offset) = (it.command, it.length, it.offset);
            format!("{command} of {length} bytes at {offset}, sent {} ms ago,", it.age_ms)
        });
        Err(busy(format!(
            "{name} is not resized while it is stalled: {what} is not answered; see `nbd-ctl why {name}`"
        )))
    }

    fn tell_driver(&mut self, size: u64, guard: bool) -> Result<(), Failure> {
        let name = self.device.name();
        let (api, block_size) = (self.settings.api, self.export().block_size);
        self.await_answers()?;
        let errand = errand::resize(&self.device, api, size, block_size, guard);
        let fail =
            |kind, text: String| Err(Failure::new(kind, format!("{name} is not resized: {text}")));
        match self.run_errand(errand, DRIVER).map(Resized::from_status) {
            Some(Resized::Done) => {}
            Some(Resized::Busy) => return fail(FailureKind::Busy, "the kernel uses it".into()),
            Some(Resized::Needed) => {
                return fail(
                    FailureKind::Busy,
                    format!(
                        "a file system or a partition on it needs more than {}: make that smaller \
                         first, or lose what is beyond with --force",
                        Size(size)
                    ),
                );
            }
            Some(Resized::Failed(errno)) => return fail(FailureKind::Other, errno.desc().into()),
            None => {
                return fail(
                    FailureKind::TimedOut,
                    format!(
                        "the driver has not done it within {} s, and may still do it when all that \
                         is in flight is answered: see `nbd-ctl why {name}`",
                        DRIVER.as_secs()
                    ),
                );
            }
        }
        let device = self.device.clone();
        match self.pump_until(Some(DRIVER), Some(TICK), |_| device.size() == size) {
            true => Ok(()),
            false => fail(FailureKind::Other, "the kernel shows another size than was set".into()),
        }
    }

    /// The words for what a backend offers beyond the device.
    pub(crate) fn note_surplus(&self, peer: &Peer) {
        let (Some(hello), Some(export)) = (&peer.hello, self.export) else {
            return;
        };
        let (name, theirs) = (self.device.name(), hello.export.size);
        if theirs > export.size {
            let (theirs, ours) = (Size(theirs), Size(export.size));
            self.log(&format!("{} has {theirs}, and the device keeps its {ours} until `nbd-ctl resize {name} --to-backend`", hello.description));
        }
    }
}
