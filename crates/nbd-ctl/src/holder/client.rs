//! A conversation with the holder of a device.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_control::control::{Request, Response};
use nbd_control::process;
use nbd_control::registry::Registry;
use nbd_control::{Channel, ChannelError};

use crate::context::{Context, Received, eprint, progress};
use crate::device::Device;
use crate::error::Error;
use crate::holder::adopt::adopt;
use crate::holder::device_state::{DeviceState, no_device, probe};
use crate::holder::take_down::clear;

/// How long a holder may be alive without listening.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long another nbd-ctl's adoption may take, if ours has failed.
const OTHER_ADOPTION_TIMEOUT: Duration = Duration::from_millis(500);
/// After how long an operator at a terminal is told what is waited for.
const PROGRESS_DELAY: Duration = Duration::from_secs(1);

/// The holder of a device, at the other end of its control socket.
#[derive(Debug)]
pub(crate) struct HolderClient<'a> {
    pub(crate) context: &'a Context,
    pub(crate) device: Device,
    channel: Channel,
}

impl<'a> HolderClient<'a> {
    /// Connects to a device's holder. A device that has lost its holder gets a new one; a stale
    /// entry is removed.
    pub(crate) fn connect(context: &'a Context, device: Device) -> Result<Self, Error> {
        Self::reach(context, device, true)
    }

    /// The same for those who only look: a stale entry stays.
    pub(crate) fn connect_to_look(context: &'a Context, device: Device) -> Result<Self, Error> {
        Self::reach(context, device, false)
    }

    fn reach(context: &'a Context, device: Device, cleans: bool) -> Result<Self, Error> {
        let mut deadline = Instant::now() + LISTEN_TIMEOUT;
        let mut adopted = false;
        let mut failure = None;
        loop {
            let mut pid = None;
            match probe(&context.registry, device)? {
                DeviceState::Listening(stream) => return Self::over(context, device, stream),
                DeviceState::Absent => return Err(no_device(&context.registry, device)),
                DeviceState::Stale if !cleans || clear(context, device)? => {
                    return Err(Error::Stale { device, cleaned: cleans });
                }
                DeviceState::Abandoned(abandoned) => {
                    return Err(match cleans && clear(context, device)? {
                        true => Error::Stale { device, cleaned: true },
                        false => Error::Abandoned { device, abandoned },
                    });
                }
                DeviceState::Orphaned(state) if !adopted => {
                    adopted = true;
                    match adopt(context, device, &state) {
                        Ok(()) => deadline = Instant::now() + LISTEN_TIMEOUT,
                        Err(error @ (Error::Interrupted(_) | Error::NotRoot { .. })) => {
                            return Err(error);
                        }
                        // Perhaps because another nbd-ctl is adopting it: look again for a while.
                        Err(error) => {
                            failure = Some(error);
                            deadline = Instant::now() + OTHER_ADOPTION_TIMEOUT;
                        }
                    }
                }
                DeviceState::Stale | DeviceState::Orphaned(_) => {}
                DeviceState::Unsettled { holder } => pid = Some(holder),
            }
            if Instant::now() >= deadline {
                return Err(failure.unwrap_or_else(|| Error::Unsettled {
                    device,
                    holder: pid,
                    log: context.registry.log(device.0),
                }));
            }
            if !context.sleep(Duration::from_millis(20)) {
                return Err(Error::Interrupted("nothing is changed".into()));
            }
        }
    }

    /// Begins a conversation.
    pub(crate) fn over(
        context: &'a Context,
        device: Device,
        stream: UnixStream,
    ) -> Result<Self, Error> {
        let channel = Channel::new(stream).map_err(|error| talk(device, error))?;
        Ok(Self { context, device, channel })
    }

    /// Sends a request.
    pub(crate) fn send(&self, request: &Request) -> Result<(), Error> {
        let sent = self.channel.send(request, &[]);
        sent.map_err(|error| talk(self.device, error))
    }

    /// Sends a request that a file belongs to.
    pub(crate) fn send_with(&self, request: &Request, file: &File) -> Result<(), Error> {
        let sent = self.channel.send(request, &[file.as_fd()]);
        sent.map_err(|error| talk(self.device, error))
    }

    /// The answer to a request that was sent; `limit` is that of the whole wait. `doing` is what
    /// the holder does meanwhile, for those who watch; empty if it has to answer at once.
    pub(crate) fn answer(
        &mut self,
        limit: Option<Duration>,
        doing: &str,
    ) -> Result<Response, Error> {
        let start = Instant::now();
        let mut said = false;
        loop {
            let left = limit.map(|limit| limit.saturating_sub(start.elapsed()));
            let step_limit = if said { Duration::MAX } else { PROGRESS_DELAY };
            let step = left.unwrap_or(Duration::MAX).min(step_limit).min(Duration::from_secs(3600));
            match self.context.receive(&mut self.channel, step) {
                Ok(Received::Message(Response::Notice { text })) => eprint(&text),
                Ok(Received::Message(Response::Failed(failure))) => {
                    return Err(Error::Refused(failure));
                }
                Ok(Received::Message(response)) => return Ok(response),
                Ok(Received::Interrupt) => {
                    return Err(Error::Interrupted(format!(
                        "{0}: its holder is still {doing}: see nbd-ctl status {0}",
                        self.device
                    )));
                }
                Ok(Received::Nothing) => match limit {
                    Some(limit) if start.elapsed() >= limit => {
                        return Err(self.silent(limit, doing));
                    }
                    _ if !said && !doing.is_empty() => {
                        said = true;
                        progress(&format!("{}: {doing}", self.device));
                    }
                    _ => {}
                },
                Err(error) => return Err(talk(self.device, error)),
            }
        }
    }

    /// Waits until the holder has ended the conversation, up to `limit`: whether it has.
    pub(crate) fn outlasts(&mut self, limit: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.context.receive::<Response>(&mut self.channel, left) {
                Ok(Received::Message(_)) => {}
                Ok(Received::Nothing) => return Ok(false),
                Ok(Received::Interrupt) => {
                    return Err(Error::Interrupted(format!("{} is not gone", self.device)));
                }
                Err(ChannelError::Closed) => return Ok(true),
                Err(error) => return Err(talk(self.device, error)),
            }
        }
    }

    fn silent(&self, limit: Duration, doing: &str) -> Error {
        let registry = &self.context.registry;
        let holder = describe(registry, self.device, doing);
        Error::Silent { device: self.device, limit, holder, log: registry.log(self.device.0) }
    }
}

fn talk(device: Device, error: ChannelError) -> Error {
    match error {
        ChannelError::Closed => Error::Ended { device },
        source => Error::Talk { device, source },
    }
}

/// What /proc says about the holder of a device.
fn describe(registry: &Registry, device: Device, doing: &str) -> String {
    // It writes its state down once the device is attached.
    let Ok(Some(state)) = registry.read_state(device.0) else {
        return match doing {
            "" => " is stopped or hangs".into(),
            doing => format!(" is still {doing}, or stopped"),
        };
    };
    let pid = state.holder.pid;
    let tracer = process::tracer(pid);
    match (tracer, process::stat(pid).map(|stat| stat.state)) {
        (Some(tracer), _) => format!(" (pid {pid}) is traced by pid {tracer}"),
        (None, Some('T' | 't')) => format!(" (pid {pid}) is stopped: kill -CONT {pid}"),
        (None, Some(letter)) if doing.is_empty() => format!(" (pid {pid}) is in state {letter}"),
        (None, Some(_)) => format!(" (pid {pid}) is still {doing}"),
        (None, None) => format!(" (pid {pid}) is gone"),
    }
}
