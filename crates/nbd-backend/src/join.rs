//! Finding the holder, and asking it for the lanes.

mod error;
mod replay;
mod session;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nbd_control::backend::{
    EXAMINE_VARIABLE, EXPORT_VARIABLE, ExportInfo, FromBackend, FromHolder, GROW_VARIABLE,
    HOLDER_FD, Hello,
};
use nbd_control::registry::Registry;
use nbd_control::{Channel, ChannelError};
use nbd_ledger::layout;
use nbd_record::{CAPTURE_FD_NAME, REPLAY_VARIABLE};

use crate::backend::Geometry;
use error::{ACKNOWLEDGE_TIMEOUT, failure};
pub use error::{JOIN_VARIABLE, JoinError, TAKEOVER_VARIABLE};
use replay::Replay;
pub use session::{Departure, Session};

/// The environment variables that are for one backend only. It must remove them for its children.
pub const ENVIRONMENT: [&str; 7] = [
    HOLDER_FD,
    EXPORT_VARIABLE,
    GROW_VARIABLE,
    EXAMINE_VARIABLE,
    JOIN_VARIABLE,
    TAKEOVER_VARIABLE,
    REPLAY_VARIABLE,
];

/// Where the holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The holder started this process and left it this descriptor.
    Inherited(RawFd),
    /// The holder listens on this socket.
    Socket(PathBuf),
    /// No holder: the requests come from a capture of `nbd-ctl record`.
    Replay {
        /// The capture.
        path: PathBuf,
        /// Whether each request waits until the one before it is answered.
        one_by_one: bool,
    },
}

impl Endpoint {
    /// The holder of a device, named like `nbd0` or `/dev/nbd0`.
    ///
    /// # Errors
    ///
    /// [`JoinError::BadName`] if `name` is not of that form.
    pub fn of_device(registry: &Registry, name: &str) -> Result<Self, JoinError> {
        let number = name.strip_prefix("/dev/").unwrap_or(name).strip_prefix("nbd");
        let index = number.and_then(|number| number.parse().ok());
        let index = index.ok_or_else(|| JoinError::BadName(name.into()))?;
        Ok(Self::Socket(registry.join_socket(index)))
    }

    /// The shape of the attached device, from the holder's state file; `None` if this process may
    /// not read it.
    ///
    /// A backend that the holder started gets it from the holder: see [`HolderConnection::attached`].
    pub fn attached(&self) -> Option<ExportInfo> {
        let Self::Socket(path) = self else {
            return None;
        };
        let index = path.file_stem()?.to_str()?.strip_prefix("nbd")?.parse().ok()?;
        let registry = Registry::new(Some(path.parent()?.into()));
        Some(registry.read_state(index).ok()??.export)
    }

    /// The holder that started this process, or the capture named by `NBD_REPLAY`, or the holder of
    /// the device named by [`JOIN_VARIABLE`].
    ///
    /// # Errors
    ///
    /// [`JoinError::NoEndpoint`] if no variable is set, [`JoinError::BadDescriptor`] or
    /// [`JoinError::BadName`] if its value is invalid.
    pub fn from_environment() -> Result<Self, JoinError> {
        if let Ok(text) = std::env::var(HOLDER_FD) {
            let fd = text.parse().ok().filter(|fd| *fd > 2);
            return fd.map(Self::Inherited).ok_or(JoinError::BadDescriptor(text));
        }
        if let Some(path) = std::env::var_os(REPLAY_VARIABLE) {
            return Ok(Self::Replay { path: path.into(), one_by_one: false });
        }
        let device = std::env::var(JOIN_VARIABLE).map_err(|_| JoinError::NoEndpoint)?;
        Self::of_device(&Registry::new(None), &device)
    }
}

/// A connection to the holder, before the Hello.
#[derive(Debug)]
pub struct HolderConnection {
    channel: Channel,
    /// Where to connect again, if the holder hangs up because it is an older one.
    path: Option<PathBuf>,
    may_examine: bool,
    attached: Option<ExportInfo>,
    is_to_grow: bool,
    takes_over: bool,
    replay: Option<Replay>,
}

