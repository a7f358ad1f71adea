//! The driver's generic netlink family "nbd" (`linux/nbd-netlink.h`): connects, resizes and disconnects
//! devices without a process that sits in an ioctl.
//!
//! neli encodes and decodes; the socket is our own, since neli's router starts threads, and its
//! plain socket cannot be given a time limit without unsafe code.

use std::cell::Cell;
use std::io::Cursor;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use neli::attr::Attribute as _;
use neli::consts::genl::{CtrlAttr, CtrlCmd};
use neli::consts::nl::{GenlId, NlmF};
use neli::err::BuilderError;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder};
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::types::{Buffer, GenlBuffer, NlBuffer};
use neli::{FromBytesWithInput, Size, ToBytes};
use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;
use thiserror::Error;

/// `NBD_GENL_FAMILY_NAME`.
const FAMILY: &str = "nbd";
/// `NBD_GENL_VERSION`.
const VERSION: u8 = 1;

/// `NBD_CMD_CONNECT`.
const CONNECT: u8 = 1;
/// `NBD_CMD_DISCONNECT`.
const DISCONNECT: u8 = 2;
/// `NBD_CMD_RECONFIGURE`.
const RECONFIGURE: u8 = 3;

/// `NBD_ATTR_INDEX`, u32.
const INDEX: u16 = 1;
/// `NBD_ATTR_SIZE_BYTES`, u64.
const SIZE_BYTES: u16 = 2;
/// `NBD_ATTR_BLOCK_SIZE_BYTES`, u64.
const BLOCK_SIZE_BYTES: u16 = 3;
/// `NBD_ATTR_SERVER_FLAGS`, u64.
const SERVER_FLAGS: u16 = 5;
/// `NBD_ATTR_SOCKETS`, a list of [`SOCK_ITEM`].
const SOCKETS: u16 = 7;
/// `NBD_ATTR_BACKEND_IDENTIFIER`, a string.
const BACKEND_IDENTIFIER: u16 = 10;
/// `NBD_SOCK_ITEM`, nested: holds a [`SOCK_FD`].
const SOCK_ITEM: u16 = 1;
/// `NBD_SOCK_FD`, u32.
const SOCK_FD: u16 = 1;

/// The version of the controller's messages, `nlctrl`'s.
const CONTROLLER_VERSION: u8 = 2;
/// How long to wait for an answer, in seconds. The kernel has handled a request before sending
/// it returns, so an answer is there at once or was lost.
const ANSWER_TIMEOUT_S: i64 = 30;
/// Room for any answer: a refusal repeats the whole request.
const ANSWER_SIZE: usize = 32 * 1024;
/// The driver prints the identifier into one page of sysfs and does not check that it fits.
const LONGEST_IDENTIFIER: usize = 1024;

type Attribute = Nlattr<u16, Buffer>;
type Attributes = GenlBuffer<u16, Buffer>;
type Message = Genlmsghdr<u8, u16>;

/// How the driver is to set up a device.
#[derive(Debug)]
pub(crate) struct Connect<'a> {
    pub(crate) index: u32,
    /// One for each lane; the driver keeps references of its own.
    pub(crate) sockets: &'a [BorrowedFd<'a>],
    pub(crate) size: u64,
    pub(crate) block_size: u32,
    /// Transmission flags.
    pub(crate) flags: u64,
    /// A program may reconfigure the device if it gives the same one.
    pub(crate) identifier: &'a str,
}

/// A connection to the driver.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    family: u16,
    /// The last request's number: what answers an older one is skipped.
    sequence: Cell<u32>,
}

/// Why the driver did not do as it was told.
#[derive(Debug, Error)]
pub(crate) enum NetlinkError {
    #[error("the nbd driver is not loaded: run `modprobe nbd`")]
    NoFamily,
    #[error("the kernel refused to {action}")]
    Refused {
        action: String,
        #[source]
        errno: Errno,
    },
    #[error("cannot talk to the kernel over generic netlink")]
    Socket(#[from] Errno),
    #[error("malformed message on generic netlink")]
    Malformed,
}

impl NetlinkError {
    /// The error number that says it best.
    pub(crate) fn errno(&self) -> Errno {
        match *self {
            Self::NoFamily => Errno::ENOENT,
            Self::Refused { errno, .. } | Self::Socket(errno) => errno,
            Self::Malformed => Errno::EPROTO,
        }
    }
}

impl From<BuilderError> for NetlinkError {
    fn from(_: BuilderError) -> Self {
        Self::Malformed
    }
}

impl Netlink {
    /// Finds the driver.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let mut netlink = Self { socket: open_socket()?, family: 0, sequence: Cell::new(0) };
        netlink.family = netlink.resolve()?;
        Ok(netlink)
    }

