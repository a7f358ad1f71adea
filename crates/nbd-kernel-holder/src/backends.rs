//! Conversations with backends: introductions, grants, keepsakes, and their ends.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nbd_control::ChannelError;
use nbd_control::backend::{ExportInfo, FromBackend, FromHolder, Grant, Hello};
use nbd_control::channel::Received;
use nbd_control::control::{Failure, FailureKind};
use nbd_ledger::{Inspector, Ledger, layout};
use nbd_proto::TransmissionFlags;
use nbd_record::CAPTURE_FD_NAME;
use nix::sys::socket::UnixCredentials;

use crate::control::Waits;
use crate::holder::Holder;
use crate::kernel::sitter::MOST_KEEPSAKES;
use crate::lanes;
use crate::peers::{Peer, check_export};
use crate::retry::Subject;
use crate::supervisor::{Event, PeerId};
use crate::system::Process;

/// How long a program that closed its connection may take to end.
const LAST_BREATH: Duration = Duration::from_millis(200);
const LONGEST_NAME: usize = 32;

impl Holder {
    /// A peer has sent something, or closed.
    pub(crate) fn hear_peer(&mut self, id: PeerId) {
        loop {
            let Some(peer) = self.peers.get_mut(&id) else {
                return;
            };
            let Some(channel) = &mut peer.channel else {
                return;
            };
            match channel.try_receive::<FromBackend>() {
                Ok(None) => return,
                Ok(Some(received)) => self.take_message(id, received),
                Err(error) => return self.peer_closed(id, &error),
            }
        }
    }