impl HolderConnection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// If the holder's socket or the capture cannot be opened, or the inherited descriptor is not
    /// an open socket.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, JoinError> {
        let mut replay = None;
        let (stream, attached) = match endpoint {
            Endpoint::Replay { path, one_by_one } => {
                let (stream, player) = Replay::begin(path, *one_by_one)?;
                replay = Some(player);
                (stream, None)
            }
            Endpoint::Inherited(fd) => {
                let told = std::env::var(EXPORT_VARIABLE).ok();
                let told = told.and_then(|text| ExportInfo::from_variable(&text));
                (inherited(*fd)?, told)
            }
            Endpoint::Socket(path) => {
                let stream = UnixStream::connect(path)
                    .map_err(|source| JoinError::Connect { path: path.clone(), source })?;
                (stream, None)
            }
        };
        let channel = Channel::new(stream)?;
        let is_to_grow = attached.is_some() && std::env::var_os(GROW_VARIABLE).is_some();
        let (path, may_examine) = match endpoint {
            Endpoint::Socket(path) => (Some(path.clone()), true),
            Endpoint::Inherited(_) => (None, std::env::var_os(EXAMINE_VARIABLE).is_some()),
            Endpoint::Replay { .. } => (None, false),
        };
        // One that the holder has started replaces no living one.
        let is_asked = || std::env::var_os(TAKEOVER_VARIABLE).is_some_and(|text| !text.is_empty());
        let takes_over = path.is_some() && is_asked();
        Ok(Self { channel, path, may_examine, attached, is_to_grow, takes_over, replay })
    }

    /// The shape of the attached device, if the holder started this process as a successor. A
    /// backend whose storage has grown since then should serve this size, unless it [must
    /// grow](Self::is_to_grow).
    pub fn attached(&self) -> Option<ExportInfo> {
        self.attached
    }

    /// Whether this process must serve the present size of its storage, because the device grows
    /// (`nbd-ctl resize`).
    pub fn is_to_grow(&self) -> bool {
        self.is_to_grow
    }

    /// Whether the environment asks to replace a living backend ([`TAKEOVER_VARIABLE`]).
    pub fn takes_over(&self) -> bool {
        self.takes_over
    }

    /// The stored descriptors of predecessors, to check them before [Hello](Self::hello), which may
    /// make the holder kill a living predecessor. `None` if the holder does not offer that.
    ///
    /// # Errors
    ///
    /// If the holder refuses, breaks the protocol, or does not answer within 10 s.
    pub fn stored(&mut self) -> Result<Option<Stored>, JoinError> {
        if !std::mem::take(&mut self.may_examine) {
            return Ok(None);
        }
        let asked = self.channel.send(&FromBackend::Examine, &[]);
        let answer = asked.and_then(|()| self.channel.receive_within(ACKNOWLEDGE_TIMEOUT));
        let received = match (answer, &self.path) {
            // An older holder does not know the message and hangs up.
            (Err(ChannelError::Closed), Some(path)) => {
                let stream = UnixStream::connect(path)
                    .map_err(|source| JoinError::Connect { path: path.clone(), source })?;
                self.channel = Channel::new(stream)?;
                return Ok(None);
            }
            (answer, _) => answer?,
        };
        match received.message {
            FromHolder::Stored { device, attached, names } => {
                if names.len() != received.descriptors.len() {
                    return Err(JoinError::Protocol("a wrong number of descriptors"));
                }
                let kept = names.into_iter().zip(received.descriptors).collect();
                Ok(Some(Stored { device, attached, kept }))
            }
            FromHolder::Refusal { reason } => Err(JoinError::Refused(reason)),
            _ => Err(JoinError::Protocol("an answer to another question")),
        }
    }

    /// Sends Hello and waits for the lanes. The holder grants them when the predecessor is dead,
    /// however long that takes. With `takeover`, or if the [environment asks
    /// for it](Self::takes_over), it kills a living one.
    ///
    /// # Errors
    ///
    /// If the holder refuses, breaks the protocol, or closes the connection.
    pub fn hello(
        mut self,
        description: &str,
        geometry: &Geometry,
        takeover: bool,
    ) -> Result<Session, JoinError> {
        let hello = Hello {
            ledger_version: layout::VERSION,
            description: description.into(),
            export: geometry.info(),
            takeover: takeover || self.takes_over,
        };
        self.channel.send(&FromBackend::Hello(hello), &[])?;
        let received = self.channel.receive()?;
        let grant = match received.message {
            FromHolder::Grant(grant) => grant,
            FromHolder::Refusal { reason } => return Err(JoinError::Refused(reason)),
            FromHolder::Kept | FromHolder::Stored { .. } => {
                return Err(JoinError::Protocol("an answer to nothing"));
            }
        };
        let mut descriptors = received.descriptors.into_iter();
        let expected = 1 + grant.lanes as usize + grant.keepsakes.len();
        if descriptors.len() != expected {
            return Err(JoinError::Protocol("a wrong number of descriptors"));
        }
        let ledger = descriptors.next().ok_or(JoinError::Protocol("no ledger"))?;
        let sockets = descriptors.by_ref().take(grant.lanes as usize).collect();
        let mut stored_fds: Vec<_> = grant.keepsakes.iter().cloned().zip(descriptors).collect();
        // The capture's file is the engine's, not the backend's.
        let recording = stored_fds.extract_if(.., |(name, _)| name == CAPTURE_FD_NAME).next();
        let recording = recording.map(|(_, file)| file);
        let (channel, replay) = (self.channel, self.replay);
        Ok(Session { channel, grant, ledger, sockets, stored_fds, recording, replay })
    }

    /// Reports to the holder that this process will not serve, and why. Errors are ignored: the
    /// holder notices the end of the connection as well.
    pub fn fail(self, reason: &str) {
        self.tell_failure(reason);
    }

    /// The same as [`fail`](Self::fail), for callers that do not own the connection. The process must
    /// exit afterwards.
    pub fn tell_failure(&self, reason: &str) {
        // A holder that is gone needs no reason, so errors are ignored.
        let _ = self.channel.send(&failure(reason, false), &[]);
    }
}

/// Takes the descriptor that the holder left to this process. Sets FD_CLOEXEC: a child that kept it
/// open would look like a living backend to the holder.
#[allow(unsafe_code)]
fn inherited(fd: RawFd) -> Result<UnixStream, JoinError> {
    // SAFETY: a query about a number; it is no error if nothing is open there.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(JoinError::BadDescriptor(fd.to_string()));
    }
    // SAFETY: the descriptor is open, was left to this program by its parent under this number,
    // and nothing else in this process knows about it.
    let stream: UnixStream = unsafe {
        libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC);
        <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd).into()
    };
    Ok(stream)
}

/// The stored descriptors of predecessors, as shown before the grant.
#[derive(Debug)]
pub struct Stored {
    device: String,
    attached: bool,
    kept: Vec<(String, OwnedFd)>,
}

impl Stored {
    /// Name of the device, like `nbd0`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Whether the device exists: then the holder stores no more descriptors.
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// A stored descriptor, to be examined only.
    pub fn stored_fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        let (_, fd) = self.kept.iter().find(|(kept, _)| kept == name)?;
        Some(fd.as_fd())
    }

    /// The names of all stored descriptors.
    pub fn stored_fd_names(&self) -> impl Iterator<Item = &str> {
        self.kept.iter().map(|(name, _)| &**name)
    }
}
