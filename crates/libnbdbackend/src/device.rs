//! A device from opening to closing: connected, waiting for the lanes, granted, served, ended.

use std::collections::HashMap;
use std::ffi::c_int;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use nbd_backend::{Endpoint, ExportInfo, HolderConnection, Session, Stored};
use nbd_control::registry::Registry;

use crate::error::{Failure, Outcome};
use crate::outstanding::Outstanding;

/// Where a device is on its way.
enum State {
    /// Connected to the holder. Boxed, because the other states are small.
    Open(Box<HolderConnection>, Option<Stored>),
    /// Its thread waits for the lanes, or serves.
    Started,
    /// The program is asked whether it serves.
    Granted(Box<Session>),
    /// It is over; why, if not by a detach.
    Ended(Option<Failure>),
}

/// A device of this process.
pub(crate) struct Device {
    pub(crate) number: c_int,
    /// Known from the beginning if the program has named the device.
    name: Mutex<Option<String>>,
    attached: Option<ExportInfo>,
    state: Mutex<State>,
    ended: Condvar,
    pub(crate) outstanding: Arc<Outstanding>,
}

static DEVICES: LazyLock<RwLock<HashMap<c_int, Arc<Device>>>> = LazyLock::new(RwLock::default);
/// Never given twice, so that a number that was closed is an error and not another device.
static NEXT: AtomicI32 = AtomicI32::new(1);
/// The descriptor that the holder has left to this process belongs to one device.
static INHERITED: AtomicBool = AtomicBool::new(false);

