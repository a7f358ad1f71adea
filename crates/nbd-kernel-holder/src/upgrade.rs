//! The holder becomes another build of itself, and the device does not notice.
//!
//! It becomes it by `execve(2)`: the process stays the parent of its backend, the parent and tracer of
//! its sitter, and the main process of a service. The new program then does what one does that
//! adopts the device, with the state that is written down and the sitter's copies of all
//! descriptors; if it dies of that, the next nbd-ctl adopts the device as ever. Sockets and
//! connections are handed on besides ([`Handover`]), so that nobody is turned away meanwhile.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use nbd_control::Channel;
use nbd_control::control::{Failure, FailureKind};
use nbd_control::handover::{Handover, abilities};
use nbd_control::registry::Registry;
use nbd_control::service;
use nbd_ledger::layout;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::holder::Holder;
use crate::kernel::errand::Errand;
use crate::supervisor::Event;
use crate::system::{self, Process};

/// How long the new program may take to tell what it can do.
const CHECK: Duration = Duration::from_secs(10);
/// How long a backend that is just being started or replaced is waited for.
const SETTLE: Duration = Duration::from_secs(10);

fn other(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Other, text)
}

/// What a program says that is asked whether it could take over a device.
pub(crate) fn answer(registry: &Registry, index: u32) -> Result<String, String> {
    match registry.read_state(index) {
        Ok(Some(_)) => Ok(abilities(layout::VERSION)),
        Ok(None) => Err(format!("nbd{index} is not attached")),
        Err(error) => Err(format!("the state of nbd{index} cannot be read: {error}")),
    }
}

impl Holder {
    /// Becomes `program`; what comes back is why it did not.
    pub(crate) fn upgrade(&mut self, client: u64, program: &str) -> Failure {
        let name = self.device.name();
        match self.try_upgrade(client, program) {
            Err(Failure { kind, text }) => {
                let text = format!("the present holder goes on: {text}");
                self.log(&text);
                Failure::new(kind, format!("{name}: {text}"))
            }
        }
    }

    fn try_upgrade(&mut self, client: u64, program: &str) -> Result<Infallible, Failure> {
        self.check_new_program(program)?;
        let settled = self.pump_until(Some(SETTLE), None, |holder| {
            holder.supervisor.is_settled() || holder.not_now().is_some()
        });
        if let Some(text) = self.not_now() {
            return Err(Failure::new(FailureKind::Busy, text));
        }
        if !settled || self.pending_detach.is_some() {
            let text = "somebody is about to serve the device, or to detach it: try again";
            return Err(Failure::new(FailureKind::Busy, text));
        }
        self.check_unstopped()?;
        if self.sitter_gone {
            return Err(other("its sitter is gone, who had what is handed on: detach at leisure"));
        }
        if !self.save_state() {
            return Err(other("its state cannot be written"));
        }
        self.become_program(client, program)
    }

    /// Has the new program look at what it would take over, before anything is given up for it.
    fn check_new_program(&mut self, program: &str) -> Result<(), Failure> {
        let asked = self.ask(program);
        let (child, mut answer) =
            asked.map_err(|error| other(format!("{program} cannot be run: {error}")))?;
        let status = self.run_errand(Ok(Errand::program(child)), CHECK);
        let mut said = String::new();
        let _ = answer.rewind().and_then(|()| answer.read_to_string(&mut said));
        let said = said.trim();
        let wanted = abilities(layout::VERSION);
        match status {
            Some(0) if said == wanted => Ok(()),
            None => Err(other(format!("{program} did not answer within {} s", CHECK.as_secs()))),
            Some(_) => Err(other(format!(
                "{program} cannot take over: asked whether it {wanted:?}, it said {said:?}; \
                 detach and attach anew to change to it"
            ))),
        }
    }

    /// Starts a program that is to tell whether it could take over, and where it will have told.
    fn ask(&self, program: &str) -> std::io::Result<(Process, File)> {
        let answer = File::from(memfd_create(c"answer", MFdFlags::MFD_CLOEXEC)?);
        let child = Command::new(program)
            .arg("--runtime-dir")
            .arg(self.registry.directory())
            .arg("--can-take-over")
            .arg(self.device.name())
            .env_remove(service::SOCKET)
            .stdin(Stdio::null())
            .stdout(answer.try_clone()?)
            .stderr(answer.try_clone()?)
            .spawn()?;
        Ok((Process::open(child.id().cast_signed())?, answer))
    }

