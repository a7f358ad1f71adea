//! Where connections are kept for a successor: in messages that no process receives.
//!
//! The holder takes stored descriptors only until the device is attached, but connections come and go. So
//! what it keeps is a socket pair. A descriptor that must outlive this process is sent into it: the
//! kernel keeps what is under way for as long as somebody has both ends, and that is the holder,
//! and the sitter when the holder has died as well. A successor receives it from the other end.
//!
//! A process may die between any two steps, so nothing is taken out before it was put in again at
//! the other end. What is left behind is a message too many, never one too few.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nbd_client::{FdStore, StoredFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The names under which the holder keeps the two ends.
pub(crate) const STORED_FD_NAMES: [&str; 2] = ["server", "server-outlet"];

/// Longest message.
const MAX_MESSAGE_LEN: usize = 256;

/// A place for descriptors that outlives this process.
#[derive(Debug)]
pub(crate) struct ConnectionStore {
    inlet: OwnedFd,
    outlet: OwnedFd,
    /// Of the last message; guards the order of messages.
    serial: Mutex<u64>,
}

/// A descriptor and its name; without a descriptor, a mark.
struct Message {
    serial: u64,
    name: String,
    descriptor: Option<OwnedFd>,
}

impl ConnectionStore {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (inlet, outlet) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        Ok(Self::of(inlet, outlet))
    }

    /// One that a predecessor left.
    pub(crate) fn of(inlet: OwnedFd, outlet: OwnedFd) -> Self {
        // Not one that a predecessor has used and left in there.
        let serial = Mutex::new(RandomState::new().hash_one(std::process::id()));
        Self { inlet, outlet, serial }
    }

    /// What the holder has to keep, in the order of [`STORED_FD_NAMES`].
    pub(crate) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.inlet.as_fd(), self.outlet.as_fd()]
    }

    /// Duplicates of all that is in there.
    pub(crate) fn contents(&self) -> io::Result<Vec<StoredFd>> {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        *serial = serial.wrapping_add(1);
        self.send(*serial, "", None)?;
        let mut contents = Vec::new();
        self.sweep(*serial, |message| {
            let Some(descriptor) = &message.descriptor else {
                return Ok(false);
            };
            contents.push((message.name.clone(), descriptor.try_clone()?));
            Ok(true)
        })?;
        self.receive(RecvFlags::empty())?;
        Ok(contents)
    }

    /// Takes messages out up to the one with this serial number, and puts those in again that are
    /// to be kept.
    fn sweep(
        &self,
        until: u64,
        mut is_kept: impl FnMut(&Message) -> io::Result<bool>,
    ) -> io::Result<()> {
        loop {
            let message = self.receive(RecvFlags::PEEK)?;
            if message.serial == until {
                return Ok(());
            }
            if is_kept(&message)? {
                let descriptor = message.descriptor.as_ref().map(AsFd::as_fd);
                self.send(message.serial, &message.name, descriptor)?;
            }
            self.receive(RecvFlags::empty())?;
        }
    }

    fn send(&self, serial: u64, name: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_slice();
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let serial = serial.to_le_bytes();
        let parts = [IoSlice::new(&serial), IoSlice::new(name.as_bytes())];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.inlet, &parts, &mut control, flags)?;
        Ok(())
    }

    /// The oldest message.
    fn receive(&self, flags: RecvFlags) -> io::Result<Message> {
        let mut bytes = [0; MAX_MESSAGE_LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = flags | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(&self.outlet, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptor = descriptors.flatten().next();
        let strange = || io::Error::new(io::ErrorKind::InvalidData, "left by another program");
        let (serial, name) = bytes[..received.bytes].split_first_chunk().ok_or_else(strange)?;
        let name = str::from_utf8(name).map_err(|_| strange())?.to_owned();
        Ok(Message { serial: u64::from_le_bytes(*serial), name, descriptor })
    }
}

impl FdStore for ConnectionStore {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        *serial = serial.wrapping_add(1);
        self.send(*serial, name, Some(descriptor))?;
        self.sweep(*serial, |message| Ok(message.descriptor.is_some() && message.name != name))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn names(store: &ConnectionStore) -> Vec<String> {
        let mut names: Vec<_> =
            store.contents().unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_kept_outlives_those_who_had_it() {
        let store = ConnectionStore::new().unwrap();
        let (kept, mut other) = UnixStream::pair().unwrap();
        store.keep("connection-0", kept.as_fd()).unwrap();
        drop(kept);
        let [inlet, outlet] = store.ends().map(|end| end.try_clone_to_owned().unwrap());
        drop(store);
        let successor = ConnectionStore::of(inlet, outlet);
        for _ in 0..3 {
            let contents = successor.contents().unwrap();
            assert!(matches!(&*contents, [(name, _)] if name == "connection-0"), "{contents:?}");
        }
        other.set_nonblocking(true).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (new, _other) = UnixStream::pair().unwrap();
        successor.keep("connection-0", new.as_fd()).unwrap();
        // The old one is let go.
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_name_is_kept_once_however_often_it_comes() {
        let store = ConnectionStore::new().unwrap();
        assert!(names(&store).is_empty());
        let (kept, _other) = UnixStream::pair().unwrap();
        for round in 0..1000 {
            store.keep(&format!("connection-{}", round % 16), kept.as_fd()).unwrap();
        }
        assert_eq!(names(&store).len(), 16);
        store.keep("server", kept.as_fd()).unwrap();
        assert_eq!(names(&store).len(), 17);
    }

    /// All that a process which dies within `keep` or `contents` can leave behind.
    #[test]
    fn what_a_dead_process_left_half_done_is_tidied_up() {
        let store = ConnectionStore::new().unwrap();
        let (kept, _other) = UnixStream::pair().unwrap();
        store.keep("a", kept.as_fd()).unwrap();
        store.keep("b", kept.as_fd()).unwrap();
        // A mark that nobody took out, a copy of what is still there, a new one beside the old.
        store.send(1, "", None).unwrap();
        store.send(2, "a", Some(kept.as_fd())).unwrap();
        store.send(3, "b", Some(kept.as_fd())).unwrap();
        assert_eq!(names(&store), ["a", "a", "b", "b"]);
        store.keep("a", kept.as_fd()).unwrap();
        store.keep("b", kept.as_fd()).unwrap();
        assert_eq!(names(&store), ["a", "b"]);
    }

    #[test]
    fn strange_messages_are_an_error() {
        let store = ConnectionStore::new().unwrap();
        sendmsg(
            &store.inlet,
            &[IoSlice::new(b"short")],
            &mut SendAncillaryBuffer::default(),
            SendFlags::empty(),
        )
        .unwrap();
        assert_eq!(store.contents().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
