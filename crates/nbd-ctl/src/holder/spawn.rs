//! Starting a holder, and listening to it until its device is ready.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nbd_control::control::Report;
use nbd_control::{Channel, ChannelError};

use crate::context::{Context, Received, eprint};
use crate::error::Error;
use crate::program;

/// How long a holder may take to tear down what it has begun.
const TEARDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// A holder that was started and has not said yet what came of it.
#[derive(Debug)]
pub(crate) struct Starting<'a> {
    context: &'a Context,
    program: String,
    child: Child,
    channel: Channel,
    /// The same connection, to shut it down.
    stream: UnixStream,
}

/// What a holder said.
#[derive(Debug)]
pub(crate) enum Outcome {
    Ready {
        path: String,
    },
    /// It ended without a word.
    Died(Option<ExitStatus>),
    TimedOut,
    Interrupted,
}

/// How a holder ended that we gave up.
#[derive(Debug)]
pub(crate) enum Ending {
    Ended,
    /// It was ready at the same moment, and goes on.
    Ready {
        path: String,
    },
    /// It is still at it.
    Lingers {
        pid: u32,
    },
}

impl<'a> Starting<'a> {
    /// Starts a holder with `arguments`, in `directory` if not here.
    pub(crate) fn spawn(
        context: &'a Context,
        arguments: &[String],
        directory: Option<&Path>,
    ) -> Result<Self, Error> {
        let program = program::holder()?;
        let failed = |source| Error::Start { program: program.clone(), source };
        let (stream, theirs) = UnixStream::pair().map_err(failed)?;
        let channel = stream.try_clone().map_err(failed)?;
        let channel = Channel::new(channel)
            .map_err(|source| Error::Report { program: program.clone(), source })?;
        // A duplicate survives exec. No other process is started while it exists: we have one
        // thread.
        let inherited = nix::unistd::dup(&theirs).map_err(|errno| failed(errno.into()))?;
        let mut command = Command::new(&program);
        command
            .arg("--runtime-dir")
            .arg(context.registry.directory())
            .arg("--report-fd")
            .arg(inherited.as_raw_fd().to_string())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if arguments.iter().any(|argument| argument == "--survive-shutdown") {
            command.arg0("@nbd-kernel-holder");
        }
        if let Some(directory) = directory {
            command.current_dir(directory);
        }
        let child = command.spawn().map_err(failed)?;
        drop((inherited, theirs));
        Ok(Self { context, program, child, channel, stream })
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the report, up to `limit`; notices are passed on.
    pub(crate) fn outcome(&mut self, limit: Duration) -> Result<Outcome, Error> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.context.receive(&mut self.channel, left) {
                Ok(Received::Message(Report::Notice { text })) => eprint(&text),
                Ok(Received::Message(Report::Ready { path })) => {
                    return Ok(Outcome::Ready { path });
                }
                Ok(Received::Message(Report::Failed(failure))) => {
                    return Err(Error::Refused(failure));
                }
                Ok(Received::Nothing) => return Ok(Outcome::TimedOut),
                Ok(Received::Interrupt) => return Ok(Outcome::Interrupted),
                Err(ChannelError::Closed) => return Ok(Outcome::Died(self.exit_status())),
                Err(source) => {
                    self.give_up();
                    return Err(Error::Report { program: self.program.clone(), source });
                }
            }
        }
    }

    /// Hangs up, on which the holder tears everything down, and waits until it has.
    pub(crate) fn give_up(&mut self) -> Ending {
        let _ = self.stream.shutdown(Shutdown::Write);
        let deadline = Instant::now() + TEARDOWN_TIMEOUT;
        let tick = Duration::from_millis(10);
        let mut listening = true;
        while Instant::now() < deadline {
            if listening {
                match self.channel.receive_within(tick) {
                    Ok(received) => match received.message {
                        Report::Ready { path } => return Ending::Ready { path },
                        Report::Notice { text } => eprint(&text),
                        Report::Failed(_) => {}
                    },
                    Err(ChannelError::TimedOut(_)) => {}
                    Err(_) => listening = false,
                }
            } else {
                std::thread::sleep(tick);
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                return Ending::Ended;
            }
        }
        Ending::Lingers { pid: self.child.id() }
    }

    /// How a process that has closed its end of the connection ends.
    fn exit_status(&mut self) -> Option<ExitStatus> {
        for _ in 0..100 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}
