//! Conversations with backends: introductions, grants, stored descriptors, and their ends.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nbd_control::ChannelError;
use nbd_control::backend::{ExportInfo, FromBackend, FromHolder, Grant, Hello, Poison};
use nbd_control::channel::{Received, Sender};
use nbd_control::size::Size;
use nbd_control::system_error::explain;
use nbd_control::text::one_line;
use nbd_ledger::{Inspector, Ledger, layout};
use nbd_proto::TransmissionFlags;
use nbd_record::CAPTURE_FD_NAME;

use crate::core::{BackendId, Event};
use crate::ending::Ending;
use crate::holder::Holder;
use crate::holder::backend_process::{BackendProcess, check_export};
use crate::holder::connection::allow_close;
use crate::holder::lanes;
use crate::holder::outage::Subject;
use crate::io::abilities::differences;
use crate::kernel::sitter::MAX_STORED_FDS;
use crate::system::Process;

/// How long a program that closed its connection may take to end.
const REAP_TIMEOUT: Duration = Duration::from_millis(200);
const MAX_NAME: usize = 32;
/// Most messages that are heard of a process that has ended.
const MAX_LAST_MESSAGES: usize = 1024;

impl Holder {
    /// A backend has sent something, or closed. One message is taken: others are served in between, however
    /// much it sends.
    pub(crate) fn on_backend_readable(&mut self, id: BackendId) {
        self.receive_from_backend(id);
    }

    /// What a process that has ended had sent before.
    pub(crate) fn drain_messages(&mut self, id: BackendId) {
        for _ in 0..MAX_LAST_MESSAGES {
            if !self.receive_from_backend(id) {
                return;
            }
        }
    }

    /// Whether there was a message.
    fn receive_from_backend(&mut self, id: BackendId) -> bool {
        let is_owner = self.core.ownership.owner() == Some(id);
        let backend = self.processes.backends.get_mut(&id);
        let Some(channel) = backend.and_then(|backend| backend.channel.as_mut()) else {
            return false;
        };
        // Descriptors come with what is kept only, which is before it serves.
        let may_keep = is_owner && !self.core.ownership.is_ready();
        channel.set_max_descriptors(usize::from(may_keep));
        match channel.try_receive::<FromBackend>() {
            Ok(None) => return false,
            Ok(Some(received)) => self.take_message(id, received),
            Err(error) => self.backend_closed(id, &error),
        }
        true
    }

    fn take_message(&mut self, id: BackendId, received: Received<FromBackend>) {
        let is_owner = self.core.ownership.owner() == Some(id);
        let Received { message, descriptors } = received;
        allow_close(&descriptors);
        match message {
            // It has the lanes, so it must not be forgotten, whatever it says.
            FromBackend::Hello(_) | FromBackend::Examine if is_owner => {
                self.warn("ignored: the backend said Hello twice");
            }
            FromBackend::Hello(hello) => self.take_hello(id, hello),
            FromBackend::Keep { name } if is_owner => {
                let answer = match self.keep(name, descriptors.into_iter().next()) {
                    Ok(()) => FromHolder::Kept,
                    Err(reason) => FromHolder::Refusal { reason },
                };
                self.send(id, &answer);
            }
            FromBackend::Ready { replayed } if is_owner => self.take_ready(id, replayed),
            FromBackend::Poisoned(poison) if is_owner => self.on_poisoned(id, &poison),
            FromBackend::Failed { reason, damaged } => {
                let reason = one_line(&reason);
                // Of one that was not granted the lanes it is told at its end.
                if is_owner {
                    self.complain(Subject::Backend, &format!("the backend failed: {reason}"));
                }
                if let Some(backend) = self.processes.backends.get_mut(&id) {
                    backend.last_words = Some(reason.clone());
                }
                if damaged && is_owner && self.core.is_attached() {
                    self.told.failures.device = Some(reason);
                    self.feed(Event::LedgerDamaged);
                }
            }
            FromBackend::Examine => self.show_stored(id),
            FromBackend::Left if is_owner => self.owner_left(id),
            FromBackend::Keep { .. }
            | FromBackend::Ready { .. }
            | FromBackend::Poisoned(_)
            | FromBackend::Left => {
                self.refuse(id, "only the backend that has the lanes may say that");
            }
        }
    }

    fn send(&mut self, id: BackendId, message: &FromHolder) {
        let channel = self.processes.backends.get(&id).and_then(|backend| backend.channel.as_ref());
        if let Some(Err(error)) = channel.map(|channel| channel.send(message, &[])) {
            self.backend_closed(id, &error);
        }
    }