    /// The last steps. Nothing in here waits, so nothing changes meanwhile.
    fn become_program(&mut self, client: u64, program: &str) -> Result<Infallible, Failure> {
        let handover = self.leave_the_rest(client);
        let failed = |error: &dyn std::fmt::Display| other(format!("cannot hand over: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(|error| failed(&error))?;
        let descriptors = self.to_hand_on(&handover, client);
        let sent = Channel::new(ours).and_then(|ours| ours.send(&handover, &descriptors));
        sent.map_err(|error| failed(&error))?;
        let theirs = OwnedFd::from(theirs);
        let mut arguments = vec![self.word_for_us(program)];
        let directory = self.registry.directory().to_string_lossy().into_owned();
        let number = theirs.as_raw_fd().to_string();
        arguments.extend(["--runtime-dir".into(), directory, "--take-over".into(), number]);
        if let Some(level) = &self.settings.log_level {
            arguments.extend(["--log-level".into(), level.clone()]);
        }
        let words = arguments.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        let words = words.map_err(|error| failed(&error))?;
        let path = CString::new(program).map_err(|error| failed(&error))?;
        self.log(&format!("becoming {program}"));
        self.log_sink.drain_all();
        nbd_log::finish();
        let errno = self.execute(&path, &words, &theirs)?;
        Err(other(format!("{program} cannot be run: {errno}")))
    }

    /// Replaces this program by another one, which inherits one descriptor; back here only if it
    /// cannot. Signals that come from now on wait for the new program; those that have come are in
    /// pipes that it does not have, so they are dealt with before.
    fn execute(
        &mut self,
        path: &CString,
        words: &[CString],
        descriptor: &OwnedFd,
    ) -> Result<Errno, Failure> {
        let mut before = SigSet::empty();
        let blocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before));
        self.take_signals();
        let result = self.check_unstopped().map(|()| {
            let executed = blocked
                .and_then(|()| system::inherit(descriptor.as_fd()))
                .and_then(|()| nix::unistd::execv(path, words));
            match executed {
                Err(errno) => errno,
                Ok(never) => match never {},
            }
        });
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        result
    }

    fn check_unstopped(&self) -> Result<(), Failure> {
        match self.interrupted {
            true => {
                Err(Failure::new(FailureKind::Busy, "it was told to stop, and does that first"))
            }
            false => Ok(()),
        }
    }

    fn word_for_us(&self, program: &str) -> String {
        if self.settings.survive_shutdown { "@nbd-kernel-holder".into() } else { program.into() }
    }

    /// Ends the processes that only this holder knows, such as the spare, and notes what the
    /// next one has to know beside the state.
    fn leave_the_rest(&mut self, client: u64) -> Handover {
        let owner = self.supervisor.owner();
        let idle: Vec<_> = self.peers.keys().copied().filter(|id| Some(*id) != owner).collect();
        for id in idle {
            self.drop_peer(id);
            self.apply(&Event::Gone { peer: id });
        }
        let backend = owner.and_then(|id| self.peers.get(&id));
        Handover {
            index: self.device.index,
            client: self.clients.contains_key(&client),
            backend: backend
                .and_then(|peer| peer.channel.as_ref())
                .is_some_and(Channel::is_at_rest),
            joined: self.supervisor.has_joined(),
            orphans: self.orphans.iter().map(|orphan| orphan.pid.as_raw()).collect(),
        }
    }

    fn to_hand_on(&self, handover: &Handover, client: u64) -> Vec<BorrowedFd<'_>> {
        let owner = self.supervisor.owner().and_then(|id| self.peers.get(&id));
        let backend = owner.and_then(|peer| peer.channel.as_ref()).filter(|_| handover.backend);
        let client = self.clients.get(&client).map(|client| &client.channel);
        let sockets = [&self.control, &self.join].into_iter().flatten().map(AsFd::as_fd);
        let connections = [backend, client].into_iter().flatten().map(AsFd::as_fd);
        // The lock belongs to the open folder, and so does not end while it changes hands. Older
        // builds leave what comes last alone.
        sockets.chain(connections).chain([self.lock.as_fd()]).collect()
    }
}

/// From here on signals arrive; see [`Holder::execute`].
pub(crate) fn admit_signals() {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}
