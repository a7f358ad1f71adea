//! From a program to a device that can be used.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind, Report};
use nix::errno::Errno;

use crate::args::KernelApi;
use crate::device_users::words_for;
use crate::holder::{Holder, describe_errno, listen};
use crate::kernel::errand::{self, Errand};
use crate::kernel::limits::DIFFERENCES;
use crate::kernel::sitter::{self, Setup, SetupError};
use crate::peers::Peer;

/// How long the driver may take to set a device up.
const DRIVER: Duration = Duration::from_secs(10);
/// How long a passing user, like udev, may keep a free device open.
const USERS: Duration = Duration::from_secs(3);
/// How long udev may take to look at a new device. Late is no failure.
const UDEV: Duration = Duration::from_secs(10);
/// How long the kernel may take for an attribute of the queue.
const QUEUE: Duration = Duration::from_secs(5);
/// No descriptor tells of changes in /sys.
const TICK: Duration = Duration::from_millis(1);

/// Why attaching failed.
#[derive(Debug)]
pub(crate) enum AttachError {
    /// Somebody else was faster with this device; another one may do.
    Taken(Failure),
    /// It cannot be done.
    Failed(Failure),
    /// The operator changed their mind.
    Interrupted,
}

impl AttachError {
    fn failed(text: String) -> Self {
        Self::Failed(Failure::new(FailureKind::Other, text))
    }

    fn timed_out(text: String) -> Self {
        Self::Failed(Failure::new(FailureKind::TimedOut, text))
    }
}

impl Holder {
    /// Does everything, and leaves nothing behind if it fails.
    pub(crate) fn attach(&mut self, control: UnixListener, given: bool) -> Result<(), AttachError> {
        self.control = Some(control);
        let result = self.try_attach(given);
        if result.is_err() {
            crate::clear_away(self);
        }
        result
    }

    fn try_attach(&mut self, given: bool) -> Result<(), AttachError> {
        self.admit_group().map_err(|error| AttachError::failed(format!("--group: {error}")))?;
        let owner = self.settings.user.as_ref().map(|(_, uid, gid)| (*uid, *gid));
        let socket = self.registry.join_socket(self.device.index);
        let join = listen(&socket, owner);
        self.join = Some(
            join.map_err(|error| AttachError::failed(format!("{}: {error}", socket.display())))?,
        );
        let begun = Instant::now();
        tracing::info!(
            device = %self.device.name(),
            event = "attach",
            kernel_api = self.settings.api.name(),
            program = self.settings.program.join(" "),
            "being attached"
        );
        self.await_backend()?;
        self.tell_udev_name();
        self.connect_kernel(given)?;
        self.test_read()?;
        // udev opens a device when it appears; whoever uses it at the same moment gets EBUSY.
        if !self.settle_udev(UDEV) {
            self.notice("udev has not settled; the device may be busy for a moment");
        }
        if self.interrupted {
            return Err(AttachError::Interrupted);
        }
        self.attached = true;
        self.supervisor.set_attached(0);
        self.persist()?;
        self.pass_on_words();
        let export = self.export();
        tracing::info!(
            device = %self.device.name(),
            event = "ready",
            export = %self.description,
            size = export.size,
            block_size = export.block_size,
            lanes = self.lanes.len(),
            backend = self.supervisor.owner().and_then(|id| self.peers.get(&id)).and_then(Peer::pid),
            took_ms = begun.elapsed().as_millis() as u64,
            "{} can be used",
            self.device.path().display()
        );
        Ok(())
    }

    fn await_backend(&mut self) -> Result<(), AttachError> {
        let name = self.device.name();
        if self.settings.program.is_empty() {
            self.notice(&format!(
                "{name} waits for its backend: run `nbd-serve --join {name} SPEC`, or NBD_JOIN={name} PROGRAM"
            ));
        } else {
            self.start_program();
        }
        let patience = self.settings.patience;
        let came = self.pump_until(patience, None, |holder| {
            holder.supervisor.is_ready() || holder.hopeless.is_some() || holder.interrupted
        });
        if self.interrupted {
            return Err(AttachError::Interrupted);
        }
        if let Some(reason) = self.hopeless.take() {
            return Err(AttachError::failed(reason));
        }
        if !came {
            let seconds = patience.unwrap_or_default().as_secs();
            let text = format!(
                "no backend was ready within {seconds} s: see that the program joins its holder, or raise --ready-timeout"
            );
            return Err(AttachError::timed_out(self.with_words_of_backends(&text)));
        }
        Ok(())
    }

