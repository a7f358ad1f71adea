//! What the core wants done: each command is carried out here, or in the module that it is handed to.
//! What comes of it is an event.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nbd_control::history::Loss;
use nbd_control::system_error::{explain, explain_as};
use nbd_ledger::Inspector;
use nix::fcntl::{Flock, FlockArg};

use crate::core::event::Refusal;
use crate::core::{BackendId, Command, Event, Program};
use crate::holder::Holder;
use crate::holder::backend_process::BackendProcess;
use crate::holder::lanes;
use crate::holder::outage::Subject;
use crate::holder::program::{self, BuildId, Start, Started};
use crate::kernel::sitter::{self, Setup};
use crate::sandbox::SandboxPlan;
use crate::view::clock::monotonic;
use crate::view::outage::is_shortage;

/// What a program is started as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `probe`: it is asked for its present size; `examine`: another one lives.
    Backend {
        probe: bool,
        examine: bool,
    },
    EioBackend,
}

impl Holder {
    /// Tells the core what has happened, and does what it wants done.
    pub(crate) fn feed(&mut self, event: Event) {
        self.events.queue.push_back(event);
        if self.events.is_draining {
            return;
        }
        self.events.is_draining = true;
        while let Some(event) = self.events.queue.pop_front() {
            for command in self.core.handle(&event, Instant::now()) {
                self.execute(command);
            }
        }
        self.events.is_draining = false;
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::StartProgram { backend, program, probe, examine } => {
                self.start_program(backend, program, probe, examine);
            }
            Command::StartSpare { backend } => self.start_spare(backend),
            Command::StartEioBackend { backend } => self.start_eio_backend(backend),
            Command::PrepareGrant { backend } => self.prepare_grant(backend),
            Command::Grant { backend } => self.grant(backend),
            Command::Refuse { backend, why } => self.refuse_backend(backend, why),
            Command::Dismiss { backend } => self.drop_backend(backend),
            Command::KillOwner => self.kill_owner(),
            Command::KillBackends => self.kill_backends(),
            Command::SetProgram { program } => self.settings.program = program,
            Command::PersistState { revision } => self.persist_state(revision),
            Command::SetSize { size } => {
                if let Some(export) = &mut self.data.export {
                    export.size = size;
                }
            }
            Command::StartHelper { id, task } => self.start_helper(id, task),
            Command::LeaveHelper { id } => self.leave_helper(id),
            Command::OpenJoin => self.open_join(),
            Command::CloseJoin => self.sockets.join = None,
            Command::StartSitter => self.start_sitter(),
            Command::LetSitterGo => self.let_sitter_go(),
            Command::DismissSitter => {
                if let Some(sitter) = &mut self.processes.sitter {
                    sitter.dismiss();
                }
            }
            Command::ForgetSitter => {
                let sitter = self.processes.sitter.take();
                self.processes.orphans.extend(sitter.map(|sitter| sitter.process));
            }
            Command::KillSitter => self.kill_sitter(),
            Command::EndLanes => self.end_lanes(),
            Command::Survey { note } => self.survey(note),
            Command::NoteTotals { given_up } => self.note_totals(given_up),
            Command::RemoveEntry => self.remove_entry(),
            Command::Reply { client, reply } => self.send_reply(client, &reply),
            Command::Note(note) => self.write_note(note),
            Command::BecomeProgram { client, program } => self.become_program(client, &program),
        }
    }

    fn start_program(
        &mut self,
        backend: BackendId,
        program: Option<Program>,
        probe: bool,
        examine: bool,
    ) {
        let program = program.unwrap_or_else(|| self.settings.program.clone());
        let name = program.first().cloned().unwrap_or_default();
        let role = Role::Backend { probe, examine };
        if let Some(error) = self.launch(backend, &program, role) {
            self.note_failure(format!("cannot start {name}: {}", self.explain_start(&error)));
            self.start_failed(backend, &error);
        }
    }

    /// It is the backend's user that may not run a program.
    fn explain_start(&self, error: &std::io::Error) -> String {
        match &self.settings.user {
            Some((user, ..)) => explain_as(error, &format!("user {user}")),
            None => explain(error),
        }
    }

    fn start_spare(&mut self, backend: BackendId) {
        let program = self.settings.program.clone();
        let role = Role::Backend { probe: false, examine: true };
        if let Some(error) = self.launch(backend, &program, role) {
            self.complain(
                Subject::Spare,
                &format!("cannot start a spare backend: {}", self.explain_start(&error)),
            );
            self.start_failed(backend, &error);
        }
    }

    fn start_eio_backend(&mut self, backend: BackendId) {
        let program = ["/proc/self/exe", "--stand-in"].map(String::from);
        if let Some(error) = self.launch(backend, &program, Role::EioBackend) {
            let text = format!("cannot start the EIO backend: {}", explain(&error));
            self.complain(Subject::EioBackend, &text);
            self.told.failures.backend = text;
            self.start_failed(backend, &error);
        }
    }

    fn start_failed(&mut self, backend: BackendId, error: &io::Error) {
        self.feed(Event::StartFailed { backend, shortage: is_shortage(error) });
    }

    /// Starts a program; the result is why it could not be.
    fn launch(&mut self, id: BackendId, program: &[String], role: Role) -> Option<io::Error> {
        match self.start(id, program, role) {
            Ok(process) => {
                let pid = process.pid();
                tracing::debug!(device = %self.device.name(), pid, ?program, "a backend is started");
                self.processes.backends.insert(id, process);
                None
            }
            Err(error) => Some(error),
        }
    }

    fn start(
        &mut self,
        id: BackendId,
        program: &[String],
        role: Role,
    ) -> io::Result<BackendProcess> {
        let build = BuildId::of(program);
        let answers_eio = role == Role::EioBackend;
        let (grows, examines) = match role {
            Role::Backend { probe, examine } => (probe, examine),
            Role::EioBackend => (false, false),
        };
        // Another program has to show that it fits; the present one's storage may have grown.
        let is_known = answers_eio || program == self.settings.program;
        let directory = self.place.registry.directory();
        let sandbox = self.settings.sandbox.filter(|_| !answers_eio);
        let how = Start {
            user: self.backend_user(),
            attached: self.data.export.filter(|_| is_known),
            grows,
            examines,
            survive_shutdown: self.settings.survive_shutdown,
            sandbox: sandbox.map(|sandbox| SandboxPlan::new(sandbox, directory)).transpose()?,
            log: self.open_log(id)?,
        };
        let Started { channel, process } = program::start(program, how)?;
        let process = BackendProcess::new(Some(channel), Some(process));
        Ok(BackendProcess { build, answers_eio, ..process })
    }

    /// Stdout and stderr of a program that is about to be started.
    fn open_log(&mut self, id: BackendId) -> io::Result<File> {
        let user = self.backend_user();
        let backends = &self.processes.backends;
        self.log_sink.open_for(id, user, |backend| backends.contains_key(&backend))
    }

    fn refuse_backend(&mut self, id: BackendId, why: Refusal) {
        let reason = self.refusal_words(why);
        self.refuse(id, &reason);
    }

    fn kill_owner(&mut self) {
        self.processes.fence_looked = Some(Instant::now());
        if let Some(owner) = self.owner() {
            owner.kill();
        }
    }

    /// Also one that is not our child.
    fn kill_backends(&mut self) {
        for mut backend in std::mem::take(&mut self.processes.backends).into_values() {
            backend.kill();
            if let Some(channel) = backend.channel.take() {
                self.let_go(channel);
            }
            self.processes.orphans.extend(backend.into_processes());
        }
    }

    /// Forgets a backend; its process, if it is one of ours, is killed and reaped in time.
    pub(crate) fn drop_backend(&mut self, id: BackendId) {
        let Some(mut backend) = self.processes.backends.remove(&id) else {
            return;
        };
        let channel = backend.channel.take();
        if backend.child.is_some() {
            // Before its connection ends: it would log that as a failure. A program may have been started by
            // another one, like a shell.
            backend.kill();
            self.processes.orphans.extend(backend.into_processes());
        }
        if let Some(channel) = channel {
            self.let_go(channel);
        }
    }

    fn start_sitter(&mut self) {
        self.tell_udev_name();
        let (Some(ledger), Some(export)) = (&self.data.ledger, self.data.export) else {
            self.told.failures.setup.text = "no export".into();
            return self.feed(Event::SitterNotStarted);
        };
        let started = sitter::start(&Setup {
            device: &self.device,
            api: self.settings.api,
            export,
            ledger: ledger.as_fd(),
            lanes: &self.data.lanes,
            kernel_ends: &self.data.kernel_ends,
            stored_fds: &self.data.fd_store,
            users_timeout: self.core.users_timeout(),
            log_pipes: &self.log_sink.descriptors(),
        });
        // Only the driver shall hold these, or a closed lane would never look closed.
        self.data.kernel_ends.clear();
        match started {
            Ok(sitter) => self.processes.sitter = Some(sitter),
            Err(error) => {
                self.told.failures.setup.text =
                    format!("cannot fork the sitter: {}", explain(&error));
                self.feed(Event::SitterNotStarted);
            }
        }
    }

    fn let_sitter_go(&mut self) {
        let Some(sitter) = &mut self.processes.sitter else {
            return;
        };
        match sitter.go() {
            // If it is dead, its progress tells.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                self.told.failures.setup.text =
                    format!("cannot start the sitter: {}", explain(&error));
                self.feed(Event::SitterNotStarted);
            }
            _ => {}
        }
    }

    fn kill_sitter(&self) {
        if let Some(sitter) = &self.processes.sitter
            && let Err(error) = sitter.process.kill()
            // It has ended already.
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            self.warn(&format!("cannot kill the sitter: {}", explain(&error)));
        }
    }

    fn end_lanes(&mut self) {
        for lane in &self.data.lanes {
            lanes::end(lane.as_fd());
        }
    }

    /// The registry is locked: a holder that picks a device must not find an entry that is half gone.
    fn remove_entry(&mut self) {
        let registry = &self.place.registry;
        let lock = registry.lock_file().map(|file| Flock::lock(file, FlockArg::LockExclusive));
        if !matches!(lock, Ok(Ok(_))) {
            self.warn("cannot lock the registry to remove its entry");
        }
        self.sockets.control = None;
        // What the folder keeps of the log is complete.
        self.log_sink.drain_all();
        if let Err(error) = self.place.registry.remove(self.device.index) {
            self.warn(&format!("cannot remove its registry entry: {}", explain(&error)));
        }
    }

    /// How many have taken the ledger over.
    pub(crate) fn generation(&self) -> u64 {
        let header = self.data.inspector.as_ref().map(Inspector::header);
        header.map_or(0, |header| header.generation.load(Ordering::Acquire))
    }

    /// Whether the present backend has taken over what the last lost one left.
    pub(crate) fn has_recovered(&self) -> bool {
        let lost = self.told.history.loss.as_ref();
        lost.is_none_or(|loss| self.generation() > loss.generation)
    }

    /// Whether the latest backend has answered anything.
    pub(crate) fn has_answered(&self) -> bool {
        let header = self.data.inspector.as_ref().map(Inspector::header);
        header.is_some_and(|header| header.first_answer_at.load(Ordering::Relaxed) != 0)
    }

    /// Notes how the owner was lost.
    pub(crate) fn note_loss(&mut self, cause: String, crashed: bool) {
        let generation = self.generation();
        self.told.history.loss =
            Some(Loss { cause, crashed, at: monotonic(), generation, replayed: None });
    }

    /// An EIO backend is no successor, and its end is no crash of the device's backend.
    pub(crate) fn skip_generation(&mut self) {
        let generation = self.generation();
        if let Some(loss) = &mut self.told.history.loss {
            loss.generation = generation;
            loss.crashed = false;
        }
    }

    /// Why an attached device only awaits its detach, in words.
    pub(crate) fn failure_words(&self) -> Option<String> {
        self.core.failed().map(|_| self.told.failures.device.clone().unwrap_or_default())
    }
}