/// What to open.
pub(crate) enum Wanted<'a> {
    Environment,
    Named(&'a str),
    Replay(&'a str),
}

/// Connects to the holder of a device.
pub(crate) fn open(wanted: &Wanted<'_>) -> Outcome<c_int> {
    let endpoint = match wanted {
        Wanted::Environment => Endpoint::from_environment()?,
        Wanted::Named(name) => Endpoint::of_device(&Registry::new(None), name)?,
        Wanted::Replay(path) => Endpoint::Replay { path: path.into(), one_by_one: false },
    };
    let name = match &endpoint {
        Endpoint::Socket(path) => path.file_stem().map(|name| name.to_string_lossy().into_owned()),
        Endpoint::Inherited(_) => {
            if INHERITED.swap(true, Ordering::Relaxed) {
                let message = "the device that the holder started this program for is open already";
                return Err(Failure::new(libc::EBUSY, message));
            }
            None
        }
        Endpoint::Replay { .. } => None,
    };
    // Looked up under the lock that adds it, so that only one of two threads opens a device.
    let mut devices = DEVICES.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = &name {
        refuse_second(&devices, name)?;
    }
    let connection = HolderConnection::connect(&endpoint)?;
    let attached = connection.attached().or_else(|| endpoint.attached());
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let device = Device {
        number,
        name: Mutex::new(name),
        attached,
        state: Mutex::new(State::Open(Box::new(connection), None)),
        ended: Condvar::new(),
        outstanding: Arc::default(),
    };
    devices.insert(number, Arc::new(device));
    Ok(number)
}

/// A process that joins its own device would be killed to make room for itself.
fn refuse_second(devices: &HashMap<c_int, Arc<Device>>, name: &str) -> Outcome<()> {
    let is_same = |device: &&Arc<Device>| device.name().as_deref() == Some(name);
    match devices.values().find(|device| is_same(device) && !device.is_over()) {
        None => Ok(()),
        Some(other) => {
            let message = format!("{name} is open in this process already, as {}", other.number);
            Err(Failure::new(libc::EBUSY, message))
        }
    }
}

/// A device by its number.
pub(crate) fn get(number: c_int) -> Outcome<Arc<Device>> {
    let devices = DEVICES.read().unwrap_or_else(PoisonError::into_inner);
    let unknown = || {
        let message = format!("there is no device {number}: was it closed?");
        Failure::new(libc::EBADF, message)
    };
    devices.get(&number).cloned().ok_or_else(unknown)
}

/// Forgets a device that is not served.
pub(crate) fn close(number: c_int) -> Outcome<()> {
    let device = get(number)?;
    if matches!(*device.lock(), State::Started | State::Granted(_)) {
        let message =
            format!("device {number} is served until it is detached or this process ends");
        return Err(Failure::new(libc::EBUSY, message));
    }
    DEVICES.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
    Ok(())
}

impl Device {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Like `nbd0`, as far as it is known.
    pub(crate) fn name(&self) -> Option<String> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_over(&self) -> bool {
        matches!(*self.lock(), State::Ended(_))
    }

    /// The shape of the attached device, if it exists and is known.
    pub(crate) fn attached(&self) -> Option<ExportInfo> {
        self.attached
    }

    /// Asks the holder for stored descriptors, before it is asked for the lanes. How many there are.
    pub(crate) fn examine(&self) -> Outcome<usize> {
        let mut state = self.lock();
        let State::Open(connection, stored) = &mut *state else {
            return Err(self.too_late());
        };
        if stored.is_none() {
            *stored = connection.stored()?;
        }
        let Some(stored) = stored else {
            let message = "the holder does not show what is stored before the grant";
            return Err(Failure::new(libc::ENOTSUP, message));
        };
        Ok(stored.stored_fd_names().count())
    }

    /// Looks at the stored descriptors, which are known once they were examined or granted.
    fn with_stored<T>(&self, look: impl FnOnce(&[(&str, BorrowedFd<'_>)]) -> T) -> Outcome<T> {
        let state = self.lock();
        let found: Vec<_> = match &*state {
            State::Open(_, Some(stored)) => stored
                .stored_fd_names()
                .filter_map(|name| Some((name, stored.stored_fd(name)?)))
                .collect(),
            State::Granted(session) => session
                .stored_fd_names()
                .filter_map(|name| Some((name, session.stored_fd(name)?)))
                .collect(),
            _ => {
                let message = "stored descriptors are known after nbdb_examine, and while granted";
                return Err(Failure::new(libc::EBUSY, message));
            }
        };
        Ok(look(&found))
    }

    /// A duplicate of a stored descriptor.
    pub(crate) fn stored(&self, name: &str) -> Outcome<OwnedFd> {
        let found = self.with_stored(|stored| {
            let (_, fd) = stored.iter().find(|(stored, _)| *stored == name)?;
            Some(fd.try_clone_to_owned())
        })?;
        let missing = || Failure::new(libc::ENOENT, format!("nothing is stored as {name}"));
        let fd = found.ok_or_else(missing)?;
        fd.map_err(|error| Failure::io(&format!("cannot duplicate {name}"), &error))
    }

    /// The name of a stored descriptor.
    pub(crate) fn stored_name(&self, index: usize) -> Outcome<String> {
        let name =
            self.with_stored(|stored| stored.get(index).map(|(name, _)| (*name).to_owned()))?;
        name.ok_or_else(|| Failure::new(libc::ENOENT, "there are not so many stored descriptors"))
    }

    /// Stores a descriptor with the holder.
    pub(crate) fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> Outcome<()> {
        match &mut *self.lock() {
            State::Granted(session) => Ok(session.keep(name, fd)?),
            _ => Err(Failure::new(libc::EBUSY, "descriptors are stored while granted only")),
        }
    }

    fn too_late(&self) -> Failure {
        let message = format!("device {} is started already", self.number);
        Failure::new(libc::EBUSY, message)
    }

    /// Takes the connection for the device's thread, once.
    pub(crate) fn take_connection(&self) -> Outcome<HolderConnection> {
        let mut state = self.lock();
        match std::mem::replace(&mut *state, State::Started) {
            // What was shown is closed before the lanes are asked for.
            State::Open(connection, _) => Ok(*connection),
            other => {
                *state = other;
                Err(self.too_late())
            }
        }
    }

    /// Lets the program see a session while `ask` asks it whether it serves.
    pub(crate) fn grant(
        &self,
        session: Session,
        ask: impl FnOnce() -> c_int,
    ) -> Result<Session, (Box<Session>, c_int)> {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.device().into());
        *self.lock() = State::Granted(Box::new(session));
        let answer = ask();
        match std::mem::replace(&mut *self.lock(), State::Started) {
            State::Granted(session) if answer == 0 => Ok(*session),
            State::Granted(session) => Err((session, answer)),
            _ => unreachable!("only this thread changes the state of a started device"),
        }
    }

    pub(crate) fn end(&self, failure: Option<Failure>) {
        *self.lock() = State::Ended(failure);
        self.ended.notify_all();
    }

    /// Waits until the device is served no more.
    pub(crate) fn wait(&self) -> Outcome<()> {
        let mut state = self.lock();
        if matches!(*state, State::Open(..)) {
            let message = format!("device {} is not started", self.number);
            return Err(Failure::new(libc::EINVAL, message));
        }
        loop {
            match &*state {
                State::Ended(None) => return Ok(()),
                State::Ended(Some(failure)) => return Err(failure.clone()),
                _ => state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