    pub(crate) fn refuse(&mut self, id: BackendId, reason: &str) {
        if self.told.complaints.is_new(Subject::Refused, reason) {
            tracing::warn!(
                device = %self.device.name(),
                event = "backend-refused",
                "refused a backend: {reason}"
            );
        }
        self.told.failures.backend = reason.into();
        if let Some(channel) =
            self.processes.backends.get(&id).and_then(|backend| backend.channel.as_ref())
        {
            // It may have gone; it is forgotten either way, and the reason is in the log.
            let _ = channel.send(&FromHolder::Refusal { reason: reason.into() }, &[]);
        }
        self.drop_backend(id);
        self.feed(Event::Gone { backend: id });
    }

    /// A backend names what it gives up before it serves, and no more than can be in flight.
    fn on_poisoned(&mut self, id: BackendId, poison: &Poison) {
        let most = self.data.layout.lanes * layout::SLOTS;
        let is_recovering = !self.core.ownership.is_ready();
        let backend = self.processes.backends.get_mut(&id);
        let Some(backend) = backend.filter(|it| is_recovering && it.poisoned < most) else {
            return self.complain(
                Subject::Backend,
                "ignored: the backend gives up more requests than there can be",
            );
        };
        backend.poisoned += 1;
        self.take_poison(poison);
    }

    fn take_hello(&mut self, id: BackendId, mut hello: Hello) {
        hello.description = one_line(&hello.description);
        match self.check_hello(id, &hello) {
            Err(reason) => self.refuse(id, &reason),
            Ok(process) => {
                let (takeover, size) = (hello.takeover, hello.export.size);
                if let Some(backend) = self.processes.backends.get_mut(&id) {
                    backend.process = Some(process);
                    backend.hello = Some(hello);
                }
                self.feed(Event::Hello { backend: id, takeover, size });
            }
        }
    }