    fn take_message(&mut self, id: PeerId, received: Received<FromBackend>) {
        let is_owner = self.supervisor.owner() == Some(id);
        match received.message {
            // It has the lanes, so it must not be forgotten, whatever it says.
            FromBackend::Hello(_) | FromBackend::Examine if is_owner => {
                self.warn("ignored: the backend introduced itself twice");
            }
            FromBackend::Hello(hello) => self.take_hello(id, hello),
            FromBackend::Keep { name } if is_owner => {
                let mut descriptors = received.descriptors;
                let answer = match self.keep(name, descriptors.pop()) {
                    Ok(()) => FromHolder::Kept,
                    Err(reason) => FromHolder::Refusal { reason },
                };
                self.send(id, &answer);
            }
            FromBackend::Ready { replayed } if is_owner => self.take_ready(id, replayed),
            FromBackend::Poisoned(poison) if is_owner => self.take_poison(&poison),
            FromBackend::Failed { reason, damaged } => {
                // Of one that was not granted the lanes it is told at its end.
                if is_owner {
                    self.complain(Subject::Backend, &format!("the backend failed: {reason}"));
                }
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.last_words = Some(reason.clone());
                }
                if damaged && is_owner && self.attached {
                    self.fail_device(&reason);
                }
            }
            FromBackend::Examine => self.show_stored(id),
            FromBackend::Keep { .. } | FromBackend::Ready { .. } | FromBackend::Poisoned(_) => {
                self.refuse(id, "only the backend that was granted the lanes may say that");
            }
        }
    }

    fn send(&mut self, id: PeerId, message: &FromHolder) {
        let channel = self.peers.get(&id).and_then(|peer| peer.channel.as_ref());
        if let Some(Err(error)) = channel.map(|channel| channel.send(message, &[])) {
            self.peer_closed(id, &error);
        }
    }

    pub(crate) fn refuse(&mut self, id: PeerId, reason: &str) {
        if self.complaints.is_new(Subject::Refused, reason) {
            tracing::warn!(
                device = %self.device.name(),
                event = "backend-refused",
                "refused a backend: {reason}"
            );
        }
        self.last_failure = reason.into();
        if let Some(channel) = self.peers.get(&id).and_then(|peer| peer.channel.as_ref()) {
            let _ = channel.send(&FromHolder::Refusal { reason: reason.into() }, &[]);
        }
        self.drop_peer(id);
        self.apply(&Event::Gone { peer: id });
    }

    fn take_hello(&mut self, id: PeerId, hello: Hello) {
        let takeover = hello.takeover;
        let checked = self.check_hello(id, &hello);
        match checked.and_then(|process| self.check_growth(id, &hello).map(|()| process)) {
            Err(reason) => self.refuse(id, &reason),
            Ok(process) => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.process = Some(process);
                    peer.hello = Some(hello);
                }
                self.apply(&Event::Hello { peer: id, takeover });
                if self.supervisor.spare() == Some(id) && self.complaints.clear(Subject::Spare) {
                    self.log("a spare backend is ready again");
                }
            }
        }
    }

    /// Who has spoken, if they may serve the device.
    fn check_sender(&self, peer: &Peer) -> Result<UnixCredentials, String> {
        let sender = peer.channel.as_ref().and_then(nbd_control::Channel::sender);
        let sender = sender.ok_or("the kernel does not vouch for it")?;
        let user = self.settings.user.as_ref().map(|(_, uid, _)| uid.as_raw());
        match sender.uid() == 0 || Some(sender.uid()) == user {
            true => Ok(sender),
            false => Err(format!("user {} may not serve this device", sender.uid())),
        }
    }

    /// Lets a backend look at what its predecessors left, before it introduces itself.
    fn show_stored(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let refused = match self.check_sender(peer) {
            _ if peer.hello.is_some() => Some("only before it introduces itself".to_owned()),
            checked => checked.err(),
        };
        if let Some(reason) = refused {
            return self.refuse(id, &reason);
        }
        let names = self.keepsakes.iter().map(|(name, _)| name.clone()).collect();
        let (device, attached) = (self.device.name(), self.sitter.is_some());
        let stored = FromHolder::Stored { device, attached, names };
        let descriptors: Vec<_> = self.keepsakes.iter().map(|(_, fd)| fd.as_fd()).collect();
        let sent = peer.channel.as_ref().map(|channel| channel.send(&stored, &descriptors));
        if let Some(Err(error)) = sent {
            self.peer_closed(id, &error);
        }
    }

    fn check_hello(&self, id: PeerId, hello: &Hello) -> Result<Process, String> {
        let peer = self.peers.get(&id).ok_or("it is gone")?;
        if peer.hello.is_some() {
            return Err("it introduced itself twice".into());
        }
        let sender = self.check_sender(peer)?;
        if hello.ledger_version != layout::VERSION {
            let (theirs, ours) = (hello.ledger_version, layout::VERSION);
            return Err(format!(
                "it was built for ledger version {theirs} and not {ours}: build it with this release"
            ));
        }
        if peer.stand_in {
            return open(sender.pid());
        }
        check_export(&hello.export).map_err(|what| format!("{}: {what}", hello.description))?;
        let fits = |expected: &ExportInfo| {
            let size = expected.size.min(hello.export.size);
            ExportInfo { size, ..hello.export } == *expected
        };
        if let Some(expected) = self.export.filter(|expected| !fits(expected)) {
            let (found, name) = (&hello.export, self.device.name());
            return Err(if found.size >= expected.size {
                format!(
                    "{}: block size {} and flags {:#x}, but {name} was attached with {} and {:#x}",
                    hello.description,
                    found.block_size,
                    found.flags,
                    expected.block_size,
                    expected.flags
                )
            } else {
                format!(
                    "{}: {} bytes, but {name} has {}: make it as large, or first `nbd-ctl resize {name}`",
                    hello.description, found.size, expected.size
                )
            });
        }
        open(sender.pid())
    }

    /// Gives the lanes away. Nobody else has them: the supervisor saw the last owner dead.
    pub(crate) fn grant(&mut self, id: PeerId) {
        if let Err(text) = self.make_ledger(id) {
            self.hopeless.get_or_insert(text);
            return;
        }
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        if !peer.stand_in {
            self.note_surplus(peer);
            self.description = peer.description();
        }
        // First written down, then done: a holder that adopts the device must know of everybody
        // who may have the lanes, or it would give them to a second one.
        match self.save_state() {
            true => self.finish_grant(id),
            false => self.hold_grant(id),
        }
    }

    /// The last step of a grant, when the state that names the backend is written.
    pub(crate) fn finish_grant(&mut self, id: PeerId) {
        if let Some(Err(error)) = self.send_grant(id) {
            self.peer_closed(id, &error);
        }
    }

    fn send_grant(&self, id: PeerId) -> Option<Result<(), ChannelError>> {
        let peer = self.peers.get(&id)?;
        let keepsakes = self.keepsakes.iter().map(|(name, fd)| (&**name, fd));
        // A stand-in executes nothing, so there is nothing to execute again.
        let recording = self.recording.as_ref().filter(|_| !peer.stand_in);
        let recording = recording.map(|recording| (CAPTURE_FD_NAME, &recording.file));
        let (names, kept): (Vec<_>, Vec<_>) = keepsakes.chain(recording).unzip();
        let grant = FromHolder::Grant(Grant {
            device: self.device.name(),
            lanes: self.layout.lanes,
            ring: self.layout.ring,
            transmit: self.layout.transmit,
            max_payload: self.layout.max_payload,
            keepsakes: names.into_iter().map(Into::into).collect(),
            crashed: self.history.loss.as_ref().is_some_and(|loss| loss.crashed),
            poison_limit: self.settings.poison_limit,
        });
        let mut descriptors = vec![self.ledger.as_ref()?.as_fd()];
        descriptors.extend(self.lanes.iter().map(AsFd::as_fd));
        descriptors.extend(kept.into_iter().map(AsFd::as_fd));
        let channel = peer.channel.as_ref()?;
        Some(channel.send(&grant, &descriptors))
    }

    /// The first backend decides what the device looks like.
    fn make_ledger(&mut self, id: PeerId) -> Result<(), String> {
        if self.ledger.is_some() {
            return Ok(());
        }
        let hello = self.peers.get(&id).and_then(|peer| peer.hello.as_ref());
        let export = hello.ok_or("no export")?.export;
        let several = TransmissionFlags::from_bits(export.flags);
        if self.layout.lanes > 1 && !several.contains(TransmissionFlags::CAN_MULTI_CONN) {
            self.notice("the backend cannot serve several lanes, so there is one");
            self.layout.lanes = 1;
        }
        let ledger = Ledger::create(&self.layout).map_err(|error| error.to_string())?;
        let copy = ledger.try_clone().map_err(|error| error.to_string())?;
        let inspector = Inspector::open(copy, &self.layout).map_err(|error| error.to_string())?;
        self.inspector = Some(inspector);
        self.ledger = Some(ledger);
        self.export = Some(export);
        self.make_lanes()
    }

    /// New socket pairs. The kernel's ends wait in `kernel_ends` for the sitter.
    pub(crate) fn make_lanes(&mut self) -> Result<(), String> {
        let (ours, kernels) = lanes::create(self.layout.lanes)
            .map_err(|error| format!("cannot make socket pairs: {error}"))?;
        self.lanes = ours;
        self.kernel_ends = kernels;
        Ok(())
    }

    fn keep(&mut self, name: String, fd: Option<std::os::fd::OwnedFd>) -> Result<(), String> {
        let fd = fd.ok_or("a keepsake without a descriptor")?;
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(format!("a keepsake's name has 1 to {LONGEST_NAME} bytes"));
        }
        if name == CAPTURE_FD_NAME {
            return Err(format!(
                "{CAPTURE_FD_NAME} is what a recording of the operator's is called"
            ));
        }
        if self.sitter.is_some() {
            return Err("keepsakes are taken only before the device is attached".into());
        }
        self.keepsakes.retain(|(kept, _)| *kept != name);
        if self.keepsakes.len() == MOST_KEEPSAKES {
            return Err(format!("more than {MOST_KEEPSAKES} keepsakes"));
        }
        self.keepsakes.push((name, fd));
        Ok(())
    }

    fn take_ready(&mut self, id: PeerId, replayed: u32) {
        if self.peers.get(&id).is_some_and(|peer| peer.stand_in) {
            self.apply(&Event::Ready { peer: id });
            return self.stand_in_ready();
        }
        self.unserved_since = None;
        if let Some(loss) = &mut self.history.loss {
            loss.replayed = Some(replayed);
        }
        self.settle_replacement(id);
        self.apply(&Event::Ready { peer: id });
        let pid = self.peers.get(&id).and_then(Peer::pid).unwrap_or(0);
        if self.attached && !self.is_on_probation() {
            let recovered_ms = self.recovery().and_then(|recovery| recovery.ready_ms);
            tracing::info!(
                device = %self.device.name(),
                event = "recovered",
                pid,
                replayed,
                recovered_ms,
                "served by process {pid} again; {replayed} requests replayed"
            );
        }
        let text = format!("{} is served by process {pid}", self.device.name());
        for waits in [Waits::Start, Waits::Backend] {
            self.answer_waiters(waits, &Ok(text.clone()));
        }
    }

    /// A new program that has got as far as serving is the device's program from now on.
    fn settle_replacement(&mut self, id: PeerId) {
        let served = self.peers.get(&id).map(|peer| &peer.program);
        if self.replacing.is_some() && self.replacing.as_ref() == served {
            self.settings.program = self.replacing.take().unwrap_or_default();
            self.supervisor.set_has_program();
            self.save_state();
        }
    }

    pub(crate) fn peer_closed(&mut self, id: PeerId, error: &ChannelError) {
        let is_owner = self.supervisor.owner() == Some(id);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.channel = None;
        peer.closed_at = Some(Instant::now());
        if is_owner {
            // Dying, most probably. What counts is its process, see `check_fence`.
            return;
        }
        peer.reap(LAST_BREATH);
        let reason = match (&peer.last_words, &peer.ended) {
            (Some(words), _) => words.clone(),
            (None, Some(ending)) => format!("the backend {ending} before it introduced itself"),
            (None, None) => format!("the backend left before it was served: {error}"),
        };
        let text = match peer.last_words {
            Some(_) => reason,
            None => self.with_last_words(id, &reason),
        };
        self.peer_failed(id, text);
        self.drop_peer(id);
        self.apply(&Event::Gone { peer: id });
    }

    /// Why a peer is given up that has never had the lanes. A spare's failure is not the device's.
    pub(crate) fn peer_failed(&mut self, id: PeerId, text: String) {
        match self.supervisor.is_spare(id) {
            true => self.complain(Subject::Spare, &format!("the spare backend: {text}")),
            false => self.note_failure(text),
        }
    }

    /// Ends the lanes of a device that no backend can serve: what is in flight gets EIO.
    pub(crate) fn fail_device(&mut self, reason: &str) {
        tracing::error!(
            device = %self.device.name(),
            event = "failed",
            "the device has failed: {reason}; detach it and attach it anew"
        );
        self.failed = Some(reason.into());
        for lane in &self.lanes {
            lanes::end(lane.as_fd());
        }
        let failure = Err(Failure::new(FailureKind::Other, reason));
        for waits in [Waits::Start, Waits::Backend, Waits::Pause, Waits::Fail] {
            self.answer_waiters(waits, &failure);
        }
    }
}

fn open(pid: i32) -> Result<Process, String> {
    Process::open(pid).map_err(|error| format!("process {pid}: {error}"))
}