    /// Sets a device up, and creates it if there is none of this index; the result is its index.
    ///
    /// Descriptors are looked up in the calling process.
    pub(crate) fn connect(&self, device: &Connect<'_>) -> Result<u32, NetlinkError> {
        let action = || format!("connect nbd{}", device.index);
        if device.identifier.len() > LONGEST_IDENTIFIER {
            return Err(NetlinkError::Refused { action: action(), errno: Errno::ENAMETOOLONG });
        }
        let request = message(CONNECT, VERSION, connect_attributes(device)?)?;
        let answer = self.exchange(self.family, request, action)?;
        // The driver connects even if it has no memory for the answer; the acknowledgement that
        // follows says as much.
        match find(&answer, INDEX) {
            Some(index) => index.get_payload_as().map_err(|_| NetlinkError::Malformed),
            None => Ok(device.index),
        }
    }

    /// Disconnects a device and fails what is in flight; no error if it was not connected.
    ///
    /// Shut the lanes down before, if their backend may be stalled. The kernel does all of this
    /// while the request is sent, so no time limit applies: behind a full socket it waits in
    /// D state, even SIGKILL does not end it, and all of generic netlink waits with it.
    pub(crate) fn disconnect(&self, index: u32) -> Result<(), NetlinkError> {
        let attributes = [attribute(INDEX, index)?].into_iter().collect();
        let request = message(DISCONNECT, VERSION, attributes)?;
        self.exchange(self.family, request, || format!("disconnect nbd{index}")).map(drop)
    }

    /// Gives a connected device another size. Whoever asks must know the identifier. No socket is
    /// told, or the driver would look for a dead one to put it in the place of.
    ///
    /// Newer kernels freeze the queue for this: they wait for all that is in flight.
    pub(crate) fn resize(
        &self,
        index: u32,
        size: u64,
        identifier: &str,
    ) -> Result<(), NetlinkError> {
        let attributes = Attributes::from_iter([
            attribute(INDEX, index)?,
            attribute(SIZE_BYTES, size)?,
            attribute(BACKEND_IDENTIFIER, identifier)?,
        ]);
        let request = message(RECONFIGURE, VERSION, attributes)?;
        self.exchange(self.family, request, || format!("resize nbd{index}")).map(drop)
    }

    /// Asks for the family's number, which is another at each loading of the driver.
    fn resolve(&self) -> Result<u16, NetlinkError> {
        let name = attribute(CtrlAttr::FamilyName.into(), FAMILY)?;
        let attributes = [name].into_iter().collect();
        let request = message(CtrlCmd::Getfamily.into(), CONTROLLER_VERSION, attributes)?;
        let action = || format!("look up the netlink family {FAMILY}");
        let answer = match self.exchange(GenlId::Ctrl.into(), request, action) {
            Err(NetlinkError::Refused { errno: Errno::ENOENT, .. }) => {
                return Err(NetlinkError::NoFamily);
            }
            answer => answer?,
        };
        let id = find(&answer, CtrlAttr::FamilyId.into()).ok_or(NetlinkError::Malformed)?;
        id.get_payload_as().map_err(|_| NetlinkError::Malformed)
    }

    /// Sends a request and waits for its acknowledgement; the result is what came before it.
    fn exchange(
        &self,
        family: u16,
        request: Message,
        action: impl FnOnce() -> String,
    ) -> Result<Attributes, NetlinkError> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let bytes = encode(family, sequence, request)?;
        uninterrupted(|| send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()))?;
        let mut attributes = Attributes::new();
        loop {
            match decode(&self.receive()?, sequence)? {
                Some(Answer::Attributes(answer)) => attributes = answer,
                Some(Answer::Done) => return Ok(attributes),
                Some(Answer::Refusal(errno)) => {
                    return Err(NetlinkError::Refused { action: action(), errno });
                }
                None => {}
            }
        }
    }

    /// Receives one datagram; the kernel puts one message in each.
    fn receive(&self) -> Result<Vec<u8>, NetlinkError> {
        let mut bytes = vec![0; ANSWER_SIZE];
        let fd = self.socket.as_raw_fd();
        let length = uninterrupted(|| recv(fd, &mut bytes, MsgFlags::empty()));
        // EAGAIN is how a socket says that its time limit has passed.
        let length = length.map_err(|errno| match errno {
            Errno::EAGAIN => Errno::ETIMEDOUT,
            errno => errno,
        })?;
        bytes.truncate(length);
        Ok(bytes)
    }
}

