//! The holder becomes another build of itself, and the device does not notice.
//!
//! It becomes it by `execve(2)`: the process stays the parent of its backend, the parent and tracer of
//! its sitter, and the main process of a service. The new program then does what one does that
//! adopts the device, with the state that is written down and the sitter's copies of all
//! descriptors; if it dies of that, the next nbd-ctl adopts the device as ever. Sockets and
//! connections are handed on besides ([`Handover`]), so that no client is turned away meanwhile.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nbd_control::Channel;
use nbd_control::handover::{Handover, abilities};
use nbd_control::registry::Registry;
use nbd_control::system_error::explain;
use nbd_ledger::layout;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::core::{ClientId, Event};
use crate::holder::Holder;
use crate::system;

/// What a program says that is asked whether it could take over a device.
pub(crate) fn answer(registry: &Registry, index: u32) -> Result<String, String> {
    match registry.read_state(index) {
        Ok(Some(_)) => Ok(abilities(layout::VERSION)),
        Ok(None) => Err(format!("nbd{index} is not attached")),
        Err(error) => Err(format!("the state of nbd{index} cannot be read: {error}")),
    }
}

/// What is made of a program's answer to whether it could take over.
///
/// # Errors
///
/// It cannot, in words.
pub(crate) fn judge_answer(program: &str, status: i32, said: &str) -> Result<(), String> {
    let wanted = abilities(layout::VERSION);
    match status == 0 && said == wanted {
        true => Ok(()),
        false => Err(format!(
            "{program} cannot take over: asked whether it {wanted:?}, it said {said:?}; \
             detach and attach anew to change to it"
        )),
    }
}

impl Holder {
    /// Becomes another program. Back here only if that fails.
    pub(crate) fn become_program(&mut self, client: ClientId, program: &str) {
        self.told.failures.upgrade = match self.try_become(client, program) {
            Ok(errno) => format!("{program} cannot be run: {}", explain(&errno.into())),
            Err(text) => text,
        };
        self.feed(Event::NotBecome);
    }

    /// The last steps. Nothing in here waits, so nothing changes meanwhile.
    fn try_become(&mut self, client: ClientId, program: &str) -> Result<Errno, String> {
        let handover = self.leave_the_rest(client);
        let failed =
            |error: &dyn std::fmt::Display| format!("cannot hand over to the new program: {error}");
        let (ours, theirs) = UnixStream::pair().map_err(|error| failed(&error))?;
        let descriptors = self.to_hand_on(&handover, client);
        let sent = Channel::new(ours).and_then(|ours| ours.send(&handover, &descriptors));
        sent.map_err(|error| failed(&error))?;
        let theirs = OwnedFd::from(theirs);
        let mut arguments = vec![self.argv0(program)];
        let directory = self.place.registry.directory().to_string_lossy().into_owned();
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
        self.exec(&path, &words, &theirs)
    }

    /// Replaces this program by another one, which inherits one descriptor; back here only if it
    /// cannot. Signals that come from now on wait for the new program; those that have come are in
    /// pipes that it does not have, so they are dealt with before.
    fn exec(
        &mut self,
        path: &CString,
        words: &[CString],
        descriptor: &OwnedFd,
    ) -> Result<Errno, String> {
        let mut before = SigSet::empty();
        let blocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before));
        let taken = self.place.signals.take();
        if taken.child {
            self.release_sitter();
        }
        let result = match taken.stop {
            true => Err("it was told to stop and does that first".to_owned()),
            false => {
                let executed = blocked
                    .and_then(|()| system::inherit(descriptor.as_fd()))
                    .and_then(|()| nix::unistd::execv(path, words));
                match executed {
                    Err(errno) => Ok(errno),
                    Ok(never) => match never {},
                }
            }
        };
        if let Err(errno) = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None) {
            self.warn(&format!("cannot unblock signals: {}", explain(&errno.into())));
        }
        if taken.stop {
            self.feed(Event::Stop);
        }
        result
    }

    fn argv0(&self, program: &str) -> String {
        if self.settings.survive_shutdown { "@nbd-kernel-holder".into() } else { program.into() }
    }

    /// Ends the processes that only this holder knows, such as the spare, and notes what the
    /// next one has to know beside the state.
    fn leave_the_rest(&mut self, client: ClientId) -> Handover {
        let owner = self.core.ownership.owner();
        let idle: Vec<_> =
            self.processes.backends.keys().copied().filter(|id| Some(*id) != owner).collect();
        for id in idle {
            self.drop_backend(id);
            self.feed(Event::Gone { backend: id });
        }
        // Others would be closed in the kernel's exec, which can take as long as they like.
        let others = self.clients.keys().copied().filter(|id| *id != client);
        for id in others.collect::<Vec<_>>() {
            self.forget_client(id);
        }
        let backend = owner.and_then(|id| self.processes.backends.get(&id));
        Handover {
            index: self.device.index,
            client: self.clients.contains_key(&client),
            backend: backend
                .and_then(|backend| backend.channel.as_ref())
                .is_some_and(Channel::is_at_rest),
            joined: self.core.ownership.has_joined(),
            orphans: self.processes.orphans.iter().map(|orphan| orphan.pid.as_raw()).collect(),
        }
    }

    fn to_hand_on(&self, handover: &Handover, client: ClientId) -> Vec<BorrowedFd<'_>> {
        let owner = self.core.ownership.owner().and_then(|id| self.processes.backends.get(&id));
        let backend =
            owner.and_then(|backend| backend.channel.as_ref()).filter(|_| handover.backend);
        let client = self.clients.get(&client).map(|client| &client.channel);
        let sockets =
            [&self.sockets.control, &self.sockets.join].into_iter().flatten().map(AsFd::as_fd);
        let connections = [backend, client].into_iter().flatten().map(AsFd::as_fd);
        // The lock belongs to the open folder, and so does not end while it changes hands. Older
        // builds leave what comes last alone.
        sockets.chain(connections).chain([self.place.lock.as_fd()]).collect()
    }
}

/// From here on signals arrive; see [`Holder::exec`].
///
/// # Errors
///
/// The kernel refuses, and the process could not be told to stop.
pub(crate) fn admit_signals() -> nix::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}
