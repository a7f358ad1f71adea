//! A connected stream socket of any family.

mod connect;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockType, SockaddrLike, SockaddrStorage, getpeername,
    getsockname, getsockopt, recv, recvmsg, sendmsg, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::address::Address;

pub(crate) use connect::family;
pub use connect::{Attempts, ConnectError};

/// Buffer of a unix socket, in bytes: several large requests without a wait in between. The
/// system may grant less.
const UNIX_BUFFER: usize = 2 << 20;
/// After so many seconds of silence the host of a TCP peer is asked whether it is alive ...
const KEEPALIVE_IDLE: u32 = 30;
/// ... and again after so many ...
const KEEPALIVE_INTERVAL: u32 = 10;
/// ... and is given up after so many questions.
const KEEPALIVE_COUNT: u32 = 6;
/// Most slices that sendmsg(2) takes (UIO_MAXIOV).
const MOST_SLICES: usize = 1024;

/// A connected stream socket. It can be used by several threads at once.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    peer: String,
}

impl Socket {
    /// Takes a connected stream socket and prepares it: it blocks, does not delay small TCP
    /// segments, notices dead hosts, and has room for large messages.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `fd` is a socket of another type; `NotConnected` if it has no peer; those of
    /// getsockopt(2), setsockopt(2) and fcntl(2), as for a descriptor that is no socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if getsockopt(&fd, sockopt::SockType)? != SockType::Stream {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no stream socket"));
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        if flags.contains(OFlag::O_NONBLOCK) {
            fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        }
        let peer = match getsockname::<SockaddrStorage>(fd.as_raw_fd())?.family() {
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                prepare_tcp(&fd)?;
                name_of_peer(fd.as_raw_fd())?
            }
            Some(AddressFamily::Unix) => {
                prepare_unix(&fd)?;
                let peer = getsockopt(&fd, sockopt::PeerCredentials)?;
                format!("process {} of user {}", peer.pid(), peer.uid())
            }
            _ => name_of_peer(fd.as_raw_fd())?,
        };
        Ok(Self { fd, peer })
    }

    /// Who the peer is, for log lines.
    pub fn peer(&self) -> String {
        self.peer.clone()
    }

    /// Ends the connection for both sides and wakes whoever waits for it. May be called from any
    /// thread, at any time.
    pub fn shutdown(&self) {
        self.shut(Shutdown::Both);
    }

    /// Lets receivers see the end of the stream after what has come so far; sending goes on.
    pub fn shutdown_receive(&self) {
        self.shut(Shutdown::Read);
    }

    /// Lets the peer see the end of the stream; receiving goes on.
    pub fn shutdown_send(&self) {
        self.shut(Shutdown::Write);
    }

    fn shut(&self, how: Shutdown) {
        // It fails where the connection has ended by itself.
        let _ = nix::sys::socket::shutdown(self.raw(), how);
    }

    /// From now on, when the last descriptor of the connection is closed, what the peer has not acknowledged
    /// is thrown away. Without this TCP goes on sending it for minutes, also after the process has died
    /// (`SO_LINGER` of no time, see socket(7)). Other sockets than TCP's have handed over what was sent.
    ///
    /// # Errors
    ///
    /// Those of getsockname(2) and setsockopt(2).
    pub fn forget_unsent_at_end(&self) -> io::Result<()> {
        let family = getsockname::<SockaddrStorage>(self.raw())?.family();
        if matches!(family, Some(AddressFamily::Inet | AddressFamily::Inet6)) {
            setsockopt(&self.fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
        Ok(())
    }

    /// How long [`receive`](Self::receive) waits, `None` for ever.
    ///
    /// # Errors
    ///
    /// Those of setsockopt(2).
    pub fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map_or(TimeVal::zero(), time_value);
        Ok(setsockopt(&self.fd, sockopt::ReceiveTimeout, &timeout)?)
    }

    /// Waits for bytes and returns how many came, 0 at the end of the stream. `TimedOut` if none
    /// came within the timeout that was set.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of recv(2), as `ConnectionReset`.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.receive_with(buffer, MsgFlags::empty()) {
            Err(Errno::EAGAIN) => Err(io::ErrorKind::TimedOut.into()),
            other => Ok(other?),
        }
    }

    /// The same into several buffers, one after the other.
    ///
    /// # Errors
    ///
    /// As for [`receive`](Self::receive).
    pub fn receive_parts(&self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            match recvmsg::<()>(self.raw(), parts, None, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                other => return Ok(other?.bytes),
            }
        }
    }

    /// Receives what is there; `WouldBlock` if that is nothing.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, and those of recv(2).
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.receive_with(buffer, MsgFlags::MSG_DONTWAIT)?)
    }

    fn receive_with(&self, buffer: &mut [u8], flags: MsgFlags) -> nix::Result<usize> {
        loop {
            match recv(self.raw(), buffer, flags) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// Sends as many bytes as there is room for and returns their number; `WouldBlock` if that is
    /// none.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, `BrokenPipe` if the peer is gone, and the others of sendmsg(2).
    pub fn try_send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let parts = &parts[..parts.len().min(MOST_SLICES)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.raw(), parts, &[], flags, None) {
                Err(Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Waits until [`try_send`](Self::try_send) would not block, `None` for ever. `false` if that
    /// takes longer. A broken connection counts as writable: sending tells what is wrong.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn wait_writable(&self, timeout: Option<Duration>) -> io::Result<bool> {
        self.wait(PollFlags::POLLOUT, timeout)
    }

    /// Waits until [`receive`](Self::receive) would not block, `None` for ever. `false` if that
    /// takes longer. The end of the stream counts as readable.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn wait_readable(&self, timeout: Option<Duration>) -> io::Result<bool> {
        self.wait(PollFlags::POLLIN, timeout)
    }

    /// Whether nothing can be sent or received any more: the peer has closed the connection, or it
    /// is broken. A TCP peer that has closed it in order shows only once it was sent something.
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        // A poll that fails tells nothing, and the next send or receive meets the cause.
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    fn wait(&self, events: PollFlags, timeout: Option<Duration>) -> io::Result<bool> {
        // A deadline beyond what clocks can express is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let limit = left.map_or(PollTimeout::NONE, poll_timeout);
            match poll(&mut [PollFd::new(self.fd.as_fd(), events)], limit) {
                Ok(0) if left.is_none_or(|left| !left.is_zero()) => {}
                Ok(count) => return Ok(count > 0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

/// Ends a TCP connection at once, also if other processes have descriptors of it: what the peer has not
/// acknowledged is thrown away, and not sent when it can be reached again (`tcp_disconnect` in the kernel's tcp.c).
///
/// # Errors
///
/// Those of connect(2), as for a descriptor that is no TCP socket.
pub fn abort(connection: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::connect_unspec(connection)?)
}

/// There is no TCP_USER_TIMEOUT here: it would also end the connection to a peer that is alive
/// and stopped, in a debugger for example. See [`liveness`](crate::liveness).
fn prepare_tcp(fd: &OwnedFd) -> nix::Result<()> {
    setsockopt(fd, sockopt::TcpNoDelay, &true)?;
    setsockopt(fd, sockopt::KeepAlive, &true)?;
    setsockopt(fd, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE)?;
    setsockopt(fd, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL)?;
    setsockopt(fd, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)
}

fn prepare_unix(fd: &OwnedFd) -> nix::Result<()> {
    if getsockopt(fd, sockopt::SndBuf)? < UNIX_BUFFER {
        setsockopt(fd, sockopt::SndBuf, &UNIX_BUFFER)?;
    }
    if getsockopt(fd, sockopt::RcvBuf)? < UNIX_BUFFER {
        setsockopt(fd, sockopt::RcvBuf, &UNIX_BUFFER)?;
    }
    Ok(())
}

fn name_of_peer(fd: RawFd) -> nix::Result<String> {
    let peer: SockaddrStorage = getpeername(fd)?;
    if let Some(place) = peer.as_sockaddr_in6() {
        // An IPv4 client of a socket for both reads like one.
        let place = SocketAddr::new(place.ip().to_canonical(), place.port());
        return Ok(place.to_string());
    }
    if let Some(place) = peer.as_vsock_addr() {
        return Ok(Address::Vsock { cid: place.cid(), port: place.port() }.to_string());
    }
    Ok(peer.to_string())
}

/// For SO_RCVTIMEO and SO_SNDTIMEO, where zero is for ever.
fn time_value(time: Duration) -> TimeVal {
    let micros = time.as_micros().max(1);
    TimeVal::microseconds(i64::try_from(micros).unwrap_or(i64::MAX))
}

/// Rounded up, so that nobody polls in a loop for the last fraction of a millisecond; at most
/// what poll(2) can express.
fn poll_timeout(time: Duration) -> PollTimeout {
    let rounded = time.saturating_add(Duration::from_nanos(999_999));
    PollTimeout::try_from(rounded).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests;