fn open_socket() -> Result<OwnedFd, Errno> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkGeneric,
    )?;
    // A connected socket takes messages from its peer, the kernel, only.
    connect(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&netlink, ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_S, 0))?;
    Ok(netlink)
}

fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// What is left out matters too.
///
/// - `NBD_ATTR_TIMEOUT` (4): absent is 0, never. Above 0, the driver kills the connection of a
///   backend that merely sits at a breakpoint, and its device with it.
/// - `NBD_ATTR_DEAD_CONN_TIMEOUT` (8): absent is 0. It makes requests wait for a new socket after
///   the last one died; ours outlive the backend and die only when the device is to go.
/// - `NBD_ATTR_CLIENT_FLAGS` (6): the device would vanish on disconnect, or disconnect when the
///   last process closes it.
fn connect_attributes(device: &Connect<'_>) -> Result<Attributes, BuilderError> {
    let sockets: Result<Attributes, _> = device.sockets.iter().map(socket_item).collect();
    Ok(Attributes::from_iter([
        attribute(INDEX, device.index)?,
        attribute(SIZE_BYTES, device.size)?,
        attribute(BLOCK_SIZE_BYTES, u64::from(device.block_size))?,
        attribute(SERVER_FLAGS, device.flags)?,
        nested(SOCKETS, sockets?)?,
        attribute(BACKEND_IDENTIFIER, device.identifier)?,
    ]))
}

fn socket_item(socket: &BorrowedFd<'_>) -> Result<Attribute, BuilderError> {
    nested(SOCK_ITEM, [attribute(SOCK_FD, socket.as_raw_fd())?].into_iter().collect())
}

fn nested(kind: u16, inside: Attributes) -> Result<Attribute, BuilderError> {
    let kind = AttrTypeBuilder::default().nla_type(kind).nla_nested(true).build()?;
    Ok(NlattrBuilder::default().nla_type(kind).nla_payload(inside).build()?)
}

fn attribute(kind: u16, payload: impl Size + ToBytes) -> Result<Attribute, BuilderError> {
    let kind = AttrTypeBuilder::default().nla_type(kind).build()?;
    Ok(NlattrBuilder::default().nla_type(kind).nla_payload(payload).build()?)
}

fn find(attributes: &Attributes, kind: u16) -> Option<&Attribute> {
    attributes.iter().find(|attribute| *attribute.nla_type().nla_type() == kind)
}

fn message(command: u8, version: u8, attributes: Attributes) -> Result<Message, BuilderError> {
    Ok(GenlmsghdrBuilder::default().cmd(command).version(version).attrs(attributes).build()?)
}

fn encode(family: u16, sequence: u32, message: Message) -> Result<Vec<u8>, NetlinkError> {
    let message = NlmsghdrBuilder::default()
        .nl_type(family)
        .nl_flags(NlmF::REQUEST | NlmF::ACK)
        .nl_seq(sequence)
        .nl_payload(NlPayload::Payload(message))
        .build()
        .map_err(BuilderError::from)?;
    let mut bytes = Cursor::new(Vec::new());
    message.to_bytes(&mut bytes).map_err(|_| NetlinkError::Malformed)?;
    Ok(bytes.into_inner())
}

/// What the kernel says to a request.
#[derive(Debug, PartialEq)]
enum Answer {
    /// Something to know; the acknowledgement is still to come.
    Attributes(Attributes),
    Done,
    Refusal(Errno),
}