    fn connect_kernel(&mut self, given: bool) -> Result<(), AttachError> {
        // Before the first request, where the device exists already.
        if self.device.exists() {
            self.silence_timeouts();
        }
        let (Some(ledger), Some(export)) = (&self.ledger, self.export) else {
            return Err(AttachError::failed("no export".into()));
        };
        // Without a given device another one is there at once.
        let users = if given { USERS } else { Duration::ZERO };
        let started = sitter::start(&Setup {
            device: &self.device,
            api: self.settings.api,
            export,
            ledger: std::os::fd::AsFd::as_fd(ledger),
            lanes: &self.lanes,
            kernel_ends: &self.kernel_ends,
            keepsakes: &self.keepsakes,
            patience: users,
            log_pipes: &self.log_sink.descriptors(),
        });
        // Only the driver shall hold these, or a closed lane would never look closed.
        self.kernel_ends.clear();
        let failed = |error| AttachError::failed(format!("cannot fork the sitter: {error}"));
        self.sitter = Some(started.map_err(failed)?);
        self.send_sitter()?;
        self.pump_until(Some(DRIVER + users), None, |holder| holder.sitter_said.is_some());
        match self.sitter_said.take() {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                if error.errno == Errno::EBUSY {
                    // Nothing in the driver is ours, so the teardown must not touch it.
                    self.orphans.extend(self.sitter.take().map(|sitter| sitter.process));
                }
                return Err(self.refused_by_driver(&error));
            }
            None => {
                return Err(AttachError::timed_out(format!(
                    "the driver did not set {} up within {} s",
                    self.device.name(),
                    (DRIVER + users).as_secs()
                )));
            }
        }
        self.pump_until(Some(DRIVER), Some(TICK), |holder| {
            holder.device.is_connected(export.size) || holder.sitter_gone
        });
        let why = match (self.sitter_gone, self.device.is_connected(export.size)) {
            (true, _) => "the driver gave it up at once; see the kernel log",
            (_, false) => "it shows another size than was set",
            (false, true) => "",
        };
        if !why.is_empty() {
            return Err(AttachError::failed(format!("{}: {why}", self.device.name())));
        }
        if self.io_timeout.is_none() {
            self.silence_timeouts();
        }
        self.compare_limits();
        // With the timeout, which a device that was just made did not have before.
        self.persist()
    }

    /// If this process dies from here on, another one can adopt the device.
    fn send_sitter(&mut self) -> Result<(), AttachError> {
        let persisted = self.persist();
        let Some(sitter) = &mut self.sitter else {
            return persisted;
        };
        if persisted.is_err() {
            sitter.dismiss();
        }
        persisted?;
        // If it is dead, its progress tells.
        match sitter.go() {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(AttachError::failed(format!("cannot let the sitter go: {error}")))
            }
            _ => Ok(()),
        }
    }

    fn persist(&mut self) -> Result<(), AttachError> {
        match self.save_state() {
            true => Ok(()),
            false => Err(AttachError::failed(format!(
                "{}: {}: make room there; without it no other holder could take over",
                self.device.name(),
                self.state_error()
            ))),
        }
    }

    fn silence_timeouts(&mut self) {
        let errand = errand::silence_timeouts(&self.device);
        let error = match self.ask_errand(errand, QUEUE) {
            Some((0, before)) => {
                self.io_timeout = Some(before);
                return;
            }
            Some((status, _)) => describe_errno(status),
            None => "the kernel has not done it in time",
        };
        self.notice(&format!(
            "cannot set queue/io_timeout ({error}): the driver will complain about requests that wait for longer than 30 s, and with several lanes drop one"
        ));
    }

    /// Tells the operator what the kernel makes of the device beyond what its export offers.
    fn compare_limits(&mut self) {
        let errand = errand::compare_limits(&self.device, self.export());
        let Some((0, found)) = self.ask_errand(errand, QUEUE) else {
            return self.warn("cannot compare what the kernel sends with what the export offers");
        };
        let name = self.device.name();
        for (_, meaning) in DIFFERENCES.iter().filter(|(bit, _)| found & bit != 0) {
            self.notice(&format!(
                "{name}: the kernel {meaning} (it may keep what an earlier export has set)"
            ));
        }
    }

    fn explain_setup(&self, error: &SetupError) -> String {
        let SetupError { step, errno } = error;
        match errno {
            Errno::EPERM | Errno::EACCES => format!("{step}: {errno}: run this as root"),
            Errno::EINVAL if step.contains("SIZE") => {
                format!("{step}: the driver does not take {} bytes", self.export().size)
            }
            _ => format!("{step}: {errno}"),
        }
    }

    fn refused_by_driver(&mut self, error: &SetupError) -> AttachError {
        let name = self.device.name();
        let text = format!("{name}: {}", self.explain_setup(error));
        if error.errno == Errno::EBUSY {
            let users = match self.device.setup_pid() {
                None => self.remaining_users(QUEUE),
                Some(_) => Vec::new(),
            };
            let text = match users.is_empty() {
                true => format!("{text}: another program is setting it up"),
                false => format!(
                    "{text}: it is {}, and the driver sets up no device that is open: end that \
                     first, or take another one",
                    words_for(&users).0
                ),
            };
            return AttachError::Taken(Failure::new(FailureKind::Busy, text));
        }
        AttachError::failed(text)
    }

    /// Runs an errand, letting the loop turn meanwhile; the result is its status, or nothing if it
    /// takes too long and is left behind.
    pub(crate) fn run_errand(
        &mut self,
        errand: std::io::Result<Errand>,
        limit: Duration,
    ) -> Option<i32> {
        self.ask_errand(errand, limit).map(|(status, _)| status)
    }

    /// The same for an errand that is to find something out; status and value.
    fn ask_errand(
        &mut self,
        errand: std::io::Result<Errand>,
        limit: Duration,
    ) -> Option<(i32, u64)> {
        let Ok(errand) = errand else {
            return Some((libc::EAGAIN, 0));
        };
        self.errand_report = None;
        self.errand = Some(errand);
        self.pump_until(Some(limit), None, |holder| holder.errand_report.is_some());
        self.leave_errand();
        self.errand_report.take()
    }

    /// Leaves an errand behind that takes too long. It may sit in an uninterruptible call; it dies
    /// when that returns, doing no more.
    pub(crate) fn leave_errand(&mut self) {
        if let Some(late) = self.errand.take() {
            if let Err(error) = late.process.kill() {
                self.warn(&format!("helper process {}: {error}", late.process.pid));
            }
            self.orphans.push(late.process);
        }
    }

    fn test_read(&mut self) -> Result<(), AttachError> {
        let patience = self.settings.patience.unwrap_or(Duration::from_secs(3600));
        let errand = errand::test_read(&self.device, self.export().block_size);
        let path = self.device.path();
        match self.run_errand(errand, patience) {
            Some(0) => Ok(()),
            _ if self.interrupted => Err(AttachError::Interrupted),
            Some(status) => {
                let errno = describe_errno(status);
                let text = format!("a test read of {} failed: {errno}", path.display());
                Err(AttachError::failed(self.with_words_of_backends(&text)))
            }
            None => {
                let seconds = patience.as_secs();
                let text =
                    format!("a test read of {} got no answer within {seconds} s", path.display());
                Err(AttachError::timed_out(self.with_words_of_backends(&text)))
            }
        }
    }

    /// A sentence about an attach that has failed, with what the backend, which lives, said last.
    fn with_words_of_backends(&mut self, text: &str) -> String {
        match self.log_sink.all_words().pop() {
            Some(words) => format!("{text}; the backend said: {words}"),
            None => text.into(),
        }
    }

    /// What the backend had to say while the operator is still watching.
    fn pass_on_words(&mut self) {
        for text in self.log_sink.all_words() {
            self.report(&Report::Notice { text });
        }
    }

    pub(crate) fn is_netlink(&self) -> bool {
        self.settings.api == KernelApi::Netlink
    }
}
