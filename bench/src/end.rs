//! One end of a connection, of whatever kind.

use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, sendmsg};

/// How long to look for what may come. Who has not come by then has gone to the disk.
const PATIENCE: Duration = Duration::from_millis(1);

/// A connected stream.
#[derive(Debug)]
pub enum End {
    /// A unix socket, or one of a pair.
    Unix(UnixStream),
    /// TCP, without delay.
    Tcp(TcpStream),
}

impl End {
    /// Connects to `unix:PATH` or `tcp:HOST:PORT`.
    ///
    /// # Errors
    ///
    /// `target` is of another form, or nothing listens there.
    pub fn connect(target: &str) -> io::Result<Self> {
        match target.split_once(':') {
            Some(("unix", path)) => Ok(Self::Unix(UnixStream::connect(path)?)),
            Some(("tcp", address)) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            _ => Err(io::Error::other("neither unix:PATH nor tcp:HOST:PORT")),
        }
    }

    /// Sends what goes out at once, and says how much that was.
    ///
    /// # Errors
    ///
    /// Those of sendmsg(2); a full socket is none.
    pub fn send_now(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.as_fd().as_raw_fd(), parts, &[], flags, None) {
            Ok(count) => Ok(count),
            Err(nix::Error::EAGAIN) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until there is something to receive, or room to send.
    ///
    /// # Errors
    ///
    /// Those of poll(2), a signal among them.
    pub fn wait(&self) -> io::Result<()> {
        let mut fd = [PollFd::new(self.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
        poll(&mut fd, PollTimeout::NONE)?;
        Ok(())
    }

    /// Waits for something to receive without giving the processor away, for a while.
    ///
    /// # Errors
    ///
    /// As for [`has_bytes`](Self::has_bytes).
    pub fn look(&self) -> io::Result<()> {
        let begin = Instant::now();
        while !self.has_bytes()? && begin.elapsed() < PATIENCE {}
        Ok(())
    }

    /// Whether there is something to receive.
    ///
    /// # Errors
    ///
    /// Those of poll(2), a signal among them.
    pub fn has_bytes(&self) -> io::Result<bool> {
        let mut fd = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fd, PollTimeout::ZERO)? > 0)
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket.
    Unix(UnixListener),
    /// TCP.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on `unix:PATH` or `tcp:HOST:PORT`.
    ///
    /// # Errors
    ///
    /// `address` is of another form, in use, or not one of this machine.
    pub fn bind(address: &str) -> io::Result<Self> {
        match address.split_once(':') {
            Some(("unix", path)) => Ok(Self::Unix(UnixListener::bind(path)?)),
            Some(("tcp", address)) => Ok(Self::Tcp(TcpListener::bind(address)?)),
            _ => Err(io::Error::other(format!("{address}: neither unix:PATH nor tcp:HOST:PORT"))),
        }
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// Those of accept(2).
    pub fn accept(&self) -> io::Result<End> {
        match self {
            Self::Unix(listener) => Ok(End::Unix(listener.accept()?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(End::Tcp(stream))
            }
        }
    }
}