/// Reads one message; `None` if it answers some other request.
fn decode(bytes: &[u8], sequence: u32) -> Result<Option<Answer>, NetlinkError> {
    let messages =
        NlBuffer::<u16, Message>::from_bytes_with_input(&mut Cursor::new(bytes), bytes.len());
    let messages = messages.map_err(|_| NetlinkError::Malformed)?;
    let message = messages.iter().next().ok_or(NetlinkError::Malformed)?;
    if *message.nl_seq() != sequence {
        return Ok(None);
    }
    match message.nl_payload() {
        NlPayload::Payload(answer) => Ok(Some(Answer::Attributes(answer.attrs().clone()))),
        NlPayload::Ack(_) => Ok(Some(Answer::Done)),
        NlPayload::Err(error) => Ok(Some(Answer::Refusal(Errno::from_raw(-error.error())))),
        NlPayload::DumpExtAck(_) | NlPayload::Empty => Err(NetlinkError::Malformed),
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")] // Netlink has the machine's order; this writes out only one.
mod tests {
    use std::io;
    use std::os::fd::AsFd;

    use super::*;

    const INDEX_3: [u8; 8] = [8, 0, 1, 0, 3, 0, 0, 0];

    fn bytes(attributes: &Attributes) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        attributes.to_bytes(&mut bytes).unwrap();
        bytes.into_inner()
    }

    /// `struct nlmsghdr`, then the payload.
    fn netlink(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = 16 + payload.len() as u32;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend(sequence.to_le_bytes());
        bytes.extend([9, 9, 0, 0]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn connect_attributes_are_the_drivers() {
        let (a, b) = (io::stdin(), io::stdout());
        let device = Connect {
            index: 3,
            sockets: &[a.as_fd(), b.as_fd()],
            size: 0x0102_0304_0506_0000,
            block_size: 4096,
            flags: 0x0105,
            identifier: "nbd3",
        };
        let expected = [
            &INDEX_3[..],
            &[12, 0, 2, 0, 0, 0, 6, 5, 4, 3, 2, 1],
            &[12, 0, 3, 0, 0, 16, 0, 0, 0, 0, 0, 0],
            &[12, 0, 5, 0, 5, 1, 0, 0, 0, 0, 0, 0],
            &[28, 0, 7, 0x80],
            &[12, 0, 1, 0x80, 8, 0, 1, 0, 0, 0, 0, 0],
            &[12, 0, 1, 0x80, 8, 0, 1, 0, 1, 0, 0, 0],
            &[9, 0, 10, 0, b'n', b'b', b'd', b'3', 0, 0, 0, 0],
        ];
        assert_eq!(bytes(&connect_attributes(&device).unwrap()), expected.concat());
    }

    #[test]
    fn requests_ask_for_an_acknowledgement() {
        let attributes = Attributes::from_iter([attribute(INDEX, 3u32).unwrap()]);
        let request = message(DISCONNECT, VERSION, attributes).unwrap();
        let mut expected = vec![28, 0, 0, 0, 0x1d, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0];
        expected.extend(INDEX_3);
        assert_eq!(encode(0x1d, 7, request).unwrap(), expected);
    }

    #[test]
    fn answers_are_told_apart() {
        let reply = netlink(0x1d, 7, &[&[1, 1, 0, 0][..], &INDEX_3].concat());
        let Some(Answer::Attributes(found)) = decode(&reply, 7).unwrap() else { panic!() };
        assert_eq!(find(&found, INDEX).unwrap().get_payload_as::<u32>().unwrap(), 3);
        assert_eq!(find(&found, SIZE_BYTES), None);

        let request = netlink(0x1d, 7, &[&[1, 1, 0, 0][..], &INDEX_3].concat());
        let done = netlink(2, 7, &[&[0; 4], &request[..16]].concat());
        assert_eq!(decode(&done, 7).unwrap(), Some(Answer::Done));
        assert_eq!(decode(&done, 8).unwrap(), None);

        // EBUSY is 16.
        let busy = netlink(2, 7, &[&(-16i32).to_le_bytes(), &request[..]].concat());
        assert_eq!(decode(&busy, 7).unwrap(), Some(Answer::Refusal(Errno::EBUSY)));
        let error = NetlinkError::Refused { action: "connect nbd3".into(), errno: Errno::EBUSY };
        assert!(error.errno() == Errno::EBUSY);
        assert!(NetlinkError::Malformed.errno() != Errno::EBUSY);

        assert!(matches!(decode(&done[..20], 7), Err(NetlinkError::Malformed)));
        assert!(matches!(decode(&[], 7), Err(NetlinkError::Malformed)));
    }
}