    /// The process that has spoken, if it may serve the device.
    fn check_sender<'a>(&self, backend: &'a BackendProcess) -> Result<&'a Sender, String> {
        let sender = backend.channel.as_ref().and_then(nbd_control::Channel::sender);
        let sender = sender.ok_or("the kernel does not tell which process it is")?;
        let user = self.settings.user.as_ref().map(|(_, uid, _)| uid.as_raw());
        let uid = sender.credentials.uid();
        match uid == 0 || Some(uid) == user {
            true => Ok(sender),
            false => Err(format!(
                "user {uid} may not serve this device: attach it with --user, or run the backend as root"
            )),
        }
    }

    /// Lets a backend look at what its predecessors left, before it introduces itself.
    fn show_stored(&mut self, id: BackendId) {
        let Some(backend) = self.processes.backends.get(&id) else {
            return;
        };
        let refused = match self.check_sender(backend) {
            _ if backend.hello.is_some() => Some("only before its Hello".to_owned()),
            checked => checked.err(),
        };
        if let Some(reason) = refused {
            return self.refuse(id, &reason);
        }
        let names = self.data.fd_store.iter().map(|(name, _)| name.clone()).collect();
        let (device, attached) = (self.device.name(), self.processes.sitter.is_some());
        let stored = FromHolder::Stored { device, attached, names };
        let descriptors: Vec<_> = self.data.fd_store.iter().map(|(_, fd)| fd.as_fd()).collect();
        let sent = backend.channel.as_ref().map(|channel| channel.send(&stored, &descriptors));
        if let Some(Err(error)) = sent {
            self.backend_closed(id, &error);
        }
    }

    fn check_hello(&self, id: BackendId, hello: &Hello) -> Result<Process, String> {
        let backend = self.processes.backends.get(&id).ok_or("it is gone")?;
        if backend.hello.is_some() {
            return Err("it said Hello twice".into());
        }
        let sender = self.check_sender(backend)?;
        if hello.ledger_version != layout::VERSION {
            let (theirs, ours) = (hello.ledger_version, layout::VERSION);
            return Err(format!(
                "it was built for ledger version {theirs}, and this holder needs {ours}: build it with this release"
            ));
        }
        if backend.answers_eio {
            return backend.open_sender(sender);
        }
        check_export(&hello.export).map_err(|what| format!("{}: {what}", hello.description))?;
        let fits = |expected: &ExportInfo| {
            let size = expected.size.min(hello.export.size);
            ExportInfo { size, ..hello.export } == *expected
        };
        if let Some(expected) = self.data.export.filter(|expected| !fits(expected)) {
            let (found, name) = (&hello.export, self.device.name());
            return Err(if found.size >= expected.size {
                format!(
                    "{}: {}: serve it with the options that it had, or detach {name} first",
                    hello.description,
                    differences(found, &expected, &name)
                )
            } else {
                format!(
                    "{}: {} bytes, but {name} has {}: make it as large, or first `nbd-ctl resize {name}`",
                    hello.description, found.size, expected.size
                )
            });
        }
        backend.open_sender(sender)
    }

    /// The first backend decides what the device looks like.
    pub(crate) fn prepare_grant(&mut self, id: BackendId) {
        if let Err(text) = self.make_ledger(id) {
            self.told.failures.setup.text = text;
            return self.feed(Event::LanesNotMade);
        }
        let Some(backend) = self.processes.backends.get(&id).filter(|it| !it.answers_eio) else {
            return;
        };
        self.note_surplus(backend);
        self.data.description = backend.description();
    }

    /// Gives the lanes away: the last owner is dead, and the state that names this one is written.
    pub(crate) fn grant(&mut self, id: BackendId) {
        match self.send_grant(id) {
            Some(Ok(())) => {}
            Some(Err(error)) => self.backend_closed(id, &error),
            // It has closed its connection meanwhile: without the lanes it is of no use, and another one
            // gets them when it is dead.
            None => {
                if let Some(backend) = self.processes.backends.get(&id) {
                    backend.kill();
                }
            }
        }
    }

    fn send_grant(&self, id: BackendId) -> Option<Result<(), ChannelError>> {
        let backend = self.processes.backends.get(&id)?;
        let stored = self.data.fd_store.iter().map(|(name, fd)| (&**name, fd));
        // An EIO backend executes nothing, so there is nothing to execute again.
        let recording = self.data.recording.as_ref().filter(|_| !backend.answers_eio);
        let recording = recording.map(|recording| (CAPTURE_FD_NAME, &recording.file));
        let (names, kept): (Vec<_>, Vec<_>) = stored.chain(recording).unzip();
        let layout = &self.data.layout;
        let grant = FromHolder::Grant(Grant {
            device: self.device.name(),
            lanes: layout.lanes,
            ring: layout.ring,
            transmit: layout.transmit,
            max_payload: layout.max_payload,
            keepsakes: names.into_iter().map(Into::into).collect(),
            crashed: self.told.history.loss.as_ref().is_some_and(|loss| loss.crashed),
            poison_limit: self.settings.poison_limit,
        });
        let mut descriptors = vec![self.data.ledger.as_ref()?.as_fd()];
        descriptors.extend(self.data.lanes.iter().map(AsFd::as_fd));
        descriptors.extend(kept.into_iter().map(AsFd::as_fd));
        let channel = backend.channel.as_ref()?;
        Some(channel.send(&grant, &descriptors))
    }

    fn make_ledger(&mut self, id: BackendId) -> Result<(), String> {
        if self.data.ledger.is_some() {
            return Ok(());
        }
        let hello = self.processes.backends.get(&id).and_then(|backend| backend.hello.as_ref());
        let export = hello.ok_or("no export")?.export;
        let several = TransmissionFlags::from_bits(export.flags);
        if self.data.layout.lanes > 1 && !several.contains(TransmissionFlags::CAN_MULTI_CONN) {
            self.notice("the backend cannot serve several lanes, so there is one");
            self.data.layout.lanes = 1;
        }
        let layout = &self.data.layout;
        let ledger = Ledger::create(layout).map_err(|error| error.to_string())?;
        let copy = ledger.try_clone().map_err(|error| error.to_string())?;
        let inspector = Inspector::open(copy, layout).map_err(|error| error.to_string())?;
        let (ours, kernels) = lanes::create(layout.lanes)
            .map_err(|error| format!("cannot make socket pairs: {}", explain(&error)))?;
        self.data.inspector = Some(inspector);
        self.data.ledger = Some(ledger);
        self.data.export = Some(export);
        self.data.lanes = ours;
        // They wait for the sitter.
        self.data.kernel_ends = kernels;
        Ok(())
    }

    /// Tells of what a backend offers beyond the device.
    fn note_surplus(&self, backend: &BackendProcess) {
        let (Some(hello), Some(export)) = (&backend.hello, self.data.export) else {
            return;
        };
        let (name, theirs) = (self.device.name(), hello.export.size);
        if theirs > export.size {
            let (theirs, ours) = (Size(theirs), Size(export.size));
            self.log(&format!("{} has {theirs}, and the device keeps its {ours} until `nbd-ctl resize {name} --to-backend`", hello.description));
        }
    }

    fn keep(&mut self, name: String, fd: Option<OwnedFd>) -> Result<(), String> {
        let fd = fd.ok_or("a name to store without a descriptor")?;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(format!("a stored descriptor's name has 1 to {MAX_NAME} bytes"));
        }
        if name == CAPTURE_FD_NAME {
            return Err(format!("the name {CAPTURE_FD_NAME} is reserved for recordings"));
        }
        if self.processes.sitter.is_some() {
            return Err("descriptors are stored only before the device is attached".into());
        }
        self.data.fd_store.retain(|(kept, _)| *kept != name);
        if self.data.fd_store.len() == MAX_STORED_FDS {
            return Err(format!("more than {MAX_STORED_FDS} stored descriptors"));
        }
        self.data.fd_store.push((name, fd));
        Ok(())
    }

    fn take_ready(&mut self, id: BackendId, replayed: u32) {
        let answers_eio = self.processes.backends.get(&id).is_some_and(|it| it.answers_eio);
        if let Some(loss) = self.told.history.loss.as_mut().filter(|_| !answers_eio) {
            loss.replayed = Some(replayed);
        }
        self.feed(Event::Ready { backend: id });
    }

    pub(crate) fn backend_closed(&mut self, id: BackendId, error: &ChannelError) {
        let is_owner = self.core.ownership.owner() == Some(id);
        let Some(backend) = self.processes.backends.get_mut(&id) else {
            return;
        };
        let channel = backend.channel.take();
        backend.closed_at = Some(Instant::now());
        backend.close_reason = Some(error.to_string());
        // The owner is dying, most probably: what counts is its process, see `check_fence`. Of others the
        // exit status is worth a short wait.
        let is_gone = !is_owner && {
            backend.reap();
            backend.child.is_none()
        };
        if let Some(channel) = channel {
            self.let_go(channel);
        }
        if is_gone {
            self.backend_gone(id);
        }
    }

    /// When a backend that has closed its connection is forgotten, however its process ends.
    pub(crate) fn next_close(&self) -> Option<Instant> {
        let owner = self.core.ownership.owner();
        let closing = self.processes.backends.iter().filter(|(id, _)| Some(**id) != owner);
        closing.filter_map(|(_, backend)| backend.closed_at).min().map(|at| at + REAP_TIMEOUT)
    }

    pub(crate) fn check_closed(&mut self) {
        let owner = self.core.ownership.owner();
        let late = self.processes.backends.iter().filter(|(id, _)| Some(**id) != owner);
        let late =
            late.filter(|(_, it)| it.closed_at.is_some_and(|at| at.elapsed() >= REAP_TIMEOUT));
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.backend_gone(id);
        }
    }

    /// A backend that has never had the lanes has closed its connection, or its process has ended.
    pub(crate) fn backend_gone(&mut self, id: BackendId) {
        let Some(backend) = self.processes.backends.get_mut(&id) else {
            return;
        };
        backend.reap();
        let error = backend.close_reason.take().unwrap_or_else(|| ChannelError::Closed.to_string());
        let ending = backend.death.ending.clone();
        let text = match backend.last_words.clone() {
            Some(words) => words,
            None => self.why_gone(id, ending.as_ref(), &error),
        };
        self.backend_failed(id, text);
        self.drop_backend(id);
        self.feed(Event::Gone { backend: id });
    }

    /// Why a backend is gone that has not said it.
    fn why_gone(&mut self, id: BackendId, ending: Option<&Ending>, error: &str) -> String {
        let Some(ending) = ending else {
            let reason = format!("the backend closed its connection before it was ready: {error}");
            return self.with_last_words(id, &reason);
        };
        let reason = format!("{} before it joined the device", ending.sentence("the backend"));
        let mut text = self.with_last_words(id, &reason);
        // A program that ends by itself without a word may have been meant for something else.
        if matches!(ending, Ending::Exited(_)) && text == reason {
            text.push_str(
                ". A program after `--` must speak the backend protocol, nbd-backend-protocol(7); \
                 one that speaks NBD is attached by `nbd-ctl attach 'exec:PROGRAM'`",
            );
        }
        text
    }

    /// Why a backend is given up that has never had the lanes. A spare's failure is not the device's.
    pub(crate) fn backend_failed(&mut self, id: BackendId, text: String) {
        match self.core.ownership.is_spare(id) {
            true => self.complain(Subject::Spare, &format!("the spare backend: {text}")),
            false => self.note_failure(text),
        }
    }
}
